//! The event stream and presence over gRPC.

use std::time::Duration;

use gimbal_control::Config;
use gimbal_control::config::Events;
use gimbal_control::store::value::EventKind as Stored;
use gimbal_rpc::link::Up;
use gimbal_rpc::v1::{self, EventKind, events_client::EventsClient, presence_client::PresenceClient};
use tonic::{Code, Streaming};

use super::calls::{attached, caller};
use super::rig::{Person, Rig, WAIT, config, keyed, why};

fn send(id: u64, to_user: u64) -> v1::SendRequest {
    v1::SendRequest { client_message_id: id, to_user, command: 7, content: "text".into(), to_group: 0 }
}

async fn tail(rig: &Rig, request: v1::TailRequest) -> Streaming<v1::Event> {
    EventsClient::new(rig.channel.clone()).tail(keyed("dev", request)).await.unwrap().into_inner()
}

async fn next<T>(stream: &mut Streaming<T>) -> Option<T> {
    tokio::time::timeout(WAIT, stream.message()).await.expect("in time").unwrap()
}

async fn pusher(rig: &Rig, user: u64) -> Person {
    let device = Some(v1::Device { push_token: "apns-1".into(), ..Default::default() });
    let request = v1::RegisterDeviceRequest { user_id: user, device, ..Default::default() };
    let reply = rig.accounts().register_device(keyed("dev", request)).await.unwrap().into_inner();
    Person { user: reply.user_id, device: reply.device_id, token: reply.token }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_goes_on_where_it_was_through_a_restart_and_hears_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("1").await, rig.person("2").await);
    pusher(&rig, ben.user).await;
    rig.messages().send(anna.call(send(1, ben.user))).await.unwrap();
    let kinds = vec![EventKind::Message.into(), EventKind::OfflineMessage.into()];
    let wanted =
        v1::TailRequest { kinds, user_ids: vec![ben.user], with_content: true, ..Default::default() };
    let mut stream = tail(&rig, wanted.clone()).await;
    let first = next(&mut stream).await.unwrap();
    assert_eq!((first.kind(), first.user_id, first.seq), (EventKind::Message, ben.user, 1));
    assert_eq!((first.other_user_id, &first.content[..]), (anna.user, b"text".as_slice()));
    let second = next(&mut stream).await.unwrap();
    assert_eq!((second.kind(), second.message_id), (EventKind::OfflineMessage, first.message_id));
    let tokens: Vec<&str> = second.devices.iter().map(|device| device.push_token.as_str()).collect();
    assert_eq!(tokens, ["apns-1"]);

    rig.messages().send(anna.call(send(2, ben.user))).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().seq, 2, "what comes while it waits");
    drop(stream);
    rig.stop().await;

    let rig = Rig::start(dir.path()).await;
    rig.messages().send(anna.call(send(3, ben.user))).await.unwrap();
    let rest = v1::TailRequest { cursor: second.cursor, until_now: true, ..wanted };
    let mut stream = tail(&rig, rest).await;
    let mut seqs = Vec::new();
    while let Some(event) = next(&mut stream).await {
        seqs.push((event.kind(), event.seq));
    }
    let (message, missed) = (EventKind::Message, EventKind::OfflineMessage);
    assert_eq!(seqs, [(message, 2), (missed, 2), (message, 3), (missed, 3)]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_refused_with_a_reason_and_ends_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("1").await;
    let mut events = EventsClient::new(rig.channel.clone());
    for cursor in ["x", "ffffffffffffffff", "0000000000000000"] {
        let request = v1::TailRequest { cursor: cursor.into(), ..Default::default() };
        let refused = events.tail(keyed("dev", request)).await.unwrap_err();
        assert_eq!((refused.code(), why(&refused)), (Code::InvalidArgument, ("bad_request", "cursor")));
    }
    let request = v1::TailRequest { kinds: vec![99], ..Default::default() };
    assert_eq!(why(&events.tail(keyed("dev", request)).await.unwrap_err()).1, "kinds");
    let by_device = events.tail(anna.call(v1::TailRequest::default())).await.unwrap_err();
    assert_eq!(by_device.code(), Code::Unauthenticated, "a device's token is no key");
    let mut stream = tail(&rig, v1::TailRequest { from_now: true, ..Default::default() }).await;
    let stopped = tokio::spawn(async move { stream.message().await });
    rig.stop().await;
    assert!(!matches!(tokio::time::timeout(WAIT, stopped).await.unwrap().unwrap(), Ok(Some(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_told_at_first_and_at_each_change() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("1").await, rig.person("2").await);
    let mut presence = PresenceClient::new(rig.channel.clone());
    let both = v1::WatchPresenceRequest { user_ids: vec![anna.user, ben.user] };
    let mut stream = presence.watch(anna.call(both)).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.users.len(), 2);
    assert!(first.users.iter().all(|user| user.online.is_empty() && user.last_seen_ms == 0));

    let gateway = rig.gateway(1);
    let attach = attached(&gateway, &ben, 1).await;
    let change = next(&mut stream).await.unwrap();
    assert_eq!((change.users.len(), change.users[0].user_id), (1, ben.user));
    assert_eq!(change.users[0].online[0].device_id, ben.device);
    gateway.submit(vec![Up::Detach { caller: caller(&ben, 1, attach) }]);
    assert!(next(&mut stream).await.unwrap().users[0].online.is_empty());
    let get = v1::GetPresenceRequest { user_ids: vec![ben.user] };
    let deadline = tokio::time::Instant::now() + WAIT;
    // The time goes to the disk a little later.
    while presence.get(keyed("dev", get.clone())).await.unwrap().into_inner().users[0].last_seen_ms == 0 {
        assert!(tokio::time::Instant::now() < deadline, "it is known when ben was last online");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let none = v1::GetPresenceRequest { user_ids: vec![] };
    assert_eq!(why(&presence.get(keyed("dev", none)).await.unwrap_err()).1, "user_ids");
    let stranger = Person { token: "0".repeat(64), ..anna };
    let refused = presence.get(stranger.call(get)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_configured_kinds_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let events = Events { kinds: vec![Stored::Account], ..Events::default() };
    let rig = Rig::with(Config { events, ..config(dir.path()) }).await;
    let anna = rig.person("1").await;
    rig.messages().send(anna.call(send(1, anna.user))).await.unwrap();
    let mut stream = tail(&rig, v1::TailRequest { until_now: true, ..Default::default() }).await;
    while let Some(event) = next(&mut stream).await {
        assert_eq!(event.kind(), EventKind::Account);
    }
    rig.stop().await;
}
