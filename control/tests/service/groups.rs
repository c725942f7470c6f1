//! Groups over the network: by devices, by backends for users, and by backends for themselves.

use bytes::Bytes;
use gimbal_codec::Seq;
use gimbal_rpc::{
    link::{Down, Recipient, Tag, Up},
    v1::{self, groups_client::GroupsClient},
};
use tonic::{Code, Request, Response, Status, transport::Channel};

use super::rig::{Person, Rig, keyed, session, why};

const BACKEND: &str = "dev";

fn groups(rig: &Rig) -> GroupsClient<Channel> {
    GroupsClient::new(rig.channel.clone())
}

/// A backend for a user.
fn for_user<T>(user: u64, body: T) -> Request<T> {
    let mut request = keyed(BACKEND, body);
    request.metadata_mut().insert("user_id", user.to_string().parse().unwrap());
    request
}

async fn mailbox(rig: &Rig, person: &Person) -> Vec<v1::Message> {
    let request = person.call(v1::SyncRequest { after: 0, limit: 500 });
    rig.messages().sync(request).await.unwrap().into_inner().messages
}

fn refusal<T: std::fmt::Debug>(reply: Result<Response<T>, Status>) -> (Code, String, String) {
    let status = reply.unwrap_err();
    let (reason, field) = why(&status);
    (status.code(), reason.to_owned(), field.to_owned())
}

struct Band {
    id: u64,
    anna: Person,
    ben: Person,
    carl: Person,
}

async fn band(rig: &Rig) -> Band {
    let (anna, ben, carl) = (rig.person("1").await, rig.person("2").await, rig.person("3").await);
    let body = v1::CreateGroupRequest {
        name: "band".into(),
        user_ids: vec![ben.user, 5],
        ..v1::CreateGroupRequest::default()
    };
    let reply = groups(rig).create(anna.call(body)).await.unwrap().into_inner();
    let reasons: Vec<&str> = reply.members.iter().map(|member| member.reason.as_str()).collect();
    assert_eq!(reasons, ["", "user_not_found"]);
    Band { id: reply.group_id, anna, ben, carl }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_lives_from_its_creation_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let Band { id: group_id, anna, ben, carl } = band(&rig).await;
    let mut api = groups(&rig);
    let key = String::new;
    let add = v1::AddMembersRequest { group_id, user_ids: vec![carl.user], idempotency_key: key() };
    api.add_members(anna.call(add)).await.unwrap();
    let role = v1::GroupRole::Admin.into();
    let set = v1::SetRoleRequest { group_id, user_id: ben.user, role, idempotency_key: key() };
    api.set_role(anna.call(set)).await.unwrap();
    let update = v1::UpdateGroupRequest {
        group_id,
        introduction: Some("loud".into()),
        ..v1::UpdateGroupRequest::default()
    };
    api.update(ben.call(update)).await.unwrap();
    let nickname =
        v1::SetMemberRequest { group_id, nickname: Some("drums".into()), ..v1::SetMemberRequest::default() };
    api.set_member(carl.call(nickname)).await.unwrap();
    let mute = v1::MuteRequest { group_id, user_id: carl.user, until_ms: i64::MAX, idempotency_key: key() };
    api.mute(ben.call(mute)).await.unwrap();
    let transfer = v1::TransferGroupRequest { group_id, user_id: ben.user, idempotency_key: key() };
    api.transfer(anna.call(transfer)).await.unwrap();

    let shown = api.get(carl.call(v1::GetGroupRequest { group_id })).await.unwrap().into_inner();
    let (group, me) = (shown.group.unwrap(), shown.me.unwrap());
    assert_eq!((group.name.as_str(), group.introduction.as_str()), ("band", "loud"));
    assert_eq!((group.owner_id, group.members, group.latest_seq), (ben.user, 3, 7));
    assert_eq!((me.nickname.as_str(), me.muted_until_ms), ("drums", i64::MAX));
    let list = v1::ListMembersRequest { group_id, page_size: 2, page_token: String::new() };
    let first = api.list_members(carl.call(list)).await.unwrap().into_inner();
    let list = v1::ListMembersRequest { group_id, page_size: 2, page_token: first.next_page_token.clone() };
    let second = api.list_members(carl.call(list)).await.unwrap().into_inner();
    let all: Vec<(u64, v1::GroupRole)> =
        first.members.iter().chain(&second.members).map(|member| (member.user_id, member.role())).collect();
    let admin = v1::GroupRole::Admin;
    let expected = [(anna.user, admin), (ben.user, v1::GroupRole::Owner), (carl.user, v1::GroupRole::Member)];
    assert_eq!((all.as_slice(), second.next_page_token.as_str()), (&expected[..], ""));

    api.leave(anna.call(v1::LeaveGroupRequest { group_id, idempotency_key: key() })).await.unwrap();
    let mine = v1::ListMineRequest::default();
    assert!(api.list_mine(anna.call(mine.clone())).await.unwrap().into_inner().groups.is_empty());
    assert_eq!(api.list_mine(for_user(ben.user, mine.clone())).await.unwrap().into_inner().groups.len(), 1);
    let end = v1::DissolveGroupRequest { group_id, idempotency_key: key() };
    api.dissolve(ben.call(end)).await.unwrap();
    assert!(api.list_mine(ben.call(mine)).await.unwrap().into_inner().groups.is_empty());
    let commands: Vec<i32> = mailbox(&rig, &carl).await.iter().map(|message| message.command).collect();
    assert_eq!(commands, [121, 125, 120, 127, 126, 124, 122, 123]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_comes_by_call_by_session_and_by_backend_in_one_order() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let Band { id: group_id, anna, ben, .. } = band(&rig).await;
    let by_call = v1::SendRequest {
        client_message_id: 1,
        to_group: group_id,
        command: 7,
        content: Bytes::from_static(b"by call"),
        ..v1::SendRequest::default()
    };
    let sent = rig.messages().send(ben.call(by_call.clone())).await.unwrap().into_inner();
    assert_eq!((sent.seq, sent.duplicate), (2, false));
    let again = rig.messages().send(ben.call(by_call.clone())).await.unwrap().into_inner();
    assert_eq!(again, v1::SendReply { duplicate: true, ..sent });

    let gateway = rig.gateway(1);
    gateway.submit(vec![anna.sign_in(session(1))]);
    let Down::SignedIn { attach, .. } = gateway.next().await else { panic!("anna signs in") };
    let caller = gimbal_rpc::link::Caller {
        session: session(1),
        attach,
        user: gimbal_codec::UserId::new(anna.user),
        device: gimbal_codec::DeviceId::new(anna.device),
    };
    gateway.submit(vec![Up::Send {
        caller,
        tag: Tag { request_id: Bytes::from_static(b"r"), seq: 9 },
        client_message_id: gimbal_codec::ClientMessageId::new(1),
        to: Recipient::Group(gimbal_codec::GroupId::new(group_id)),
        command: 7,
        content: Bytes::from_static(b"by session"),
    }]);
    let (mut answer, mut delivered) = (None, None);
    while answer.is_none() || delivered.is_none() {
        match gateway.next().await {
            Down::SendDone { result, .. } => answer = Some(result.unwrap()),
            Down::Deliver { body, targets } => delivered = Some((body, targets.len())),
            other => panic!("{other:?}"),
        }
    }
    let (body, targets) = delivered.unwrap();
    assert_eq!((answer.unwrap().seq, body.group_seq, targets), (Seq::new(3), Seq::new(3), 1));
    assert_eq!((body.group.get(), body.from_device.get()), (group_id, anna.device));

    let push = v1::PushToGroupRequest {
        group_id,
        command: 7,
        content: Bytes::from_static(b"by backend"),
        idempotency_key: "once".into(),
    };
    let pushed = groups(&rig).push(keyed(BACKEND, push.clone())).await.unwrap().into_inner();
    let again = groups(&rig).push(keyed(BACKEND, push)).await.unwrap().into_inner();
    assert_eq!((pushed.group_seq, again.message_id, again.duplicate), (4, pushed.message_id, true));
    for person in [&anna, &ben] {
        let messages = mailbox(&rig, person).await;
        let said: Vec<(u64, u64, &[u8])> =
            messages[1..].iter().map(|m| (m.group_id, m.group_seq, m.content.as_ref())).collect();
        let expected: [(u64, u64, &[u8]); 3] =
            [(group_id, 2, b"by call"), (group_id, 3, b"by session"), (group_id, 4, b"by backend")];
        assert_eq!(said, expected);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_their_reason_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let Band { id: group_id, anna, ben, carl } = band(&rig).await;
    let mut api = groups(&rig);
    let of = |code, reason: &str, field: &str| (code, reason.to_owned(), field.to_owned());
    let get = |group_id| v1::GetGroupRequest { group_id };
    assert_eq!(
        refusal(api.get(anna.call(get(0))).await),
        of(Code::InvalidArgument, "bad_request", "group_id")
    );
    assert_eq!(refusal(api.get(anna.call(get(u64::MAX))).await), of(Code::NotFound, "group_not_found", ""));
    let stranger = of(Code::PermissionDenied, "not_in_group", "");
    assert_eq!(refusal(api.get(carl.call(get(group_id))).await), stranger);
    let list = v1::ListMembersRequest { group_id, ..v1::ListMembersRequest::default() };
    assert_eq!(refusal(api.list_members(carl.call(list.clone())).await), stranger);
    assert_eq!(refusal(api.list_members(for_user(carl.user, list.clone())).await), stranger);
    let big = v1::ListMembersRequest { page_size: 1_000_000_000, ..list };
    let page_size = of(Code::InvalidArgument, "bad_request", "page_size");
    assert_eq!(refusal(api.list_members(anna.call(big)).await), page_size);
    let mine = v1::ListMineRequest { page_token: "zz".into(), page_size: 0 };
    let token = of(Code::InvalidArgument, "bad_request", "page_token");
    assert_eq!(refusal(api.list_mine(anna.call(mine)).await), token);
    let mine = refusal(api.list_mine(keyed(BACKEND, v1::ListMineRequest::default())).await);
    assert_eq!(mine, of(Code::InvalidArgument, "bad_request", "user_id"));
    let role = |role| v1::SetRoleRequest { group_id, user_id: ben.user, role, ..Default::default() };
    for wrong in [0, 3, 99] {
        let refused = refusal(api.set_role(anna.call(role(wrong))).await);
        assert_eq!(refused, of(Code::InvalidArgument, "bad_request", "role"));
    }
    assert_eq!(
        refusal(api.set_role(ben.call(role(1))).await),
        of(Code::PermissionDenied, "role_too_low", "")
    );
    let many = v1::AddMembersRequest { group_id, user_ids: vec![1; 513], ..Default::default() };
    let too_many = of(Code::InvalidArgument, "bad_request", "user_ids");
    assert_eq!(refusal(api.add_members(anna.call(many)).await), too_many);
    let leave = v1::LeaveGroupRequest { group_id, ..Default::default() };
    assert_eq!(refusal(api.leave(anna.call(leave)).await), of(Code::FailedPrecondition, "is_owner", ""));
    let chosen = v1::CreateGroupRequest { group_id, owner_id: anna.user, ..Default::default() };
    let exists = of(Code::AlreadyExists, "group_exists", "");
    assert_eq!(refusal(api.create(keyed(BACKEND, chosen)).await), exists);
    let push = v1::PushToGroupRequest { group_id, ..Default::default() };
    let nobody = refusal(api.push(anna.call(push.clone())).await);
    assert_eq!(nobody, of(Code::Unauthenticated, "not_signed_in", ""));
    assert_eq!(refusal(api.push(for_user(carl.user, push)).await), stranger);
    let both =
        v1::SendRequest { client_message_id: 1, to_user: ben.user, to_group: group_id, ..Default::default() };
    let one_of = of(Code::InvalidArgument, "bad_request", "to_group");
    assert_eq!(refusal(rig.messages().send(anna.call(both)).await), one_of);
    rig.stop().await;
}
