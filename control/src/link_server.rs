//! The link over gRPC: one bidirectional stream for each remote gateway, the same path as in the process.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gimbal_codec::ShardId;
use gimbal_rpc::{
    link::{Down, Downlink, Hello, LinkFull, Up, Uplink as _},
    link_v1::{self as pb, link_server::Link},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataValue};

use crate::{
    api_key::{Keys, Scope},
    config::Limits,
    layer::Caught,
    live::LiveLimits,
    metrics::Metrics,
    plane::{LinkHandle, Place, Plane},
};

/// No message on the stream is larger, in either direction (gateways keep the same bound).
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// One message is closed at this size; one item more, at most a sync page, may exceed it.
const MESSAGE_BYTES: usize = 256 << 10;
/// Messages handed to HTTP/2 and not yet taken by it.
const MESSAGES_MAX: usize = 4;
/// A stream that does not say who it is ends after this.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a batch waits between attempts while the writer is full; the stream is not read meanwhile, so the
/// gateway's own queue fills and its shards refuse.
const RETRY: Duration = Duration::from_millis(2);
/// Attempts to end a lease while the writer is full.
const FORGET_RETRY: Duration = Duration::from_millis(100);
/// Share of an item that is not content: ids, tag, protobuf keys.
const ITEM_BYTES: usize = 96;

/// Bounds of one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkLimits {
    pub(crate) items_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) lease: Duration,
}

impl LinkLimits {
    fn of(limits: &Limits) -> Self {
        Self {
            items_max: limits.link_items_max,
            bytes_max: usize::try_from(limits.link_bytes_max.as_u64()).unwrap_or(usize::MAX),
            lease: limits.gateway_lease,
        }
    }
}

/// The service.
pub(crate) struct LinkService {
    pub(crate) plane: Arc<Plane>,
    pub(crate) keys: Keys,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: LiveLimits,
    pub(crate) control_epoch: u32,
    /// True once the server stops.
    pub(crate) stop: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Link for LinkService {
    type OpenStream = ReceiverStream<Result<pb::DownBatch, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<pb::UpBatch>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        tracing::Span::current().record("key", &*self.keys.check(Scope::Link, request.metadata())?);
        let mut incoming = request.into_inner();
        let first = timeout(HELLO_DEADLINE, incoming.message())
            .await
            .map_err(|_| refused(Code::DeadlineExceeded, "no_hello", "no hello in time"))??;
        let hello = first.and_then(|batch| batch.hello);
        let hello = hello
            .ok_or_else(|| refused(Code::InvalidArgument, "no_hello", "the first batch has no hello"))?;
        let hello = Hello::try_from(hello)
            .map_err(|error| refused(Code::InvalidArgument, "bad_hello", &error.to_string()))?;
        let limits = LinkLimits::of(&self.limits.get());
        let queue = Arc::new(Queue::new(limits));
        let down = Arc::clone(&queue) as Arc<dyn Downlink>;
        let handle = self
            .plane
            .link(hello, down, Place::Remote)
            .map_err(|error| refused(Code::FailedPrecondition, error.reason(), &error.to_string()))?;
        let (outgoing, stream) = mpsc::channel(MESSAGES_MAX);
        let welcome = pb::Welcome { control_epoch: self.control_epoch };
        let first = pb::DownBatch { welcome: Some(welcome), items: Vec::new() };
        outgoing.try_send(Ok(first)).expect("a new channel has room");
        let connection = Connection {
            handle,
            queue,
            metrics: Arc::clone(&self.metrics),
            stop: self.stop.clone(),
            lease: limits.lease,
        };
        tokio::spawn(connection.run(hello, incoming, outgoing));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn refused(code: Code, reason: &'static str, text: &str) -> Status {
    let mut status = Status::new(code, text);
    status.metadata_mut().insert("gimbal-reason", MetadataValue::from_static(reason));
    status
}

struct Connection {
    handle: LinkHandle,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
    lease: Duration,
}

/// Why a stream ended; the text is the metric's label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Gateway,
    Broken,
    BadItem,
    Full,
    Replaced,
    Stop,
    Panic,
}

impl End {
    const fn reason(self) -> &'static str {
        match self {
            Self::Gateway => "gateway_left",
            Self::Broken => "broken",
            Self::BadItem => "bad_item",
            Self::Full => "down_full",
            Self::Replaced => "replaced",
            Self::Stop => "stop",
            Self::Panic => "panic",
        }
    }
}

impl Connection {
    /// Carries batches both ways until the stream ends; then keeps the routes for the lease.
    async fn run(
        mut self,
        hello: Hello,
        incoming: Streaming<pb::UpBatch>,
        outgoing: mpsc::Sender<Result<pb::DownBatch, Status>>,
    ) {
        let end = Caught::new(self.carry(incoming, &outgoing)).await.unwrap_or_else(|_| {
            self.metrics.call_panics.inc();
            End::Panic
        });
        self.queue.close();
        self.handle.disconnect();
        self.metrics.link_ended(end.reason());
        tracing::warn!(gateway = %hello.gateway, reason = end.reason(), "link ended");
        if end != End::Gateway {
            // Told if there is room; a stream that is full or broken tells it by ending.
            let _ = outgoing.try_send(Err(refused(Code::Unavailable, end.reason(), "link ended")));
        }
        drop(outgoing);
        self.end_lease(end).await;
    }

    async fn carry(
        &self,
        incoming: Streaming<pb::UpBatch>,
        outgoing: &mpsc::Sender<Result<pb::DownBatch, Status>>,
    ) -> End {
        let mut stop = self.stop.clone();
        tokio::select! {
            end = read(&self.handle, &self.metrics, incoming) => end,
            end = write(&self.queue, &self.metrics, outgoing) => end,
            () = self.queue.overflowed.notified() => End::Full,
            // The sender lives as long as the server: an error means the same as true.
            _ = stop.wait_for(|stop| *stop) => End::Stop,
        }
    }

    async fn end_lease(&mut self, end: End) {
        if matches!(end, End::Stop | End::Replaced) {
            return;
        }
        tokio::select! {
            () = sleep(self.lease) => {}
            _ = self.stop.wait_for(|stop| *stop) => return,
        }
        while !self.handle.forget_routes() {
            sleep(FORGET_RETRY).await;
        }
    }
}

/// Gives the gateway's batches to the plane until the stream ends.
async fn read(handle: &LinkHandle, metrics: &Metrics, mut incoming: Streaming<pb::UpBatch>) -> End {
    loop {
        let batch = match incoming.message().await {
            Ok(Some(batch)) => batch,
            Ok(None) => return End::Gateway,
            Err(_) => return End::Broken,
        };
        let items = batch.items.into_iter().map(Up::try_from).collect::<Result<Vec<_>, _>>();
        let mut items = match items {
            Ok(items) => items,
            Err(error) => {
                tracing::error!(%error, "link item not understood");
                return End::BadItem;
            }
        };
        // The shard is of no use here: order holds over the whole stream.
        while handle.submit(ShardId(0), &mut items).is_err() {
            if handle.is_closed() {
                return End::Replaced;
            }
            metrics.link_up_retries.inc();
            sleep(RETRY).await;
        }
    }
}

/// Sends what is queued for the gateway until the stream ends.
async fn write(
    queue: &Queue,
    metrics: &Metrics,
    outgoing: &mpsc::Sender<Result<pb::DownBatch, Status>>,
) -> End {
    loop {
        let Ok(place) = outgoing.reserve().await else { return End::Broken };
        let batch = loop {
            match queue.take() {
                Some(items) => break items,
                None => queue.filled.notified().await,
            }
        };
        metrics.link_down_items.inc_by(batch.len() as u64);
        let items = batch.into_iter().map(Into::into).collect();
        place.send(Ok(pb::DownBatch { welcome: None, items }));
    }
}

/// What waits for one remote gateway. From half full on it refuses what may be lost, so that a burst of that cannot
/// cost the link. Full: it is marked, refuses everything, and its stream is closed, so that the gateway announces its
/// sessions anew.
struct Queue {
    limits: LinkLimits,
    state: Mutex<State>,
    filled: Notify,
    overflowed: Notify,
}

#[derive(Default)]
struct State {
    items: VecDeque<Down>,
    bytes: usize,
    overflow: bool,
    closed: bool,
}

impl Queue {
    fn new(limits: LinkLimits) -> Self {
        Self { limits, state: Mutex::default(), filled: Notify::new(), overflowed: Notify::new() }
    }

    /// The next message's items, if any wait.
    fn take(&self) -> Option<Vec<Down>> {
        let mut state = self.lock();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES {
            let Some(item) = state.items.pop_front() else { break };
            bytes += weight(&item);
            batch.push(item);
        }
        state.bytes -= bytes;
        if batch.is_empty() { None } else { Some(batch) }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items = VecDeque::new();
        state.bytes = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Downlink for Queue {
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
        let bytes: usize = items.iter().map(weight).sum();
        let mut state = self.lock();
        if state.closed || state.overflow {
            return Err(LinkFull);
        }
        let (count, bytes_then) = (state.items.len() + items.len(), state.bytes + bytes);
        let over =
            |share| count > self.limits.items_max / share || bytes_then > self.limits.bytes_max / share;
        if items.iter().all(may_be_lost) && over(2) {
            return Err(LinkFull);
        }
        if over(1) {
            state.overflow = true;
            drop(state);
            self.overflowed.notify_one();
            return Err(LinkFull);
        }
        state.bytes = bytes_then;
        state.items.extend(items.drain(..));
        drop(state);
        self.filled.notify_one();
        Ok(())
    }
}

/// Whether nobody waits for the item or finds it missing: what is not stored.
const fn may_be_lost(item: &Down) -> bool {
    matches!(item, Down::Room { .. } | Down::All { .. } | Down::Signal(_))
}

/// Bytes an item takes on the stream, about.
fn weight(item: &Down) -> usize {
    ITEM_BYTES
        + match item {
            Down::Deliver { body, targets } => body.content.len() + targets.len() * 32,
            Down::SyncDone { result: Ok(page), .. } => {
                page.entries.iter().map(|(_, body)| body.content.len() + ITEM_BYTES).sum()
            }
            Down::SendDone { tag, .. }
            | Down::SyncDone { tag, .. }
            | Down::AckDone { tag, .. }
            | Down::PublishDone { tag, .. } => tag.request_id.len(),
            Down::Room { frame, .. } | Down::All { frame, .. } => frame.len(),
            Down::Signal(signal) => signal.content.len(),
            Down::SignedIn { .. }
            | Down::SignInRefused { .. }
            | Down::Announced { .. }
            | Down::Kick { .. } => 0,
        }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use gimbal_codec::{Attach, CloseReason, RoomId, SessionKey};

    use super::*;

    fn room_frame(bytes: usize) -> Down {
        Down::Room { room: RoomId::new(1), frame: Bytes::from(vec![0; bytes]) }
    }

    fn kick() -> Down {
        Down::Kick { session: SessionKey::from_u64(1), attach: Attach::new(1), reason: CloseReason::Kicked }
    }

    fn queue(items_max: usize, bytes_max: usize) -> Queue {
        Queue::new(LinkLimits { items_max, bytes_max, lease: Duration::ZERO })
    }

    #[test]
    fn a_queue_over_its_bound_takes_nothing_more_and_says_so() {
        for queue in [queue(3, 1 << 20), queue(100, 3 * ITEM_BYTES)] {
            queue.deliver(&mut vec![kick(); 3]).unwrap();
            let mut refused = vec![kick()];
            assert_eq!(queue.deliver(&mut refused), Err(LinkFull));
            assert_eq!(refused.len(), 1);
            queue.take().unwrap();
            assert_eq!(queue.deliver(&mut vec![kick()]), Err(LinkFull), "it stays refused");
        }
    }

    #[test]
    fn what_may_be_lost_is_refused_from_half_full_on_and_never_fills_a_queue() {
        for queue in [queue(6, 1 << 20), queue(100, 6 * (ITEM_BYTES + 10))] {
            queue.deliver(&mut vec![room_frame(10); 3]).unwrap();
            for _ in 0..100 {
                assert_eq!(queue.deliver(&mut vec![room_frame(10)]), Err(LinkFull));
            }
            queue.deliver(&mut vec![kick(), room_frame(10)]).unwrap();
            assert!(!queue.lock().overflow);
            queue.take().unwrap();
            queue.deliver(&mut vec![room_frame(10); 3]).unwrap();
        }
    }

    #[test]
    fn messages_are_cut_by_size_and_keep_their_order() {
        let queue = queue(100, 1 << 30);
        queue.deliver(&mut (0..10).map(|n| room_frame(100_000 + n)).collect()).unwrap();
        let mut sizes = Vec::new();
        while let Some(items) = queue.take() {
            assert!(items.len() <= 3);
            sizes.extend(items.iter().map(weight));
        }
        assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]) && sizes.len() == 10);
        assert_eq!(queue.lock().bytes, 0);
        queue.close();
        assert_eq!(queue.deliver(&mut vec![room_frame(1)]), Err(LinkFull));
    }
}
