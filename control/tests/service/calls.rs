//! What each method does when all is well.

use bytes::Bytes;
use gimbal_codec::{
    Attach, CloseReason, Decoder, DeviceId, Packet, RoomId, Seq, ShardId, UserId, body, code,
    limits::FRAME_BYTES_MAX_DOWN,
};
use gimbal_control::config::rooms::Range;
use gimbal_rpc::{
    link::{Caller, Down, Tag, Up},
    v1,
};

use super::rig::{Gateway, Person, Rig, keyed, session, why};

fn send(client_message_id: u64, to_user: u64, content: &'static [u8]) -> v1::SendRequest {
    v1::SendRequest {
        client_message_id,
        to_user,
        command: 7,
        content: Bytes::from_static(content),
        to_group: 0,
    }
}

async fn synced(rig: &Rig, person: &Person, after: u64, limit: u32) -> v1::SyncReply {
    rig.messages().sync(person.call(v1::SyncRequest { after, limit })).await.unwrap().into_inner()
}

pub(super) async fn attached(gateway: &Gateway, person: &Person, index: u32) -> Attach {
    gateway.submit(vec![person.sign_in(session(index))]);
    loop {
        match gateway.next().await {
            Down::SignedIn { attach, session: of, .. } if of == session(index) => return attach,
            Down::Kick { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn caller(person: &Person, index: u32, attach: Attach) -> Caller {
    let (user, device) = (UserId::new(person.user), DeviceId::new(person.device));
    Caller { session: session(index), attach, user, device }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_signs_in_as_the_same_user_again_and_each_device_has_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let body = v1::SignInRequest { phone_number: "+491".into(), code: "1".into(), device: None };
    let first = rig.accounts().sign_in(body.clone()).await.unwrap().into_inner();
    let second = rig.accounts().sign_in(body).await.unwrap().into_inner();
    assert!(first.is_new && !second.is_new);
    assert_eq!(first.user_id, second.user_id);
    assert_ne!(first.device_id, second.device_id);
    assert_eq!((first.token.len(), first.token == second.token), (64, false));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_is_stored_once_and_synced_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("1").await, rig.person("2").await);
    let mut messages = rig.messages();
    let sent = messages.send(anna.call(send(1, ben.user, b"one"))).await.unwrap().into_inner();
    let again = messages.send(anna.call(send(1, ben.user, b"one"))).await.unwrap().into_inner();
    assert_eq!((sent.seq, sent.duplicate, again.duplicate), (1, false, true));
    assert_eq!((again.seq, again.message_id, again.created_at_ms), (1, sent.message_id, sent.created_at_ms));
    for id in 2..=3 {
        messages.send(anna.call(send(id, ben.user, b"more"))).await.unwrap();
    }
    let page = synced(&rig, &ben, 0, 2).await;
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((page.latest, page.has_more, page.trimmed_to), (3, true, 0));
    let first = &page.messages[0];
    assert_eq!((first.from_user, first.from_device, first.command), (anna.user, anna.device, 7));
    assert_eq!((&first.content[..], first.message_id), (b"one".as_slice(), sent.message_id));
    let rest = synced(&rig, &ben, 2, 0).await;
    assert_eq!((rest.messages.len(), rest.has_more), (1, false));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_moves_forward_only_and_is_each_devices_own() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (phone, tablet) = (rig.person("1").await, rig.person("1").await);
    let mut messages = rig.messages();
    for id in 1..=3 {
        messages.send(phone.call(send(id, phone.user, b"note"))).await.unwrap();
    }
    let mut acked = Vec::new();
    for (who, seq) in [(&phone, 3), (&phone, 1), (&tablet, 2), (&tablet, 99)] {
        acked.push(messages.ack(who.call(v1::AckRequest { seq })).await.unwrap().into_inner().seq);
    }
    assert_eq!(acked, [3, 3, 2, 3], "never back, never beyond the newest");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_gets_what_is_sent_and_pushed_while_it_is_online() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("1").await, rig.person("2").await);
    let gateway = rig.gateway(1);
    let attach = attached(&gateway, &ben, 3).await;

    rig.messages().send(anna.call(send(1, ben.user, b"hello"))).await.unwrap();
    let Down::Deliver { body, targets } = gateway.next().await else { panic!("a delivery") };
    assert_eq!((&body.content[..], targets.len()), (b"hello".as_slice(), 1));
    assert_eq!((targets[0].session, targets[0].attach, targets[0].seq), (session(3), attach, Seq::new(1)));

    let push = v1::PushToUsersRequest {
        user_ids: vec![ben.user, 999_999_999],
        command: 9,
        content: Bytes::from_static(b"pushed"),
        transient: false,
        idempotency_key: "key-1".into(),
    };
    let pushed = rig.messages().push_to_users(keyed("dev", push.clone())).await.unwrap().into_inner();
    assert_eq!((pushed.users[0].seq, pushed.users[0].reason.as_str()), (2, ""));
    assert_eq!((pushed.users[1].seq, pushed.users[1].reason.as_str()), (0, "user_not_found"));
    let again = rig.messages().push_to_users(keyed("dev", push)).await.unwrap().into_inner();
    assert_eq!(again, pushed, "a repeated key is answered as the first time");
    let Down::Deliver { targets, .. } = gateway.next().await else { panic!("a delivery") };
    assert_eq!(targets[0].seq, Seq::new(2));
    assert!(gateway.down.is_empty(), "and delivers nothing");

    let ack = Up::Ack { caller: caller(&ben, 3, attach), tag: Tag::default(), seq: Seq::new(1) };
    let sync =
        Up::Sync { caller: caller(&ben, 3, attach), tag: Tag::default(), after: Seq::new(1), limit: 0 };
    gateway.submit(vec![ack]);
    assert!(matches!(gateway.next().await, Down::AckDone { result: Ok(seq), .. } if seq == Seq::new(1)));
    gateway.submit(vec![sync]);
    let Down::SyncDone { result: Ok(page), .. } = gateway.next().await else { panic!("a page") };
    assert_eq!((page.entries.len(), page.end, page.latest), (1, Seq::new(2), Seq::new(2)));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_sign_in_takes_over_and_the_old_ones_late_detach_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let ben = rig.person("2").await;
    let gateway = rig.gateway(1);
    let old = attached(&gateway, &ben, 1).await;
    gateway.submit(vec![ben.sign_in(session(2))]);
    let mut kicked = false;
    let newer = loop {
        match gateway.next().await {
            Down::Kick { session: of, attach, reason } => {
                assert_eq!((of, attach, reason), (session(1), old, CloseReason::Takeover));
                kicked = true;
            }
            Down::SignedIn { attach, .. } => break attach,
            other => panic!("{other:?}"),
        }
    };
    if !kicked {
        assert!(matches!(gateway.next().await, Down::Kick { reason: CloseReason::Takeover, .. }));
    }
    gateway.submit(vec![Up::Detach { caller: caller(&ben, 1, old) }]);
    let body = v1::ListSessionsRequest { user_id: ben.user, page_size: 0, page_token: String::new() };
    let sessions = rig.admin().list_sessions(keyed("dev", body)).await.unwrap().into_inner().sessions;
    assert_eq!((sessions.len(), sessions[0].attach, sessions[0].session.as_str()), (1, newer.get(), "0.2.1"));
    assert_eq!((sessions[0].gateway_id, sessions[0].peer.as_str()), (1, "192.0.2.1:5"));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kick_and_a_revocation_end_sessions_and_a_revoked_token_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let ben = rig.person("2").await;
    let gateway = rig.gateway(1);
    attached(&gateway, &ben, 1).await;
    let kick = v1::KickRequest { user_id: ben.user, device_id: 0 };
    assert_eq!(rig.admin().kick(keyed("dev", kick)).await.unwrap().into_inner().kicked, 1);
    assert!(matches!(gateway.next().await, Down::Kick { reason: CloseReason::Kicked, .. }));

    attached(&gateway, &ben, 2).await;
    let revoke =
        v1::RevokeTokenRequest { user_id: ben.user, device_id: ben.device, idempotency_key: String::new() };
    let revoked = rig.accounts().revoke_token(ben.call(revoke.clone())).await.unwrap().into_inner();
    assert!(revoked.revoked);
    assert!(matches!(gateway.next().await, Down::Kick { reason: CloseReason::TokenRevoked, .. }));
    let again = rig.accounts().revoke_token(keyed("dev", revoke)).await.unwrap().into_inner();
    assert!(!again.revoked, "there is none left");
    let refused = rig.messages().sync(ben.call(v1::SyncRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    gateway.submit(vec![ben.sign_in(session(3))]);
    assert!(matches!(gateway.next().await, Down::SignInRefused { .. }));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_by_the_backend_is_repeatable_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let body = v1::RegisterDeviceRequest { user_id: 0, device: None, idempotency_key: "reg".into() };
    let first = rig.accounts().register_device(keyed("dev", body.clone())).await.unwrap().into_inner();
    let second = rig.accounts().register_device(keyed("dev", body)).await.unwrap().into_inner();
    assert!(first.is_new);
    assert_eq!((first.user_id, first.device_id), (second.user_id, second.device_id));
    let with = |token: &str| Person { user: first.user_id, device: first.device_id, token: token.into() };
    synced(&rig, &with(&second.token), 0, 0).await;
    let old = rig.messages().sync(with(&first.token).call(v1::SyncRequest::default())).await;
    assert_eq!(old.unwrap_err().code(), tonic::Code::Unauthenticated, "the fresh token replaced it");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_publish_reaches_each_interested_gateway_once_in_one_order() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (one, two, three) = (rig.gateway(1), rig.gateway(2), rig.gateway(3));
    let room = RoomId::new(5);
    let interest = |shard, members| Up::RoomInterest { room, shard: ShardId(shard), members };
    one.submit(vec![interest(0, 2), interest(1, 3)]);
    two.submit(vec![interest(0, 1)]);
    let publish = v1::PublishRequest { room_id: 5, command: 1, content: Bytes::from_static(b"goal") };
    let first = rig.rooms().publish(keyed("dev", publish.clone())).await.unwrap().into_inner();
    let second = rig.rooms().publish(keyed("dev", publish.clone())).await.unwrap().into_inner();
    assert_eq!((first.room_seq, second.room_seq, first.gateways), (1, 2, 2));
    assert_eq!(first.room_epoch, second.room_epoch);
    for gateway in [&one, &two] {
        for seq in [1, 2] {
            let Down::Room { room: of, frame } = gateway.next().await else { panic!("a room frame") };
            let message = decoded(&frame);
            assert_eq!((of, message.room_seq, message.room_epoch), (room, seq, first.room_epoch));
            assert_eq!(message.content, b"goal");
        }
        assert!(gateway.down.is_empty());
    }
    assert!(three.down.is_empty());
    let count = v1::CountRequest { room_ids: vec![5, 6] };
    let counted = rig.rooms().count(keyed("dev", count)).await.unwrap().into_inner().rooms;
    assert_eq!(counted.iter().map(|room| room.members).collect::<Vec<_>>(), [6, 0]);
    one.submit(vec![interest(0, 0), interest(1, 0)]);
    let third = rig.rooms().publish(keyed("dev", publish)).await.unwrap().into_inner();
    assert_eq!((third.room_seq, third.gateways), (3, 1));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_stream_answers_in_order_until_a_refusal_and_does_not_hold_up_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let gateway = rig.gateway(1);
    gateway.submit(vec![Up::RoomInterest { room: RoomId::new(5), shard: ShardId(0), members: 1 }]);
    let publish = |room_id| v1::PublishRequest { room_id, command: 1, content: Bytes::from_static(b"goal") };
    let requests = [publish(5), publish(5), publish(0), publish(5)];
    let call = keyed("dev", tokio_stream::iter(requests));
    let mut replies = rig.rooms().publish_stream(call).await.unwrap().into_inner();
    for seq in [1, 2] {
        let reply = replies.message().await.unwrap().unwrap();
        assert_eq!((reply.room_seq, reply.gateways), (seq, 1));
        let Down::Room { frame, .. } = gateway.next().await else { panic!("a room frame") };
        assert_eq!(decoded(&frame).room_seq, seq);
    }
    let refused = replies.message().await.unwrap_err();
    assert_eq!(refused.metadata().get("gimbal-field").unwrap(), "room_id");
    assert!(gateway.down.is_empty(), "what follows a refusal is not published");

    let idle = keyed("dev", tokio_stream::pending::<v1::PublishRequest>());
    let mut replies = rig.rooms().publish_stream(idle).await.unwrap().into_inner();
    rig.stop().await;
    assert!(replies.message().await.unwrap().is_none(), "a stop ends the stream well, not by a cut");
}

struct Decoded {
    content: Vec<u8>,
    room_seq: u64,
    room_epoch: u64,
    seq: u64,
}

fn decoded(frame: &[u8]) -> Decoded {
    let mut decoder = Decoder::new();
    let mut feed = decoder.feed(frame);
    let packet = Packet::decode(feed.next_frame(FRAME_BYTES_MAX_DOWN).unwrap().unwrap()).unwrap();
    let message = body::Message::decode(packet.content).unwrap();
    Decoded {
        content: message.content.to_vec(),
        room_seq: message.room_seq,
        room_epoch: message.room_epoch,
        seq: message.seq.get(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_all_reaches_every_gateway_and_a_signal_only_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (one, two) = (rig.gateway(1), rig.gateway(2));
    let push = v1::PushToAllRequest { command: 1, content: Bytes::from_static(b"all"), per_second: 100 };
    assert_eq!(rig.messages().push_to_all(keyed("dev", push)).await.unwrap().into_inner().gateways, 2);
    for gateway in [&one, &two] {
        let Down::All { frame, per_second } = gateway.next().await else { panic!("a push") };
        assert_eq!((decoded(&frame).content, decoded(&frame).seq, per_second), (b"all".to_vec(), 0, 100));
    }
    let signal = gimbal_rpc::link::Signal {
        from_user: UserId::new(1),
        from_device: DeviceId::new(2),
        to: gimbal_rpc::link::SignalTarget::User(UserId::new(3)),
        command: 4,
        content: Bytes::from_static(b"typing"),
    };
    one.submit(vec![Up::Signal(signal.clone())]);
    assert_eq!(two.next().await, Down::Signal(signal.clone()));
    let to_room =
        gimbal_rpc::link::Signal { to: gimbal_rpc::link::SignalTarget::Room(RoomId::new(9)), ..signal };
    one.submit(vec![Up::Signal(to_room)]);
    assert!(one.down.is_empty() && two.down.is_empty(), "nobody is in that room");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_tell_what_is_online_and_that_every_commit_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let ben = rig.person("2").await;
    let gateway = rig.gateway(1);
    attached(&gateway, &ben, 1).await;
    rig.messages().send(ben.call(send(1, ben.user, b"note"))).await.unwrap();
    let stats = rig.admin().stats(keyed("dev", v1::StatsRequest {})).await.unwrap().into_inner();
    assert_eq!((stats.sessions, stats.users_online, stats.gateways, stats.sends), (1, 1, 1, 1));
    assert!(stats.wal_syncs >= stats.commits && stats.commits >= 2, "{stats:?}");
    assert_eq!(stats.control_epoch, 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let ben = rig.person("2").await;
    rig.messages().send(ben.call(send(1, ben.user, b"kept"))).await.unwrap();
    rig.stop().await;
    let rig = Rig::start(dir.path()).await;
    let page = synced(&rig, &ben, 0, 0).await;
    assert_eq!((page.latest, &page.messages[0].content[..]), (1, b"kept".as_slice()));
    let again = rig.messages().send(ben.call(send(1, ben.user, b"kept"))).await.unwrap().into_inner();
    assert!(again.duplicate);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_publishes_where_members_may_and_the_largest_rooms_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = super::rig::config(dir.path());
    let open = Range { first: 5, last: 6, members_publish: Some(true), ..Range::default() };
    config.rooms.ranges = vec![open];
    let rig = Rig::with(config).await;
    let ben = rig.person("2").await;
    let (gateway, other) = (rig.gateway(1), rig.gateway(2));
    let attach = attached(&gateway, &ben, 3).await;
    let interest = |room, members| Up::RoomInterest { room: RoomId::new(room), shard: ShardId(0), members };
    gateway.submit(vec![interest(5, 1), interest(7, 1)]);
    other.submit(vec![interest(5, 2), interest(8, 9)]);
    let publish = |room, content: &[u8]| Up::Publish {
        caller: caller(&ben, 3, attach),
        tag: Tag { request_id: Bytes::from_static(b"p"), seq: room },
        room: RoomId::new(room),
        command: 4,
        content: Bytes::copy_from_slice(content),
    };
    gateway.submit(vec![publish(5, b"goal"), publish(7, b"no"), publish(5, &[0; 61_441]), publish(6, b"?")]);
    let Down::Room { room, frame } = gateway.next().await else { panic!("the message comes first") };
    let Down::Room { frame: same, .. } = other.next().await else { panic!("also elsewhere") };
    assert_eq!((room.get(), &frame), (5, &same));
    let Down::PublishDone { to, tag, result } = gateway.next().await else { panic!("then the answer") };
    assert_eq!((to, tag.seq, result.unwrap().seq), ((session(3), attach), 5, 1));
    let mut refused = Vec::new();
    for _ in 0..3 {
        let Down::PublishDone { tag, result: Err(refusal), .. } = gateway.next().await else {
            panic!("a refusal")
        };
        refused.push((tag.seq, refusal.code));
    }
    let expected = [(7, code::PUBLISH_NOT_ALLOWED), (5, code::CONTENT_TOO_LARGE), (6, code::UNAVAILABLE)];
    assert_eq!(refused, expected);
    assert!(other.down.is_empty());

    let top = rig.rooms().top(keyed("dev", v1::TopRequest { limit: 2 })).await.unwrap().into_inner().rooms;
    let top: Vec<(u64, u64)> = top.iter().map(|room| (room.room_id, room.members)).collect();
    assert_eq!(top, [(8, 9), (5, 3)]);
    let denied = rig.rooms().top(v1::TopRequest { limit: 2 }).await.unwrap_err();
    assert_eq!(why(&denied).0, "not_signed_in");
    let (_, page) = rig.http("/metrics").await;
    for line in [
        "gimbal_control_dropped_total{reason=\"room_publish_not_allowed\"} 1",
        "gimbal_control_dropped_total{reason=\"room_publish_refused\"} 2",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    rig.stop().await;
}
