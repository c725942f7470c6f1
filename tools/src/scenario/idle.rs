//! Idle connections: what one more signed-in client costs the server in memory.

use std::{thread, time::Duration};

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
    /// The server before any connection, with all devices registered.
    empty: ProcessFigures,
    at_low: ProcessFigures,
    at_high: ProcessFigures,
    /// Anonymous memory of the whole server process per connection between both counts, bytes.
    bytes_per_connection: f64,
    /// Server CPU for connecting and signing in, per connection between both counts, microseconds.
    sign_in_cpu_us: f64,
    /// Server CPU while idle at the high count, microseconds per connection and second.
    idle_cpu_us: f64,
    /// Connections that ended before the run did.
    closed: usize,
}

/// Runs the scenario.
///
/// # Errors
/// When the server's memory cannot be read here, or a connection or sign-in is refused.
pub fn run(target: &Target, parameters: Parameters) -> Result<Report> {
    let pid = target
        .pid
        .context("memory can only be read of a server on this machine: give --server-pid or --start")?;
    ensure!(parameters.low < parameters.high, "--low must be below --high");
    let files = raise_open_files();
    ensure!(parameters.high as u64 + FILES_SPARE <= files, "only {files} open files are allowed here");
    let read = || ProcessFigures::read(pid).context("cannot read the server's /proc");
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
    let bytes = at_high.rss_anon_bytes as f64 - at_low.rss_anon_bytes as f64;
    let idle_ns = held.since(&at_high).cpu_ns as f64;
    Ok(Report {
        scenario: "idle",
        ok: closed == 0,
        facts,
        bytes_per_connection: bytes / added,
        sign_in_cpu_us: signed_in.since(&at_low).cpu_ns as f64 / 1_000.0 / added,
        idle_cpu_us: idle_ns / 1_000.0 / parameters.high as f64 / parameters.hold_s.max(0.001),
        parameters,
        empty,
        at_low,
        at_high,
        closed,
    })
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
        let mib = |figures: &ProcessFigures| figures.rss_anon_bytes as f64 / f64::from(1 << 20);
        let Parameters { low, high, .. } = self.parameters;
        format!(
            "idle: {:.0} B of the server's anonymous memory per connection ({low} to {high})\n\
             {:.1} MiB empty, {:.1} MiB at {low}, {:.1} MiB at {high}\n\
             {:.1} us server CPU per sign-in, {:.3} us per idle connection and second\n\
             {} connections were lost",
            self.bytes_per_connection,
            mib(&self.empty),
            mib(&self.at_low),
            mib(&self.at_high),
            self.sign_in_cpu_us,
            self.idle_cpu_us,
            self.closed,
        )
    }
}
