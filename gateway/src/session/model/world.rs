//! Everything between control and client: link, inbox, one session slot, socket. It does what a shard does.

use std::collections::VecDeque;

use gimbal_codec::{CloseReason, Command, Packet, SessionKey, ShardId};
use gimbal_rpc::link::{Down, Up};

use super::super::{Action, Counts, Deliver, Limits, Moment, Session, SignInRequest, State, Turn};
use super::Random;
use super::client::Client;
use super::control::{Control, Job};
use crate::fanout::{Offered, offer};
use crate::send_queue::{RESERVE_BYTES, SendQueue};
use crate::shard::sessions::Sessions;
use crate::transport::form::Shared;

/// Two live messages fit, a page with a message before it does not.
const QUEUE_BYTES_MAX: usize = 500;
/// Nothing that is queued is longer.
const FRAME_BYTES_MAX: usize = 6000;

/// One thing that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A message is stored for the user.
    Append,
    /// Control takes an item from the shard.
    ControlTakes,
    /// A reader takes the snapshot for a sync.
    PageIsRead,
    /// A reader fails a sync.
    SyncFails,
    /// A page reaches the shard's inbox.
    PageArrives,
    /// An item of the ordered lane reaches the shard's inbox.
    ItemArrives,
    /// The session gets an item of the inbox.
    ShardTakes,
    /// The socket takes some bytes, and the client reads them.
    SocketTakes,
    /// The client syncs because it likes to.
    ClientSyncs,
    /// The client sends something long that is echoed.
    ClientBeats,
    /// It sends so much that is echoed that the reserve is used up.
    ReserveFills,
    /// A room is busy.
    RoomFrame,
    /// The client's connection breaks and it comes back.
    ClientReconnects,
    LinkBreaks,
    LinkMends,
    /// The shard's walk over its sessions reaches the next one, after the link changed or items were lost.
    WalkGoes,
    /// Control loses all but its store.
    ControlRestarts,
    /// The inbox loses an item, and the shard therefore announces.
    InboxOverflows,
    /// Old messages are no longer kept.
    Trim,
    /// The next item for control finds no room.
    SubmitFails,
    /// Some seconds go by.
    Time,
}

/// As the shard's own walk.
#[derive(Clone, Copy)]
struct Walk {
    next: u32,
    is_link_lost: bool,
}

struct Connection {
    session: Session,
    queue: SendQueue,
}

pub(super) struct World {
    pub(super) client: Client,
    pub(super) counts: Counts,
    /// Times a session owed its client a word.
    pub(super) owed: u64,
    pub(super) announced: u64,
    /// Room frames that the session did without.
    pub(super) shed: u64,
    control: Control,
    sessions: Sessions<Connection>,
    /// The client's connection.
    key: SessionKey,
    /// Odd while it is up.
    link: u64,
    walk: Option<Walk>,
    /// Items were lost since the last walk began.
    has_overflowed: bool,
    fails_next_submit: bool,
    to_control: VecDeque<Up>,
    inbox: VecDeque<Down>,
    limits: Limits,
    now: Moment,
    random: Random,
    /// Announcements answered on this connection.
    announced_here: u64,
}

impl World {
    pub(super) fn new(keeps_cursor: bool, seed: u64) -> Self {
        let queue_bytes_max = if keeps_cursor { QUEUE_BYTES_MAX } else { 5 * QUEUE_BYTES_MAX };
        let mut world = Self {
            client: Client::new(keeps_cursor),
            counts: Counts::default(),
            owed: 0,
            announced: 0,
            shed: 0,
            control: Control::default(),
            sessions: Sessions::new(ShardId(0), 100),
            key: SessionKey::from_u64(u64::MAX),
            link: 1,
            walk: None,
            has_overflowed: false,
            fails_next_submit: false,
            to_control: VecDeque::new(),
            inbox: VecDeque::new(),
            limits: Limits { queue_bytes_max, write_ms: u64::MAX, ..Limits::default() },
            now: Moment::default(),
            random: Random(seed),
            announced_here: 0,
        };
        world.connect();
        world
    }

    /// A client that is online with nothing under way, and `appended` messages that nobody was told of yet.
    pub(super) fn online(appended: u32) -> Self {
        let mut world = Self::new(true, 0);
        world.settle();
        (0..appended).for_each(|_| world.control.append());
        world
    }

    /// Whether the step would change anything.
    pub(super) fn is_possible(&self, step: Step) -> bool {
        let jobs = &self.control.jobs;
        match step {
            Step::ControlTakes => !self.to_control.is_empty(),
            Step::PageIsRead | Step::SyncFails => jobs.iter().any(|job| matches!(job, Job::Asked { .. })),
            Step::PageArrives => jobs.iter().any(|job| matches!(job, Job::Read(_))),
            Step::ItemArrives => !self.control.lane.is_empty(),
            Step::ShardTakes | Step::InboxOverflows => !self.inbox.is_empty(),
            Step::SocketTakes => self.sessions.get(self.key).is_some_and(|here| !here.queue.is_empty()),
            Step::ClientSyncs => self.client.can_sync(),
            Step::LinkBreaks => self.is_link_up(),
            Step::LinkMends => !self.is_link_up(),
            Step::WalkGoes => self.walk.is_some() || (self.has_overflowed && self.is_link_up()),
            _ => true,
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Append => self.control.append(),
            Step::ControlTakes => {
                if let Some(up) = self.to_control.pop_front() {
                    self.control.take(up);
                }
            }
            Step::PageIsRead | Step::SyncFails => {
                if !self.control.jobs.is_empty() {
                    let job = self.random.below(self.control.jobs.len());
                    self.control.read_page(job, step == Step::SyncFails);
                }
            }
            Step::PageArrives => {
                if let Some(job) = self.control.jobs.iter().position(|job| matches!(job, Job::Read(_)))
                    && let Job::Read(down) = self.control.jobs.swap_remove(job)
                {
                    self.inbox.push_back(down);
                }
            }
            Step::ItemArrives => self.inbox.extend(self.control.lane.pop_front()),
            Step::ShardTakes => {
                if let Some(down) = self.inbox.pop_front() {
                    self.take_down(down);
                }
            }
            Step::SocketTakes => self.drain_some(),
            Step::ClientSyncs => self.client.sync(),
            Step::ClientBeats => {
                let bytes = self.random.below(5000);
                self.client.beat(bytes);
            }
            Step::ReserveFills => {
                // The echo costs its content and some 80 bytes; what it leaves is too little for a word of `behind`.
                let queued = self.sessions.get(self.key).map_or(0, |here| here.queue.cost_bytes());
                let room = (QUEUE_BYTES_MAX + RESERVE_BYTES).saturating_sub(queued);
                let left = 90 + self.random.below(60);
                self.client.beat(room.saturating_sub(left));
            }
            Step::RoomFrame => self.room_frame(),
            Step::ClientReconnects => self.connect(),
            Step::LinkBreaks => self.break_link(),
            Step::LinkMends => self.mend_link(),
            Step::WalkGoes => self.walk_on(),
            Step::ControlRestarts => {
                self.break_link();
                self.control.restart();
            }
            Step::InboxOverflows => {
                if !self.inbox.is_empty() {
                    let lost = self.random.below(self.inbox.len());
                    self.inbox.remove(lost);
                    self.has_overflowed = true;
                }
            }
            Step::Trim => self.control.trim(),
            Step::SubmitFails => self.fails_next_submit = true,
            Step::Time => {
                self.now = self.now.plus_ms(3000);
                self.on_all(|session, turn| session.handle_timeout(turn));
            }
        }
        self.client_sends();
        if self.client.is_closed {
            self.connect();
        }
        self.check();
    }

    fn room_frame(&mut self) {
        let frame = Packet { command: Command::Heartbeat.number(), content: &[1; 60], ..Packet::default() };
        if let Some(Connection { session, queue }) = self.sessions.get_mut(self.key) {
            let offered = offer(session, queue, &Shared::new(frame.to_frame()), self.limits.queue_bytes_max);
            self.shed += u64::from(offered == Offered::Shed);
        }
    }

    /// No more trouble: everything arrives, and then everything has arrived.
    pub(super) fn settle(&mut self) {
        self.mend_link();
        self.fails_next_submit = false;
        let calm = [
            Step::WalkGoes,
            Step::ControlTakes,
            Step::PageIsRead,
            Step::PageArrives,
            Step::ItemArrives,
            Step::ShardTakes,
            Step::SocketTakes,
        ];
        for appended in 0..2 {
            let mut steps = 0;
            while let Some(step) = self.next_of(calm) {
                self.step(step);
                steps += 1;
                assert!(steps < 20_000, "it goes on for ever");
            }
            assert_eq!(self.client.cursor, self.control.latest, "the client was left in silence");
            let here = self.sessions.get(self.key).unwrap();
            let State::Online(online) = &here.session.state else { panic!("{:?}", here.session) };
            assert!(!online.cursor.is_short() && !online.cursor.is_owed() && online.syncing.is_none());
            if appended == 0 {
                // And live delivery has resumed: one more arrives without any word of `behind`.
                let behind = self.client.behind;
                self.control.append();
                while let Some(step) = self.next_of(calm) {
                    self.step(step);
                }
                assert_eq!((self.client.cursor, self.client.behind), (self.control.latest, behind));
            }
        }
        assert!(self.control.knows_only(self.key), "control believes in a session that is gone");
    }

    /// The first step that does something; time goes by only for a sign-in whose answer was lost.
    fn next_of(&self, calm: [Step; 7]) -> Option<Step> {
        let is_waiting = self.sessions.get(self.key).is_some_and(|here| !here.session.is_online());
        calm.into_iter().find(|&step| self.is_possible(step)).or(is_waiting.then_some(Step::Time))
    }

    fn check(&mut self) {
        for key in self.keys() {
            let connection = self.sessions.get(key).expect("it was just there");
            let cost = connection.queue.cost_bytes();
            assert!(cost <= QUEUE_BYTES_MAX.max(FRAME_BYTES_MAX) + RESERVE_BYTES, "{cost} bytes wait");
            if let State::Online(online) = &connection.session.state {
                self.owed += u64::from(online.cursor.is_owed());
                assert!(!online.cursor.is_owed() || !connection.queue.is_empty(), "owed to an empty queue");
            }
        }
        let causes = 1 + self.client.sync_answers_here + self.announced_here;
        assert!(self.client.behind_here <= causes, "{} behind, {causes} causes", self.client.behind_here);
    }

    /// The old connection breaks, if there is one, and a new one signs in.
    fn connect(&mut self) {
        self.on(self.key, |session, turn| {
            session.handle_gone(turn);
            Ok(())
        });
        self.sessions.remove(self.key);
        let session = Session::new(self.now, &self.limits);
        let connection = Connection { session, queue: SendQueue::default() };
        self.key = self.sessions.insert_with(|_| connection).unwrap();
        self.announced_here = 0;
        self.client.connect();
        self.client_sends();
    }

    fn client_sends(&mut self) {
        while !self.client.outbox.is_empty() {
            let packet = self.client.outbox.remove(0);
            self.on(self.key, |session, turn| session.handle_frame(&packet, turn));
        }
    }

    fn take_down(&mut self, down: Down) {
        match down {
            Down::SignedIn { session: key, attach, latest, grant } => {
                if key == self.key {
                    self.client.latest_at_sign_in = latest.get();
                }
                self.on(key, |session, turn| session.handle_signed_in(attach, latest, grant, turn));
            }
            Down::Announced { session: key, attach, latest } => {
                self.announced += 1;
                self.announced_here += u64::from(key == self.key);
                self.on(key, |session, turn| session.handle_announced(attach, latest, turn));
            }
            Down::Deliver { body, targets } => {
                let mut deliver = Deliver::new(&body, targets.len());
                for target in targets {
                    self.on(target.session, |session, turn| {
                        session.handle_deliver(target.attach, target.seq, &mut deliver, turn)
                    });
                }
            }
            Down::SyncDone { to, tag, result } => {
                self.on(to.0, |session, turn| session.handle_sync_done(to.1, &tag, result.as_ref(), turn));
            }
            Down::Kick { session: key, attach, reason } => {
                self.on(key, |session, turn| session.handle_kick(attach, reason, turn));
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// A random part of what waits reaches the client.
    fn drain_some(&mut self) {
        let join_bytes_max = self.random.below(500);
        let Some(connection) = self.sessions.get_mut(self.key) else { return };
        let Some(bytes) = connection.queue.start_send(join_bytes_max) else { return };
        let written = match self.random.below(4) {
            0 => self.random.below(bytes.len() + 1),
            _ => bytes.len(),
        };
        connection.queue.finish_send(written);
        if connection.queue.is_empty() {
            self.on(self.key, |session, turn| {
                session.handle_drained(turn);
                Ok(())
            });
        }
        self.client.receive(&bytes[..written]);
    }

    fn is_link_up(&self) -> bool {
        !self.link.is_multiple_of(2)
    }

    fn break_link(&mut self) {
        if self.is_link_up() {
            self.to_control.clear();
            self.control.lose_link();
            self.change_link();
        }
    }

    fn mend_link(&mut self) {
        if !self.is_link_up() {
            self.change_link();
        }
    }

    fn change_link(&mut self) {
        self.link += 1;
        self.walk = Some(Walk { next: 0, is_link_lost: true });
    }

    /// One step of the shard's walk: calls of the old link end, and the session is announced on the new one.
    fn walk_on(&mut self) {
        if self.walk.is_none() && self.is_link_up() && std::mem::take(&mut self.has_overflowed) {
            self.walk = Some(Walk { next: 0, is_link_lost: false });
        }
        let Some(Walk { next, is_link_lost }) = self.walk else { return };
        let is_done = next >= self.sessions.index_end();
        self.walk = (!is_done).then_some(Walk { next: next + 1, is_link_lost });
        let Some(key) = self.sessions.key_at(next) else { return };
        let is_online = self.sessions.get(key).is_some_and(|conn| conn.session.is_online());
        if is_online || is_link_lost {
            self.on(key, |session, turn| session.handle_link_lost(turn));
        }
        if !self.is_link_up() {
            return;
        }
        let link = self.link;
        if let Some((caller, cursor)) =
            self.sessions.get_mut(key).and_then(|conn| conn.session.announce(link))
        {
            self.to_control.push_back(Up::Announce { caller, cursor, peer: String::new() });
        }
    }

    fn keys(&self) -> Vec<SessionKey> {
        (0..self.sessions.index_end()).filter_map(|index| self.sessions.key_at(index)).collect()
    }

    fn on_all(&mut self, call: impl Fn(&mut Session, &mut Turn<'_>) -> Result<(), CloseReason>) {
        for key in self.keys() {
            self.on(key, &call);
        }
    }

    /// Calls the session, closes it if it says so, and does what it wants done.
    fn on(
        &mut self,
        key: SessionKey,
        call: impl FnOnce(&mut Session, &mut Turn<'_>) -> Result<(), CloseReason>,
    ) {
        let Some(Connection { session, queue }) = self.sessions.get_mut(key) else { return };
        let (mut out, limits, now) = (Vec::new(), &self.limits, self.now);
        let counts = &mut self.counts;
        let mut turn = Turn { key, now, unix_ms: 1, link: self.link, limits, queue, out: &mut out, counts };
        if let Err(reason) = call(session, &mut turn) {
            session.begin_close(reason, 0, &mut turn);
        }
        let mut ups = Vec::new();
        for action in out {
            match action {
                Action::SignIn(SignInRequest { user, device, token, cursor }) => {
                    let peer = String::new();
                    ups.push(Up::SignIn { session: key, user, device, token, cursor, peer });
                }
                Action::Up(up) => ups.push(up),
                Action::Abort if key != self.key => drop(self.sessions.remove(key)),
                Action::Abort => self.client.is_closed = true,
                Action::Online { .. } | Action::Offline { .. } | Action::ShutdownWrite => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        self.submit(key, ups);
    }

    /// Hands items to the link, or their refusal to the session. Detaches are kept while the link stands.
    fn submit(&mut self, key: SessionKey, ups: Vec<Up>) {
        for up in ups {
            let is_detach = matches!(up, Up::Detach { .. });
            let fails = !is_detach && std::mem::take(&mut self.fails_next_submit);
            if self.is_link_up() && !fails {
                self.to_control.push_back(up);
            } else {
                self.on(key, |session, turn| session.handle_not_submitted(&up, turn));
            }
        }
    }
}
