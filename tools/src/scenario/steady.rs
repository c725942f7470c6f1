//! Steady one-to-one durable sends: an open loop at a given rate, or as fast as acknowledgements come.
//!
//! Connections come in pairs that write to each other. Latency counts from the moment a message should have been sent,
//! so a stalled server cannot hide behind a client that waits for it. The ledger decides whether the run is valid.

mod pair;
mod verify;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::{
    clock,
    grpc::Api,
    load::{Target, fleet, nanos, progress, sockets::Sockets},
    proc::ProcessFigures,
    report::{Latency, LatencyTable, RunFacts},
};
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
    /// Measured, seconds.
    pub duration_s: f64,
}

/// The outcome as one JSON object.
#[derive(Debug, Serialize)]
pub struct Report {
    scenario: &'static str,
    /// Nothing lost, doubled, reordered or missing, and nobody was closed.
    pub ok: bool,
    facts: RunFacts,
    parameters: Parameters,
    counts: Counts,
    /// Acknowledged per second of the measured time.
    acked_per_second: f64,
    /// Delivered live or by sync per second of the measured time.
    delivered_per_second: f64,
    ack_latency: LatencyTable,
    delivery_latency: LatencyTable,
    server: Option<ProcessFigures>,
    /// Server CPU per acknowledged message in the measured time, microseconds.
    server_cpu_us_per_message: Option<f64>,
    /// The first faults in words.
    faults: Vec<String>,
}

/// Everything counted, over the whole run unless it says otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Messages sent.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Acknowledged in the measured time.
    pub acked_measured: u64,
    /// Given to recipients in the measured time.
    pub delivered_measured: u64,
    /// Refused because the server is at a bound: shed, not lost.
    pub shed: u64,
    /// Refused for another reason.
    pub errors: u64,
    /// Never answered.
    pub open: u64,
    /// Given to recipients.
    pub delivered: u64,
    /// Found in the mailboxes at the end.
    pub stored: u64,
    /// Times a recipient was told that it is behind.
    pub behind: u64,
    /// Sync pages that followed.
    pub pages: u64,
    /// Connections that ended before the run did.
    pub closed: u64,
    /// Frames that no rule of the protocol explains.
    pub unexpected: u64,
    /// Faults the ledger found.
    pub faults: u64,
}

/// Latencies and counts while the run goes on.
#[derive(Default)]
struct Meters {
    acks: Latency,
    deliveries: Latency,
    counts: Counts,
    /// Messages intended at or after this, nanoseconds of the run, are measured.
    measure_from_ns: u64,
    /// And before this.
    measure_to_ns: u64,
    /// Now, nanoseconds of the run.
    now_ns: u64,
    faults: Vec<String>,
}

impl Meters {
    fn measures(&self) -> bool {
        (self.measure_from_ns..self.measure_to_ns).contains(&self.now_ns)
    }
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and is invalid has `ok == false`.
pub fn run(target: &Target, parameters: Parameters) -> Result<Report> {
    ensure!(
        parameters.connections >= 2 && parameters.connections.is_multiple_of(2),
        "connections come in pairs"
    );
    ensure!(parameters.rate > 0 || parameters.window > 0, "a closed loop needs a window of at least 1");
    ensure!(
        parameters.bytes <= gimbal_codec::limits::CONTENT_BYTES_MAX,
        "a message is too long for one frame"
    );
    let facts = RunFacts::collect(clock::unix());
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

    let run_id = nanos(clock::unix());
    let mut load = Load::new(run_id, sockets, &members, &parameters);
    let server = load.send_all(target.pid)?;
    load.drain()?;
    let Load { mut meters, fleet, .. } = load;
    let bar = progress(count as u64, "verify");
    let mailboxes = runtime.block_on(verify::read_mailboxes(&api, &members, &bar))?;
    bar.finish_and_clear();
    verify::verify(run_id, &fleet, &mailboxes, &mut meters);
    Ok(report(facts, parameters, meters, server))
}

fn report(facts: RunFacts, parameters: Parameters, meters: Meters, server: Option<ProcessFigures>) -> Report {
    let counts = meters.counts;
    let per_second = |count: u64| count as f64 / parameters.duration_s;
    let cpu_us =
        server.as_ref().map(|figures| figures.cpu_ns as f64 / 1_000.0 / counts.acked_measured.max(1) as f64);
    let clean = [counts.faults, counts.open, counts.errors, counts.closed, counts.unexpected];
    Report {
        scenario: "steady",
        ok: clean == [0; 5] && counts.acked > 0 && counts.delivered == counts.stored,
        facts,
        acked_per_second: per_second(counts.acked_measured),
        delivered_per_second: per_second(counts.delivered_measured),
        ack_latency: meters.acks.table(),
        delivery_latency: meters.deliveries.table(),
        server_cpu_us_per_message: cpu_us,
        server,
        parameters,
        counts,
        faults: meters.faults,
    }
}

/// The run while it goes on.
struct Load<'a> {
    parameters: &'a Parameters,
    sockets: Sockets,
    fleet: Fleet,
    meters: Meters,
    start: Instant,
    /// Messages of the open loop's schedule that were sent.
    scheduled: u64,
}

impl<'a> Load<'a> {
    fn new(run: u64, sockets: Sockets, members: &[fleet::Member], parameters: &'a Parameters) -> Self {
        let from = nanos(Duration::from_secs_f64(parameters.warm_up_s));
        let to = from + nanos(Duration::from_secs_f64(parameters.duration_s));
        let meters = Meters { measure_from_ns: from, measure_to_ns: to, ..Meters::default() };
        let peers = (0..members.len()).map(|index| Peer::new(members[index ^ 1].user, index)).collect();
        let fleet = Fleet { run, bytes: parameters.bytes, peers };
        Self { parameters, sockets, fleet, meters, start: clock::now(), scheduled: 0 }
    }

    /// Sends until the measured time is over; returns what the server spent in the measured time.
    fn send_all(&mut self, pid: Option<u32>) -> Result<Option<ProcessFigures>> {
        let read = |pid: u32| ProcessFigures::read(pid).context("cannot read the server's /proc");
        let bar = progress(self.meters.measure_to_ns / 1_000_000, "steady");
        let mut before = None;
        self.start = clock::now();
        loop {
            self.tick();
            if self.meters.now_ns >= self.meters.measure_to_ns {
                break;
            }
            if before.is_none() && self.meters.measures() {
                before = pid.map(read).transpose()?;
                self.tick();
            }
            let wait = self.send_due();
            self.turn(wait)?;
            show(&bar, &self.meters);
        }
        bar.finish_and_clear();
        let after = pid.map(read).transpose()?;
        Ok(after.zip(before).map(|(after, before)| after.since(&before)))
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

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "steady: {:.0} acked/s, {:.0} delivered/s",
                self.acked_per_second, self.delivered_per_second
            ),
            self.ack_latency.line("ack"),
            self.delivery_latency.line("delivery"),
            format!("{:?}", self.counts),
        ];
        if let (Some(cpu), Some(server)) = (self.server_cpu_us_per_message, &self.server) {
            let rss_mib = server.rss_bytes as f64 / f64::from(1 << 20);
            let cores = server.cpu_ns as f64 / 1e9 / self.parameters.duration_s;
            lines.push(format!(
                "server: {cpu:.2} us CPU per message, {cores:.2} cores busy, {rss_mib:.1} MiB resident"
            ));
        }
        lines.extend(self.faults.iter().map(|fault| format!("FAULT {fault}")));
        lines.push(if self.ok { "ledger: all agree".into() } else { "RUN INVALID".to_owned() });
        lines.join("\n")
    }
}
