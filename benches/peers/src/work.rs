//! The works: each is done by one fresh server and gives samples.

mod connect;
mod durable;
mod echo;
mod fanout;
mod idle;
mod pairs;

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use gimbal::{clock, proc::ProcessFigures, report::LatencyTable};
use serde::Serialize;

use crate::server::{Machine, Peer};

/// Bytes of every message.
pub(crate) const PAYLOAD_BYTES: usize = 100;
/// Most messages of one burst: the bare loop is asked with one byte.
pub(crate) const WINDOW_MAX: usize = 255;
/// USER_HZ: the unit of `/proc/stat`, the same on all that we run on.
const TICKS_PER_S: f64 = 100.0;

/// What is run, and how long.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Parameters {
    /// Interleaved rounds; each starts every server anew for every work.
    pub(crate) rounds: usize,
    /// Measured seconds of each closed loop; half as much before is not measured.
    pub(crate) seconds: f64,
    /// Members of the fan-outs.
    pub(crate) members: Vec<usize>,
    /// Messages under way at once in fan-outs and pairs.
    pub(crate) windows: Vec<usize>,
    /// Connections of the connect storm.
    pub(crate) connections: usize,
    /// Idle connections at the first and second reading of memory.
    pub(crate) idle_low: usize,
    pub(crate) idle_high: usize,
    /// Quiet seconds before each reading of memory.
    pub(crate) settle_s: f64,
    /// Seconds in which keepalives are measured.
    pub(crate) keepalive_s: f64,
}

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// One room, all get each message
    Fanout,
    /// One-to-one, not stored
    Pairs,
    /// Sends that are acknowledged when they are on disk
    Durable,
    /// A storm of connections
    Connect,
    /// Pings
    Echo,
    /// Idle connections: memory, keepalives
    Idle,
}

/// What one server gave in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// `fanout/1000/16`: the kind and what else names it.
    pub(crate) work: String,
    pub(crate) peer: Peer,
    pub(crate) round: usize,
    /// By metric.
    pub(crate) values: Values,
}

pub(crate) type Values = BTreeMap<&'static str, f64>;
/// Works done by one server, each with its values.
pub(crate) type Done = Vec<(String, Values)>;

impl Kind {
    /// Who can do it.
    pub(crate) fn peers(self) -> &'static [Peer] {
        match self {
            Self::Fanout | Self::Echo => Peer::ALL,
            Self::Pairs | Self::Connect | Self::Idle => Peer::SERVERS,
            Self::Durable => &[Peer::Bare, Peer::Gimbal, Peer::Nats],
        }
    }

    /// How often it is done in a round: once for each size.
    pub(crate) fn sizes(self, parameters: &Parameters) -> Vec<usize> {
        match self {
            Self::Fanout => parameters.members.clone(),
            _ => vec![0],
        }
    }

    /// Lets `peer` do it.
    ///
    /// # Errors
    /// When the server fails, or loses or doubles a message.
    pub(crate) fn run(
        self,
        machine: &Machine,
        parameters: &Parameters,
        peer: Peer,
        size: usize,
    ) -> Result<Done> {
        match self {
            Self::Fanout => fanout::run(machine, parameters, peer, size),
            Self::Pairs => pairs::run(machine, parameters, peer),
            Self::Durable => durable::run(machine, parameters, peer),
            Self::Connect => connect::run(machine, parameters, peer),
            Self::Echo => echo::run(machine, parameters, peer),
            Self::Idle => idle::run(machine, parameters, peer),
        }
    }
}

impl Parameters {
    /// Figures to rank by.
    pub(crate) fn full() -> Self {
        Self {
            rounds: 5,
            seconds: 2.0,
            members: vec![1_000, 10_000],
            windows: vec![1, 16],
            connections: 2_000,
            idle_low: 2_000,
            idle_high: 10_000,
            settle_s: 20.0,
            keepalive_s: 20.0,
        }
    }

    /// A short trial that all works.
    pub(crate) fn quick() -> Self {
        let (members, connections) = (vec![1_000], 1_000);
        let (idle_low, idle_high, settle_s, keepalive_s) = (500, 2_000, 1.0, 3.0);
        Self {
            rounds: 1,
            seconds: 0.5,
            members,
            connections,
            idle_low,
            idle_high,
            settle_s,
            keepalive_s,
            ..Self::full()
        }
    }

    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    pub(crate) fn warm_up(&self) -> Duration {
        self.measured() / 2
    }
}

/// CPU of server and client over a time.
struct Meter {
    pid: u32,
    server: ProcessFigures,
    client: ProcessFigures,
    /// Of the whole machine.
    busy_s: f64,
    start: std::time::Instant,
}

/// What was spent.
struct Spent {
    server_us: f64,
    /// Shares of one core.
    server_busy: f64,
    client_busy: f64,
    /// All that runs here beside the two, cores.
    others_busy: f64,
    wall_s: f64,
}

impl Meter {
    fn start(pid: u32) -> Result<Self> {
        let (server, client) = (read(pid)?, read(std::process::id())?);
        Ok(Self { pid, server, client, busy_s: machine_busy_s(), start: clock::now() })
    }

    fn stop(self) -> Result<Spent> {
        let wall_s = (clock::now() - self.start).as_secs_f64();
        let server_us = read(self.pid)?.since(&self.server).cpu_ns as f64 / 1_000.0;
        let client_us = read(std::process::id())?.since(&self.client).cpu_ns as f64 / 1_000.0;
        let all_busy = (machine_busy_s() - self.busy_s) / wall_s;
        let (server_busy, client_busy) = (server_us / 1e6 / wall_s, client_us / 1e6 / wall_s);
        let others_busy = (all_busy - server_busy - client_busy).max(0.0);
        Ok(Spent { server_us, server_busy, client_busy, others_busy, wall_s })
    }
}

impl Spent {
    /// Rate and cost of `count` things, and how busy both sides were.
    fn values(&self, count: u64) -> Values {
        BTreeMap::from([
            ("per_s", count as f64 / self.wall_s),
            ("cpu_us", self.server_us / count.max(1) as f64),
            ("server_busy", self.server_busy),
            ("client_busy", self.client_busy),
            ("others_busy", self.others_busy),
        ])
    }
}

/// CPU seconds of the whole machine since it started, in ticks of 10 ms: the first line of `/proc/stat` but idle, waiting
/// and what guests took twice. 0 where it cannot be read.
fn machine_busy_s() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(text.lines().next().unwrap_or_default()) as f64 / TICKS_PER_S
}

/// `cpu user nice system idle iowait irq softirq steal ..`.
fn busy_ticks(line: &str) -> u64 {
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    fields.iter().enumerate().filter(|(at, _)| matches!(at, 0..=2 | 5..=7)).map(|(_, ticks)| ticks).sum()
}

fn read(pid: u32) -> Result<ProcessFigures> {
    ProcessFigures::read(pid).context("cannot read the server's /proc")
}

/// Median and tail, milliseconds.
fn add_latency(values: &mut Values, table: &LatencyTable) {
    values.insert("p50_ms", table.p50_us / 1_000.0);
    values.insert("p99_ms", table.p99_us / 1_000.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_guest_time_is_not_busy() {
        assert_eq!(busy_ticks("cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9"), 87_600_321);
        assert_eq!(busy_ticks(""), 0);
    }
}
