//! The remote link against a control made of a few lines, over a real loopback socket.

use std::{net::SocketAddr, sync::Mutex};

use bytes::Bytes;
use gimbal_codec::{Attach, DeviceId, GatewayId, RoomId, Seq, SessionKey, UserId};
use gimbal_rpc::{
    link::{Caller, Down, Grant},
    link_v1::link_server::{Link, LinkServer},
};
use tokio::sync::mpsc::{Receiver, Sender};
use tonic::{Response, transport::server::TcpIncoming};

use super::*;

const WAIT: Duration = Duration::from_secs(20);

/// One stream as the fake control sees it.
struct Stream {
    authorization: String,
    first: pb::UpBatch,
    incoming: Streaming<pb::UpBatch>,
    outgoing: Sender<Result<pb::DownBatch, Status>>,
}

struct FakeControl {
    streams: Sender<Stream>,
}

#[tonic::async_trait]
impl Link for FakeControl {
    type OpenStream = ReceiverStream<Result<pb::DownBatch, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<pb::UpBatch>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let authorization =
            request.metadata().get("authorization").expect("key").to_str().expect("text").to_owned();
        if authorization != "Bearer right" {
            return Err(Status::unauthenticated("bad key"));
        }
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.expect("hello");
        let (outgoing, stream) = mpsc::channel(8);
        let welcome = pb::DownBatch { welcome: Some(pb::Welcome { control_epoch: 3 }), items: Vec::new() };
        outgoing.send(Ok(welcome)).await.expect("room");
        self.streams.send(Stream { authorization, first, incoming, outgoing }).await.expect("test listens");
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Serves until the returned task is aborted.
async fn serve(streams: Sender<Stream>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let server = tonic::transport::Server::builder()
        .add_service(LinkServer::new(FakeControl { streams }))
        .serve_with_incoming(TcpIncoming::from(listener));
    (address, tokio::spawn(async move { drop(server.await) }))
}

#[derive(Default)]
struct Recording {
    items: Mutex<Vec<Down>>,
    full: std::sync::atomic::AtomicBool,
}

impl Downlink for Recording {
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
        if self.full.load(Ordering::SeqCst) {
            return Err(LinkFull);
        }
        self.items.lock().expect("lock").append(items);
        Ok(())
    }
}

struct Rig {
    remote: RemoteControl,
    down: Arc<Recording>,
    links: Receiver<bool>,
}

fn rig(address: SocketAddr, key: &str) -> Rig {
    let config = RemoteConfig { endpoint: format!("http://{address}"), key: key.to_owned(), tls: None };
    let hello = Hello { gateway: GatewayId::new(7), epoch: 11, shards: 2 };
    let down = Arc::new(Recording::default());
    let (links_in, links) = mpsc::channel(64);
    let on_link: OnLink = Arc::new(move |up| {
        let _ = links_in.try_send(up);
    });
    let remote =
        RemoteControl::start(&config, hello, Arc::clone(&down) as Arc<dyn Downlink>, on_link).expect("start");
    Rig { remote, down, links }
}

async fn next<T>(receiver: &mut Receiver<T>) -> T {
    tokio::time::timeout(WAIT, receiver.recv()).await.expect("in time").expect("open")
}

async fn until(mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(WAIT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("in time");
}

fn detach(index: u32) -> Up {
    let session = SessionKey::new(ShardId(1), index, 1);
    Up::Detach {
        caller: Caller { session, attach: Attach::new(5), user: UserId::new(6), device: DeviceId::new(7) },
    }
}

fn signed_in() -> Down {
    Down::SignedIn {
        session: SessionKey::new(ShardId(0), 1, 1),
        attach: Attach::new(9),
        latest: Seq::new(4),
        grant: Grant::default(),
    }
}

fn submit(uplink: &Arc<dyn Uplink>, items: Vec<Up>) -> Result<(), LinkFull> {
    uplink.submit(ShardId(0), &mut { items })
}

/// All items of the stream until `count` came.
async fn items_of(stream: &mut Stream, count: usize) -> Vec<Up> {
    let mut items = Vec::new();
    while items.len() < count {
        let batch =
            tokio::time::timeout(WAIT, stream.incoming.message()).await.expect("in time").expect("stream");
        items.extend(batch.expect("open").items.into_iter().map(|item| Up::try_from(item).expect("valid")));
    }
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_travel_both_ways_in_order() {
    let (streams_in, mut streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let mut rig = rig(address, "right");
    assert!(next(&mut rig.links).await);
    let mut stream = next(&mut streams).await;
    assert_eq!(stream.authorization, "Bearer right");
    assert_eq!(stream.first.hello.as_ref().map(|hello| (hello.gateway_id, hello.epoch)), Some((7, 11)));

    let uplink = rig.remote.uplink();
    let sent: Vec<Up> = (0..5_000).map(detach).collect();
    for chunk in sent.chunks(100) {
        submit(&uplink, chunk.to_vec()).expect("room");
    }
    assert_eq!(items_of(&mut stream, sent.len()).await, sent);

    let batch = pb::DownBatch { welcome: None, items: vec![signed_in().into(); 3] };
    stream.outgoing.send(Ok(batch)).await.expect("open");
    until(|| rig.down.items.lock().expect("lock").len() == 3).await;
    assert_eq!(*rig.down.items.lock().expect("lock"), vec![signed_in(); 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stream_is_told_and_the_next_one_starts_clean() {
    let (streams_in, mut streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let mut rig = rig(address, "right");
    let uplink = rig.remote.uplink();
    assert!(next(&mut rig.links).await);
    drop(next(&mut streams).await);
    assert!(!next(&mut rig.links).await);
    assert!(next(&mut rig.links).await);
    let mut stream = next(&mut streams).await;
    submit(&uplink, vec![detach(1)]).expect("up again");
    assert_eq!(items_of(&mut stream, 1).await, vec![detach(1)]);
    assert_eq!(rig.remote.stats().connects.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_never_brings_the_link_up_and_submissions_are_refused() {
    let (streams_in, _streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let rig = rig(address, "wrong");
    until(|| rig.remote.stats().failures.load(Ordering::Relaxed) >= 2).await;
    assert!(!rig.remote.is_up());
    let mut items = vec![detach(1), detach(2)];
    assert_eq!(rig.remote.uplink().submit(ShardId(0), &mut items), Err(LinkFull));
    assert_eq!(items.len(), 2, "what is refused stays the caller's");
    assert_eq!(rig.remote.stats().up_refused.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_keeps_what_it_accepted() {
    let (streams_in, mut streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let mut rig = rig(address, "right");
    assert!(next(&mut rig.links).await);
    let mut stream = next(&mut streams).await;
    let uplink = rig.remote.uplink();
    // Nobody reads the stream: HTTP/2 windows fill, then the queue.
    let mut accepted = Vec::new();
    while submit(&uplink, vec![signal(accepted.len() as u64)]).is_ok() {
        accepted.push(signal(accepted.len() as u64));
        assert!(accepted.len() < 10_000, "the queue is bounded");
    }
    assert!(rig.remote.stats().up_refused.load(Ordering::Relaxed) >= 1);
    assert_eq!(items_of(&mut stream, accepted.len()).await, accepted);
}

fn signal(index: u64) -> Up {
    Up::Signal(gimbal_rpc::link::Signal {
        from_user: UserId::new(index),
        from_device: DeviceId::new(1),
        to: gimbal_rpc::link::SignalTarget::Room(RoomId::new(1)),
        command: 0,
        content: Bytes::from(vec![0; 60_000]),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_above_the_bound_finds_room_in_an_empty_queue() {
    let (streams_in, mut streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let mut rig = rig(address, "right");
    assert!(next(&mut rig.links).await);
    let mut stream = next(&mut streams).await;
    let large: Vec<Up> = (0..300).map(signal).collect();
    assert!(large.iter().map(weight).sum::<usize>() > QUEUE_BYTES_MAX);
    submit(&rig.remote.uplink(), large.clone()).expect("nothing is queued");
    assert_eq!(items_of(&mut stream, large.len()).await, large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_stream_left_is_counted_and_never_sent_on_the_next() {
    let (streams_in, mut streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let mut rig = rig(address, "right");
    assert!(next(&mut rig.links).await);
    let stream = next(&mut streams).await;
    let uplink = rig.remote.uplink();
    // Nobody reads the stream, so most of this is with the link when the stream breaks.
    let mut accepted = 0;
    while submit(&uplink, vec![signal(1)]).is_ok() {
        accepted += 1;
    }
    drop(stream);
    assert!(!next(&mut rig.links).await);
    assert!(next(&mut rig.links).await);
    let stats = rig.remote.stats();
    let (sent, lost) = (stats.up_items.load(Ordering::Relaxed), stats.up_lost.load(Ordering::Relaxed));
    assert_eq!(sent + lost, accepted);
    assert!(lost > 0);
    let mut stream = next(&mut streams).await;
    submit(&uplink, vec![detach(1)]).expect("the bytes of what was lost are free again");
    assert_eq!(items_of(&mut stream, 1).await, vec![detach(1)]);
}

#[test]
fn the_pause_doubles_until_a_stream_lasted() {
    let mut backoff = Backoff(BACKOFF_MIN);
    let short = STEADY_AFTER - Duration::from_millis(1);
    let pauses: Vec<_> = (0..6).map(|_| backoff.after(short).as_millis()).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000]);
    assert_eq!((backoff.after(STEADY_AFTER), backoff.after(short)), (BACKOFF_MIN, 2 * BACKOFF_MIN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_gateway_is_counted() {
    let (streams_in, mut streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let mut rig = rig(address, "right");
    assert!(next(&mut rig.links).await);
    let stream = next(&mut streams).await;
    rig.down.full.store(true, Ordering::SeqCst);
    let batch = pb::DownBatch { welcome: None, items: vec![signed_in().into(); 3] };
    stream.outgoing.send(Ok(batch)).await.expect("open");
    until(|| rig.remote.stats().down_lost.load(Ordering::Relaxed) == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_flushes_what_is_queued() {
    let (streams_in, mut streams) = mpsc::channel(4);
    let (address, _server) = serve(streams_in).await;
    let mut rig = rig(address, "right");
    assert!(next(&mut rig.links).await);
    let mut stream = next(&mut streams).await;
    let sent: Vec<Up> = (0..1_000).map(detach).collect();
    submit(&rig.remote.uplink(), sent.clone()).expect("room");
    let stopping = tokio::task::spawn_blocking(move || rig.remote.stop());
    assert_eq!(items_of(&mut stream, sent.len()).await, sent);
    assert!(stream.incoming.message().await.expect("clean end").is_none());
    drop(stream);
    stopping.await.expect("stops");
}

#[test]
fn a_malformed_endpoint_is_refused() {
    let hello = Hello { gateway: GatewayId::new(7), epoch: 11, shards: 2 };
    for endpoint in ["", "127.0.0.1:8010", "https://127.0.0.1:8010", "not a url"] {
        let config = RemoteConfig { endpoint: endpoint.to_owned(), key: "k".to_owned(), tls: None };
        let started = RemoteControl::start(&config, hello, Arc::new(Recording::default()), Arc::new(|_| {}));
        assert!(matches!(started.err(), Some(RemoteError::Endpoint { .. })), "{endpoint:?}");
    }
}
