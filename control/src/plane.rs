//! The control plane as gateways see it, in this process or over gRPC: what each link item becomes.
//!
//! What changes state goes to the writer, all of a batch or none, and so do syncs, whose pages the reader pool then
//! reads. Room interest and signals are done here and now, on the caller's thread; nothing in this file waits.

mod checks;
mod rooms;

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use gimbal_codec::{Attach, GatewayId, Seq, ShardId, body, limits};
use gimbal_rpc::link::{
    Caller, Control, Down, Downlink, Hello, LinkFull, Page, Refusal, Signal, SignalTarget, Tag, Up, Uplink,
};

use crate::{
    auth::{Claimed, Gate, Way},
    clock,
    command::{Command, Lane, Proof, ReplyTo, Sender, SessionRef, TokenHash},
    error::RequestError,
    live::LiveLimits,
    metrics::Metrics,
    reader::Readers,
    room::{Rooms, message_frame},
    store::Store,
    writer::{Job, Writer},
};

use checks::{Check, Checks};

/// Shared by services, links and pages.
pub struct Plane {
    shared: Arc<Shared>,
}

struct Shared {
    writer: Writer,
    readers: Readers,
    rooms: Arc<Rooms>,
    metrics: Arc<Metrics>,
    limits: LiveLimits,
    gate: Arc<Gate>,
    checks: Checks,
    /// Links by rising lane; few, read far more often than changed.
    links: ArcSwap<Vec<Arc<Link>>>,
    changing: Mutex<()>,
    next_lane: AtomicU32,
    /// Started, and not told to stop.
    is_serving: AtomicBool,
}

/// One connection of one gateway.
struct Link {
    lane: Lane,
    hello: Hello,
    down: Arc<dyn Downlink>,
    place: Place,
    closed: AtomicBool,
    /// Items dropped because this gateway was full.
    lost: AtomicU64,
}

/// Where a gateway runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In this process.
    Here,
    /// Behind a socket.
    Remote,
}

/// Why a gateway is not linked; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum LinkRefused {
    /// Another gateway of this id lives.
    #[error(
        "gateway_id {0} is taken by another gateway that is linked now: set a gateway.gateway_id of its own"
    )]
    Taken(GatewayId),
    /// The writer takes nothing.
    #[error(transparent)]
    Writer(#[from] RequestError),
}

impl LinkRefused {
    /// Stable, as [`RequestError::reason`].
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Taken(_) => "gateway_id_taken",
            Self::Writer(error) => error.reason(),
        }
    }
}

/// Whether a write sent now can succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readiness {
    /// No commit has failed.
    pub store: bool,
    /// All of this process has started, and nothing of it stops.
    pub serving: bool,
    /// Gateways linked, in this process or over gRPC.
    pub gateways: usize,
}

impl Readiness {
    /// Store and process are; gateways linked do not matter.
    pub const fn is_ready(self) -> bool {
        self.store && self.serving
    }
}

impl Plane {
    pub(crate) fn new(
        writer: Writer,
        readers: Readers,
        rooms: Arc<Rooms>,
        metrics: Arc<Metrics>,
        limits: LiveLimits,
        gate: Arc<Gate>,
    ) -> Self {
        let shared = Shared {
            writer,
            readers,
            rooms,
            metrics,
            limits,
            gate,
            checks: Checks::new(),
            links: ArcSwap::default(),
            changing: Mutex::default(),
            next_lane: AtomicU32::new(1),
            is_serving: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.shared.writer
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    pub(crate) fn readers(&self) -> &Readers {
        &self.shared.readers
    }

    pub(crate) fn rooms(&self) -> &Rooms {
        &self.shared.rooms
    }

    /// Links that are up.
    pub(crate) fn gateways(&self) -> usize {
        self.shared.links.load().len()
    }

    /// For `/readyz`.
    pub fn readiness(&self) -> Readiness {
        Readiness {
            store: self.shared.writer.is_healthy(),
            serving: self.shared.is_serving.load(Ordering::SeqCst),
            gateways: self.gateways(),
        }
    }

    /// Whether `/readyz` may succeed.
    pub(crate) fn set_serving(&self, is_serving: bool) {
        self.shared.is_serving.store(is_serving, Ordering::SeqCst);
    }

    /// Lets go of every gateway's way down.
    pub(crate) fn forget_links(&self) {
        let _changing = self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.links.store(Arc::default());
    }

    /// Refuses contents above the configured limit.
    pub(crate) fn check_content(&self, content: &[u8]) -> Result<(), RequestError> {
        self.shared.check_content(content)
    }

    /// To every session that is online now; the number of gateways that took it is returned. `per_second` sessions of
    /// each gateway; 0: its own pace.
    pub fn push_all(&self, command: i32, content: &[u8], now_ms: i64, per_second: u32) -> u32 {
        let message = body::Message {
            command,
            content,
            created_at: now_ms / 1000,
            created_at_ms: now_ms,
            ..body::Message::default()
        };
        let frame: Bytes = message_frame(&message);
        let shared = &*self.shared;
        shared.metrics.push_all.inc();
        let taken = |link: &&Arc<Link>| {
            shared.give(link, Down::All { frame: frame.clone(), per_second }, "push_all_link_full")
        };
        let links = shared.links.load();
        u32::try_from(links.iter().filter(taken).count()).unwrap_or(u32::MAX)
    }

    /// Registers a link connection. An earlier one of the same life of its gateway is closed; one of another life
    /// refuses it, so that two gateways of one id cannot unseat each other in turns. The gateway in this process has its
    /// id before any remote one.
    ///
    /// # Errors
    /// [`LinkRefused`].
    pub(crate) fn link(
        &self,
        hello: Hello,
        down: Arc<dyn Downlink>,
        place: Place,
    ) -> Result<LinkHandle, LinkRefused> {
        let shared = &self.shared;
        let changing = shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let links = shared.links.load_full();
        let earlier = links.iter().find(|link| link.hello.gateway == hello.gateway);
        if earlier.is_some_and(|link| !link.gives_way(hello, place)) {
            return Err(LinkRefused::Taken(hello.gateway));
        }
        let lane = Lane(shared.next_lane.fetch_add(1, Ordering::Relaxed));
        // Under the lock: the writer learns of links in the order of their lanes.
        let up = Command::GatewayUp { lane, hello, down: Arc::clone(&down) };
        shared.writer.submit(up, ReplyTo::Nobody)?;
        let (closed, lost) = (AtomicBool::new(false), AtomicU64::new(0));
        let link = Arc::new(Link { lane, hello, down, place, closed, lost });
        let others = links.iter().filter(|link| link.hello.gateway != hello.gateway);
        shared.links.store(Arc::new(others.cloned().chain([Arc::clone(&link)]).collect()));
        if let Some(earlier) = earlier {
            shared.close(earlier);
        }
        drop(changing);
        shared.count_links();
        shared.metrics.link_streams.inc();
        tracing::info!(gateway = %hello.gateway, epoch = hello.epoch, lane = lane.0, "gateway linked");
        Ok(LinkHandle { shared: Arc::downgrade(shared), link })
    }
}

impl Control for Plane {
    /// # Panics
    /// When two gateways of one process share an id, or control was stopped.
    fn connect(&self, hello: Hello, down: Arc<dyn Downlink>) -> Arc<dyn Uplink> {
        let linked = self.link(hello, down, Place::Here);
        Arc::new(linked.expect("a gateway in this process has an id of its own and comes before the stop"))
    }
}

impl Link {
    fn gives_way(&self, hello: Hello, place: Place) -> bool {
        match (self.place, place) {
            (Place::Remote, Place::Here) => true,
            (Place::Here, Place::Remote) => false,
            _ => self.hello.epoch == hello.epoch,
        }
    }
}

impl Shared {
    fn check_content(&self, content: &[u8]) -> Result<(), RequestError> {
        if content.len() > self.limits.content_bytes_max() {
            Err(RequestError::ContentTooLarge)
        } else {
            Ok(())
        }
    }

    /// Whether the gateway took it; if not, that is counted.
    fn give(&self, link: &Link, item: Down, drop_reason: &'static str) -> bool {
        let taken = link.down.deliver(&mut vec![item]).is_ok();
        if !taken {
            link.lost.fetch_add(1, Ordering::Relaxed);
            self.metrics.drop_items(drop_reason, 1);
        }
        taken
    }

    fn close(&self, link: &Link) {
        link.closed.store(true, Ordering::SeqCst);
        self.rooms.forget(link.lane);
    }

    fn count_links(&self) {
        self.metrics.links.set(self.links.load().len() as i64);
    }

    /// To the other gateways; each gives it to those of its own sessions that it is for.
    fn signal(&self, from: &Link, signal: &Signal) {
        let lanes = match signal.to {
            SignalTarget::Room(room) => Some(self.rooms.lanes(room)),
            SignalTarget::User(_) => None,
        };
        for link in self.links.load().iter().filter(|link| link.lane != from.lane) {
            if lanes.as_ref().is_none_or(|lanes| lanes.contains(&link.lane))
                && self.give(link, Down::Signal(signal.clone()), "signal_link_full")
            {
                self.metrics.signals.inc();
            }
        }
    }
}

/// A session's sync on its way from the writer, which knows whether the session is its device's newest, to a reader.
#[derive(Clone)]
struct PageRead {
    shared: Arc<Shared>,
    link: Arc<Link>,
    caller: Caller,
    tag: Tag,
    after: Seq,
    limit: u32,
}

impl PageRead {
    fn admitted(mut self, admitted: Result<Attach, RequestError>) {
        let begun = admitted.and_then(|attach| {
            self.caller.attach = attach;
            let read = self.clone();
            self.shared.readers.submit(move |store| read.run(store))
        });
        if let Err(error) = begun {
            self.answer(Err(error.refusal()));
        }
    }

    fn run(self, store: &dyn Store) {
        let limit = self.limit.min(limits::SYNC_LIMIT_MAX);
        let page = store.page(self.caller.user, self.after, limit, limits::SYNC_PAGE_BYTES_MAX);
        let end = page.as_ref().ok().map(|page| page.end);
        let Caller { user, device, .. } = self.caller;
        let (shared, after) = (Arc::clone(&self.shared), self.after);
        if self.answer(page.map_err(RequestError::refusal))
            && let Some(end) = end
        {
            shared.writer.trace().note_page(user, device, (after, end), clock::now_ms());
        }
    }

    /// False when the gateway did not take it.
    fn answer(self, result: Result<Page, Refusal>) -> bool {
        let done = Down::SyncDone { to: (self.caller.session, self.caller.attach), tag: self.tag, result };
        self.shared.give(&self.link, done, "sync_link_full")
    }
}

/// A gateway's way up; what a link connection submits to. It keeps nothing of control alive: after a stop it refuses.
pub(crate) struct LinkHandle {
    shared: Weak<Shared>,
    link: Arc<Link>,
}

impl LinkHandle {
    /// A newer connection of the same gateway took over.
    pub(crate) fn is_closed(&self) -> bool {
        self.link.closed.load(Ordering::SeqCst)
    }

    /// The connection is gone. Its rooms are forgotten now, its routes when [`Self::forget_routes`] is called, unless the
    /// gateway has linked again by then.
    pub(crate) fn disconnect(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let changing = shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let links = shared.links.load_full();
        let others = links.iter().filter(|link| link.lane != self.link.lane);
        shared.links.store(Arc::new(others.cloned().collect()));
        drop(changing);
        shared.close(&self.link);
        shared.count_links();
    }

    /// Ends the lease. False: the writer is full, try again.
    pub(crate) fn forget_routes(&self) -> bool {
        let down = Command::GatewayDown { lane: self.link.lane };
        let forgotten = self.shared.upgrade().map(|shared| shared.writer.submit(down, ReplyTo::Nobody));
        forgotten != Some(Err(RequestError::Busy))
    }
}

impl Uplink for LinkHandle {
    fn submit(&self, _shard: ShardId, items: &mut Vec<Up>) -> Result<(), LinkFull> {
        let shared = self.shared.upgrade().ok_or(LinkFull)?;
        if self.is_closed() {
            return Err(LinkFull);
        }
        let mut jobs: Vec<Job> = items.iter().filter_map(|item| shared.job(&self.link, item)).collect();
        shared.writer.submit_many(&mut jobs).map_err(|_| LinkFull)?;
        shared.metrics.link_up_items.inc_by(items.len() as u64);
        let mut to_check = Vec::new();
        for item in items.drain(..) {
            shared.do_here(&self.link, item, &mut to_check);
        }
        // Only now: what of the same batch ends a session has been seen.
        shared.start_checks(&self.link, to_check);
        Ok(())
    }
}

impl Shared {
    /// What the writer does about `item`; `None` when it is not the writer's, or refused right here.
    fn job(self: &Arc<Self>, link: &Arc<Link>, item: &Up) -> Option<Job> {
        let lane = link.lane;
        let session = |caller: &Caller| SessionRef { lane, session: caller.session, attach: caller.attach };
        let sender = |caller: &Caller| Sender {
            user: caller.user,
            device: caller.device,
            proof: Proof::Session(session(caller)),
        };
        let nobody = |command| Some(Job { command, reply_to: ReplyTo::Nobody });
        let answered = |caller: &Caller, tag: &Tag, command| {
            Some(Job { command, reply_to: ReplyTo::Session { session: session(caller), tag: tag.clone() } })
        };
        match item {
            Up::SignIn { token, .. } if self.gate.way(token) != Way::Own => None,
            Up::SignIn { session, user, device, token, cursor: _, peer } => nobody(Command::Attach {
                lane,
                session: *session,
                user: *user,
                device: *device,
                token: TokenHash::of(token),
                peer: peer.clone(),
            }),
            Up::Announce { caller, cursor: _, peer } => nobody(Command::Announce {
                session: session(caller),
                user: caller.user,
                device: caller.device,
                peer: peer.clone(),
            }),
            Up::Detach { caller } => {
                self.checks.cancel(lane, caller.session);
                nobody(Command::Detach { session: session(caller), user: caller.user, device: caller.device })
            }
            Up::Send { content, .. } if self.check_content(content).is_err() => None,
            Up::Send { caller, tag, client_message_id, to, command, content } => {
                let send = Command::Send {
                    sender: sender(caller),
                    client_message_id: *client_message_id,
                    to: *to,
                    command: *command,
                    content: content.clone(),
                };
                answered(caller, tag, send)
            }
            Up::Ack { caller, tag, seq } => {
                answered(caller, tag, Command::Ack { sender: sender(caller), seq: *seq })
            }
            Up::Sync { caller, tag, after, limit } => {
                let read = PageRead {
                    shared: Arc::clone(self),
                    link: Arc::clone(link),
                    caller: *caller,
                    tag: tag.clone(),
                    after: *after,
                    limit: *limit,
                };
                let read = Box::new(move |admitted| read.admitted(admitted));
                nobody(Command::Sync { sender: sender(caller), read })
            }
            Up::RoomInterest { .. } | Up::Signal(_) | Up::Publish { .. } => None,
        }
    }

    /// What is not the writer's.
    fn do_here(&self, link: &Link, item: Up, to_check: &mut Vec<Check>) {
        match item {
            Up::SignIn { session, user, device, token, peer, .. } if self.gate.way(&token) != Way::Own => {
                self.checks.begin(link.lane, session);
                to_check.push(Check { session, claimed: Claimed { user, device, peer }, token });
            }
            Up::Detach { caller } => self.checks.cancel(link.lane, caller.session),
            Up::RoomInterest { room, shard, members } => self.interest(link, room, shard, members),
            Up::Signal(signal) => self.signal(link, &signal),
            Up::Publish { caller, tag, room, command, content } => {
                self.publish_by_member(link, &caller, tag, room, (command, &content));
            }
            Up::Send { caller, tag, content, .. } => {
                if let Err(error) = self.check_content(&content) {
                    let to = (caller.session, caller.attach);
                    self.give(
                        link,
                        Down::SendDone { to, tag, result: Err(error.refusal()) },
                        "send_link_full",
                    );
                }
            }
            Up::SignIn { .. } | Up::Announce { .. } | Up::Sync { .. } | Up::Ack { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Auth, log::EmbeddedLog, store::memory::MemoryStore, writer::Limits};

    struct Nowhere;

    impl Downlink for Nowhere {
        fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull> {
            items.clear();
            Ok(())
        }
    }

    fn plane() -> Plane {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
        let readers = Readers::start(&store, 16).unwrap();
        let writer = Writer::start(store, log, Limits::default(), Box::new(|| 1)).unwrap();
        let metrics = Arc::new(Metrics::new());
        let limits = LiveLimits::new(crate::config::Limits::default());
        let gate = Arc::new(Gate::new(&Auth::default(), None, None, Arc::clone(&metrics)));
        Plane::new(writer, readers, Arc::new(Rooms::new(1, 16)), metrics, limits, gate)
    }

    #[test]
    fn a_gateway_that_the_writer_does_not_take_is_not_linked_and_unseats_nobody() {
        let plane = plane();
        let hello = Hello { gateway: GatewayId::new(7), epoch: 1, shards: 1 };
        let link = || plane.link(hello, Arc::new(Nowhere), Place::Remote);
        let first = link().unwrap();
        plane.writer().stop();
        assert_eq!(link().err(), Some(LinkRefused::Writer(RequestError::Unavailable)));
        assert!(!first.is_closed());
        first.disconnect();
        assert_eq!(plane.gateways(), 0);
        assert!(link().is_err());
        assert_eq!(plane.gateways(), 0, "what the writer does not know is no gateway");
    }
}
