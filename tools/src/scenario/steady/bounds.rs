//! What no acknowledgement of a durable send can be faster than on this machine: a bare echo at the same rate, and a sync of
//! the disk that the server writes to. Beside them, the least that any log can do: a bare group commit at that rate, whose
//! latency counts from when each message is due. A sync that takes 10 ms is one of thousands among syncs, but hundreds of
//! messages wait for it.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::Parameters;
use crate::{
    clock,
    load::{Target, nanos},
    report::{Figure, Latency, LatencyTable, Report, median},
    scenario::echo::{self, Line, bare::Bare},
};

/// Bytes of one append: about what a commit of some twenty small messages writes.
const APPEND_BYTES: usize = 4096;
/// Bytes of one message in a group commit: what the server's log takes for a short one.
const MESSAGE_BYTES: usize = 450;
/// Most bytes of one group commit.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Between two looks for messages that are due, when there is none.
const LOOK: Duration = Duration::from_micros(50);
/// Length of one round of each bound; some thousands of syncs and tens of thousands of echoes.
const LENGTH: Duration = Duration::from_secs(2);
/// An acknowledgement may take this many syncs at its p99: the one under way when it arrives, its own, and one that is late.
const SYNCS: f64 = 3.0;

/// The bounds under measurement.
pub(super) struct Bounds {
    line: Line,
    file: File,
    path: PathBuf,
    /// Messages per second.
    rate: u64,
    /// Behind the line, so that it ends after its connections.
    _echo: Bare,
}

/// The bounds in one round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bound {
    echo_p99_us: f64,
    sync_p50_us: f64,
    sync_p99_us: f64,
    group_p50_us: f64,
    group_p99_us: f64,
    /// p99 of the echo and [`SYNCS`] p99 of a sync.
    p99_us: f64,
}

/// One round of sends, after one of the bounds where they are measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Round {
    ack_p50_us: f64,
    ack_p99_us: f64,
    ack_max_us: f64,
    bound: Option<Bound>,
}

impl Bounds {
    /// Starts a bare echo with as many connections, on `cores`, and a file beside the data of the server of this run.
    ///
    /// # Errors
    /// When the target is not a server of this run, there is no rate, or one of them cannot be had.
    pub(super) fn start(target: &Target, parameters: &Parameters, cores: Option<&str>) -> Result<Self> {
        ensure!(parameters.rate > 0, "the bounds are of a rate: give --rate above 0");
        let server = target
            .server
            .as_ref()
            .context("the bounds need the disk of a server of this run: give --start")?;
        let path = server.folder().join("sync.bound");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let echo = Bare::start(cores)?;
        let beats = echo::Parameters {
            connections: parameters.connections,
            window: 1,
            rate: parameters.rate,
            round_s: LENGTH.as_secs_f64(),
            rounds: parameters.rounds,
            bare: true,
        };
        let line = Line::new(echo.connect(parameters.connections)?, &beats);
        Ok(Self { line, file, path, rate: parameters.rate, _echo: echo })
    }

    /// One round of each.
    ///
    /// # Errors
    /// When the echo does not answer or the disk takes no more.
    pub(super) fn measure(&mut self) -> Result<Bound> {
        self.line.exchange(LENGTH)?;
        let echo = std::mem::take(&mut self.line.latency).table();
        let no_disk = |path: &PathBuf| format!("cannot write {}", path.display());
        let sync = self.sync().with_context(|| no_disk(&self.path))?.table();
        let group = self.group_commit().with_context(|| no_disk(&self.path))?.table();
        Ok(Bound {
            echo_p99_us: echo.p99_us,
            sync_p50_us: sync.p50_us,
            sync_p99_us: sync.p99_us,
            group_p50_us: group.p50_us,
            group_p99_us: group.p99_us,
            p99_us: echo.p99_us + SYNCS * sync.p99_us,
        })
    }

    /// Appends what is due and syncs it, again and again; the latency of each message, from when it was due.
    fn group_commit(&mut self) -> std::io::Result<Latency> {
        let (mut latency, start, mut done) = (Latency::default(), clock::now(), 0);
        let total = self.rate * LENGTH.as_secs();
        let due_ns = |message: u64| (u128::from(message) * 1_000_000_000 / u128::from(self.rate)) as u64;
        let bytes = vec![7; GROUP_BYTES_MAX];
        self.file.set_len(0)?;
        self.file.rewind()?;
        while done < total {
            let now_ns = nanos(clock::now() - start);
            let most = (done + (GROUP_BYTES_MAX / MESSAGE_BYTES) as u64).min(total);
            let next = (done..most).find(|&message| due_ns(message) > now_ns).unwrap_or(most);
            if next == done {
                thread::sleep(LOOK);
                continue;
            }
            self.file.write_all(&bytes[..(next - done) as usize * MESSAGE_BYTES])?;
            self.file.sync_data()?;
            let synced_ns = nanos(clock::now() - start);
            (done..next).for_each(|message| latency.record(synced_ns.saturating_sub(due_ns(message))));
            done = next;
        }
        Ok(latency)
    }

    /// Appends and syncs, one after another.
    fn sync(&mut self) -> std::io::Result<Latency> {
        let (mut latency, end) = (Latency::default(), clock::now() + LENGTH);
        self.file.set_len(0)?;
        self.file.rewind()?;
        loop {
            self.file.write_all(&[7; APPEND_BYTES])?;
            let start = clock::now();
            self.file.sync_data()?;
            let now = clock::now();
            latency.record(nanos(now - start));
            if now >= end {
                return Ok(latency);
            }
        }
    }
}

impl Round {
    pub(super) fn new(acks: &LatencyTable, bound: Option<Bound>) -> Self {
        let LatencyTable { p50_us, p99_us, max_us, .. } = *acks;
        Self { ack_p50_us: p50_us, ack_p99_us: p99_us, ack_max_us: max_us, bound }
    }
}

/// Adds the rounds and, where they were measured, the bounds' medians.
pub(super) fn describe(report: &mut Report, rounds: &[Round]) {
    let of = |get: fn(&Bound) -> f64| {
        median(&rounds.iter().filter_map(|round| round.bound.as_ref()).map(get).collect::<Vec<_>>())
    };
    report.detail("rounds", rounds);
    if rounds.iter().any(|round| round.bound.is_some()) {
        let ack = median(&rounds.iter().map(|round| round.ack_p99_us).collect::<Vec<_>>());
        let (echo, sync, bound) = (of(|b| b.echo_p99_us), of(|b| b.sync_p99_us), of(|b| b.p99_us));
        let group = of(|b| b.group_p99_us);
        report.headline.extend([
            Figure::new("p99 ack, median of the rounds", ack, "us"),
            Figure::new("p99 of a bare echo at that rate", echo, "us"),
            Figure::new("p99 of a sync of the disk", sync, "us"),
            Figure::new("p99 of a bare group commit at that rate", group, "us"),
            Figure::new("p99 ack to an echo and three syncs", ack / bound.max(1e-9), "x"),
            Figure::new("p99 ack to a bare group commit", ack / group.max(1e-9), "x"),
        ]);
        report.detail("bound_p99_us", bound);
        report.detail("group_p99_us", group);
        report.detail("ratio", ack / bound.max(1e-9));
    }
}
