//! Idle connections: what one more signed-in client costs the server in memory, and the kernel.
//!
//! Tables that double make the slope between two counts lumpy: it is a mean over what happened to lie between them.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::{
    clock,
    grpc::Api,
    load::{
        Target, fleet, progress,
        sockets::{Event, Sockets},
    },
    proc::{ProcessFigures, raise_open_files},
    report::RunFacts,
};

/// Descriptors of this process beside its connections.
const FILES_SPARE: u64 = 64;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Connections at the first reading.
    pub low: usize,
    /// Connections at the second reading.
    pub high: usize,
    /// Quiet time before each reading, seconds.
    pub settle_s: f64,
    /// Quiet time between two readings of CPU at the high count, seconds.
    pub hold_s: f64,
}

/// The outcome as one JSON object.
#[derive(Debug, Serialize)]
pub struct Report {
    scenario: &'static str,
    /// Every connection was there to the end.
    pub ok: bool,
    facts: RunFacts,
    parameters: Parameters,
    /// The server; with control apart, the gateway.
    server: Memory,
    /// Control, when it runs apart.
    control: Option<Memory>,
    /// Kernel slab per connection between both counts, bytes: of the whole machine, and with both ends of each connection.
    kernel_slab_bytes_per_connection: f64,
    /// Server CPU for connecting and signing in, per connection between both counts, microseconds.
    sign_in_cpu_us: f64,
    /// Server CPU while idle at the high count, microseconds per connection and second.
    idle_cpu_us: f64,
    /// Connections that ended before the run did.
    closed: usize,
}

/// Memory of one process.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// Before any connection, with all devices registered.
    empty: ProcessFigures,
    at_low: ProcessFigures,
    at_high: ProcessFigures,
    /// Anonymous memory per connection between both counts, bytes.
    bytes_per_connection: f64,
}

/// What is read at one count of connections.
struct Reading {
    server: ProcessFigures,
    control: Option<ProcessFigures>,
    slab_bytes: u64,
}

/// Runs the scenario; `control` is its process id when it is not the target's.
///
/// # Errors
/// When the server's memory cannot be read here, or a connection or sign-in is refused.
pub fn run(target: &Target, control: Option<u32>, parameters: Parameters) -> Result<Report> {
    let pid = target
        .pid
        .context("memory can only be read of a server on this machine: give --server-pid or --start")?;
    ensure!(parameters.low < parameters.high, "--low must be below --high");
    let files = raise_open_files();
    ensure!(parameters.high as u64 + FILES_SPARE <= files, "only {files} open files are allowed here");
    let read = || Reading::take(pid, control);
    let facts = RunFacts::collect(clock::unix());
    let runtime = fleet::runtime()?;
    let api = runtime.block_on(Api::connect(&target.grpc))?;
    let bar = progress(parameters.high as u64, "register");
    let members = runtime.block_on(fleet::register(&api, &target.key, parameters.high, &bar))?;
    bar.finish_and_clear();

    let settle = Duration::from_secs_f64(parameters.settle_s);
    let mut sockets = Sockets::new().context("no epoll")?;
    thread::sleep(settle);
    let empty = read()?;
    let bar = progress(parameters.high as u64, "sign in");
    fleet::sign_in(&mut sockets, target.address, &members[..parameters.low], &bar)?;
    thread::sleep(settle);
    let at_low = read()?;
    fleet::sign_in(&mut sockets, target.address, &members[parameters.low..], &bar)?;
    bar.finish_and_clear();
    let signed_in = read()?;
    thread::sleep(settle);
    let at_high = read()?;
    thread::sleep(Duration::from_secs_f64(parameters.hold_s));
    let held = read()?;
    let closed = count_closed(&mut sockets)?;

    let added = (parameters.high - parameters.low) as f64;
    let cpu_ns = |from: &Reading, to: &Reading| {
        let controls = from.control.as_ref().zip(to.control.as_ref());
        (to.server.since(&from.server).cpu_ns + controls.map_or(0, |(from, to)| to.since(from).cpu_ns)) as f64
    };
    Ok(Report {
        scenario: "idle",
        ok: closed == 0,
        facts,
        sign_in_cpu_us: cpu_ns(&at_low, &signed_in) / 1_000.0 / added,
        idle_cpu_us: cpu_ns(&at_high, &held)
            / 1_000.0
            / parameters.high as f64
            / parameters.hold_s.max(0.001),
        kernel_slab_bytes_per_connection: (at_high.slab_bytes as f64 - at_low.slab_bytes as f64) / added,
        control: Memory::of([empty.control, at_low.control, at_high.control], added),
        server: Memory::of([empty.server, at_low.server, at_high.server].map(Some), added)
            .context("the server was read")?,
        parameters,
        closed,
    })
}

impl Reading {
    fn take(server: u32, control: Option<u32>) -> Result<Self> {
        let read = |pid| ProcessFigures::read(pid).context("cannot read the server's /proc");
        Ok(Self {
            server: read(server)?,
            control: control.map(read).transpose()?,
            slab_bytes: slab_bytes().context("cannot read /proc/meminfo")?,
        })
    }
}

impl Memory {
    /// `None` unless all three readings are there; `added` connections lie between the last two.
    fn of(readings: [Option<ProcessFigures>; 3], added: f64) -> Option<Self> {
        let [Some(empty), Some(at_low), Some(at_high)] = readings else { return None };
        let bytes = at_high.rss_anon_bytes as f64 - at_low.rss_anon_bytes as f64;
        Some(Self { empty, at_low, at_high, bytes_per_connection: bytes / added })
    }

    fn line(&self, name: &str, Parameters { low, high, .. }: &Parameters) -> String {
        let mib = |figures: &ProcessFigures| figures.rss_anon_bytes as f64 / f64::from(1 << 20);
        format!(
            "{name}: {:.0} B of anonymous memory per connection ({low} to {high}): {:.1} MiB empty, {:.1} MiB at {low}, \
             {:.1} MiB at {high}",
            self.bytes_per_connection,
            mib(&self.empty),
            mib(&self.at_low),
            mib(&self.at_high),
        )
    }
}

/// Kernel objects of the whole machine that cannot be given back on demand: sockets, files, requests in flight.
fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn count_closed(sockets: &mut Sockets) -> Result<usize> {
    let (mut closed, mut frames) = (0, 0);
    loop {
        let before = (closed, frames);
        sockets.poll(Duration::ZERO, &mut |_, event, _| match event {
            Event::Closed(_) => closed += 1,
            Event::Frame(_) => frames += 1,
        })?;
        if (closed, frames) == before {
            break;
        }
    }
    if frames > closed {
        bail!("idle connections were sent {frames} frames");
    }
    Ok(closed)
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let name = if self.control.is_some() { "gateway" } else { "server" };
        let mut lines = vec![self.server.line(name, &self.parameters)];
        lines.extend(self.control.as_ref().map(|control| control.line("control", &self.parameters)));
        lines.push(format!(
            "kernel: {:.0} B of slab per connection, both ends, whole machine",
            self.kernel_slab_bytes_per_connection
        ));
        lines.push(format!(
            "{:.1} us server CPU per sign-in, {:.3} us per idle connection and second",
            self.sign_in_cpu_us, self.idle_cpu_us
        ));
        lines.push(format!("{} connections were lost", self.closed));
        lines.join("\n")
    }
}
