//! Many clients that do the same: arrive, join a room, take its messages, keep their connections alive.
//!
//! A crowd carries out one [`Order`] at a time on the calling thread. Several crowds in several processes make one
//! load: see [`super::worker`].

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use gimbal_codec::{
    Command, Packet, RoomId, Seq,
    body::{Close, Message, Reply, Rooms, Sync},
    frame,
    limits::SYNC_LIMIT_MAX,
};
use serde::{Deserialize, Serialize};

use super::{
    Place,
    fleet::{Member, sign_in_frame},
    sockets::{Event, Sockets},
    stop,
    watch::Live,
};
use crate::{
    clock,
    ledger::Mark,
    report::{Counts, Latency, Report},
};

/// Longest wait in one turn, so that the end is noticed.
const TURN_MAX: Duration = Duration::from_millis(20);
/// How long nothing may happen while answers are due.
const SILENCE_NS_MAX: u64 = 15_000_000_000;
/// Frames handled until the clock is read again.
const EVENTS_PER_CLOCK: u32 = 16;
/// Connections begun, or heartbeats sent, in one turn before answers are looked at.
const STEPS_PER_TURN_MAX: usize = 256;

/// What a crowd is told to do. Numbers are of the whole load; each of several crowds takes its share.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub enum Order {
    /// Connect and sign in until `total` clients are online.
    Arrive {
        /// Clients online afterwards.
        total: usize,
        /// Connections begun per second, open loop; 0: as [`Self::Arrive::open`] allows.
        rate: f64,
        /// Sign-ins under way at once; 0: no bound.
        open: usize,
    },
    /// Everybody online joins a room.
    Join {
        /// The room.
        room: u64,
    },
    /// Everybody in the room takes so many messages. Their latencies are kept for [`Self::Tell`].
    Take {
        /// Of each client.
        messages: usize,
    },
    /// Tell the latencies of all messages taken since the last time.
    Tell,
    /// Keep the connections for a time.
    Hold {
        /// How long.
        seconds: f64,
        /// From one heartbeat of a client to its next, seconds; 0: none.
        heartbeat_s: f64,
    },
}

/// What came of an order.
#[derive(Default)]
pub struct Done {
    /// How long it took, seconds.
    pub seconds: f64,
    /// What was counted meanwhile.
    pub counts: Counts,
    /// Latencies of what the order is about: sign-ins, deliveries or heartbeats.
    pub latency: Latency,
    /// Clients online at its end.
    pub online: usize,
    /// The first faults in words.
    pub faults: Vec<String>,
}

impl Done {
    /// Adds what came of the same order elsewhere.
    pub fn merge(&mut self, other: Self) {
        self.seconds = self.seconds.max(other.seconds);
        self.counts.add(&other.counts);
        self.latency.merge(&other.latency);
        self.online += other.online;
        other.faults.into_iter().for_each(|words| Report::fault(&mut self.faults, words));
    }
}

/// Part `part` of `total` things shared by `parts`.
pub fn share(total: usize, part: usize, parts: usize) -> usize {
    total / parts + usize::from(part < total % parts)
}

/// One client's state.
#[derive(Clone, Copy, Default)]
struct Client {
    is_online: bool,
    /// Its connection is over.
    is_over: bool,
    /// When what it waits for should have happened.
    intended_ns: u64,
    /// Last number in the room; `None` before the first message.
    room_seq: Option<u64>,
    /// Messages of the current order.
    taken: usize,
}

/// Which part of the whole load a crowd is.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Part {
    /// From 0.
    pub part: usize,
    /// Of so many.
    pub parts: usize,
}

/// The clients of one process.
pub struct Crowd {
    place: Place,
    members: Vec<Member>,
    sockets: Sockets,
    state: State,
    part: Part,
    live: Arc<Live>,
}

/// Everything the events change.
#[derive(Default)]
struct State {
    clients: Vec<Client>,
    done: Done,
    /// Answered or failed in the current order.
    settled: usize,
    now_ns: u64,
    /// When something last happened.
    last_ns: u64,
    delivered_ever: u64,
    /// Latencies of messages since the last [`Order::Tell`].
    deliveries: Latency,
    online: usize,
}

impl Crowd {
    /// A crowd of `members`, none of them connected.
    ///
    /// # Errors
    /// When the kernel gives no epoll descriptor.
    pub fn new(
        place: Place,
        sources: &[Ipv4Addr],
        members: Vec<Member>,
        part: Part,
        live: Arc<Live>,
    ) -> Result<Self> {
        let sockets = place.sockets(sources)?;
        Ok(Self { place, members, sockets, state: State::default(), part, live })
    }

    /// Carries out an order; an interruption ends it early.
    ///
    /// # Errors
    /// When no descriptor or port is left; trouble of single clients is counted.
    pub fn execute(&mut self, order: &Order) -> Result<Done> {
        let begin = clock::shared_ns();
        self.state.done = Done::default();
        self.state.settled = 0;
        (self.state.now_ns, self.state.last_ns) = (begin, begin);
        match *order {
            Order::Arrive { total, rate, open } => {
                let parts = self.part.parts;
                let open = if open == 0 { usize::MAX } else { open.div_ceil(parts) };
                self.arrive(share(total, self.part.part, parts), rate / parts as f64, open)?;
            }
            Order::Join { room } => self.join(room)?,
            Order::Take { messages } => self.take(messages)?,
            Order::Tell => self.state.done.latency = std::mem::take(&mut self.state.deliveries),
            Order::Hold { seconds, heartbeat_s } => self.hold(seconds, heartbeat_s)?,
        }
        let mut done = std::mem::take(&mut self.state.done);
        done.seconds = (clock::shared_ns() - begin) as f64 / 1e9;
        done.online = self.state.online;
        Ok(done)
    }

    fn arrive(&mut self, total: usize, rate: f64, open: usize) -> Result<()> {
        let (begin, first) = (self.state.now_ns, self.state.clients.len());
        let count = total.saturating_sub(first);
        let mut started = 0;
        while self.state.settled < count && !self.is_over() {
            let mut steps = 0;
            let mut wait = TURN_MAX;
            while started < count && started - self.state.settled < open && steps < STEPS_PER_TURN_MAX {
                self.state.now_ns = clock::shared_ns();
                let due =
                    if rate > 0.0 { begin + (started as f64 * 1e9 / rate) as u64 } else { self.state.now_ns };
                if due > self.state.now_ns {
                    wait = Duration::from_nanos(due - self.state.now_ns).min(TURN_MAX);
                    self.state.last_ns = self.state.now_ns; // waiting for the schedule is no silence
                    break;
                }
                let intended = if rate > 0.0 || open < usize::MAX { due } else { begin };
                self.connect(intended)?;
                started += 1;
                steps += 1;
            }
            self.turn(if steps == STEPS_PER_TURN_MAX { Duration::ZERO } else { wait })?;
        }
        self.state.done.counts.unanswered += (started - self.state.settled) as u64;
        Ok(())
    }

    fn connect(&mut self, intended_ns: u64) -> Result<()> {
        let index = self.sockets.begin_connect(self.place.address).with_context(|| {
            format!(
                "cannot connect to {} (local ports: sysctl net.ipv4.ip_local_port_range, --source)",
                self.place.address
            )
        })?;
        let frame = sign_in_frame(&self.members[index], Some(Seq::new(0)));
        self.sockets.write(index, |out| out.extend_from_slice(&frame));
        self.state.clients.push(Client { intended_ns, ..Client::default() });
        Ok(())
    }

    fn join(&mut self, room: u64) -> Result<()> {
        let join = frame(Command::Join, "", 0, &Rooms { rooms: vec![RoomId::new(room)] });
        let wanted = self.write_online(&join);
        while self.state.settled < wanted && !self.is_over() {
            self.turn(TURN_MAX)?;
        }
        self.state.done.counts.unanswered += wanted.saturating_sub(self.state.settled) as u64;
        Ok(())
    }

    fn write_online(&mut self, frame: &[u8]) -> usize {
        let clients = self.state.clients.iter().enumerate().filter(|(_, client)| client.is_online);
        clients.map(|(index, _)| self.sockets.write(index, |out| out.extend_from_slice(frame))).count()
    }

    fn take(&mut self, messages: usize) -> Result<()> {
        self.state.clients.iter_mut().for_each(|client| client.taken = 0);
        let wanted = |state: &State| (state.online * messages) as u64;
        while self.state.done.counts.delivered < wanted(&self.state) && !self.is_over() {
            self.turn(TURN_MAX)?;
        }
        let missing = wanted(&self.state).saturating_sub(self.state.done.counts.delivered);
        if missing > 0 && !stop::is_requested() {
            self.state.done.counts.lost += missing;
            self.state.fault(format!("{missing} deliveries did not come"));
        }
        Ok(())
    }

    fn hold(&mut self, seconds: f64, heartbeat_s: f64) -> Result<()> {
        let begin = self.state.now_ns;
        let end = begin + (seconds * 1e9) as u64;
        let count = self.state.clients.len().max(1);
        let step = heartbeat_s * 1e9 / count as f64;
        let mut sent = 0u64;
        while self.state.now_ns < end && !stop::is_requested() && self.state.online > 0 {
            let mut wait = TURN_MAX.min(Duration::from_nanos(end - self.state.now_ns));
            for _ in 0..STEPS_PER_TURN_MAX {
                let due = begin + (sent as f64 * step) as u64;
                if heartbeat_s <= 0.0 || due > self.state.now_ns || due >= end {
                    if heartbeat_s > 0.0 && due > self.state.now_ns {
                        wait = wait.min(Duration::from_nanos(due - self.state.now_ns));
                    }
                    break;
                }
                self.beat((sent % count as u64) as usize, due);
                sent += 1;
            }
            self.turn(wait)?;
        }
        let beats = |state: &State| state.done.counts.heartbeats;
        let alive = self.state.done.counts.sent;
        self.state.last_ns = self.state.now_ns;
        while beats(&self.state) < alive && self.state.online > 0 && !self.is_over() {
            self.turn(TURN_MAX)?;
        }
        let (sent, answered) = (self.state.done.counts.sent, beats(&self.state));
        self.state.done.counts.unanswered += sent.saturating_sub(answered);
        Ok(())
    }

    fn beat(&mut self, index: usize, intended_ns: u64) {
        let Some(client) = self.state.clients.get(index).filter(|client| client.is_online) else { return };
        debug_assert!(!client.is_over);
        // Packet.seq comes back in the answer: it carries when this should have been sent.
        self.sockets
            .write(index, |out| out.extend_from_slice(&frame(Command::Heartbeat, "", intended_ns, &())));
        self.state.done.counts.sent += 1;
    }

    fn is_over(&self) -> bool {
        stop::is_requested() || self.state.now_ns.saturating_sub(self.state.last_ns) > SILENCE_NS_MAX
    }

    /// One turn of the sockets.
    fn turn(&mut self, wait: Duration) -> Result<()> {
        let state = &mut self.state;
        let mut events = 0;
        self.sockets.poll(wait, &mut |index, event, out| {
            if events % EVENTS_PER_CLOCK == 0 {
                state.now_ns = clock::shared_ns();
                state.last_ns = state.now_ns;
            }
            events += 1;
            state.handle(index, event, out);
        })?;
        state.now_ns = clock::shared_ns();
        Live::set(&self.live.online, state.online as u64);
        Live::set(&self.live.delivered, state.delivered_ever);
        Ok(())
    }
}

impl State {
    fn fault(&mut self, words: String) {
        Report::fault(&mut self.done.faults, words);
    }

    fn handle(&mut self, index: usize, event: Event<'_>, out: &mut Vec<u8>) {
        let why = match event {
            Event::Frame(packet) => match self.handle_packet(index, &packet, out) {
                Ok(()) => return,
                Err(why) => {
                    self.done.counts.unexpected += 1;
                    why
                }
            },
            Event::Closed(why) => {
                let client = &mut self.clients[index];
                self.online -= usize::from(client.is_online);
                self.settled += usize::from(!client.is_online && !client.is_over);
                (client.is_online, client.is_over) = (false, true);
                self.done.counts.closed += 1;
                format!("connection ended: {why}")
            }
        };
        self.fault(format!("client {index}: {why}"));
    }

    fn handle_packet(&mut self, index: usize, packet: &Packet<'_>, out: &mut Vec<u8>) -> Result<(), String> {
        let bad = |error: gimbal_codec::DecodeError| error.to_string();
        match Command::try_from(packet.command).map_err(|error| error.to_string())? {
            Command::SignIn => self.signed_in(index, &Reply::decode(packet.content).map_err(bad)?),
            Command::Join => self.joined(&Reply::decode(packet.content).map_err(bad)?),
            Command::Message => self.message(index, &Message::decode(packet.content).map_err(bad)?)?,
            Command::Heartbeat => {
                self.done.counts.heartbeats += 1;
                self.done.latency.record(self.now_ns.saturating_sub(packet.seq));
            }
            Command::Behind => {
                self.done.counts.behind += 1;
                let sync = Sync { after: Seq::new(0), limit: SYNC_LIMIT_MAX };
                out.extend_from_slice(&frame(Command::Sync, "", 0, &sync));
            }
            Command::Sync => self.done.counts.pages += 1,
            Command::Close => {
                let close = Close::decode(packet.content).map_err(bad)?;
                self.fault(format!("client {index} was told to go: {close:?}"));
            }
            other => return Err(format!("unexpected {other:?}")),
        }
        Ok(())
    }

    fn signed_in(&mut self, index: usize, reply: &Reply<'_>) {
        self.settled += 1;
        let client = &mut self.clients[index];
        if reply.code == 0 {
            client.is_online = true;
            self.online += 1;
            self.done.counts.signed_in += 1;
            self.done.latency.record(self.now_ns.saturating_sub(client.intended_ns));
        } else {
            client.is_over = true;
            self.done.counts.refused += 1;
            self.fault(format!("client {index}: sign-in refused: {} ({})", reply.message, reply.code));
        }
    }

    fn joined(&mut self, reply: &Reply<'_>) {
        self.settled += 1;
        if reply.code != 0 {
            self.done.counts.refused += 1;
            self.fault(format!("join refused: {} ({})", reply.message, reply.code));
        }
    }

    fn message(&mut self, index: usize, message: &Message<'_>) -> Result<(), String> {
        if message.room == RoomId::new(0) {
            return Err("a message that is not of the room".into());
        }
        let client = &mut self.clients[index];
        let seq = message.room_seq;
        client.taken += 1;
        self.delivered_ever += 1;
        self.done.counts.delivered += 1;
        if let Some(mark) = Mark::read(message.content) {
            self.deliveries.record(self.now_ns.saturating_sub(mark.intended_ns));
        }
        match client.room_seq.replace(seq) {
            Some(before) if seq == before => self.done.counts.duplicated += 1,
            Some(before) if seq < before => self.done.counts.reordered += 1,
            Some(before) if seq > before + 1 => self.done.counts.gaps += 1,
            _ => return Ok(()),
        }
        self.fault(format!("client {index}: room number {seq} is not the next one"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_never_shrink() {
        for parts in 1..6 {
            for total in 0..20 {
                let shares: Vec<usize> = (0..parts).map(|part| share(total, part, parts)).collect();
                assert_eq!(shares.iter().sum::<usize>(), total);
                assert!((0..parts).all(|part| share(total + 1, part, parts) >= shares[part]));
            }
        }
    }

    fn state() -> State {
        State {
            clients: vec![Client { is_online: true, ..Client::default() }],
            online: 1,
            ..State::default()
        }
    }

    #[test]
    fn a_member_notices_what_is_not_the_next_message() {
        let mut state = state();
        let message =
            |room_seq| Message { room: RoomId::new(1), room_seq, content: b"", ..Message::default() };
        for seq in [5, 6, 6, 9, 8] {
            state.message(0, &message(seq)).expect("a room's message");
        }
        let counts = &state.done.counts;
        assert_eq!([counts.delivered, counts.duplicated, counts.gaps, counts.reordered], [5, 1, 1, 1]);
    }

    #[test]
    fn an_end_before_sign_in_settles_a_client_once() {
        let mut state = State { clients: vec![Client::default()], ..State::default() };
        state.handle(0, Event::Closed("refused".into()), &mut Vec::new());
        assert_eq!((state.settled, state.done.counts.closed, state.online), (1, 1, 0));
    }
}
