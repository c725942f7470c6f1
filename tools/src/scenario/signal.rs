//! Signals between two sessions of one gateway: server CPU of each, and how long it takes.
//!
//! Connections are pairs. Each starts with a window of signals to its partner, and sends one more for each that it gets:
//! so a round never has more of them open, and never fewer until its end.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use gimbal_codec::{Command, UserId, body, frame};
use serde::Serialize;

use crate::{
    clock,
    grpc::Api,
    load::{
        Target,
        fleet::{self, Member},
        nanos, progress,
        rounds::{RoundTable, Rounds},
        sockets::{Event, Sockets},
    },
    proc::raise_open_files,
    report::{Latency, LatencyTable, RunFacts},
};

/// How long no signal may arrive.
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Unmeasured time before the first round.
const WARM_UP: Duration = Duration::from_millis(500);
/// Descriptors of this process beside its connections.
const FILES_SPARE: u64 = 64;
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

/// The outcome as one JSON object.
#[derive(Debug, Serialize)]
pub struct Report {
    scenario: &'static str,
    /// Every signal arrived once and in order; a run in which one does not ends with an error.
    pub ok: bool,
    facts: RunFacts,
    parameters: Parameters,
    /// From its sending to its arrival.
    latency: LatencyTable,
    #[serde(flatten)]
    table: RoundTable,
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made, or a signal is lost or arrives out of order.
pub fn run(target: &Target, parameters: Parameters) -> Result<Report> {
    let pid = target
        .pid
        .context("CPU can only be read of a server on this machine: give --server-pid or --start")?;
    let is_paired = parameters.connections > 0 && parameters.connections.is_multiple_of(2);
    ensure!(is_paired, "connections are pairs: an even number, at least 2");
    ensure!(parameters.window > 0 && parameters.rounds > 0, "at least one signal and one round");
    ensure!(parameters.bytes >= SEQ_BYTES, "a signal carries its number: at least {SEQ_BYTES} bytes");
    let files = raise_open_files();
    let needed = parameters.connections as u64 + FILES_SPARE;
    ensure!(needed <= files, "only {files} open files are allowed here");
    let facts = RunFacts::collect(clock::unix());
    let mut pairs = Pairs::sign_in(target, &parameters)?;
    let mut rounds = Rounds::new(pid);
    pairs.exchange(WARM_UP)?;
    pairs.latency = Latency::default();
    let bar = progress(parameters.rounds as u64, "rounds");
    for _ in 0..parameters.rounds {
        rounds.measure(|| pairs.exchange(Duration::from_secs_f64(parameters.round_s)))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (latency, table) = (pairs.latency.table(), rounds.table());
    Ok(Report { scenario: "signal", ok: true, facts, parameters, latency, table })
}

/// Every connection and its partner, which has the index with the lowest bit flipped.
struct Pairs {
    sockets: Sockets,
    conns: Vec<Conn>,
    window: usize,
    latency: Latency,
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
    fn sign_in(target: &Target, parameters: &Parameters) -> Result<Self> {
        let runtime = fleet::runtime()?;
        let api = runtime.block_on(Api::connect(&target.grpc))?;
        let count = parameters.connections;
        let bar = progress(count as u64, "register");
        let members = runtime.block_on(fleet::register(&api, &target.key, count, &bar))?;
        bar.finish_and_clear();
        let mut sockets = Sockets::new().context("no epoll")?;
        let bar = progress(count as u64, "sign in");
        fleet::sign_in(&mut sockets, target.address, &members, &bar)?;
        bar.finish_and_clear();
        let conn = |index: usize| {
            let Member { user: partner, .. } = members[index ^ 1];
            Conn { partner, content: vec![b'.'; parameters.bytes], sent: 0, got: 0, open: VecDeque::new() }
        };
        let conns = (0..count).map(conn).collect();
        Ok(Self { sockets, conns, window: parameters.window, latency: Latency::default() })
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
            }
            ensure!(now - last_arrival < ARRIVE_TIMEOUT, "{open} signals do not arrive");
        }
        Ok(arrived)
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let Parameters { connections, window, bytes, .. } = self.parameters;
        let lines = [
            format!("signal: {connections} connections in pairs, {window} open of each, {bytes} B"),
            self.table.line("signal", "signal"),
            self.latency.line("latency"),
            self.table.threads_line(),
        ];
        lines.join("\n")
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
