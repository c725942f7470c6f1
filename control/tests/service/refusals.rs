//! What each method refuses, with its stable reason and field.

use bytes::Bytes;
use gimbal_control::{
    Config, ControlServer, StartError,
    config::{CodeIssuer, ConfigError},
};
use gimbal_rpc::v1;
use tonic::{Code, Request, Status};

use super::rig::{Person, Rig, WAIT, config, keyed, why};

fn code_and_why(status: &Status) -> (Code, &str, &str) {
    let (reason, field) = why(status);
    (status.code(), reason, field)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_refuses_a_caller_without_its_credential() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (mut accounts, mut messages, mut rooms, mut admin) =
        (rig.accounts(), rig.messages(), rig.rooms(), rig.admin());
    let refused = [
        accounts.register_device(v1::RegisterDeviceRequest::default()).await.err(),
        accounts.revoke_token(v1::RevokeTokenRequest::default()).await.err(),
        messages.send(v1::SendRequest::default()).await.err(),
        messages.push_to_users(v1::PushToUsersRequest::default()).await.err(),
        messages.push_to_all(v1::PushToAllRequest::default()).await.err(),
        messages.sync(v1::SyncRequest::default()).await.err(),
        messages.ack(v1::AckRequest::default()).await.err(),
        rooms.publish(v1::PublishRequest::default()).await.err(),
        rooms.publish_stream(tokio_stream::empty::<v1::PublishRequest>()).await.err(),
        rooms.count(v1::CountRequest::default()).await.err(),
        admin.list_sessions(v1::ListSessionsRequest::default()).await.err(),
        admin.kick(v1::KickRequest::default()).await.err(),
        admin.stats(v1::StatsRequest {}).await.err(),
        admin.stats(keyed("wrong", v1::StatsRequest {})).await.err(),
        messages.push_to_all(keyed("", v1::PushToAllRequest::default())).await.err(),
    ];
    for (at, status) in refused.into_iter().enumerate() {
        let status = status.unwrap_or_else(|| panic!("call {at} was let in"));
        assert_eq!(code_and_why(&status), (Code::Unauthenticated, "not_signed_in", ""), "call {at}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_an_unknown_device_and_another_users_device_are_refused_alike() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("1").await, rig.person("2").await);
    let wrong = [
        Person { token: "0".repeat(64), ..anna.clone() },
        Person { token: "x".repeat(5000), ..anna.clone() },
        Person { device: 999, ..anna.clone() },
        Person { user: ben.user, ..anna.clone() },
        Person { user: 0, ..anna.clone() },
        Person { user: u64::MAX, device: u64::MAX, ..anna.clone() },
    ];
    for person in wrong {
        let refused = rig.messages().sync(person.call(v1::SyncRequest::default())).await.unwrap_err();
        assert_eq!(code_and_why(&refused), (Code::Unauthenticated, "not_signed_in", ""), "{person:?}");
    }
    let revoke =
        v1::RevokeTokenRequest { user_id: ben.user, device_id: ben.device, idempotency_key: String::new() };
    let refused = rig.accounts().revoke_token(anna.call(revoke)).await.unwrap_err();
    assert_eq!(code_and_why(&refused), (Code::PermissionDenied, "permission_denied", ""));
    rig.stop().await;
}

fn named<T>(result: Result<tonic::Response<T>, Status>) -> (Code, String, String) {
    let status = result.err().expect("refused");
    let (reason, field) = why(&status);
    (status.code(), reason.to_owned(), field.to_owned())
}

fn bad(field: &str) -> (Code, String, String) {
    (Code::InvalidArgument, "bad_request".to_owned(), field.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_breaks_its_rule_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("1").await;
    let (mut accounts, mut messages, mut rooms, mut admin) =
        (rig.accounts(), rig.messages(), rig.rooms(), rig.admin());

    for phone in ["", "12 34", "+", &"1".repeat(33)] {
        let body = v1::SignInRequest { phone_number: phone.to_owned(), ..v1::SignInRequest::default() };
        assert_eq!(named(accounts.sign_in(body).await), bad("phone_number"), "{phone:?}");
    }
    let device = v1::Device { brand: "x".repeat(300), ..v1::Device::default() };
    let body = v1::SignInRequest { phone_number: "1".into(), code: String::new(), device: Some(device) };
    assert_eq!(named(accounts.sign_in(body).await), bad("device.brand"));

    let send = v1::SendRequest { client_message_id: 1, to_user: anna.user, ..v1::SendRequest::default() };
    let unnumbered = v1::SendRequest { client_message_id: 0, ..send.clone() };
    assert_eq!(named(messages.send(anna.call(unnumbered)).await), bad("client_message_id"));
    let long = v1::SendRequest { content: Bytes::from(vec![0; 61 * 1024]), ..send.clone() };
    let too_large = (Code::InvalidArgument, "content_too_large".to_owned(), "content".to_owned());
    assert_eq!(named(messages.send(anna.call(long)).await), too_large);
    for nobody in [0, 1, u64::MAX] {
        let to_nobody = v1::SendRequest { to_user: nobody, ..send.clone() };
        let (code, reason, _) = named(messages.send(anna.call(to_nobody)).await);
        assert_eq!((code, reason.as_str()), (Code::NotFound, "user_not_found"), "{nobody}");
    }

    let crowd =
        |count| v1::PushToUsersRequest { user_ids: vec![1; count], ..v1::PushToUsersRequest::default() };
    assert_eq!(named(messages.push_to_users(keyed("dev", crowd(0))).await), bad("user_ids"));
    assert_eq!(named(messages.push_to_users(keyed("dev", crowd(513))).await), bad("user_ids"));
    let key = v1::PushToUsersRequest { idempotency_key: "k".repeat(65), ..crowd(1) };
    assert_eq!(named(messages.push_to_users(keyed("dev", key)).await), bad("idempotency_key"));
    let page = v1::SyncRequest { after: 0, limit: 501 };
    assert_eq!(named(messages.sync(anna.call(page)).await), bad("limit"));

    assert_eq!(named(rooms.publish(keyed("dev", v1::PublishRequest::default())).await), bad("room_id"));
    assert_eq!(named(rooms.count(keyed("dev", v1::CountRequest::default())).await), bad("room_ids"));
    let list = v1::ListSessionsRequest { page_size: 1001, ..v1::ListSessionsRequest::default() };
    assert_eq!(named(admin.list_sessions(keyed("dev", list)).await), bad("page_size"));
    let list = v1::ListSessionsRequest { page_token: "x".into(), ..v1::ListSessionsRequest::default() };
    assert_eq!(named(admin.list_sessions(keyed("dev", list)).await), bad("page_token"));
    assert_eq!(named(admin.kick(keyed("dev", v1::KickRequest::default())).await), bad("user_id"));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_with_another_body_is_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("1").await;
    let push = |content: &'static [u8]| v1::PushToUsersRequest {
        user_ids: vec![anna.user],
        content: Bytes::from_static(content),
        idempotency_key: "k".into(),
        ..v1::PushToUsersRequest::default()
    };
    rig.messages().push_to_users(keyed("dev", push(b"one"))).await.unwrap();
    let refused = rig.messages().push_to_users(keyed("dev", push(b"two"))).await;
    assert_eq!(named(refused), (Code::AlreadyExists, "conflict".to_owned(), String::new()));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_cannot_use_up_the_backends_keys() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("1").await;
    let revoke = v1::RevokeTokenRequest {
        user_id: anna.user,
        device_id: anna.device,
        idempotency_key: "order-1".into(),
    };
    assert!(rig.accounts().revoke_token(anna.call(revoke)).await.unwrap().into_inner().revoked);
    let push = v1::PushToUsersRequest {
        user_ids: vec![anna.user],
        idempotency_key: "order-1".into(),
        ..v1::PushToUsersRequest::default()
    };
    rig.messages().push_to_users(keyed("dev", push)).await.unwrap();
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outside_of_dev_only_an_issued_code_signs_in() {
    let dir = tempfile::tempdir().unwrap();
    let [backend, admin, codes] = ["backend", "admin", "codes"].map(|name| dir.path().join(name));
    std::fs::write(&backend, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::write(&admin, "fedcba9876543210fedcba9876543210\n").unwrap();
    let config = Config {
        backend_key_file: Some(backend),
        admin_key_file: Some(admin),
        code_issuer: Some(CodeIssuer::File(codes.clone())),
        ..config(dir.path())
    };
    let server = ControlServer::start(config.check(false).unwrap()).await.unwrap();
    let endpoint = format!("http://{}", server.grpc_address());
    let mut accounts = v1::accounts_client::AccountsClient::connect(endpoint).await.unwrap();
    let body =
        |code: &str| v1::SignInRequest { phone_number: "+491".into(), code: code.to_owned(), device: None };
    let wrong = (Code::InvalidArgument, "bad_code".to_owned(), String::new());
    assert_eq!(named(accounts.sign_in(body("000000")).await), wrong);
    let ask = v1::RequestCodeRequest { phone_number: "+491".into() };
    assert_eq!(accounts.request_code(ask.clone()).await.unwrap().into_inner().expires_in_ms, 300_000);
    let soon = (Code::ResourceExhausted, "too_soon".to_owned(), String::new());
    assert_eq!(named(accounts.request_code(ask).await), soon);
    let told = std::fs::read_to_string(&codes).unwrap();
    let code = told.trim().strip_prefix("+491 ").unwrap();
    let unknown = Some(v1::Device { id: 4711, ..v1::Device::default() });
    let failed = accounts.sign_in(v1::SignInRequest { device: unknown, ..body(code) }).await;
    assert_eq!(named(failed).1, "device_not_found", "a sign-in that failed leaves the code");
    assert!(accounts.sign_in(body(code)).await.unwrap().into_inner().is_new);
    assert_eq!(named(accounts.sign_in(body(code)).await), wrong, "a code signs in once");
    drop(accounts);
    server.stop(WAIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_starts_on_a_default_secret_a_busy_port_or_a_locked_directory() {
    let dir = tempfile::tempdir().unwrap();
    let refused = config(dir.path()).check(false).err().unwrap();
    assert!(matches!(refused, ConfigError::KeyMissing { key: "backend_key_file" }));

    let rig = Rig::start(dir.path()).await;
    let mut busy = config(&dir.path().join("other"));
    busy.http_listen = rig.server.http_address();
    let refused = ControlServer::start(busy.check(true).unwrap()).await.err().unwrap();
    assert!(matches!(refused, StartError::Bind { key: "http_listen", .. }), "{refused}");
    assert!(refused.to_string().contains("cannot listen on 127.0.0.1:"), "{refused}");
    let locked = ControlServer::start(config(dir.path()).check(true).unwrap()).await.err().unwrap();
    assert!(matches!(locked, StartError::Store(_)), "{locked}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_form_of_a_token_is_as_good_as_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("1").await;
    let mut request = Request::new(v1::SyncRequest::default());
    request.metadata_mut().insert("user_id", anna.user.to_string().parse().unwrap());
    request.metadata_mut().insert("device_id", anna.device.to_string().parse().unwrap());
    let value = tonic::metadata::MetadataValue::from_bytes(anna.token.as_bytes());
    request.metadata_mut().insert_bin("token-bin", value);
    rig.messages().sync(request).await.unwrap();
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_bounded_in_size_and_the_largest_push_fits() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let phone_number = "1".repeat(9 << 10);
    let long = v1::SignInRequest { phone_number, ..v1::SignInRequest::default() };
    let refused = rig.accounts().sign_in(long).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let push = v1::PushToUsersRequest {
        user_ids: vec![u64::MAX; 512],
        content: Bytes::from(vec![7; 60 << 10]),
        idempotency_key: "k".repeat(64),
        ..v1::PushToUsersRequest::default()
    };
    let pushed = rig.messages().push_to_users(keyed("dev", push)).await.unwrap().into_inner();
    assert_eq!(pushed.users.len(), 512);
    let content = Bytes::from(vec![7; 80 << 10]);
    let huge = v1::SendRequest { client_message_id: 1, content, ..v1::SendRequest::default() };
    assert_eq!(rig.messages().send(huge).await.unwrap_err().code(), Code::OutOfRange);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_beyond_the_bound_is_closed_and_counted_and_leaves_room_when_one_ends() {
    use tokio::io::AsyncReadExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.connections_max = 16;
    let rig = Rig::with(config).await;
    let open = || tokio::net::TcpStream::connect(rig.server.grpc_address());
    let mut held = Vec::new();
    // The rig's own is one of them.
    for _ in 0..15 {
        held.push(open().await.unwrap());
    }
    let ended = open().await.unwrap().read(&mut [0; 1]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "closed without a byte");
    let (_, page) = rig.http("/metrics").await;
    assert!(page.contains("gimbal_control_dropped_total{reason=\"connections_full\"} 1"), "{page}");
    rig.person("1").await;
    held.clear();
    let address = format!("http://{}", rig.server.grpc_address());
    let welcomed = async {
        let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
        loop {
            let Ok(channel) = endpoint.connect().await else { continue };
            let mut admin = v1::admin_client::AdminClient::new(channel);
            if admin.stats(keyed("dev", v1::StatsRequest {})).await.is_ok() {
                break;
            }
        }
    };
    tokio::time::timeout(WAIT, welcomed).await.expect("a place is free again");
    rig.stop().await;
}
