//! What each key opens: by the settings of one key for each role, and by scopes.

use gimbal_control::{
    Config,
    api_key::Scope,
    config::{Api, ApiKey, Secret},
};
use gimbal_rpc::v1;
use tonic::{Code, Response, Status};

use super::rig::{Rig, config, keyed, why};

/// Whether a call was let in as far as its key goes; refused ones say why in one way.
fn is_open<T>(result: Result<Response<T>, Status>) -> bool {
    let Err(status) = result else { return true };
    if status.code() == Code::PermissionDenied {
        assert_eq!(why(&status).0, "permission_denied", "{status:?}");
        return false;
    }
    assert_ne!(status.code(), Code::Unauthenticated, "{status:?}");
    true
}

/// One method of each scope; what they are refused for beside the key comes after it.
async fn opened(rig: &Rig, key: &str) -> Vec<Scope> {
    let mut accounts = rig.accounts();
    let mut friends = v1::friends_client::FriendsClient::new(rig.channel.clone());
    let mut presence = v1::presence_client::PresenceClient::new(rig.channel.clone());
    let mut groups = v1::groups_client::GroupsClient::new(rig.channel.clone());
    let register = v1::RegisterDeviceRequest::default();
    let (read, kick) = (v1::ListSessionsRequest::default(), v1::KickRequest::default());
    let open = [
        (Scope::Accounts, is_open(accounts.register_device(keyed(key, register)).await)),
        (
            Scope::Messages,
            is_open(rig.messages().push_to_all(keyed(key, v1::PushToAllRequest::default())).await),
        ),
        (Scope::Rooms, is_open(rig.rooms().count(keyed(key, v1::CountRequest::default())).await)),
        (Scope::Friends, is_open(friends.list(keyed(key, v1::ListFriendsRequest::default())).await)),
        (Scope::Events, is_open(presence.get(keyed(key, v1::GetPresenceRequest::default())).await)),
        (Scope::Groups, is_open(groups.list_mine(keyed(key, v1::ListMineRequest::default())).await)),
        (Scope::AdminRead, is_open(rig.admin().list_sessions(keyed(key, read)).await)),
        (Scope::Admin, is_open(rig.admin().kick(keyed(key, kick)).await)),
    ];
    open.into_iter().filter(|(_, is_open)| *is_open).map(|(scope, _)| scope).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_role_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let [backend, admin] = ["backend-0123456789", "admin-0123456789ab"].map(|key| {
        let path = dir.path().join(key);
        std::fs::write(&path, format!("{key}\n")).unwrap();
        path
    });
    let config =
        Config { backend_key_file: Some(backend), admin_key_file: Some(admin), ..config(dir.path()) };
    let rig = Rig::with(config).await;
    let of_backend = opened(&rig, "backend-0123456789").await;
    let all = [Scope::Accounts, Scope::Messages, Scope::Rooms, Scope::Friends, Scope::Events, Scope::Groups];
    assert_eq!(of_backend, all);
    assert_eq!(opened(&rig, "admin-0123456789ab").await, [Scope::AdminRead, Scope::Admin]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_scope_opens_its_own_methods_and_metrics_name_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let key = |scope: Scope| ApiKey {
        name: scope.name().replace(':', "-") + "-key",
        key: Some(Secret(format!("0123456789abcdef-{}", scope.name()))),
        key_file: None,
        scopes: vec![scope],
    };
    let config = Config { api: Api { keys: Scope::ALL.map(key).to_vec() }, ..config(dir.path()) };
    let rig = Rig::with(config).await;
    for scope in Scope::ALL {
        let expected = match scope {
            Scope::Admin => vec![Scope::AdminRead, Scope::Admin],
            Scope::Link => vec![],
            scope => vec![scope],
        };
        assert_eq!(opened(&rig, &format!("0123456789abcdef-{}", scope.name())).await, expected);
    }
    let unknown = rig.rooms().count(keyed("dev", v1::CountRequest::default())).await.unwrap_err();
    assert_eq!((unknown.code(), why(&unknown).0), (Code::Unauthenticated, "not_signed_in"));
    let page = rig.http("/metrics").await.1;
    for line in [
        "gimbal_control_api_calls_total{key=\"rooms-key\",outcome=\"allowed\"} 1",
        "gimbal_control_api_calls_total{key=\"rooms-key\",outcome=\"no_scope\"} 7",
        "gimbal_control_api_calls_total{key=\"unknown\",outcome=\"refused\"} 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("0123456789abcdef"));
    rig.stop().await;
}
