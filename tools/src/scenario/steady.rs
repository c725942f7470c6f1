//! Steady one-to-one durable sends: an open loop at a given rate, or as fast as acknowledgements come.
//!
//! Connections come in pairs that write to each other. Latency counts from the moment a message should have been sent,
//! so a stalled server cannot hide behind a client that waits for it. The ledger decides whether the run is valid.
//!
//! With bounds, rounds of the run alternate with rounds of what it cannot be faster than on this machine: a bare echo at the
//! same rate, and syncs of the same disk. The medians of their p99 are compared.

mod bounds;
pub(super) mod pair;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    clock,
    ledger::verify,
    load::{
        Target, limits,
        mailboxes::{Mailbox, read_mailboxes},
        nanos, progress,
        sockets::Sockets,
        stage::Stage,
        stop,
        watch::{Live, Watch, Watched},
    },
    report::{Counts, Figure, Latency, LatencyTable, Report},
};
use bounds::{Bounds, Round};
use pair::{Fleet, Peer};

/// Longest wait in one turn, so that the end is noticed.
const TURN_MAX: Duration = Duration::from_millis(50);
/// Messages sent in one turn before arrivals are looked at again.
const SENDS_PER_TURN_MAX: usize = 256;
/// How long answers and deliveries may take after the last send.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Most open messages of one connection in an open loop; beyond it sends are late, and their latency says so.
const OPEN_MAX: usize = 4_096;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Connections; even.
    pub connections: usize,
    /// Messages per second over all connections; 0: closed loop.
    pub rate: u64,
    /// Open messages of each connection in a closed loop.
    pub window: usize,
    /// Bytes of each message's content, at least the mark's 24.
    pub bytes: usize,
    /// Sent and verified, but not measured, seconds.
    pub warm_up_s: f64,
    /// Measured in each round, seconds.
    pub duration_s: f64,
    /// Rounds.
    pub rounds: usize,
    /// Measure a bare echo and syncs of the disk before each round.
    pub bare: bool,
}

/// Latencies and counts while the run goes on.
#[derive(Default)]
pub(super) struct Meters {
    /// Of this round.
    pub(super) round_acks: Latency,
    /// Of the rounds that have ended.
    pub(super) acks: Latency,
    pub(super) deliveries: Latency,
    pub(super) counts: Counts,
    /// Acknowledged in the measured time.
    pub(super) acked_measured: u64,
    /// Given to recipients in the measured time.
    pub(super) delivered_measured: u64,
    /// Found in the mailboxes at the end.
    pub(super) stored: u64,
    /// Messages intended at or after this, nanoseconds of the round, are measured.
    pub(super) measure_from_ns: u64,
    /// And before this.
    pub(super) measure_to_ns: u64,
    /// Now, nanoseconds of the round.
    pub(super) now_ns: u64,
    /// Measured in the rounds before this one, nanoseconds.
    pub(super) measured_before_ns: u64,
    pub(super) faults: Vec<String>,
}

impl Meters {
    /// Whether a message counts that was intended at `at_ns`, however late its answer comes.
    pub(super) fn measures(&self, at_ns: u64) -> bool {
        (self.measure_from_ns..self.measure_to_ns).contains(&at_ns)
    }

    /// Length of the measured time of this round, also when it ended early, nanoseconds.
    fn measured_ns(&self) -> u64 {
        self.measure_to_ns.saturating_sub(self.measure_from_ns)
    }
}

/// Runs the scenario; the bare echo runs on `bare_cores`.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and is invalid has `ok == false`.
pub fn run(target: &Target, parameters: Parameters, bare_cores: Option<&str>) -> Result<Report> {
    ensure!(
        parameters.connections >= 2 && parameters.connections.is_multiple_of(2),
        "connections come in pairs"
    );
    ensure!(parameters.rate > 0 || parameters.window > 0, "a closed loop needs a window of at least 1");
    ensure!(
        parameters.bytes <= gimbal_codec::limits::CONTENT_BYTES_MAX,
        "a message is too long for one frame"
    );
    ensure!(parameters.rounds > 0, "at least one round");
    limits::check(target, parameters.connections * (1 + usize::from(parameters.bare)))?;
    let stage = Stage::open(target, parameters.connections)?;
    let sockets = stage.sign_in()?;
    let mut bounds = match parameters.bare {
        true => Some(Bounds::start(target, &parameters, bare_cores)?),
        false => None,
    };
    let watch = stage.watch(&[])?;
    let run_id = nanos(clock::unix());
    let mut load = Load::new(run_id, sockets, &stage, &parameters);
    let mut rounds = Vec::new();
    while rounds.len() < parameters.rounds && !stop::is_requested() && load.sockets.open() > 0 {
        let bounds = bounds.as_mut().map(Bounds::measure).transpose()?;
        load.send_all(&watch)?;
        load.drain()?;
        rounds.push(Round::new(&load.next_round(), bounds));
    }
    let Load { mut meters, fleet, .. } = load;
    let bar = progress(parameters.connections as u64, "verify");
    let mailboxes = stage.runtime.block_on(read_mailboxes(&stage.api, &stage.members, &bar));
    bar.finish_and_clear();
    let verified = mailboxes.map(|mailboxes| judge(run_id, &fleet, &mailboxes, &mut meters));
    if let Err(error) = &verified {
        meters.fault(format!("the mailboxes cannot be read: {error:#}"));
    }
    let mut report = report(stage, &parameters, meters, watch.finish(), verified.is_ok());
    bounds::describe(&mut report, &rounds);
    Ok(report)
}

/// Enters the ledger's judgement of every mailbox.
pub(super) fn judge(run: u64, fleet: &Fleet, mailboxes: &[Mailbox], meters: &mut Meters) {
    for (index, mailbox) in mailboxes.iter().enumerate() {
        let sender = &fleet.peers[index ^ 1];
        meters.stored += mailbox.len() as u64;
        meters.counts.unanswered += sender.sent.open() as u64;
        for fault in verify(run, sender.index as u32, &sender.sent, &fleet.peers[index].received, mailbox) {
            meters.counts.enter(&fault);
            meters.fault(format!("mailbox {index}: {fault}"));
        }
    }
}

fn report(
    stage: Stage<'_>,
    parameters: &Parameters,
    meters: Meters,
    mut watched: Watched,
    is_verified: bool,
) -> Report {
    if let Some(server) = &mut watched.server {
        server.divide("message", meters.acked_measured);
        server.divide("connection", parameters.connections as u64);
    }
    let mut report = stage.report("steady", parameters, meters.counts.clone(), watched);
    report.complete &= is_verified;
    report.ok &= is_verified && report.counts.acked > 0 && report.counts.delivered == meters.stored;
    let seconds = meters.measured_before_ns as f64 / 1e9;
    let per_second = |count: u64| count as f64 / seconds.max(1e-9);
    let acks = meters.acks.table();
    report.headline = vec![
        Figure::new("acknowledged", per_second(meters.acked_measured), "/s"),
        Figure::new("delivered", per_second(meters.delivered_measured), "/s"),
        Figure::new("p99 ack", acks.p99_us, "us"),
    ];
    let cpu_us = report.server.as_ref().map(|server| server.per[0].cpu_us);
    report.headline.extend(cpu_us.map(|us| Figure::new("server CPU per message", us, "us")));
    report.detail("acked_per_second", per_second(meters.acked_measured));
    report.detail("delivered_per_second", per_second(meters.delivered_measured));
    report.detail("server_cpu_us_per_message", cpu_us);
    report.detail("stored", meters.stored);
    report.latency = [("ack".to_owned(), acks), ("delivery".to_owned(), meters.deliveries.table())].into();
    report.faults = meters.faults;
    report
}

/// The run while it goes on.
struct Load<'a> {
    parameters: &'a Parameters,
    sockets: Sockets,
    fleet: Fleet,
    meters: Meters,
    start: Instant,
    live: Arc<Live>,
    /// Messages of the round's schedule that were sent.
    scheduled: u64,
    /// The watch knows that the measured time has begun.
    is_begun: bool,
}

impl<'a> Load<'a> {
    fn new(run: u64, sockets: Sockets, stage: &Stage<'_>, parameters: &'a Parameters) -> Self {
        let members = &stage.members;
        let from = nanos(Duration::from_secs_f64(parameters.warm_up_s));
        let to = from + nanos(Duration::from_secs_f64(parameters.duration_s));
        let meters = Meters { measure_from_ns: from, measure_to_ns: to, ..Meters::default() };
        let peers = (0..members.len()).map(|index| Peer::new(members[index ^ 1].user, index)).collect();
        let fleet = Fleet { run, bytes: parameters.bytes, peers };
        let live = Arc::clone(&stage.live);
        Self { parameters, sockets, fleet, meters, start: clock::now(), live, scheduled: 0, is_begun: false }
    }

    /// Ends a round: returns its latencies, which count in the whole run's too.
    fn next_round(&mut self) -> LatencyTable {
        let meters = &mut self.meters;
        let acks = std::mem::take(&mut meters.round_acks);
        meters.acks.merge(&acks);
        meters.measured_before_ns += meters.measured_ns();
        // Only a server that has just started has to warm up.
        (meters.measure_from_ns, self.scheduled) = (0, 0);
        meters.measure_to_ns = nanos(Duration::from_secs_f64(self.parameters.duration_s));
        acks.table()
    }

    /// Sends until the measured time of a round is over, the run is interrupted, or nobody is left.
    fn send_all(&mut self, watch: &Watch) -> Result<()> {
        let bar = progress(self.meters.measure_to_ns / 1_000_000, "steady");
        self.start = clock::now();
        loop {
            self.tick();
            if self.meters.now_ns >= self.meters.measure_to_ns {
                break;
            }
            if stop::is_requested() || self.sockets.open() == 0 {
                self.meters.measure_to_ns = self.meters.now_ns;
                break;
            }
            if !self.is_begun && self.meters.now_ns >= self.meters.measure_from_ns {
                self.is_begun = true;
                watch.begin();
            }
            let wait = self.send_due();
            self.turn(wait)?;
            show(&bar, &self.meters);
        }
        watch.end();
        bar.finish_and_clear();
        Ok(())
    }

    fn tick(&mut self) {
        self.meters.now_ns = nanos(clock::now() - self.start);
    }

    /// Sends what is due and returns how long nothing more will be.
    fn send_due(&mut self) -> Duration {
        if self.parameters.rate == 0 {
            for index in 0..self.fleet.peers.len() {
                while self.fleet.peers[index].sent.open() < self.parameters.window && self.is_open(index) {
                    self.send(index, self.meters.now_ns);
                }
            }
            return TURN_MAX;
        }
        for _ in 0..SENDS_PER_TURN_MAX {
            let due_ns =
                (u128::from(self.scheduled) * 1_000_000_000 / u128::from(self.parameters.rate)) as u64;
            let index = (self.scheduled % self.fleet.peers.len() as u64) as usize;
            if due_ns > self.meters.now_ns {
                return Duration::from_nanos(due_ns - self.meters.now_ns).min(TURN_MAX);
            }
            if self.is_open(index) {
                if self.fleet.peers[index].sent.open() >= OPEN_MAX {
                    return Duration::from_millis(1);
                }
                self.send(index, due_ns);
            }
            self.scheduled += 1;
        }
        Duration::ZERO
    }

    fn is_open(&self, index: usize) -> bool {
        !self.fleet.peers[index].closed
    }

    fn send(&mut self, index: usize, intended_ns: u64) {
        let fleet = &mut self.fleet;
        self.sockets.write(index, |out| fleet.send(index, intended_ns, out));
        self.meters.counts.sent += 1;
    }

    /// One turn of the sockets.
    fn turn(&mut self, wait: Duration) -> Result<()> {
        let (fleet, meters, start) = (&mut self.fleet, &mut self.meters, self.start);
        let window = if self.parameters.rate == 0 { self.parameters.window } else { 0 };
        self.sockets.poll(wait, &mut |index, event, out| {
            meters.now_ns = nanos(clock::now() - start);
            fleet.handle(index, event, out, meters);
            let peer = &fleet.peers[index];
            if peer.sent.open() < window
                && meters.now_ns < meters.measure_to_ns
                && !peer.closed
                && peer.was_answered
            {
                fleet.send(index, meters.now_ns, out);
                meters.counts.sent += 1;
            }
        })?;
        let counts = &self.meters.counts;
        Live::set(&self.live.sent, counts.sent);
        Live::set(&self.live.acked, counts.acked);
        Live::set(&self.live.delivered, counts.delivered);
        Live::set(&self.live.online, self.sockets.open() as u64);
        Ok(())
    }

    /// Waits for open answers and deliveries.
    fn drain(&mut self) -> Result<()> {
        let deadline = clock::now() + DRAIN_TIMEOUT;
        while !self.fleet.is_complete() && clock::now() < deadline && self.sockets.open() > 0 {
            self.turn(TURN_MAX)?;
        }
        Ok(())
    }
}

fn show(bar: &ProgressBar, meters: &Meters) {
    let position = meters.now_ns / 1_000_000;
    if position >= bar.position() + 200 {
        bar.set_position(position);
        let counts = &meters.counts;
        bar.set_message(format!(
            "sent {} acked {} shed {} behind {}",
            counts.sent, counts.acked, counts.shed, counts.behind
        ));
    }
}
