//! QUIC as a carrier: one endpoint of quinn's state machines over one UDP socket, on the thread of one shard. No runtime and no
//! task for a connection: what arrives, what is due and what is written is done between two turns of the shard.
//!
//! A connection is accepted when its handshake is completed. Its bytes are those of the first bidirectional stream that the client
//! opens; no other stream is granted. It ends with our close frame on that stream, and, once the peer has acknowledged it, with
//! a CONNECTION_CLOSE that carries the same code.

mod carrier;
mod drive;
mod incoming;
mod link;
pub(crate) mod setup;
mod timers;
mod udp;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use gimbal_codec::SessionKey;
use quinn_proto::{Endpoint, Incoming};

use crate::metrics::{Drop, Gauge, ShardMetrics, Total};
use crate::ring::Doorbell;
use link::{Link, Links};
pub(crate) use setup::Setup;
use timers::Timers;
use udp::Udp;
pub(crate) use udp::bind;

/// Datagrams taken from the kernel between two turns: some milliseconds of work.
const BATCHES_PER_ENTER: usize = 8;

/// Handshakes begun between two turns: each signs once, some milliseconds for all with the slowest keys.
const HANDSHAKES_PER_ENTER: usize = 4;

/// One connection at the shard: its place in [`Links`], which is not given to another before the shard has closed it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Socket(u32);

/// Received bytes of one stream frame.
type Chunk = BytesMut;

type Completion = crate::carrier::Completion<Socket, Chunk>;

/// One shard's connections over QUIC.
pub(crate) struct Quic {
    endpoint: Endpoint,
    udp: Udp,
    doorbell: Arc<Doorbell>,
    metrics: Arc<ShardMetrics>,
    links: Links,
    timers: Timers<Socket>,
    /// Begun and not accepted by us yet, oldest first.
    waiting: VecDeque<Incoming>,
    /// Deadlines of handshakes under way, oldest first.
    handshakes: VecDeque<(Instant, Socket, u64)>,
    /// Links on which something is to be done before the shard sleeps.
    touched: VecDeque<Socket>,
    /// Links whose stream may have something to read.
    readable: VecDeque<Socket>,
    /// Links whose send waits for the peer.
    blocked: BTreeSet<Socket>,
    ready: VecDeque<Completion>,
    bounds: Bounds,
    /// New connections are accepted.
    is_open: bool,
    /// Read once after each sleep.
    now: Instant,
    tick: Duration,
    tick_at: Instant,
}

/// How much may be under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Handshakes; further ones are ignored.
    pub(crate) handshakes_max: usize,
    /// From so many handshakes on, clients are to show first that their address is theirs.
    pub(crate) retry_from: usize,
    /// Connections, with handshakes.
    pub(crate) connections_max: usize,
    /// A handshake that is not completed by then is given up.
    pub(crate) handshake: Duration,
    /// What one connection may have written that is not acknowledged, in bytes.
    pub(crate) send_bytes_max: u64,
}

impl Quic {
    /// Accepts over `socket`, and wakes the shard every `tick`.
    ///
    /// # Errors
    /// When the socket lacks what QUIC needs.
    pub(crate) fn new(
        socket: UdpSocket,
        setup: &Setup,
        doorbell: Arc<Doorbell>,
        metrics: Arc<ShardMetrics>,
        tick: Duration,
    ) -> io::Result<Self> {
        let udp = Udp::new(socket)?;
        let endpoint = setup.endpoint(!udp.may_fragment());
        let now = read_clock();
        Ok(Self {
            endpoint,
            udp,
            doorbell,
            metrics,
            links: Links::default(),
            timers: Timers::default(),
            waiting: VecDeque::new(),
            handshakes: VecDeque::new(),
            touched: VecDeque::new(),
            readable: VecDeque::new(),
            blocked: BTreeSet::new(),
            ready: VecDeque::new(),
            bounds: setup.bounds,
            is_open: false,
            now,
            tick,
            tick_at: now + tick,
        })
    }

    /// Handshakes under way, begun or not.
    fn handshaking(&self) -> usize {
        self.links.handshaking() + self.waiting.len()
    }

    /// The link has something to do or to say.
    fn touch(&mut self, socket: Socket) {
        if let Some(link) = self.links.get_mut(socket)
            && !link.is_touched
        {
            link.is_touched = true;
            self.touched.push_back(socket);
        }
    }

    /// The link may have something to read.
    fn wake_reader(&mut self, socket: Socket) {
        if let Some(link) = self.links.get_mut(socket)
            && link.is_receiving()
            && !link.is_readable
        {
            link.is_readable = true;
            self.readable.push_back(socket);
        }
    }

    fn publish_to(&self, metrics: &ShardMetrics) {
        metrics.set(Gauge::QuicConnections, self.links.count() as u64);
        metrics.set(Gauge::QuicHandshaking, self.handshaking() as u64);
        metrics.set_total(Total::Sends, self.udp.sends());
    }

    fn dropped(&self, what: Drop) {
        self.metrics.dropped(what, 1);
    }
}

/// Says goodbye to whoever is still there; who does not hear it finds out at its next packet, which is answered with a reset by
/// the next life of the endpoint or by nobody.
impl std::ops::Drop for Quic {
    fn drop(&mut self) {
        for socket in self.links.sockets() {
            self.close_now(socket);
        }
        self.waiting.drain(..).for_each(|incoming| self.endpoint.ignore(incoming));
        self.flush();
    }
}

/// The one clock of QUIC: read after each sleep.
fn read_clock() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the one reading between two turns; quinn counts in these")]
    Instant::now()
}

/// As the shard names it.
type Key = SessionKey;
