//! The link over gRPC, as a remote gateway sees it on the wire.

use std::time::Duration;

use bytes::Bytes;
use gimbal_codec::{Attach, CloseReason, DeviceId, GatewayId, RoomId, Seq, ShardId, UserId};
use gimbal_control::config::devices::{Conflict, PolicyName};
use gimbal_rpc::{
    link::{Caller, Down, Hello, Recipient, Tag, Up},
    link_v1::{self as pb, link_client::LinkClient},
    v1,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use super::rig::{Person, Rig, WAIT, config, keyed, session, why};

/// A gateway on the other side of a socket.
struct Remote {
    up: mpsc::Sender<pb::UpBatch>,
    down: Streaming<pb::DownBatch>,
    waiting: std::collections::VecDeque<Down>,
    control_epoch: u32,
}

impl Remote {
    async fn open(rig: &Rig, key: &str, first: pb::UpBatch) -> Result<Self, Status> {
        let (up, stream) = mpsc::channel(16);
        up.send(first).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(stream));
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        let mut down = LinkClient::new(rig.channel.clone()).open(request).await?.into_inner();
        let first = down.message().await?.expect("a welcome");
        let control_epoch = first.welcome.expect("comes first").control_epoch;
        Ok(Self { up, down, waiting: std::collections::VecDeque::new(), control_epoch })
    }

    async fn linked(rig: &Rig, epoch: u64) -> Self {
        Self::open(rig, "dev", hello(epoch)).await.unwrap()
    }

    async fn submit(&self, items: Vec<Up>) {
        let items = items.into_iter().map(Into::into).collect();
        self.up.send(pb::UpBatch { hello: None, items }).await.unwrap();
    }

    async fn message(&mut self) -> Result<Option<pb::DownBatch>, Status> {
        tokio::time::timeout(WAIT, self.down.message()).await.expect("in time")
    }

    async fn next(&mut self) -> Down {
        while self.waiting.is_empty() {
            let batch = self.message().await.unwrap().expect("the stream is open");
            self.waiting.extend(batch.items.into_iter().map(|item| Down::try_from(item).unwrap()));
        }
        self.waiting.pop_front().unwrap()
    }

    async fn attach(&mut self, person: &Person, index: u32) -> Attach {
        self.submit(vec![person.sign_in(session(index))]).await;
        match self.next().await {
            Down::SignedIn { attach, .. } => attach,
            other => panic!("{other:?}"),
        }
    }
}

fn hello(epoch: u64) -> pb::UpBatch {
    let hello = Hello { gateway: GatewayId::new(8), epoch, shards: 2 };
    pb::UpBatch { hello: Some(hello.into()), items: Vec::new() }
}

fn caller(person: &Person, index: u32, attach: Attach) -> Caller {
    let (user, device) = (UserId::new(person.user), DeviceId::new(person.device));
    Caller { session: session(index), attach, user, device }
}

async fn sessions(rig: &Rig) -> Vec<v1::Session> {
    let body = v1::ListSessionsRequest::default();
    rig.admin().list_sessions(keyed("dev", body)).await.unwrap().into_inner().sessions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_crosses_from_a_session_to_a_session_of_a_remote_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("1").await, rig.person("2").await);
    let mut remote = Remote::linked(&rig, 1).await;
    assert_eq!(remote.control_epoch, 1);
    let of_anna = remote.attach(&anna, 1).await;
    let of_ben = remote.attach(&ben, 2).await;
    let tag = Tag { request_id: Bytes::from_static(b"r1"), seq: 77 };
    let send = Up::Send {
        caller: caller(&anna, 1, of_anna),
        tag: tag.clone(),
        client_message_id: gimbal_codec::ClientMessageId::new(1),
        to: Recipient::User(UserId::new(ben.user)),
        command: 3,
        content: Bytes::from_static(b"over the wire"),
    };
    remote.submit(vec![send]).await;
    let (mut answered, mut delivered) = (false, false);
    while !(answered && delivered) {
        match remote.next().await {
            Down::SendDone { to, tag: echoed, result } => {
                assert_eq!((to, &echoed, result.unwrap().seq), ((session(1), of_anna), &tag, Seq::new(1)));
                answered = true;
            }
            Down::Deliver { body, targets } => {
                assert_eq!(&body.content[..], b"over the wire");
                assert_eq!((targets[0].session, targets[0].attach), (session(2), of_ben));
                delivered = true;
            }
            other => panic!("{other:?}"),
        }
    }
    let sync = Up::Sync { caller: caller(&ben, 2, of_ben), tag: tag.clone(), after: Seq::new(0), limit: 0 };
    remote.submit(vec![sync]).await;
    let Down::SyncDone { result: Ok(page), .. } = remote.next().await else { panic!("a page") };
    assert_eq!(page.entries.len(), 1);
    // Under a number that is not the session's, as an ended session would ask.
    let of_nobody = caller(&ben, 1, of_ben);
    remote.submit(vec![Up::Sync { caller: of_nobody, tag, after: Seq::new(0), limit: 0 }]).await;
    let Down::SyncDone { to, result: Err(refusal), .. } = remote.next().await else { panic!("refused") };
    assert_eq!((to.0, refusal.code), (session(1), gimbal_codec::code::STALE));
    drop(remote);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_the_key_or_a_hello_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let wrong = Remote::open(&rig, "wrong", hello(1)).await.err().unwrap();
    assert_eq!((wrong.code(), why(&wrong).0), (Code::Unauthenticated, "not_signed_in"));
    let silent = Remote::open(&rig, "dev", pb::UpBatch::default()).await.err().unwrap();
    assert_eq!((silent.code(), why(&silent).0), (Code::InvalidArgument, "no_hello"));
    let nameless = pb::UpBatch { hello: Some(pb::Hello::default()), items: Vec::new() };
    let nameless = Remote::open(&rig, "dev", nameless).await.err().unwrap();
    assert_eq!(why(&nameless).0, "bad_hello");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_gateway_never_unseats_another_life_of_its_id_or_the_one_in_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("1").await;
    let mut living = Remote::linked(&rig, 5).await;
    for epoch in [4, 6] {
        let other = Remote::open(&rig, "dev", hello(epoch)).await.err().unwrap();
        assert_eq!((other.code(), why(&other).0), (Code::FailedPrecondition, "gateway_id_taken"));
        assert!(other.message().contains("gateway_id 8 is taken"), "{other}");
    }
    living.attach(&anna, 1).await;
    // The gateway in this process has its id before any other.
    let local = rig.gateway(8);
    living.submit(vec![Up::RoomInterest { room: RoomId::new(5), shard: ShardId(0), members: 1 }]).await;
    let ended = living.message().await.unwrap_err();
    assert_eq!(why(&ended).0, "replaced");
    let remote = Remote::open(&rig, "dev", hello(9)).await.err().unwrap();
    assert_eq!(why(&remote).0, "gateway_id_taken");
    local.submit(vec![anna.sign_in(session(1))]);
    assert!(matches!(local.next().await, Down::SignedIn { .. }), "the local gateway goes on");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_not_understood_ends_the_stream_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut remote = Remote::linked(&rig, 1).await;
    remote.up.send(pb::UpBatch { hello: None, items: vec![pb::Up { kind: None }] }).await.unwrap();
    let ended = remote.message().await.unwrap_err();
    assert_eq!(why(&ended).0, "bad_item");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_comes_back_announces_and_learns_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let ben = rig.person("2").await;
    let mut remote = Remote::linked(&rig, 1).await;
    let attach = remote.attach(&ben, 2).await;
    let send = v1::SendRequest { client_message_id: 1, to_user: ben.user, ..v1::SendRequest::default() };

    // Control restarts under the gateway, which keeps its sockets.
    drop(remote);
    rig.messages().send(ben.call(send)).await.unwrap();
    rig.stop().await;
    let rig = Rig::start(dir.path()).await;
    let mut remote = Remote::linked(&rig, 1).await;
    assert_eq!(remote.control_epoch, 2);
    let announce = Up::Announce {
        caller: caller(&ben, 2, attach),
        cursor: Some(Seq::new(0)),
        peer: "192.0.2.1:5".into(),
    };
    remote.submit(vec![announce]).await;
    let Down::Announced { session: of, attach: anew, latest } = remote.next().await else {
        panic!("announced")
    };
    assert_eq!((of, latest), (session(2), Seq::new(1)));
    assert!(anew > attach, "a later attach number");
    assert_eq!(sessions(&rig).await.len(), 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_outlive_a_broken_link_by_the_lease_and_rooms_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.gateway_lease = Duration::from_millis(50);
    let rig = Rig::with(config).await;
    let ben = rig.person("2").await;
    let mut remote = Remote::linked(&rig, 1).await;
    remote.attach(&ben, 2).await;
    remote.submit(vec![Up::RoomInterest { room: RoomId::new(5), shard: ShardId(0), members: 1 }]).await;
    let members = || async {
        let body = v1::CountRequest { room_ids: vec![5] };
        rig.rooms().count(keyed("dev", body)).await.unwrap().into_inner().rooms[0].members
    };
    let waiting = async {
        while members().await != 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(remote);
        while members().await != 0 || !sessions(&rig).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(WAIT, waiting).await.expect("forgotten in time");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_links_again_within_the_lease_keeps_its_newer_routes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.gateway_lease = Duration::from_millis(20);
    let rig = Rig::with(config).await;
    let ben = rig.person("2").await;
    let mut first = Remote::linked(&rig, 1).await;
    let attach = first.attach(&ben, 2).await;
    drop(first);
    let mut second = Remote::linked(&rig, 1).await;
    let announce = Up::Announce { caller: caller(&ben, 2, attach), cursor: None, peer: String::new() };
    second.submit(vec![announce]).await;
    assert!(matches!(second.next().await, Down::Announced { .. }));
    // Longer than the lease of the first link: what ends with it is not the second one's.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sessions(&rig).await.len(), 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_still_comes_over_a_replaced_stream_is_refused_and_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let ben = rig.person("2").await;
    let mut first = Remote::linked(&rig, 1).await;
    let attach = first.attach(&ben, 2).await;
    let mut second = Remote::linked(&rig, 1).await;
    let announce = Up::Announce { caller: caller(&ben, 2, attach), cursor: None, peer: String::new() };
    second.submit(vec![announce]).await;
    assert!(matches!(second.next().await, Down::Announced { .. }));
    first.submit(vec![Up::Detach { caller: caller(&ben, 2, attach) }]).await;
    let ended = loop {
        match first.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(why(&ended).0, "replaced");
    assert_eq!(sessions(&rig).await.len(), 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_does_not_read_loses_room_messages_first_and_its_stream_at_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.link_bytes_max = bytesize::ByteSize::mib(8);
    let rig = Rig::with(config).await;
    let ben = rig.person("2").await;
    let mut remote = Remote::linked(&rig, 1).await;
    remote.attach(&ben, 2).await;
    remote.submit(vec![Up::RoomInterest { room: RoomId::new(5), shard: ShardId(0), members: 1 }]).await;
    let content = Bytes::from(vec![0; 60 * 1024]);
    let publish = v1::PublishRequest { room_id: 5, command: 1, content: content.clone() };
    let shed = async {
        // HTTP/2 windows take some of it, then half of the queue fills.
        let mut reached = false;
        loop {
            let reply = rig.rooms().publish(keyed("dev", publish.clone())).await.unwrap().into_inner();
            reached |= reply.gateways == 1;
            if reached && reply.gateways == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(WAIT, shed).await.expect("the queue is bounded");
    assert_eq!(rig.server.plane().readiness().gateways, 1, "room messages cost no link");
    let push = v1::PushToUsersRequest {
        user_ids: vec![ben.user],
        content,
        transient: true,
        ..v1::PushToUsersRequest::default()
    };
    let overflow = async {
        while rig.server.plane().readiness().gateways == 1 {
            rig.messages().push_to_users(keyed("dev", push.clone())).await.unwrap();
        }
    };
    tokio::time::timeout(WAIT, overflow).await.expect("the queue is bounded");
    rig.person("1").await;
    while let Ok(Some(_)) = remote.message().await {}
    let (_, page) = rig.http("/metrics").await;
    assert!(page.contains("gimbal_control_link_ends_total{reason=\"down_full\"} 1"), "{page}");
    assert!(page.contains("gimbal_control_dropped_total{reason=\"room_link_full\"} 1"), "{page}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_over_a_users_devices_holds_over_the_link_and_after_a_restart_of_control() {
    let dir = tempfile::tempdir().unwrap();
    let with = |policy, conflict| {
        let mut config = config(dir.path());
        config.devices.policy = policy;
        config.devices.conflict = conflict;
        Rig::with(config)
    };
    let rig = with(PolicyName::One, Conflict::Takeover).await;
    let (phone, tablet) = (rig.person("1").await, rig.person("1").await);
    assert_eq!(phone.user, tablet.user);
    let mut remote = Remote::linked(&rig, 1).await;
    let of_phone = remote.attach(&phone, 1).await;
    remote.submit(vec![tablet.sign_in(session(2))]).await;
    let kick = Down::Kick { session: session(1), attach: of_phone, reason: CloseReason::OtherDevice };
    assert_eq!(remote.next().await, kick);
    let Down::SignedIn { attach: of_tablet, .. } = remote.next().await else { panic!("signed in") };
    let (_, page) = rig.http("/metrics").await;
    let ended = "gimbal_control_policy_ends_total{reason=\"other_device\"} 1";
    assert!(page.lines().any(|line| line == ended), "{page}");
    drop(remote);
    rig.stop().await;

    // As if both had been online: the older one has lost its place for good.
    let rig = with(PolicyName::One, Conflict::Refuse).await;
    let mut remote = Remote::linked(&rig, 1).await;
    for (person, index, attach) in [(&phone, 1, of_phone), (&tablet, 2, of_tablet)] {
        let (caller, cursor) = (caller(person, index, attach), Some(Seq::new(0)));
        remote.submit(vec![Up::Announce { caller, cursor, peer: String::new() }]).await;
    }
    assert!(matches!(remote.next().await, Down::Announced { .. }), "nobody else is known yet");
    let mut items = [remote.next().await, remote.next().await];
    items.sort_by_key(|item| matches!(item, Down::Kick { .. }));
    let [Down::Announced { session: stays, .. }, Down::Kick { session: ends, reason, .. }] = items else {
        panic!("{items:?}")
    };
    assert_eq!((stays, ends, reason), (session(2), session(1), CloseReason::OtherDevice));
    remote.submit(vec![phone.sign_in(session(3))]).await;
    let Down::SignInRefused { session: refused, refusal } = remote.next().await else { panic!("refused") };
    assert_eq!((refused, refusal.code), (session(3), gimbal_codec::code::DEVICE_TAKEN));
    assert_eq!(sessions(&rig).await.len(), 1);
    drop(remote);
    rig.stop().await;
}
