//! The remote half of the link: a gateway whose control runs in another process.
//!
//! One thread owns a current-thread Tokio runtime and one bidirectional gRPC stream. Shards hand their batches to
//! [`RemoteControl`] as to control itself; what control sends goes to the gateway's [`Downlink`]. When the stream
//! breaks, everything still queued is dropped and counted, `on_link(false)` is called, and after the next
//! successful connection `on_link(true)`: shards then announce their sessions and rooms again.
//!
//! A batch belongs to the stream that was up when it was submitted and never travels over a later one, so control sees
//! nothing of a session before its announcement.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use gimbal_codec::ShardId;
use gimbal_rpc::{
    link::{Down, Downlink, Hello, LinkFull, Up, Uplink},
    link_v1::{self as pb, link_client::LinkClient},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tracing::{info, warn};

/// Batches of shards waiting for the stream: their bytes are the bound that is to be met first, also by batches of one item.
const QUEUE_BATCHES_MAX: usize = 65_536;
/// Bytes waiting for the stream, by [`weight`]: a quarter of a second at 64 MiB/s. An empty queue takes any one batch.
const QUEUE_BYTES_MAX: usize = 16 << 20;
/// One message on the stream is closed at this size; one item more may exceed it.
const MESSAGE_BYTES: usize = 256 << 10;
/// No message on the stream is larger, in either direction (control keeps the same bound).
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Messages handed to HTTP/2 and not yet taken by it.
const MESSAGES_MAX: usize = 4;
/// Flow-control window of the stream: one burst of deliveries.
const WINDOW_BYTES: u32 = 4 << 20;
/// Share of an item that is not content: ids, tag, protobuf keys.
const ITEM_BYTES: usize = 96;

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const WELCOME_DEADLINE: Duration = Duration::from_secs(5);
/// A control that answers no ping for this long is taken as dead: 2 s until the ping, 3 s for its answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A stream that lived so long was a working one: the next attempt comes soon.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// What is queued when the gateway stops may take this long to leave.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Called on the link's thread with `true` after each welcome and `false` when the stream is gone.
pub type OnLink = Arc<dyn Fn(bool) + Send + Sync>;

/// Where control is.
#[derive(Clone)]
pub struct RemoteConfig {
    /// `http://host:port` or `https://host:port` of control's gRPC listener.
    pub endpoint: String,
    /// The link key, as control has it; never logged.
    pub key: String,
    /// For `https`, and only for it.
    pub tls: Option<RemoteTls>,
}

/// Whom the link trusts, and what it shows.
#[derive(Clone)]
pub struct RemoteTls {
    /// PEM: the authority of control's certificate.
    pub ca: Vec<u8>,
    /// PEM: a client certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// The remote link cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Not a URL.
    #[error("control address {endpoint:?} is not a URL like http://127.0.0.1:8010, or https with edge.ca")]
    Endpoint {
        /// As configured.
        endpoint: String,
    },
    /// Authority or client certificate are of no use.
    #[error("TLS of the link: {0}")]
    Tls(#[source] tonic::transport::Error),
    /// The key cannot travel in an HTTP header.
    #[error("the link key holds characters outside of visible ASCII")]
    Key,
    /// No thread or no runtime.
    #[error("the link's thread does not start: {0}")]
    Thread(#[source] io::Error),
}

/// What the link did since start; each only grows.
#[derive(Default, Debug)]
pub struct LinkStats {
    /// Streams that were welcomed.
    pub connects: AtomicU64,
    /// Attempts and streams that failed.
    pub failures: AtomicU64,
    /// Items given to the stream.
    pub up_items: AtomicU64,
    /// Submissions refused, because the queue is full or the link is down.
    pub up_refused: AtomicU64,
    /// Items that were accepted and not given to their stream when it broke.
    pub up_lost: AtomicU64,
    /// Items from control.
    pub down_items: AtomicU64,
    /// Items from control for which the gateway had no room; its shards announce again.
    pub down_lost: AtomicU64,
}

/// A running remote link. Dropping it is as good as [`RemoteControl::stop`].
pub struct RemoteControl {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    queue: mpsc::Sender<Batch>,
    queued_bytes: AtomicUsize,
    /// Items taken from the queue and not given to the stream.
    in_hand: AtomicU64,
    /// Odd while a stream is up; a batch carries the number under which it was submitted.
    life: AtomicU64,
    stop: watch::Sender<bool>,
    stats: LinkStats,
}

struct Batch {
    life: u64,
    bytes: usize,
    items: Vec<Up>,
}

impl RemoteControl {
    /// Starts the link's thread, which connects and goes on doing so until stopped. `down` gets what control sends,
    /// `on_link` every change of the link; both are called on the link's thread and must not block.
    ///
    /// # Errors
    /// [`RemoteError`]: a malformed endpoint or key, or no thread. A control that cannot be reached is not an error.
    pub fn start(
        config: &RemoteConfig,
        hello: Hello,
        down: Arc<dyn Downlink>,
        on_link: OnLink,
    ) -> Result<Self, RemoteError> {
        let endpoint = endpoint(config)?;
        let mut key: MetadataValue<Ascii> =
            format!("Bearer {}", config.key).parse().map_err(|_| RemoteError::Key)?;
        key.set_sensitive(true);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(RemoteError::Thread)?;
        let (queue, batches) = mpsc::channel(QUEUE_BATCHES_MAX);
        let shared = Arc::new(Shared {
            queue,
            queued_bytes: AtomicUsize::new(0),
            in_hand: AtomicU64::new(0),
            life: AtomicU64::new(0),
            stop: watch::Sender::new(false),
            stats: LinkStats::default(),
        });
        let mut worker = Worker { shared: Arc::clone(&shared), endpoint, key, hello, down, on_link, batches };
        let thread = thread::Builder::new()
            .name("gimbal-link".into())
            .spawn(move || runtime.block_on(worker.run()))
            .map_err(RemoteError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What shards submit to.
    pub fn uplink(&self) -> Arc<dyn Uplink> {
        Arc::clone(&self.shared) as Arc<dyn Uplink>
    }

    /// Whether a stream is up now.
    pub fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    /// Counters since start.
    pub fn stats(&self) -> &LinkStats {
        &self.shared.stats
    }

    /// Sends what is queued, within a second, and ends the stream and the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("link thread panicked");
        }
    }
}

impl Drop for RemoteControl {
    fn drop(&mut self) {
        self.end();
    }
}

fn endpoint(config: &RemoteConfig) -> Result<Endpoint, RemoteError> {
    let endpoint = Endpoint::from_shared(config.endpoint.clone())
        .map_err(|_| RemoteError::Endpoint { endpoint: config.endpoint.clone() })?;
    let endpoint = match (endpoint.uri().scheme_str(), &config.tls) {
        (Some("http"), None) => endpoint,
        (Some("https"), Some(tls)) => {
            let mut client = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                client = client.identity(Identity::from_pem(certificate, key));
            }
            endpoint.tls_config(client).map_err(RemoteError::Tls)?
        }
        _ => return Err(RemoteError::Endpoint { endpoint: config.endpoint.clone() }),
    };
    Ok(endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES))
}

impl Shared {
    fn is_up(&self) -> bool {
        !self.life.load(Ordering::SeqCst).is_multiple_of(2)
    }

    fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Counts a batch that outlived its stream.
    fn lose(&self, batch: &Batch) {
        self.queued_bytes.fetch_sub(batch.bytes, Ordering::SeqCst);
        self.stats.up_lost.fetch_add(batch.items.len() as u64, Ordering::Relaxed);
    }

    fn enqueue(&self, items: &mut Vec<Up>) -> Result<(), LinkFull> {
        let life = self.life.load(Ordering::SeqCst);
        if life.is_multiple_of(2) || self.stopping() {
            return Err(LinkFull);
        }
        let bytes = items.iter().map(weight).sum();
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::SeqCst);
        if queued > 0 && queued + bytes > QUEUE_BYTES_MAX {
            self.queued_bytes.fetch_sub(bytes, Ordering::SeqCst);
            return Err(LinkFull);
        }
        let batch = Batch { life, bytes, items: std::mem::take(items) };
        self.queue.try_send(batch).map_err(|refused| {
            let batch = refused.into_inner();
            self.queued_bytes.fetch_sub(batch.bytes, Ordering::SeqCst);
            *items = batch.items;
            LinkFull
        })
    }
}

impl Uplink for Shared {
    fn submit(&self, _shard: ShardId, items: &mut Vec<Up>) -> Result<(), LinkFull> {
        if items.is_empty() {
            return Ok(());
        }
        let result = self.enqueue(items);
        if result.is_err() {
            self.stats.up_refused.fetch_add(items.len() as u64, Ordering::Relaxed);
        }
        result
    }
}

/// Bytes an item takes in the queue and about as many on the stream.
fn weight(item: &Up) -> usize {
    ITEM_BYTES
        + match item {
            Up::SignIn { token, peer, .. } => token.len() + peer.len(),
            Up::Announce { peer, .. } => peer.len(),
            Up::Send { tag, content, .. } | Up::Publish { tag, content, .. } => {
                tag.request_id.len() + content.len()
            }
            Up::Sync { tag, .. } | Up::Ack { tag, .. } => tag.request_id.len(),
            Up::Signal(signal) => signal.content.len(),
            Up::Detach { .. } | Up::RoomInterest { .. } => 0,
        }
}

struct Worker {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    key: MetadataValue<Ascii>,
    hello: Hello,
    down: Arc<dyn Downlink>,
    on_link: OnLink,
    batches: mpsc::Receiver<Batch>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error("control ended the stream")]
    Ended,
    #[error("no welcome within {} s", WELCOME_DEADLINE.as_secs())]
    NoWelcome,
    #[error("control sent what this gateway does not understand: {0}")]
    Decode(#[from] gimbal_rpc::link::LinkDecodeError),
}

impl Worker {
    async fn run(&mut self) {
        let mut backoff = Backoff(BACKOFF_MIN);
        while !self.shared.stopping() {
            let (lived, lost) = self.one_stream().await;
            let Some(lost) = lost else { break };
            self.shared.stats.failures.fetch_add(1, Ordering::Relaxed);
            let pause = backoff.after(lived);
            warn!(reason = %lost, retry_ms = pause.as_millis() as u64, "link down");
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = stopped(&self.shared) => break,
            }
        }
    }

    /// One connection from dial to loss: how long it was up, and why it ended (`None`: asked to stop).
    async fn one_stream(&mut self) -> (Duration, Option<Lost>) {
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = stopped(&self.shared) => return (Duration::ZERO, None),
        };
        let (outgoing, incoming) = match opened {
            Ok(streams) => streams,
            Err(lost) => return (Duration::ZERO, Some(lost)),
        };
        let welcomed_at = tokio::time::Instant::now();
        self.shared.stats.connects.fetch_add(1, Ordering::Relaxed);
        let life = self.shared.life.fetch_add(1, Ordering::SeqCst) + 1;
        (self.on_link)(true);
        let lost = self.carry(life, outgoing, incoming).await;
        self.shared.life.fetch_add(1, Ordering::SeqCst);
        while let Ok(batch) = self.batches.try_recv() {
            self.shared.lose(&batch);
        }
        let in_hand = self.shared.in_hand.swap(0, Ordering::Relaxed);
        self.shared.stats.up_lost.fetch_add(in_hand, Ordering::Relaxed);
        (self.on_link)(false);
        (welcomed_at.elapsed(), lost)
    }

    async fn open(&self) -> Result<(mpsc::Sender<pb::UpBatch>, Streaming<pb::DownBatch>), Lost> {
        let channel: Channel = self.endpoint.connect().await?;
        let mut client = LinkClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, stream) = mpsc::channel(MESSAGES_MAX);
        let hello = pb::UpBatch { hello: Some(self.hello.into()), items: Vec::new() };
        outgoing.try_send(hello).expect("a new channel has room");
        let mut request = Request::new(ReceiverStream::new(stream));
        request.metadata_mut().insert("authorization", self.key.clone());
        let welcomed = async {
            let mut incoming = client.open(request).await?.into_inner();
            let first = incoming.message().await?.ok_or(Lost::Ended)?;
            let welcome = first.welcome.ok_or(Lost::NoWelcome)?;
            info!(endpoint = %self.endpoint.uri(), control_epoch = welcome.control_epoch, "link up");
            Ok::<_, Lost>(incoming)
        };
        let incoming =
            tokio::time::timeout(WELCOME_DEADLINE, welcomed).await.map_err(|_| Lost::NoWelcome)??;
        Ok((outgoing, incoming))
    }

    /// Carries batches both ways until the stream is lost, or until all queued is sent after a stop.
    async fn carry(
        &mut self,
        life: u64,
        outgoing: mpsc::Sender<pb::UpBatch>,
        incoming: Streaming<pb::DownBatch>,
    ) -> Option<Lost> {
        let shared = Arc::clone(&self.shared);
        let deadline = async {
            stopped(&shared).await;
            tokio::time::sleep(STOP_DEADLINE).await;
        };
        let mut reading = pin!(read(&shared, self.down.as_ref(), incoming));
        let mut deadline = pin!(deadline);
        tokio::select! {
            lost = &mut reading => return Some(lost),
            written = write(&shared, &mut self.batches, life, outgoing) => if let Err(lost) = written {
                return Some(lost);
            },
            () = &mut deadline => return None,
        }
        // All that was queued is on the stream and its sending half is closed; control answers by closing the other.
        tokio::select! {
            _ = reading => {}
            () = deadline => {}
        }
        None
    }
}

/// Gives control's batches to the gateway until the stream is lost.
async fn read(shared: &Shared, down: &dyn Downlink, mut incoming: Streaming<pb::DownBatch>) -> Lost {
    loop {
        let batch = match incoming.message().await {
            Ok(Some(batch)) => batch,
            Ok(None) => return Lost::Ended,
            Err(status) => return Lost::Status(status),
        };
        let items = batch.items.into_iter().map(Down::try_from).collect::<Result<Vec<_>, _>>();
        let mut items = match items {
            Ok(items) => items,
            Err(error) => return Lost::Decode(error),
        };
        let count = items.len() as u64;
        if items.is_empty() || down.deliver(&mut items).is_ok() {
            shared.stats.down_items.fetch_add(count, Ordering::Relaxed);
        } else {
            shared.stats.down_lost.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Sends what shards submit until the stream is lost, or until the queue is empty after a stop.
async fn write(
    shared: &Shared,
    batches: &mut mpsc::Receiver<Batch>,
    life: u64,
    outgoing: mpsc::Sender<pb::UpBatch>,
) -> Result<(), Lost> {
    let mut message = pb::UpBatch::default();
    let mut bytes = 0;
    loop {
        let batch = match batches.try_recv() {
            Ok(batch) => batch,
            Err(_) if !message.items.is_empty() => {
                send(shared, &outgoing, &mut message, &mut bytes).await?;
                continue;
            }
            Err(_) => tokio::select! {
                biased;
                batch = batches.recv() => batch.ok_or(Lost::Ended)?,
                () = stopped(shared) => return Ok(()),
            },
        };
        if batch.life != life {
            shared.lose(&batch);
            continue;
        }
        shared.in_hand.fetch_add(batch.items.len() as u64, Ordering::Relaxed);
        shared.queued_bytes.fetch_sub(batch.bytes, Ordering::SeqCst);
        for item in batch.items {
            bytes += weight(&item);
            message.items.push(item.into());
            if bytes >= MESSAGE_BYTES {
                send(shared, &outgoing, &mut message, &mut bytes).await?;
            }
        }
    }
}

async fn send(
    shared: &Shared,
    outgoing: &mpsc::Sender<pb::UpBatch>,
    message: &mut pb::UpBatch,
    bytes: &mut usize,
) -> Result<(), Lost> {
    let count = message.items.len() as u64;
    outgoing.send(std::mem::take(message)).await.map_err(|_| Lost::Ended)?;
    *bytes = 0;
    shared.in_hand.fetch_sub(count, Ordering::Relaxed);
    shared.stats.up_items.fetch_add(count, Ordering::Relaxed);
    Ok(())
}

async fn stopped(shared: &Shared) {
    let mut stop = shared.stop.subscribe();
    // The sender lives in `shared`, so the wait cannot fail.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The pause before the next attempt. It doubles with each, also when control welcomes and drops: only a stream that lasted
/// makes it short again.
struct Backoff(Duration);

impl Backoff {
    /// After a stream that was up for `lived`.
    fn after(&mut self, lived: Duration) -> Duration {
        let pause = if lived >= STEADY_AFTER { BACKOFF_MIN } else { self.0 };
        self.0 = (pause * 2).min(BACKOFF_MAX);
        pause
    }
}

/// Between half of `backoff` and all of it, so that gateways do not return in step.
fn jittered(backoff: Duration) -> Duration {
    let half = backoff / 2;
    let random = RandomState::new().hash_one(0_u8) % 1024;
    half + half * u32::try_from(random).expect("below 1024") / 1024
}

#[cfg(test)]
mod tests;
