//! Profiles, devices and friends over gRPC: who may ask, for whom, and what each gets to see.

use gimbal_rpc::v1::{self, Friendship, accounts_client::AccountsClient, friends_client::FriendsClient};
use tonic::{Code, Request};

use super::rig::{Person, Rig, keyed, why};

/// A backend's request for a user.
fn for_user<T>(user: u64, body: T) -> Request<T> {
    let mut request = keyed("dev", body);
    request.metadata_mut().insert("user_id", user.to_string().parse().unwrap());
    request
}

fn add(user_id: u64) -> v1::AddFriendRequest {
    v1::AddFriendRequest { user_id, remark: "r".into(), description: "d".into(), idempotency_key: "a".into() }
}

async fn name(rig: &Rig, person: &Person, nickname: &str) {
    let body = v1::UpdateUserRequest { nickname: Some(nickname.into()), ..Default::default() };
    rig.accounts().update_user(person.call(body)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_is_seen_by_all_and_its_phone_number_by_its_owner_and_the_backend() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("+491").await, rig.person("+492").await);
    name(&rig, &anna, "Anna").await;
    let mut accounts = rig.accounts();
    let both = v1::GetUsersRequest { user_ids: vec![ben.user, anna.user, 99, anna.user] };
    let seen = |reply: v1::GetUsersReply| -> Vec<(String, String)> {
        reply.users.into_iter().map(|user| (user.nickname, user.phone_number)).collect()
    };
    let by_ben = accounts.get_users(ben.call(both.clone())).await.unwrap().into_inner();
    assert_eq!(seen(by_ben), [("".into(), "+492".into()), ("Anna".into(), "".into())]);
    let by_backend = accounts.get_users(keyed("dev", both)).await.unwrap().into_inner();
    assert_eq!(seen(by_backend), [("".into(), "+492".into()), ("Anna".into(), "+491".into())]);
    let own = accounts.get_users(anna.call(v1::GetUsersRequest::default())).await.unwrap().into_inner();
    assert_eq!(seen(own), [("Anna".into(), "+491".into())]);

    let found = |query: &str, phone: &str| v1::SearchUsersRequest {
        query: query.into(),
        phone_number: phone.into(),
        ..Default::default()
    };
    let by_name = accounts.search_users(ben.call(found("nn", ""))).await.unwrap().into_inner();
    assert_eq!((by_name.users[0].user_id, by_name.next_page_token.as_str()), (anna.user, ""));
    let by_phone = accounts.search_users(ben.call(found("", "+491"))).await.unwrap().into_inner();
    assert_eq!((by_phone.users[0].user_id, by_phone.users[0].phone_number.as_str()), (anna.user, ""));
    for wrong in [found("", ""), found("nn", "+491"), found("n", "")] {
        let refused = accounts.search_users(ben.call(wrong)).await.unwrap_err();
        assert_eq!((refused.code(), why(&refused)), (Code::InvalidArgument, ("bad_request", "query")));
    }
    let foreign = v1::SearchUsersRequest { page_token: "zz".into(), ..found("nn", "") };
    assert_eq!(why(&accounts.search_users(ben.call(foreign)).await.unwrap_err()).1, "page_token");
    let large = v1::SearchUsersRequest { page_size: 201, ..found("nn", "") };
    assert_eq!(why(&accounts.search_users(ben.call(large)).await.unwrap_err()).1, "page_size");
    let many = v1::GetUsersRequest { user_ids: vec![1; 201] };
    assert_eq!(why(&accounts.get_users(ben.call(many)).await.unwrap_err()).1, "user_ids");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn friends_are_listed_page_by_page_for_a_device_and_for_a_backend_in_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("+491").await;
    let mut friends = FriendsClient::new(rig.channel.clone());
    let mut others = Vec::new();
    for phone in 2..=6 {
        let other = rig.person(&format!("+49{phone}")).await;
        let asked = friends.add(for_user(other.user, add(anna.user))).await;
        // All of these keys are equal: those of one backend are one space.
        if phone > 2 {
            assert_eq!(why(&asked.unwrap_err()).0, "conflict");
            friends.add(other.call(add(anna.user))).await.unwrap();
        }
        let agree = v1::AgreeFriendRequest { user_id: other.user, ..Default::default() };
        friends.agree(anna.call(agree)).await.unwrap();
        others.push(other.user);
    }
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let body = v1::ListFriendsRequest { page_size: 2, page_token, ..Default::default() };
        let page = friends.list(for_user(anna.user, body)).await.unwrap().into_inner();
        listed.extend(page.friends.iter().map(|friend| friend.user.as_ref().unwrap().user_id));
        assert!(page.friends.iter().all(|friend| friend.friendship() == Friendship::Friends));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, others);
    let nobody = friends.list(keyed("dev", v1::ListFriendsRequest::default())).await.unwrap().into_inner();
    assert!(nobody.friends.is_empty(), "a backend that names no user sees none");
    let unnamed = friends.add(keyed("dev", add(anna.user))).await.unwrap_err();
    assert_eq!((unnamed.code(), why(&unnamed)), (Code::InvalidArgument, ("bad_request", "user_id")));
    let stranger = Person { token: "0".repeat(64), ..anna.clone() };
    let refused = friends.list(stranger.call(v1::ListFriendsRequest::default())).await.unwrap_err();
    assert_eq!((refused.code(), why(&refused).0), (Code::Unauthenticated, "not_signed_in"));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_user_is_told_and_a_removed_device_is_out() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("+491").await, rig.person("+492").await);
    let mut friends = FriendsClient::new(rig.channel.clone());
    let block = v1::BlockRequest { user_id: ben.user, idempotency_key: String::new() };
    friends.block(anna.call(block)).await.unwrap();
    let send = |to| v1::SendRequest {
        client_message_id: 1,
        to_user: to,
        command: 7,
        content: "x".into(),
        to_group: 0,
    };
    let refused = rig.messages().send(ben.call(send(anna.user))).await.unwrap_err();
    assert_eq!((refused.code(), why(&refused).0), (Code::PermissionDenied, "blocked"));
    let listed = friends.list_blocked(anna.call(v1::ListBlockedRequest::default())).await.unwrap();
    assert_eq!(listed.into_inner().users[0].user_id, ben.user);
    let unblock = v1::UnblockRequest { user_id: ben.user, idempotency_key: String::new() };
    friends.unblock(anna.call(unblock)).await.unwrap();
    rig.messages().send(ben.call(send(anna.user))).await.unwrap();

    let tablet = rig.person("+491").await;
    let mut accounts: AccountsClient<_> = rig.accounts();
    let all = accounts.list_devices(anna.call(v1::ListDevicesRequest {})).await.unwrap().into_inner();
    assert_eq!(all.devices.iter().filter(|device| device.has_token).count(), 2);
    let remove = v1::RemoveDeviceRequest { device_id: tablet.device, ..Default::default() };
    accounts.remove_device(anna.call(remove.clone())).await.unwrap();
    let out = accounts.list_devices(tablet.call(v1::ListDevicesRequest {})).await.unwrap_err();
    assert_eq!(out.code(), Code::Unauthenticated);
    let again = accounts.remove_device(anna.call(remove)).await.unwrap_err();
    assert_eq!((again.code(), why(&again).0), (Code::NotFound, "device_not_found"));
    rig.stop().await;
}
