//! Signals between two sessions of one gateway: server CPU of each, and how long it takes.
//!
//! Connections are pairs. Each starts with a window of signals to its partner, and sends one more for each that it gets:
//! so a round never has more of them open, and never fewer until its end.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail, ensure};
use gimbal_codec::{Command, UserId, body, frame};
use serde::Serialize;

use crate::{
    clock,
    load::{
        Target,
        fleet::Member,
        nanos, progress,
        rounds::Rounds,
        sockets::{Event, Sockets},
        stage::Stage,
        stop,
        watch::Live,
    },
    report::{Counts, Figure, Latency, Report},
};

/// How long no signal may arrive.
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Unmeasured time before the first round.
const WARM_UP: Duration = Duration::from_millis(500);
/// A signal's number, at the start of its content.
const SEQ_BYTES: usize = 8;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Connections; an even number.
    pub connections: usize,
    /// Open signals of each connection.
    pub window: usize,
    /// Bytes of each signal's content; at least 8.
    pub bytes: usize,
    /// Length of one round, seconds.
    pub round_s: f64,
    /// Rounds.
    pub rounds: usize,
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made, or a signal is lost or arrives out of order.
pub fn run(target: &Target, parameters: &Parameters) -> Result<Report> {
    let is_paired = parameters.connections > 0 && parameters.connections.is_multiple_of(2);
    ensure!(is_paired, "connections are pairs: an even number, at least 2");
    ensure!(parameters.window > 0 && parameters.rounds > 0, "at least one signal and one round");
    ensure!(parameters.bytes >= SEQ_BYTES, "a signal carries its number: at least {SEQ_BYTES} bytes");
    let stage = Stage::open(target, parameters.connections)?;
    let watch = stage.watch(&[])?;
    let mut pairs = Pairs::sign_in(&stage, parameters)?;
    let mut rounds = Rounds::new(&target.pids);
    pairs.exchange(WARM_UP)?;
    pairs.latency = Latency::default();
    watch.begin_at_rest();
    let bar = progress(parameters.rounds as u64, "rounds");
    while rounds.count() < parameters.rounds && !stop::is_requested() {
        rounds.measure(|| pairs.exchange(Duration::from_secs_f64(parameters.round_s)))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    watch.end();
    let (latency, table) = (pairs.latency.table(), rounds.table());
    let mut watched = watch.finish();
    if let Some(server) = &mut watched.server {
        server.divide("signal", table.count);
    }
    let (sent, signed_in) = (table.count, parameters.connections as u64);
    let counts = Counts { sent, delivered: sent, signed_in, ..Counts::default() };
    let mut report = stage.report("signal", parameters, counts, watched);
    report.headline = vec![
        Figure::new("server CPU per signal", table.cpu_us, "us"),
        Figure::new("signals", table.per_second, "/s"),
    ];
    report.latency = [("signal".to_owned(), latency)].into();
    report.detail("cpu_us", table.cpu_us);
    report.detail("rounds", &table.rounds);
    Ok(report)
}

/// Every connection and its partner, which has the index with the lowest bit flipped.
struct Pairs {
    sockets: Sockets,
    conns: Vec<Conn>,
    window: usize,
    latency: Latency,
    /// Signals that arrived so far.
    arrived: u64,
    live: Arc<Live>,
}

/// One connection.
struct Conn {
    partner: UserId,
    /// Content of the next signal; it begins with the number of the last one.
    content: Vec<u8>,
    sent: u64,
    got: u64,
    /// When each signal that has not arrived was sent, oldest first.
    open: VecDeque<Instant>,
}

impl Conn {
    fn send(&mut self, now: Instant, out: &mut Vec<u8>) {
        self.sent += 1;
        self.open.push_back(now);
        self.content[..SEQ_BYTES].copy_from_slice(&self.sent.to_be_bytes());
        let signal = body::Signal { to_user: self.partner, content: &self.content, ..Default::default() };
        out.extend_from_slice(&frame(Command::Signal, "", 0, &signal));
    }

    /// Checks that this is the partner's next signal.
    fn take(&mut self, event: &Event<'_>) -> Result<()> {
        let packet = match event {
            Event::Frame(packet) => packet,
            Event::Closed(why) => bail!("closed: {why}"),
        };
        if packet.command != Command::Signal.number() {
            bail!("command {} instead of a signal", packet.command);
        }
        let signal = body::Signal::decode(packet.content)?;
        let seq = signal.content.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        self.got += 1;
        if signal.from_user != self.partner || seq != Some(self.got) {
            bail!("{seq:?} of user {} instead of {} of {}", signal.from_user, self.got, self.partner);
        }
        Ok(())
    }
}

impl Pairs {
    fn sign_in(stage: &Stage<'_>, parameters: &Parameters) -> Result<Self> {
        let (sockets, members) = (stage.sign_in()?, &stage.members);
        let conn = |index: usize| {
            let Member { user: partner, .. } = members[index ^ 1];
            Conn { partner, content: vec![b'.'; parameters.bytes], sent: 0, got: 0, open: VecDeque::new() }
        };
        let conns = (0..members.len()).map(conn).collect();
        let (window, live) = (parameters.window, Arc::clone(&stage.live));
        Ok(Self { sockets, conns, window, latency: Latency::default(), arrived: 0, live })
    }

    /// Signals for `length`, and until all of them have arrived; how many.
    fn exchange(&mut self, length: Duration) -> Result<u64> {
        let mut now = clock::now();
        let (end, mut last_arrival, mut arrived) = (now + length, now, 0);
        let mut open = (self.conns.len() * self.window) as u64;
        for (index, conn) in self.conns.iter_mut().enumerate() {
            let window = self.window;
            self.sockets.write(index, |out| (0..window).for_each(|_| conn.send(now, out)));
        }
        while open > 0 {
            let (conns, latency, goes_on) = (&mut self.conns, &mut self.latency, now < end);
            let (before, mut fault) = (arrived, None);
            self.sockets.poll(ARRIVE_TIMEOUT, &mut |index, event, out| {
                if let Err(why) = conns[index].take(&event) {
                    fault = fault.take().or_else(|| Some(anyhow!("connection {index}: {why}")));
                    return;
                }
                let at = clock::now();
                if let Some(sent) = conns[index ^ 1].open.pop_front() {
                    latency.record(nanos(at.saturating_duration_since(sent)));
                }
                arrived += 1;
                match goes_on {
                    true => conns[index].send(at, out),
                    false => open -= 1,
                }
            })?;
            fault.map_or(Ok(()), Err)?;
            now = clock::now();
            if arrived > before {
                last_arrival = now;
                self.arrived += arrived - before;
                Live::set(&self.live.delivered, self.arrived);
            }
            ensure!(now - last_arrival < ARRIVE_TIMEOUT, "{open} signals do not arrive");
        }
        Ok(arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_or_repeated_signal_is_a_fault() {
        let conn = |partner| Conn {
            partner: UserId::new(partner),
            content: vec![0; SEQ_BYTES],
            sent: 0,
            got: 0,
            open: VecDeque::new(),
        };
        let signal = |seq: u64, from| {
            let content = seq.to_be_bytes();
            let signal =
                body::Signal { content: &content, from_user: UserId::new(from), ..Default::default() };
            let mut bytes = Vec::new();
            gimbal_codec::Body::encode(&signal, &mut bytes);
            bytes
        };
        let takes = |conn: &mut Conn, seq, from| {
            let content = signal(seq, from);
            let command = Command::Signal.number();
            let packet = gimbal_codec::Packet { command, content: &content, ..Default::default() };
            conn.take(&Event::Frame(packet)).is_ok()
        };
        assert!(takes(&mut conn(7), 1, 7));
        assert!(!takes(&mut conn(7), 2, 7), "the first is lost");
        assert!(!takes(&mut conn(7), 1, 8), "of somebody else");
        let mut twice = conn(7);
        assert!(takes(&mut twice, 1, 7) && !takes(&mut twice, 1, 7));
    }
}
