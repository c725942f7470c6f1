//! The gateway as its owner sees it: starts the shards, drains them in order, joins them with a deadline.

mod beds;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gimbal_codec::{GatewayId, ShardId};
use gimbal_rpc::link::{Control, Downlink, Hello, Uplink};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};

use crate::certificate::{self, Configs, Files, Watch};
use crate::config::Config;
use crate::error::{ConfigError, StartError};
use crate::link::{RemoteConfig, RemoteControl};
use crate::live::{Live, Settings};
use crate::metrics::{Metrics, ShardMetrics};
use crate::quic::{self, Quic};
use crate::ring::{Doorbell, Ring, os, setup};
use crate::session::{Flow, Limits, Pace};
use crate::shard::{Clock, Inbox, Memory, Peers, Setup, Shard, Sources, TICK};
use crate::transport::Kind;
use crate::transport::websocket::Policy;
use beds::{Carries, Listeners, beds};

/// Never. When this timer fires between glommio's poll of its rings and its look at the task queues, as it does once the
/// thread loses its core there, glommio 0.9 parks for ever with runnable tasks (`run_task_queues` answers that nothing
/// ran). It is not needed: the shard decides itself when glommio runs.
const PREEMPT_TIMER: Duration = Duration::from_secs(24 * 3600);

/// Registered buffers of glommio's rings, which own no sockets here: no more than it needs to start.
const GLOMMIO_IO_BYTES: usize = 64 << 10;

/// What waits when a close begins may take this long, if the write deadline is not shorter.
const FLUSH_MS_MAX: u64 = 5000;

/// Frames and bytes of a session may come at once for so many seconds: a client that was away sends what has collected.
const BURST_SECONDS: u8 = 4;

/// A shard that has not ended so long after its own deadline is given up.
const JOIN_GRACE: Duration = Duration::from_secs(5);

/// Where control is.
pub enum Plane {
    /// In this process.
    Local(Arc<dyn Control>),
    /// In another one, over gRPC.
    Remote(RemoteConfig),
}

/// A running gateway. Dropping it closes every connection at once; [`Server::drain`] is the tidy way.
pub struct Server {
    peers: Arc<Peers>,
    shards: Vec<JoinHandle<()>>,
    metrics: Metrics,
    listening: Vec<(Kind, SocketAddr)>,
    hello: Hello,
    remote: Option<RemoteControl>,
    live: Arc<Live>,
    _certificate: Option<Watch>,
}

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drained {
    /// Connections that had not gone by themselves and were cut.
    pub cut: u64,
    /// Shards that did not end in time.
    pub stuck: usize,
}

impl Server {
    /// Listens and starts the shards; returns when all of them accept. Raises this process's soft limits of descriptors
    /// and locked memory to the hard ones.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then. A remote control that cannot be reached is not an error.
    pub fn start(config: &Config, plane: Plane) -> Result<Self, StartError> {
        config.check()?;
        raise_limits();
        let cores = os::allowed_cores().unwrap_or_default();
        let shard_count = shard_count(config, cores.len());
        let (tls, certificate) = certificate(config)?.unzip();
        let (listening, beds) = beds(config, shard_count, tls.as_ref())?;
        let shard_count = to_count(beds.len());
        let policy = Arc::new(Policy {
            path: config.websocket.path.clone(),
            origins: config.websocket.origins.clone(),
        });
        let doorbells = doorbells(shard_count)?;
        let peers = Arc::new(Peers::new(doorbells.iter().map(|doorbell| inbox(config, doorbell)).collect()));
        let (clock, epoch) = start_clock();
        let hello = Hello { gateway: GatewayId::new(config.gateway_id), epoch, shards: shard_count };
        let (uplink, remote) = connect(plane, hello, &peers)?;
        let shard_metrics: Vec<_> = (0..shard_count).map(|_| Arc::new(ShardMetrics::default())).collect();
        let metrics = Metrics::new(shard_metrics.clone());
        let settings = settings(config, shard_count);
        let live = live(config, settings, shard_count);
        let mut server = Self {
            peers,
            shards: Vec::new(),
            metrics,
            listening,
            hello,
            remote,
            live: Arc::clone(&live),
            _certificate: certificate,
        };
        let parts = beds.into_iter().zip(doorbells).zip(shard_metrics);
        let mut ready = Vec::new();
        for (index, ((bed, doorbell), metrics)) in (0..).zip(parts) {
            let setup = Setup {
                id: ShardId(index),
                clock,
                settings,
                live: Arc::clone(&live),
                connections_max: bed.connections_max,
                balancers: Arc::clone(&bed.balancers),
                shard_count: shard_count.into(),
                policy: Arc::clone(&policy),
                tls: tls.clone(),
                handshakes_max: config.tls.handshakes_max.div_ceil(shard_count.into()),
                doorbell,
                peers: Arc::clone(&server.peers),
                uplink: Arc::clone(&uplink),
                metrics,
            };
            ready.push(server.spawn(setup, bed.carries, placement(config, &cores, index, shard_count))?);
        }
        for (index, ready) in (0..).zip(ready) {
            await_ready(index, &ready)?;
        }
        let memory_max = live.memory.max();
        for (kind, address) in &server.listening {
            tracing::info!(?kind, %address, shards = shard_count, epoch, memory_max, "gateway accepts connections");
        }
        Ok(server)
    }

    /// Where it listens for TCP; with port 0 configured, the port it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.address(Kind::Tcp).expect("there is always a listener for TCP")
    }

    /// Where it listens for WebSocket, if it does.
    pub fn websocket_addr(&self) -> Option<SocketAddr> {
        self.address(Kind::WebSocket)
    }

    /// Where it listens for TCP in TLS, if it does.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.address(Kind::Tls)
    }

    /// Where it listens for WebSocket in TLS, if it does.
    pub fn websocket_tls_addr(&self) -> Option<SocketAddr> {
        self.address(Kind::WebSocketTls)
    }

    /// Where it listens for QUIC, over UDP, if it does.
    pub fn quic_addr(&self) -> Option<SocketAddr> {
        self.address(Kind::Quic)
    }

    fn address(&self, kind: Kind) -> Option<SocketAddr> {
        self.listening.iter().find(|(listening, _)| *listening == kind).map(|(_, address)| *address)
    }

    /// This life of the gateway, as it introduced itself to control.
    pub fn hello(&self) -> Hello {
        self.hello
    }

    /// Its counters; they stay readable after it has ended.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// The link's own counters and state, when control is in another process.
    pub fn remote(&self) -> Option<&RemoteControl> {
        self.remote.as_ref()
    }

    /// Whether every shard runs and the link is up: for `/readyz`.
    pub fn is_ready(&self) -> bool {
        self.shards.iter().all(|shard| !shard.is_finished())
            && self.remote.as_ref().is_none_or(RemoteControl::is_up)
    }

    /// Takes over what may change while it runs: deadlines, limits of sessions, addresses, sign-ins, memory and pushes. The rest
    /// of `config` needs another start.
    ///
    /// # Errors
    /// When a setting is out of its bounds; nothing has changed then.
    pub fn reload(&self, config: &Config) -> Result<(), ConfigError> {
        config.check()?;
        self.live.set(settings(config, self.hello.shards), config);
        Ok(())
    }

    /// Stops accepting, tells clients evenly over `over` to come back later, flushes, and ends. Blocks until then: at most
    /// `over` and the flush and linger deadlines and a few seconds.
    pub fn drain(mut self, over: Duration) -> Drained {
        self.peers.drain(over.as_millis() as u64);
        let limits = self.live.settings().limits;
        let waits = Duration::from_millis(limits.flush_ms + limits.linger_ms);
        let stuck = self.join(over + waits + JOIN_GRACE);
        if let Some(remote) = self.remote.take() {
            remote.stop();
        }
        Drained { cut: self.metrics.connections(), stuck }
    }

    fn spawn(&mut self, setup: Setup, carries: Carries, placement: Placement) -> Result<Ready, StartError> {
        let shard = setup.id.0;
        let (tell, ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("gimbal-shard-{shard}"))
            .spawn(move || {
                let _abort = AbortOnPanic;
                run_shard(setup, carries, placement, &tell);
            })
            .map_err(|source| StartError::Shard { shard, source })?;
        self.shards.push(thread);
        Ok(ready)
    }

    /// Waits for the shards; how many did not end in time.
    fn join(&mut self, deadline: Duration) -> usize {
        const POLL: Duration = Duration::from_millis(2);
        let rounds = deadline.as_millis() / POLL.as_millis();
        for _ in 0..rounds {
            if self.shards.iter().all(JoinHandle::is_finished) {
                break;
            }
            thread::sleep(POLL);
        }
        let mut stuck = 0;
        for shard in self.shards.drain(..) {
            if shard.is_finished() {
                shard.join().expect("a shard that panics ends the process");
            } else {
                stuck += 1;
            }
        }
        stuck
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.peers.stop();
        let stuck = self.join(JOIN_GRACE);
        if stuck > 0 {
            tracing::error!(stuck, "shards did not end in time");
        }
    }
}

/// How a shard's thread says whether it accepts connections.
type Ready = mpsc::Receiver<Result<(), StartError>>;

/// A shard that panics owns sessions that nobody will serve: the process ends, and its supervisor starts it anew.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a shard panicked: the process ends");
            std::process::abort();
        }
    }
}

/// All of a shard's thread.
fn run_shard(
    setup: Setup,
    carries: Carries,
    placement: Placement,
    tell: &mpsc::SyncSender<Result<(), StartError>>,
) {
    match carries {
        Carries::Streams(listeners) => run_on_ring(setup, listeners, placement, tell),
        Carries::Quic(quic, socket) => run_on_quic(setup, &quic, socket, tell),
    }
}

fn run_on_quic(
    setup: Setup,
    quic: &quic::Setup,
    socket: UdpSocket,
    tell: &mpsc::SyncSender<Result<(), StartError>>,
) {
    let shard = setup.id.0;
    let (doorbell, metrics) = (Arc::clone(&setup.doorbell), Arc::clone(&setup.metrics));
    match Quic::new(socket, quic, doorbell, metrics, TICK) {
        Ok(carrier) => {
            let shard = Shard::new(setup, carrier, vec![(Kind::Quic, ())]);
            let _ = tell.send(Ok(()));
            shard.run(|| ());
        }
        Err(source) => {
            let _ = tell.send(Err(StartError::Shard { shard, source }));
        }
    }
}

fn run_on_ring(
    setup: Setup,
    listeners: Listeners,
    placement: Placement,
    tell: &mpsc::SyncSender<Result<(), StartError>>,
) {
    let shard = setup.id.0;
    let executor = match executor(placement) {
        Ok(executor) => executor,
        Err(error) => {
            let source = io::Error::other(format!("glommio: {error}"));
            let _ = tell.send(Err(StartError::Shard { shard, source }));
            return;
        }
    };
    match Ring::new(setup.id, Arc::clone(&setup.doorbell), TICK) {
        Ok(ring) => {
            let shard = Shard::new(setup, ring, listeners);
            let _ = tell.send(Ok(()));
            shard.run(|| executor.run(std::future::ready(())));
        }
        Err(source) => {
            let _ = tell.send(Err(StartError::Ring { advice: setup::explain(&source), source }));
        }
    }
}

/// The calling thread's executor, which also binds the thread to its core; where a machine does not say what cores it has
/// (a container without sysfs), the thread floats.
fn executor(placement: Placement) -> glommio::Result<LocalExecutor, ()> {
    let make = |placement| {
        LocalExecutorBuilder::new(placement).io_memory(GLOMMIO_IO_BYTES).preempt_timer(PREEMPT_TIMER).make()
    };
    make(placement).or_else(|error| {
        tracing::warn!(%error, "the shard is not pinned");
        make(Placement::Unbound)
    })
}

fn raise_limits() {
    for resource in [os::Resource::Files, os::Resource::LockedMemory] {
        if let Err(error) = os::raise(resource) {
            tracing::warn!(?resource, %error, "soft limit cannot be raised");
        }
    }
}

fn shard_count(config: &Config, core_count: usize) -> u8 {
    match config.shards {
        0 => {
            u8::try_from(core_count.saturating_sub(1)).unwrap_or(u8::MAX).clamp(1, crate::config::SHARDS_MAX)
        }
        count => count,
    }
}

/// The last cores of the process's own mask: the first one is control's when there is one to spare.
fn placement(config: &Config, cores: &[usize], shard: u8, shard_count: u8) -> Placement {
    if !config.pin || cores.is_empty() {
        return Placement::Unbound;
    }
    let spare = cores.len().saturating_sub(usize::from(shard_count));
    Placement::Fixed(cores[(spare + usize::from(shard)) % cores.len()])
}

/// TLS, when there is a certificate.
fn certificate(config: &Config) -> Result<Option<(Configs, Watch)>, StartError> {
    let (Some(certificate), Some(key)) = (&config.tls.certificate, &config.tls.key) else { return Ok(None) };
    certificate::start(Files { certificate: certificate.clone(), key: key.clone() }).map(Some)
}

fn to_count(shards: usize) -> u8 {
    u8::try_from(shards).expect("shards are bounded")
}

fn doorbells(count: u8) -> Result<Vec<Arc<Doorbell>>, StartError> {
    (0..count)
        .map(|shard| Doorbell::new().map(Arc::new).map_err(|source| StartError::Shard { shard, source }))
        .collect()
}

fn inbox(config: &Config, doorbell: &Arc<Doorbell>) -> Arc<Inbox> {
    let bytes_max = config.inbox_bytes_max.as_u64() as usize;
    Arc::new(Inbox::new(config.inbox_items_max as usize, bytes_max, Arc::clone(doorbell)))
}

fn settings(config: &Config, shard_count: u8) -> Settings {
    Settings {
        limits: session_limits(config),
        sign_ins_per_second: config.sign_ins_per_second.div_ceil(shard_count.into()),
        push_per_second: config.push_per_second / u32::from(shard_count),
    }
}

fn live(config: &Config, settings: Settings, shard_count: u8) -> Arc<Live> {
    let sources = Sources::new(
        config.connections_per_address,
        config.connections_per_prefix,
        config.connections_unlimited_from.clone(),
    );
    let memory = Memory::new(shard_count.into(), config.memory_max.as_u64());
    Arc::new(Live::new(settings, Arc::new(sources), Arc::new(memory)))
}

fn session_limits(config: &Config) -> Limits {
    let ms = |duration: Duration| duration.as_millis() as u64;
    Limits {
        sign_in_ms: ms(config.sign_in_deadline),
        idle_ms: ms(config.idle_deadline),
        write_ms: ms(config.write_deadline),
        flush_ms: ms(config.write_deadline).min(FLUSH_MS_MAX),
        linger_ms: ms(config.linger_deadline),
        queue_bytes_max: config.queue_bytes_max.as_u64() as usize,
        rooms_max: config.rooms_per_session_max.into(),
        signals: Pace::new(config.signals_per_second, config.signals_burst),
        publishes: Pace::new(config.publishes_per_second, config.publishes_burst),
        frames: Flow::new(config.frames_per_second.into(), BURST_SECONDS),
        bytes: Flow::new(config.bytes_per_second.as_u64(), BURST_SECONDS),
    }
}

/// The clock of this life, and its epoch.
fn start_clock() -> (Clock, u64) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the start of this life; everything later is counted from here"
    )]
    let (start, unix) = (Instant::now(), SystemTime::now());
    let unix_ms = unix.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    (Clock::start(start, unix_ms as i64), unix_ms)
}

type Connected = (Arc<dyn Uplink>, Option<RemoteControl>);

fn connect(plane: Plane, hello: Hello, peers: &Arc<Peers>) -> Result<Connected, StartError> {
    let down = Arc::clone(peers) as Arc<dyn Downlink>;
    match plane {
        Plane::Local(control) => {
            let uplink = control.connect(hello, down);
            peers.link_changed(true);
            Ok((uplink, None))
        }
        Plane::Remote(config) => {
            let told = Arc::clone(peers);
            let on_link = Arc::new(move |is_up| told.link_changed(is_up));
            let remote = RemoteControl::start(&config, hello, down, on_link)?;
            Ok((remote.uplink(), Some(remote)))
        }
    }
}

fn await_ready(shard: u8, ready: &Ready) -> Result<(), StartError> {
    ready
        .recv()
        .unwrap_or_else(|_| Err(StartError::Shard { shard, source: io::ErrorKind::BrokenPipe.into() }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn glommio_tasks_and_timers_go_on_while_it_is_lent_a_moment_at_a_time() {
        let executor = executor(Placement::Unbound).unwrap();
        let steps = Rc::new(Cell::new(0));
        let counted = Rc::clone(&steps);
        executor.run(async move {
            let count = async move {
                loop {
                    glommio::timer::sleep(Duration::from_millis(1)).await;
                    counted.set(counted.get() + 1);
                }
            };
            glommio::spawn_local(count).detach();
        });
        while steps.get() < 5 {
            executor.run(std::future::ready(()));
        }
    }
}
