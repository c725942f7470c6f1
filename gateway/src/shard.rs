//! One shard: a thread's carrier, connections, sessions and rooms, and the turn that moves them. Built on its thread, dies there.
//!
//! A turn reads the clock once, then takes orders, completions, items of other threads, due timers and walks, each within
//! a budget, then hands everything for control to the link and everything for connections to the carrier, and sleeps in
//! there when nothing is left to do.

mod accept;
mod admission;
mod calls;
mod conn;
mod debts;
mod inbox;
mod items;
mod memory;
mod peers;
mod proxied;
mod receive;
mod rooms;
pub(crate) mod sessions;
mod sockets;
mod timers;
mod users;
mod walks;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gimbal_codec::{SessionKey, ShardId};
use gimbal_rpc::link::{Up, Uplink};

use crate::carrier::Carrier;
use crate::certificate::Configs;
use crate::fanout::Bursts;
use crate::live::{Live, Settings};
use crate::metrics::{Drop, Gauge, ShardMetrics, Total};
use crate::ring::Doorbell;
use crate::session::{Action, Counts, Limits, Moment};
use crate::transport::Kind;
use crate::transport::form::SharedMemory;
use crate::transport::prefix::Prefix;
use crate::transport::websocket::Policy;

pub(crate) use admission::Sources;
pub(crate) use debts::Debts;
pub(crate) use inbox::Inbox;
pub(crate) use memory::Memory;
pub(crate) use peers::Peers;

use accept::Accepting;
use admission::Admission;
use conn::Conn;
use proxied::Proxied;
use rooms::{Interest, Rooms};
use sessions::Sessions;
use timers::Timers;
use users::Users;
use walks::Walks;

/// The carrier wakes the shard at least so often, for timers, paced walks and glommio's own tasks.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Completions handled in one turn; as many sends of the last turn may complete in it as receives arrive.
const COMPLETIONS_PER_TURN: usize = 2048;

/// Items of other threads handled in one turn.
const ITEMS_PER_TURN: usize = 1024;

/// Sends started in one turn: about two milliseconds of copying into sockets.
const SENDS_PER_TURN: usize = 1024;

/// Offers made in one turn and frames taken, each as [`FRAME_WORK`] offers: about a millisecond. Whoever causes more than that
/// waits, others do not.
const WORK_PER_TURN: usize = 16_384;

/// What a frame costs, in offers: 45 ns each, where a send is about 0.4 us in the gateway, its answer included.
const FRAME_WORK: usize = 8;

/// In a turn that has done so much work no signal is given to anybody: one chunk may hold hundreds, each for a large room.
const SIGNAL_WORK_MAX: usize = 65_536;

/// Connections that found no buffer and get one in one turn: half of the ring's, so that others find one.
const RECEIVES_PER_TURN: usize = 512;

/// Items handed to the link at once. A larger batch would be refused as a whole where a part of it has room.
const SLICE_ITEMS: usize = 1024;

/// Rooms whose members are told to control in one turn.
const INTEREST_PER_TURN: usize = SLICE_ITEMS;

/// So many rooms with changed counts are reported before their time: nobody can make the list grow.
const CHANGED_ROOMS_MAX: usize = 1024;

/// Steps of TLS handshakes taken in one turn: some milliseconds with the slowest keys, so that a flood of them leaves the
/// sessions their turns.
const HANDSHAKES_PER_TURN: usize = 4;

/// Deadlines handled in one turn.
const TIMEOUTS_PER_TURN: usize = 1024;

/// Changed room counts are reported to control this often.
const ROOM_COUNTS_MS: u64 = 1000;

/// glommio's own tasks and input get their share this often while the shard turns, and once a [`TICK`] while it sleeps. It
/// costs two or three system calls on cold caches, and nothing of a client waits for them.
const LEND_MS: u64 = 50;

/// Time as one gateway sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_unix_ms: i64,
}

impl Clock {
    /// Starts at zero now.
    pub(crate) fn start(start: Instant, start_unix_ms: i64) -> Self {
        Self { start, start_unix_ms }
    }

    fn read(&self) -> Moment {
        #[expect(clippy::disallowed_methods, reason = "the one reading of a turn")]
        let elapsed = Instant::now().duration_since(self.start);
        Moment::from_ms(elapsed.as_millis() as u64)
    }

    fn unix_ms(&self, now: Moment) -> i64 {
        self.start_unix_ms + now.as_ms() as i64
    }
}

/// What a shard is given at its start.
pub(crate) struct Setup {
    pub(crate) id: ShardId,
    pub(crate) clock: Clock,
    /// What may change later.
    pub(crate) settings: Settings,
    pub(crate) live: Arc<Live>,
    /// Of this shard.
    pub(crate) connections_max: u32,
    /// Whose connections begin with a PROXY header.
    pub(crate) balancers: Arc<[Prefix]>,
    pub(crate) shard_count: u32,
    /// Whose requests for a WebSocket are granted.
    pub(crate) policy: Arc<Policy>,
    /// For listeners that encrypt.
    pub(crate) tls: Option<Configs>,
    /// TLS handshakes under way on this shard, at most.
    pub(crate) handshakes_max: u32,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) uplink: Arc<dyn Uplink>,
    pub(crate) metrics: Arc<ShardMetrics>,
}

/// One shard.
pub(crate) struct Shard<C: Carrier> {
    /// First, so that it is dropped before the sockets it works on.
    carrier: C,
    id: ShardId,
    clock: Clock,
    now: Moment,
    unix_ms: i64,
    lent_at: Moment,
    limits: Limits,
    accepting: Vec<Accepting<C::Listener>>,
    policy: Arc<Policy>,
    live: Arc<Live>,
    live_seen: u64,
    sources: Arc<Sources>,
    proxied: Proxied,
    admission: Admission,
    memory: Arc<Memory>,
    /// What the other shards held at the last tick, in bytes.
    memory_of_others: u64,
    /// For the session that is refused next: when its client may come back.
    retry_hint_ms: Option<u64>,
    tls: Option<Configs>,
    handshakes_max: u32,
    /// Connections with TLS.
    encrypted: u32,
    /// Connections whose handshake is not completed.
    handshaking: u32,
    /// Of these, those that have received something, oldest first.
    handshakes: VecDeque<SessionKey>,
    /// What records carried; empty between two connections.
    plain: Vec<u8>,
    conns: Sessions<Conn<C::Socket>>,
    users: Users,
    rooms: Rooms,
    timers: Timers,
    bursts: Bursts,
    walks: Walks,
    /// Connections with something to send, oldest first.
    dirty: VecDeque<SessionKey>,
    /// Connections that wait for a buffer to receive into, oldest first.
    starved: VecDeque<SessionKey>,
    /// For control, until the end of the turn.
    up: Vec<Up>,
    /// Of these, what the link refused in the last turn.
    kept_count: usize,
    /// For control, once it knows of the members of the rooms that they are about.
    up_to_rooms: Vec<Up>,
    /// The link refused something in the last turn.
    is_link_full: bool,
    /// What a session asked for, until it is done.
    actions: Vec<Action>,
    /// Reused lists.
    keys: Vec<SessionKey>,
    due: Vec<u32>,
    interest: Vec<Interest>,
    room_counts_at: Moment,
    /// Offers made in this turn and frames taken, for its completions and then for its items.
    work: usize,
    /// What waits for single sessions.
    queue_bytes: usize,
    /// What waits for several.
    shared: SharedMemory,
    /// Memory of partial frames.
    partial_bytes: usize,
    online_count: u64,
    is_tick: bool,
    link_seen: u64,
    counts: Counts,
    doorbell: Arc<Doorbell>,
    inbox: Arc<Inbox>,
    peers: Arc<Peers>,
    uplink: Arc<dyn Uplink>,
    metrics: Arc<ShardMetrics>,
}

static_assertions::assert_not_impl_any!(Shard<crate::ring::Ring>: Send);

impl<C: Carrier> Shard<C> {
    /// A shard on the calling thread over `carrier`, which ticks every [`TICK`], accepting from `listeners`: fewer than 256,
    /// with what their connections speak.
    pub(crate) fn new(setup: Setup, carrier: C, listeners: Vec<(Kind, C::Listener)>) -> Self {
        let now = setup.clock.read();
        let accepting = listeners.into_iter().map(|(kind, listener)| Accepting::new(kind, listener, now));
        let mut shard = Self {
            carrier,
            id: setup.id,
            clock: setup.clock,
            now,
            unix_ms: setup.clock.unix_ms(now),
            lent_at: now,
            accepting: accepting.collect(),
            policy: setup.policy,
            limits: setup.settings.limits,
            live: Arc::clone(&setup.live),
            live_seen: 0,
            sources: Arc::clone(&setup.live.sources),
            proxied: Proxied::new(setup.balancers),
            admission: Admission::new(setup.settings.sign_ins_per_second),
            memory: Arc::clone(&setup.live.memory),
            memory_of_others: 0,
            retry_hint_ms: None,
            tls: setup.tls,
            handshakes_max: setup.handshakes_max,
            encrypted: 0,
            handshaking: 0,
            handshakes: VecDeque::new(),
            plain: Vec::new(),
            conns: Sessions::new(setup.id, setup.connections_max),
            users: Users::default(),
            rooms: Rooms::default(),
            timers: Timers::new(now),
            bursts: Bursts::default(),
            walks: Walks::new(setup.settings.push_per_second, setup.shard_count),
            dirty: VecDeque::new(),
            starved: VecDeque::new(),
            up: Vec::new(),
            up_to_rooms: Vec::new(),
            kept_count: 0,
            is_link_full: false,
            actions: Vec::new(),
            keys: Vec::new(),
            due: Vec::new(),
            interest: Vec::new(),
            room_counts_at: now,
            work: 0,
            queue_bytes: 0,
            shared: SharedMemory::default(),
            partial_bytes: 0,
            online_count: 0,
            is_tick: true,
            link_seen: setup.peers.orders().link(),
            counts: Counts::default(),
            doorbell: setup.doorbell,
            inbox: Arc::clone(setup.peers.inbox(setup.id)),
            peers: setup.peers,
            uplink: setup.uplink,
            metrics: setup.metrics,
        };
        (0..shard.accepting.len()).for_each(|index| shard.arm_accept(index as u8));
        shard
    }

    /// Turns until it is told to end, or has drained. Between turns it calls `lend` now and then, for whatever else is to run
    /// on its thread: so nothing in there can keep the shard from its next turn but what does not return.
    ///
    /// # Panics
    /// When the kernel takes no more of the carrier's work, which nothing would mend.
    pub(crate) fn run(mut self, mut lend: impl FnMut()) {
        while !self.turn() {
            self.enter();
            if self.lent_at.plus_ms(LEND_MS) <= self.now {
                self.lent_at = self.now;
                lend();
            }
        }
        self.publish();
    }

    /// One turn; `true` when it was the last.
    fn turn(&mut self) -> bool {
        self.now = self.clock.read();
        self.unix_ms = self.clock.unix_ms(self.now);
        self.work = 0;
        self.take_orders();
        self.take_completions();
        self.go_on_with_handshakes();
        // What clients say takes nothing from the share of what they are to hear.
        self.work = 0;
        self.take_items();
        if std::mem::take(&mut self.is_tick) {
            self.tick();
        }
        self.expire();
        self.walk();
        self.give_bursts();
        self.report_rooms();
        self.submit();
        self.start_sends();
        self.feed_starved();
        self.metrics.add(Total::Turns, 1);
        self.peers.orders().stop() || self.is_drained()
    }

    /// Hands the turn's work to the kernel and, when there is nothing else to do, sleeps until there is.
    fn enter(&mut self) {
        let is_busy = self.is_busy();
        if !is_busy {
            self.doorbell.fall_asleep();
        }
        let may_sleep = !is_busy && self.inbox.is_empty() && !self.has_new_orders();
        self.carrier.enter(may_sleep).expect("what the kernel refuses here for good, nothing mends");
        if !is_busy {
            self.doorbell.wake_up();
        }
    }

    /// Work is left that waits for nobody.
    fn is_busy(&mut self) -> bool {
        !self.dirty.is_empty()
            || !self.starved.is_empty()
            || !self.handshakes.is_empty()
            || !self.inbox.is_empty()
            || self.walks.is_busy()
            || (self.rooms.has_urgent() && !self.is_link_full)
            || self.due.len() == TIMEOUTS_PER_TURN
            || self.carrier.has_completions()
    }

    fn is_work_done(&self) -> bool {
        self.work >= WORK_PER_TURN
    }

    fn has_new_orders(&self) -> bool {
        let orders = self.peers.orders();
        orders.link() != self.link_seen
            || orders.stop()
            || (orders.drain_ms().is_some() && !self.walks.is_draining())
    }

    /// Work that is due by time alone.
    fn tick(&mut self) {
        self.retry_accepts();
        self.watch_writes();
        if let Some(settings) = self.live.changed(&mut self.live_seen) {
            self.limits = settings.limits;
            self.admission.set(settings.sign_ins_per_second);
            self.walks.set_push_per_second(settings.push_per_second);
        }
        self.memory_of_others = self.memory.publish(self.id.0.into(), self.held_bytes());
        self.publish();
    }

    /// What this shard's connections hold, in bytes.
    fn held_bytes(&self) -> u64 {
        let connections = memory::of_connections(self.conns.count()) + memory::of_encrypted(self.encrypted);
        (self.waiting_bytes() + self.partial_bytes) as u64 + connections + self.carrier.held_bytes()
    }

    /// What waits for sessions, in bytes; what waits for several of them counts once.
    fn waiting_bytes(&self) -> usize {
        self.queue_bytes + self.shared.bytes()
    }

    fn memory_room(&self) -> memory::Room {
        self.memory.room(self.memory_of_others + self.held_bytes())
    }

    fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        due.clear();
        self.timers.expire(self.now, TIMEOUTS_PER_TURN, &mut due);
        for &index in &due {
            if let Some(key) = self.conns.key_at(index) {
                self.call(key, |session, turn| session.handle_timeout(turn));
            }
        }
        self.due = due;
    }

    fn is_link_up(&self) -> bool {
        !self.link_seen.is_multiple_of(2)
    }

    /// Tells control who is in which room: at once when a room becomes or ceases to be empty here, else once a second.
    fn report_rooms(&mut self) {
        if !self.is_link_up() {
            self.rooms.drop_changes();
            return;
        }
        self.rooms.take_urgent(INTEREST_PER_TURN, &mut self.interest);
        if self.room_counts_at <= self.now || self.rooms.changed_count() > CHANGED_ROOMS_MAX {
            self.rooms.take_counts(INTEREST_PER_TURN, &mut self.interest);
            if self.rooms.changed_count() == 0 {
                self.room_counts_at = self.now.plus_ms(ROOM_COUNTS_MS);
            }
        }
    }

    fn publish(&self) {
        let metrics = &self.metrics;
        self.carrier.publish(metrics);
        metrics.set_total(Total::Rings, self.doorbell.rings());
        metrics.set_dropped(Drop::InboxFull, self.inbox.lost());
        metrics.set(Gauge::Connections, self.conns.count().into());
        metrics.set(Gauge::Online, self.online_count);
        metrics.set(Gauge::Rooms, self.rooms.room_count() as u64);
        metrics.set(Gauge::RoomMembers, self.rooms.member_count().into());
        metrics.set(Gauge::PartialBytes, self.partial_bytes as u64);
        metrics.set(Gauge::Handshaking, self.handshaking.into());
        metrics.set(Gauge::QueueBytes, self.waiting_bytes() as u64);
        metrics.set(Gauge::HeldBytes, self.held_bytes());
        metrics.publish(&self.counts);
    }
}
