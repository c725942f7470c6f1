//! Readers that stall, beside healthy ones in one room: do the healthy ones notice, and does memory stay flat?
//!
//! Rounds with and without stalled readers alternate on the same connections, so that both see the same machine; the medians
//! of the healthy members' p99 are compared. A stalled member reads nothing for a round, then all that waits for it.
//! The server may shed a room's messages for it, and for nobody else.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use gimbal_codec::{
    Command, RoomId,
    body::{Message, Reply, Rooms},
    frame,
};
use serde::Serialize;

use crate::{
    clock,
    ledger::Mark,
    load::{
        Target, progress,
        publisher::Publisher,
        sockets::{Event, Sockets},
        stage::{Stage, unless_stopped},
        stop,
        watch::{Live, read_server},
    },
    proc,
    report::{Counts, Figure, Latency, Report, median},
};

/// Longest wait in one turn.
const TURN_MAX: Duration = Duration::from_millis(20);
/// A round ends when nothing came for so long: what was published is delivered by then.
const QUIET_NS: u64 = 400_000_000;
/// How long a round may take to become quiet, and joins to be answered.
const PATIENCE_NS: u64 = 20_000_000_000;
/// The room; a run has a server of its own, or is alone in this room.
const ROOM: u64 = 0x736c_6f77;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Members.
    pub members: usize,
    /// Of them stalled, 0 to 1.
    pub stalled: f64,
    /// Publishes per second, open loop.
    pub rate: f64,
    /// Bytes of each message's content, at least the mark's 24.
    pub bytes: usize,
    /// Length of one round, seconds.
    pub round_s: f64,
    /// Rounds of each kind.
    pub rounds: usize,
}

/// One round.
#[derive(Clone, Debug, Serialize)]
struct Round {
    /// Some members stalled.
    stalled: bool,
    /// Deliveries to healthy members.
    delivered: u64,
    /// Their latency, microseconds.
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    /// The server's anonymous memory at its end, while the stalled ones still stall, bytes.
    rss_anon_bytes: u64,
    /// Memory of all TCP sockets of the machine then, bytes.
    tcp_bytes: u64,
}

struct Member {
    seq: Option<u64>,
    /// It stalls in every other round.
    is_slow: bool,
}

#[derive(Default)]
struct State {
    members: Vec<Member>,
    counts: Counts,
    faults: Vec<String>,
    /// Of the current round, healthy members only.
    latency: Latency,
    delivered: u64,
    joined: usize,
    /// Stalled members that the server closed.
    slow_closed: u64,
    now_ns: u64,
    last_ns: u64,
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and is invalid has `ok == false`.
pub fn run(target: &Target, parameters: &Parameters) -> Result<Report> {
    ensure!((0.0..=0.9).contains(&parameters.stalled), "--stalled is 0 to 0.9");
    ensure!(parameters.members > 1 && parameters.rate > 0.0, "at least two members and a rate above 0");
    let stage = Stage::open(target, parameters.members)?;
    let mut sockets = stage.sign_in()?;
    let watch = stage.watch(&[])?;
    let mut state = State::new(parameters);
    join(&mut sockets, &mut state)?;
    let mut publisher = Publisher::new(&stage, ROOM, parameters.bytes)?;
    publisher.await_interest()?;
    settle(&mut sockets, &mut state)?;
    let bar = progress(parameters.rounds as u64 * 2, "rounds");
    let (mut rounds, mut healthy, mut disturbed) = (Vec::new(), Latency::default(), Latency::default());
    watch.begin_at_rest();
    for number in 0..parameters.rounds * 2 {
        let stalled = number % 2 == 1;
        state.stall(&mut sockets, stalled);
        state.publish_for(&mut sockets, &mut publisher, parameters, &stage.live)?;
        rounds.push(state.round(stalled, &target.pids));
        let all = if stalled { &mut disturbed } else { &mut healthy };
        all.merge(&std::mem::take(&mut state.latency));
        state.stall(&mut sockets, false);
        settle(&mut sockets, &mut state)?;
        if let Some(failure) = publisher.failure() {
            state.counts.refused += 1;
            state.fault(format!("{failure:#}"));
        }
        bar.inc(1);
        if stop::is_requested() {
            break;
        }
    }
    watch.end();
    bar.finish_and_clear();
    let mut watched = watch.finish();
    if let Some(server) = &mut watched.server {
        server.divide("delivery", state.counts.delivered);
    }
    let mut report = stage.report("slow", parameters, state.counts, watched);
    report.ok &= rounds.iter().any(|round| round.stalled);
    report.latency =
        [("beside healthy".to_owned(), healthy.table()), ("beside stalled".to_owned(), disturbed.table())]
            .into();
    describe(&mut report, &rounds);
    report.detail("stalled_closed", state.slow_closed);
    report.faults = state.faults;
    Ok(report)
}

fn describe(report: &mut Report, rounds: &[Round]) {
    let of = |stalled: bool, get: fn(&Round) -> f64| {
        rounds.iter().filter(|round| round.stalled == stalled).map(get).collect::<Vec<_>>()
    };
    let (clean, disturbed) =
        (median(&of(false, |round| round.p99_us)), median(&of(true, |round| round.p99_us)));
    let ratio = disturbed / clean.max(1e-9);
    let growth = |get: fn(&Round) -> f64| {
        let values = of(true, get);
        values.last().zip(values.first()).map_or(0.0, |(last, first)| (last - first) / f64::from(1 << 20))
    };
    let memory = growth(|round| round.rss_anon_bytes as f64);
    let tcp = growth(|round| round.tcp_bytes as f64);
    report.headline = vec![
        Figure::new("healthy p99 beside stalled readers, to p99 without", ratio, "x"),
        Figure::new("healthy p99 without stalled readers", clean, "us"),
        Figure::new("growth of server memory, first to last stalled round", memory, "MiB"),
        Figure::new("growth of socket memory, first to last stalled round", tcp, "MiB"),
    ];
    report.detail("p99_ratio", ratio);
    report.detail("memory_growth_mib", memory);
    report.detail("tcp_growth_mib", tcp);
    report.detail("rounds", rounds);
}

impl State {
    fn new(parameters: &Parameters) -> Self {
        let slow = (parameters.members as f64 * parameters.stalled).round() as usize;
        let step = parameters.members.checked_div(slow).unwrap_or(usize::MAX);
        let mut left = slow;
        // Spread over the room, so that they are not all at its end.
        let member = |index: usize| {
            let is_slow = left > 0 && index.is_multiple_of(step);
            left -= usize::from(is_slow);
            Member { seq: None, is_slow }
        };
        Self { members: (0..parameters.members).map(member).collect(), ..Self::default() }
    }

    fn fault(&mut self, words: String) {
        Report::fault(&mut self.faults, words);
    }

    fn stall(&self, sockets: &mut Sockets, stalled: bool) {
        let slow = self.members.iter().enumerate().filter(|(_, member)| member.is_slow);
        slow.for_each(|(index, _)| sockets.stall(index, stalled));
    }

    /// One round of publishes, until the healthy members are quiet.
    fn publish_for(
        &mut self,
        sockets: &mut Sockets,
        publisher: &mut Publisher,
        parameters: &Parameters,
        live: &Live,
    ) -> Result<()> {
        let begin = clock::shared_ns();
        let count = (parameters.round_s * parameters.rate).ceil() as u64;
        let mut sent = 0;
        self.delivered = 0;
        (self.now_ns, self.last_ns) = (begin, begin);
        while (sent < count || self.now_ns < self.last_ns + QUIET_NS) && !stop::is_requested() {
            let due = begin + (sent as f64 * 1e9 / parameters.rate) as u64;
            let mut wait = TURN_MAX;
            if sent < count && due <= self.now_ns {
                publisher.publish(due);
                (sent, wait) = (sent + 1, Duration::ZERO);
                self.counts.sent += 1;
            } else if sent < count {
                wait = wait.min(Duration::from_nanos(due - self.now_ns));
            }
            self.turn(sockets, wait)?;
            Live::set(&live.sent, self.counts.sent);
            Live::set(&live.delivered, self.counts.delivered);
            Live::set(&live.online, sockets.open() as u64);
            ensure!(
                self.now_ns < begin + (parameters.round_s * 1e9) as u64 + PATIENCE_NS,
                "a round does not end"
            );
        }
        let healthy = self.members.iter().filter(|member| !member.is_slow).count() as u64;
        if self.delivered < healthy * sent && !stop::is_requested() {
            self.counts.lost += healthy * sent - self.delivered;
            self.fault(format!("healthy members got {} of {}", self.delivered, healthy * sent));
        }
        Ok(())
    }

    fn round(&self, stalled: bool, pids: &[u32]) -> Round {
        let table = self.latency.table();
        Round {
            stalled,
            delivered: self.delivered,
            p50_us: table.p50_us,
            p99_us: table.p99_us,
            max_us: table.max_us,
            rss_anon_bytes: read_server(pids).map_or(0, |figures| figures.rss_anon_bytes),
            tcp_bytes: proc::tcp_bytes().unwrap_or(0),
        }
    }

    fn turn(&mut self, sockets: &mut Sockets, wait: Duration) -> Result<()> {
        let mut events = 0u32;
        sockets.poll(wait, &mut |index, event, _| {
            if events.is_multiple_of(16) {
                self.now_ns = clock::shared_ns();
            }
            events += 1;
            self.last_ns = self.now_ns;
            if let Err(why) = self.take(index, &event) {
                self.counts.unexpected += 1;
                self.fault(format!("member {index}: {why}"));
            }
        })?;
        self.now_ns = clock::shared_ns();
        Ok(())
    }

    fn take(&mut self, index: usize, event: &Event<'_>) -> Result<()> {
        let packet = match event {
            Event::Frame(packet) => packet,
            Event::Closed(_) if self.members[index].is_slow => {
                self.slow_closed += 1;
                return Ok(());
            }
            Event::Closed(why) => {
                self.counts.closed += 1;
                self.fault(format!("member {index} ended: {why}"));
                return Ok(());
            }
        };
        match Command::try_from(packet.command) {
            Ok(Command::Join) => {
                let reply = Reply::decode(packet.content)?;
                ensure!(reply.code == 0, "join refused: {} ({})", reply.message, reply.code);
                self.joined += 1;
            }
            Ok(Command::Message) => self.message(index, &Message::decode(packet.content)?),
            Ok(Command::Close) if self.members[index].is_slow => {}
            other => bail!("unexpected {other:?}"),
        }
        Ok(())
    }

    fn message(&mut self, index: usize, message: &Message<'_>) {
        let member = &mut self.members[index];
        let (seq, before) = (message.room_seq, member.seq.replace(message.room_seq));
        self.counts.delivered += 1;
        if !member.is_slow {
            self.delivered += 1;
            if let Some(mark) = Mark::read(message.content) {
                self.latency.record(self.now_ns.saturating_sub(mark.intended_ns));
            }
        }
        let count = match before {
            Some(before) if seq == before => &mut self.counts.duplicated,
            Some(before) if seq < before => &mut self.counts.reordered,
            Some(before) if seq > before + 1 && member.is_slow => {
                self.counts.shed += seq - before - 1;
                return;
            }
            Some(before) if seq > before + 1 => &mut self.counts.gaps,
            _ => return,
        };
        *count += 1;
        self.fault(format!("member {index}: room number {seq} is not the next one"));
    }
}

fn join(sockets: &mut Sockets, state: &mut State) -> Result<()> {
    let join = frame(Command::Join, "", 0, &Rooms { rooms: vec![RoomId::new(ROOM)] });
    let count = state.members.len();
    (0..count).for_each(|index| sockets.write(index, |out| out.extend_from_slice(&join)));
    let end = clock::shared_ns() + PATIENCE_NS;
    while state.joined < count {
        state.turn(sockets, TURN_MAX)?;
        unless_stopped("joining")?;
        ensure!(state.faults.is_empty(), "{}", state.faults.join("; "));
        ensure!(state.now_ns < end, "only {} of {count} joins are answered", state.joined);
    }
    Ok(())
}

/// Reads until nothing comes any more; what comes is not measured.
fn settle(sockets: &mut Sockets, state: &mut State) -> Result<()> {
    let begin = clock::shared_ns();
    (state.now_ns, state.last_ns) = (begin, begin);
    while state.now_ns < state.last_ns + QUIET_NS {
        state.turn(sockets, TURN_MAX)?;
        ensure!(state.now_ns < begin + PATIENCE_NS, "the room does not become quiet");
    }
    state.latency = Latency::default();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(members: usize, stalled: f64) -> State {
        let (rate, bytes, round_s, rounds) = (1.0, 100, 1.0, 1);
        State::new(&Parameters { members, stalled, rate, bytes, round_s, rounds })
    }

    #[test]
    fn as_many_members_stall_as_asked_for() {
        for (members, stalled, count) in [(1_000, 0.1, 100), (10, 0.0, 0), (7, 0.3, 2), (10, 0.9, 9)] {
            let state = state(members, stalled);
            assert_eq!(
                state.members.iter().filter(|member| member.is_slow).count(),
                count,
                "{members} {stalled}"
            );
        }
    }

    #[test]
    fn a_gap_is_shed_for_a_stalled_member_and_a_fault_for_a_healthy_one() {
        let mut state = state(10, 0.1);
        for index in [0, 1] {
            for room_seq in [1, 4] {
                state.message(index, &Message { room_seq, ..Message::default() });
            }
        }
        assert_eq!((state.counts.shed, state.counts.gaps), (2, 1));
    }
}
