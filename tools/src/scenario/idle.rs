//! Idle connections: what one more signed-in client costs the server and the kernel in memory, and in CPU to be kept.
//!
//! Tables that double make the slope between two counts lumpy: it is a mean over what happened to lie between them.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::disable_transparent_huge_pages;
use serde::Serialize;

use crate::{
    load::{
        Target,
        crowd::{Done, Order},
        stage::{Stage, unless_stopped},
        watch::read_server,
        worker::Crowds,
    },
    proc::{self, ProcessFigures},
    report::{Figure, Report},
};

/// Sign-ins under way at once: below any backlog.
const ARRIVING_MAX: usize = 128;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Connections at the first reading.
    pub low: usize,
    /// Connections at the second reading.
    pub high: usize,
    /// Quiet time before each reading, seconds.
    pub settle_s: f64,
    /// Time between two readings of CPU at the high count, seconds.
    pub hold_s: f64,
    /// From one heartbeat of a client to its next in that time, seconds, spread evenly; 0: none.
    pub heartbeat_s: f64,
}

/// Readings of the server on the way.
struct Readings {
    empty: ProcessFigures,
    at_low: ProcessFigures,
    signed_in: ProcessFigures,
    at_high: ProcessFigures,
    held: ProcessFigures,
    memory_low: Memory,
    memory_high: Memory,
}

/// What is held at one count of connections, bytes.
struct Memory {
    /// Anonymous memory of each of the server's processes; the gateway's first when it runs apart.
    processes: Vec<u64>,
    /// Buffers of all TCP sockets of the machine.
    tcp: u64,
    /// Kernel objects of the whole machine that cannot be given back on demand: sockets, files, requests in flight.
    slab: u64,
}

impl Memory {
    fn read(pids: &[u32]) -> Result<Self> {
        let of = |pid: &u32| Ok(read_server(std::slice::from_ref(pid))?.rss_anon_bytes);
        let processes = pids.iter().map(of).collect::<Result<_>>()?;
        Ok(Self {
            processes,
            tcp: proc::tcp_bytes().unwrap_or(0),
            slab: proc::slab_bytes().context("cannot read /proc/meminfo")?,
        })
    }
}

/// Keeps transparent huge pages from this process and the servers it starts from now on: memory that comes 2 MiB at a time
/// is 130 B a connection more or less between 2,000 and 18,000, by chance.
///
/// # Errors
/// When the kernel refuses it.
pub fn without_huge_pages() -> Result<()> {
    disable_transparent_huge_pages(true).context("cannot do without transparent huge pages")
}

/// Runs the scenario.
///
/// # Errors
/// When the server's memory cannot be read here, or a connection or sign-in is refused.
pub fn run(target: &Target, parameters: &Parameters) -> Result<Report> {
    ensure!(parameters.low < parameters.high, "--low must be below --high");
    let read = || read_server(&target.pids);
    read()?;
    let stage = Stage::open(target, parameters.high)?;
    let mut crowds = Crowds::start(&stage)?;
    let watch = stage.watch(&crowds.pids())?;
    let settle = || thread::sleep(Duration::from_secs_f64(parameters.settle_s));
    let memory = || Memory::read(&target.pids);
    settle();
    let empty = read()?;
    let low = arrive(&mut crowds, parameters.low)?;
    settle();
    let (at_low, memory_low) = (read()?, memory()?);
    let high = arrive(&mut crowds, parameters.high)?;
    let signed_in = read()?;
    settle();
    watch.begin_at_rest();
    let (at_high, memory_high) = (read()?, memory()?);
    let hold = Order::Hold { seconds: parameters.hold_s, heartbeat_s: parameters.heartbeat_s };
    let mut done = crowds.execute(&hold, || Ok(()))?;
    watch.end();
    let held = read()?;
    let readings = Readings { empty, at_low, signed_in, at_high, held, memory_low, memory_high };
    done.counts.add(&low.counts);
    done.counts.add(&high.counts);
    let mut watched = watch.finish();
    if let Some(server) = &mut watched.server {
        server.divide("connection", parameters.high as u64);
        if done.counts.heartbeats > 0 {
            server.divide("heartbeat", done.counts.heartbeats);
        }
    }
    let mut report = stage.report("idle", parameters, done.counts.clone(), watched);
    report.ok &= done.online == parameters.high;
    describe(&mut report, parameters, &readings, done);
    Ok(report)
}

fn describe(report: &mut Report, parameters: &Parameters, readings: &Readings, done: Done) {
    let Readings { empty, at_low, signed_in, at_high, held, memory_low, memory_high } = readings;
    let added = (parameters.high - parameters.low) as f64;
    let bytes = (at_high.rss_anon_bytes as f64 - at_low.rss_anon_bytes as f64) / added;
    let slope = |low: u64, high: u64| (high as f64 - low as f64) / added;
    let [tcp_bytes, slab_bytes] =
        [slope(memory_low.tcp, memory_high.tcp), slope(memory_low.slab, memory_high.slab)];
    let of_processes: Vec<f64> = memory_low
        .processes
        .iter()
        .zip(&memory_high.processes)
        .map(|(low, high)| slope(*low, *high))
        .collect();
    let sign_in_us = signed_in.since(at_low).cpu_ns as f64 / 1_000.0 / added;
    let idle_us =
        held.since(at_high).cpu_ns as f64 / 1_000.0 / parameters.high as f64 / done.seconds.max(0.001);
    report.headline = vec![
        Figure::new("anonymous memory of the server per connection", bytes, "B"),
        Figure::new("kernel slab per connection, both ends", slab_bytes, "B"),
        Figure::new("server CPU per connection and second", idle_us, "us"),
        Figure::new("server CPU per sign-in", sign_in_us, "us"),
    ];
    if let [gateway, control] = of_processes[..] {
        report
            .headline
            .insert(0, Figure::new("anonymous memory of the gateway per connection", gateway, "B"));
        report.headline.insert(1, Figure::new("anonymous memory of control per connection", control, "B"));
    }
    if done.counts.heartbeats > 0 {
        let table = done.latency.table();
        report.headline.push(Figure::new("p99 heartbeat", table.p99_us, "us"));
        report.latency = [("heartbeat".to_owned(), table)].into();
    }
    report.detail("bytes_per_connection", bytes);
    report.detail("tcp_bytes_per_connection_both_ends", tcp_bytes);
    report.detail("slab_bytes_per_connection_both_ends", slab_bytes);
    report.detail("bytes_per_connection_of_processes", of_processes);
    report.detail("sign_in_cpu_us", sign_in_us);
    report.detail("idle_cpu_us", idle_us);
    report.detail("empty", empty);
    report.detail("at_low", at_low);
    report.detail("at_high", at_high);
    report.faults = done.faults;
}

fn arrive(crowds: &mut Crowds, total: usize) -> Result<Done> {
    let done = crowds.execute(&Order::Arrive { total, rate: 0.0, open: ARRIVING_MAX }, || Ok(()))?;
    unless_stopped("sign-in")?;
    let why = done.faults.first().map_or("", String::as_str);
    ensure!(done.online == total, "only {} of {total} clients are online: {why}", done.online);
    Ok(done)
}
