//! Heartbeats: server CPU of each and how long the answer takes, beside an echo on a bare ring.
//!
//! Without a rate every connection keeps a window of heartbeats open. With one, heartbeats are due at even distances over
//! all connections in turn, and latency counts from when one was due. Rounds of both servers alternate, so that both see
//! the same machine; the medians are compared.

pub mod bare;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use gimbal_codec::{Command, Packet};
use serde::Serialize;

use crate::{
    clock,
    load::{
        Target, limits, nanos, progress,
        rounds::{RoundTable, Rounds},
        sockets::{Event, Sockets},
        stage::Stage,
        stop,
        watch::{Live, Watch},
    },
    report::{Counts, Figure, Latency, LatencyTable, Report},
};

/// How long no heartbeat may be answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Unmeasured time before the first round of each server.
const WARM_UP: Duration = Duration::from_millis(500);

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Connections, of each server.
    pub connections: usize,
    /// Open heartbeats of each connection, when there is no rate.
    pub window: usize,
    /// Heartbeats per second over all connections; 0: as fast as they are answered.
    pub rate: u64,
    /// Length of one round, seconds.
    pub round_s: f64,
    /// Rounds of each server.
    pub rounds: usize,
    /// Measure a bare echo as well.
    pub bare: bool,
}

/// What one server did.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// From when a heartbeat was due to its answer, all rounds together.
    latency: LatencyTable,
    #[serde(flatten)]
    table: RoundTable,
}

/// Runs the scenario; the bare echo runs on `bare_cores`.
///
/// # Errors
/// When the run cannot be made, or a heartbeat is answered wrong or not at all.
pub fn run(target: &Target, parameters: &Parameters, bare_cores: Option<&str>) -> Result<Report> {
    let Parameters { connections, window, rounds, bare, .. } = *parameters;
    ensure!(connections > 0 && window > 0, "at least one connection and one heartbeat");
    ensure!(rounds > 0, "at least one round");
    limits::check(target, connections * (1 + usize::from(bare)))?;
    let stage = Stage::open(target, connections)?;
    let watch = stage.watch(&[])?;
    let mut gateway = Side::new(&target.pids, stage.sign_in()?, parameters);
    gateway.line.live = Some(Arc::clone(&stage.live));
    let child = bare.then(|| bare::Bare::start(bare_cores)).transpose()?;
    let mut bare = match &child {
        Some(child) => Some(Side::new(&[child.pid()], child.connect(connections)?, parameters)),
        None => None,
    };
    for side in [Some(&mut gateway), bare.as_mut()].into_iter().flatten() {
        side.line.exchange(WARM_UP)?;
        side.line.latency = Latency::default();
    }
    watch.begin_at_rest();
    let bar = progress(rounds as u64, "rounds");
    while gateway.rounds.count() < rounds && !stop::is_requested() {
        for side in [Some(&mut gateway), bare.as_mut()].into_iter().flatten() {
            let length = Duration::from_secs_f64(parameters.round_s);
            side.rounds.measure(|| side.line.exchange(length))?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    watch.end();
    let (gateway, bare) = (gateway.outcome(), bare.map(Side::outcome));
    Ok(report(stage, watch, parameters, &gateway, bare.as_ref()))
}

fn report(
    stage: Stage<'_>,
    watch: Watch,
    parameters: &Parameters,
    gateway: &Outcome,
    bare: Option<&Outcome>,
) -> Report {
    let mut watched = watch.finish();
    if let Some(server) = &mut watched.server {
        server.divide("heartbeat", gateway.table.count);
    }
    let counts = Counts {
        heartbeats: gateway.table.count,
        signed_in: parameters.connections as u64,
        ..Counts::default()
    };
    let mut report = stage.report("echo", parameters, counts, watched);
    report.headline = vec![
        Figure::new("server CPU per heartbeat", gateway.table.cpu_us, "us"),
        Figure::new("heartbeats", gateway.table.per_second, "/s"),
        Figure::new("sleeps of the server per heartbeat", gateway.table.sleeps, ""),
    ];
    report.latency = [("heartbeat".to_owned(), gateway.latency.clone())].into();
    let ratio = bare.map(|bare| gateway.table.cpu_us / bare.table.cpu_us);
    if let Some((bare, ratio)) = bare.zip(ratio) {
        report.headline.push(Figure::new("bare echo per heartbeat", bare.table.cpu_us, "us"));
        report.headline.push(Figure::new("ratio to the bare echo", ratio, "x"));
        report.latency.insert("bare echo".to_owned(), bare.latency.clone());
    }
    report.detail("gateway", gateway);
    report.detail("bare", bare);
    report.detail("ratio", ratio);
    report
}

/// One server under measurement.
struct Side {
    line: Line,
    rounds: Rounds,
}

impl Side {
    fn new(pids: &[u32], sockets: Sockets, parameters: &Parameters) -> Self {
        Self { line: Line::new(sockets, parameters), rounds: Rounds::new(pids) }
    }

    fn outcome(self) -> Outcome {
        Outcome { latency: self.line.latency.table(), table: self.rounds.table() }
    }
}

/// The heartbeats of all connections to one server.
pub(super) struct Line {
    sockets: Sockets,
    conns: Vec<Beats>,
    window: usize,
    /// Between two heartbeats; zero: as fast as they are answered.
    distance: Duration,
    /// Whose turn it is.
    next: usize,
    pub(super) latency: Latency,
    /// Answers so far.
    answered: u64,
    /// Where they are told to the watch.
    live: Option<Arc<Live>>,
}

/// The heartbeats of one connection.
#[derive(Default)]
struct Beats {
    /// Of the heartbeat sent last.
    seq: u64,
    /// When each open heartbeat was due, oldest first.
    due: VecDeque<Instant>,
}

impl Beats {
    fn beat(&mut self, due: Instant, out: &mut Vec<u8>) {
        self.seq += 1;
        self.due.push_back(due);
        Packet { command: Command::Heartbeat.number(), seq: self.seq, ..Packet::default() }.put_frame(out);
    }

    /// Takes the answer to the oldest open heartbeat; returns when that was due.
    fn answered(&mut self, event: &Event<'_>) -> Result<Instant> {
        let packet = match event {
            Event::Frame(packet) => packet,
            Event::Closed(why) => bail!("closed: {why}"),
        };
        let expected = self.seq + 1 - self.due.len() as u64;
        if packet.command != Command::Heartbeat.number() || packet.seq != expected {
            bail!("command {} with seq {} instead of heartbeat {expected}", packet.command, packet.seq);
        }
        self.due.pop_front().context("nothing was asked")
    }
}

impl Line {
    pub(super) fn new(sockets: Sockets, parameters: &Parameters) -> Self {
        let distance = match parameters.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX),
        };
        let conns = (0..parameters.connections).map(|_| Beats::default()).collect();
        let (window, latency) = (parameters.window, Latency::default());
        Self { sockets, conns, window, distance, next: 0, latency, answered: 0, live: None }
    }

    /// Heartbeats for `length`, and until all of them are answered; how many.
    pub(super) fn exchange(&mut self, length: Duration) -> Result<u64> {
        let start = clock::now();
        let end = start + length;
        let (mut now, mut due, mut open, mut answered) = (start, start, 0, 0);
        let mut last_answer = start;
        if self.distance.is_zero() {
            for index in 0..self.conns.len() * self.window {
                self.beat(index % self.conns.len(), start);
                open += 1;
            }
        }
        while open > 0 || (due < end && !self.distance.is_zero()) {
            if !self.distance.is_zero() {
                while due <= now && due < end {
                    self.beat(self.next, due);
                    self.next = (self.next + 1) % self.conns.len();
                    due += self.distance;
                    open += 1;
                }
            }
            let wait = if self.distance.is_zero() || due >= end { ANSWER_TIMEOUT } else { due - now };
            let got = self.take_answers(wait, now < end)?;
            now = clock::now();
            open -= got.closed;
            answered += got.answered;
            self.answered += got.answered;
            if let Some(live) = &self.live {
                Live::set(&live.acked, self.answered);
            }
            if got.answered > 0 {
                last_answer = now;
            }
            ensure!(open == 0 || now - last_answer < ANSWER_TIMEOUT, "{open} heartbeats are not answered");
        }
        Ok(answered)
    }

    fn beat(&mut self, index: usize, due: Instant) {
        let conn = &mut self.conns[index];
        self.sockets.write(index, |out| conn.beat(due, out));
    }

    /// Waits for answers; in a window each makes room for the next heartbeat as long as the round `goes_on`.
    fn take_answers(&mut self, wait: Duration, goes_on: bool) -> Result<Answers> {
        let goes_on = goes_on && self.distance.is_zero();
        let (conns, latency) = (&mut self.conns, &mut self.latency);
        let (mut got, mut fault) = (Answers::default(), None);
        // One reading of the clock for all answers of one wait would flatter those read late.
        self.sockets.poll(wait, &mut |index, event, out| match conns[index].answered(&event) {
            Ok(due) => {
                let now = clock::now();
                latency.record(nanos(now.saturating_duration_since(due)));
                got.answered += 1;
                match goes_on {
                    true => conns[index].beat(now, out),
                    false => got.closed += 1,
                }
            }
            Err(why) => fault = Some(anyhow!("connection {index}: {why}")),
        })?;
        fault.map_or(Ok(got), Err)
    }
}

/// What one wait brought.
#[derive(Default)]
struct Answers {
    answered: u64,
    /// Answers after which no new heartbeat was sent.
    closed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_out_of_order_or_to_nothing_is_a_fault() {
        let packet =
            |seq| Event::Frame(Packet { command: Command::Heartbeat.number(), seq, ..Packet::default() });
        let mut beats = Beats::default();
        assert!(beats.answered(&packet(1)).is_err());
        let (first, second) = (clock::now(), clock::now() + Duration::from_secs(1));
        beats.beat(first, &mut Vec::new());
        beats.beat(second, &mut Vec::new());
        assert!(beats.answered(&packet(2)).is_err());
        assert_eq!(beats.answered(&packet(1)).ok(), Some(first));
        assert_eq!(beats.answered(&packet(2)).ok(), Some(second));
        assert!(beats.answered(&Event::Closed("gone".into())).is_err());
    }
}
