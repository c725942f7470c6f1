//! Idle connections: memory of each, and what their keepalives cost.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use gimbal::{clock, load::stop, proc::raise_open_files};

use super::{Done, Machine, Meter, Parameters, read};
use crate::{
    conns::TURN,
    dialect::Event,
    server::{INTERRUPTED, Peer},
    side::Side,
};

/// Each connection pings so often.
const KEEPALIVE_S: f64 = 25.0;
/// Descriptors of this process beside its connections.
const FILES_SPARE: u64 = 64;

pub(super) fn run(machine: &Machine, parameters: &Parameters, peer: Peer) -> Result<Done> {
    let (low, high) = (parameters.idle_low, parameters.idle_high);
    ensure!(low < high, "the first reading has fewer connections than the second");
    let files = raise_open_files();
    ensure!(high as u64 + FILES_SPARE <= files, "only {files} open files are allowed here");
    let settle = Duration::from_secs_f64(parameters.settle_s);
    let mut side = Side::start(machine, peer, false, high)?;
    // Memory of the registrations that is free again would hide that of the connections.
    side.server.restart(machine)?;
    let pid = side.server.pid();
    side.open(low)?;
    rest(settle)?;
    let at_low = read(pid)?.rss_bytes as f64;
    side.open(high - low)?;
    rest(settle)?;
    let at_high = read(pid)?.rss_bytes as f64;
    let meter = Meter::start(pid)?;
    let pings = keep_alive(&mut side, Duration::from_secs_f64(parameters.keepalive_s))?;
    let spent = meter.stop()?;
    let mib = f64::from(1 << 20);
    let values = BTreeMap::from([
        ("rss_low_mib", at_low / mib),
        ("rss_high_mib", at_high / mib),
        ("rss_bytes", (at_high - at_low) / (high - low) as f64),
        ("idle_cpu_us", spent.server_us / high as f64 / spent.wall_s),
        ("ping_cpu_us", spent.server_us / pings.max(1) as f64),
        ("client_busy", spent.client_busy),
        ("others_busy", spent.others_busy),
    ]);
    Ok(vec![(format!("idle/{low}-{high}"), values)])
}

/// Nothing is done for `time`.
fn rest(time: Duration) -> Result<()> {
    let end = clock::now() + time;
    while clock::now() < end {
        ensure!(!stop::is_requested(), INTERRUPTED);
        thread::sleep(TURN.min(end.saturating_duration_since(clock::now())));
    }
    Ok(())
}

/// Pings from each connection in turn, evenly; returns how many, all of them answered.
fn keep_alive(side: &mut Side, time: Duration) -> Result<u64> {
    let (ping, count) = (side.ping(), side.conns.len());
    let (start, between_s) = (clock::now(), KEEPALIVE_S / count as f64);
    let (mut sent, mut pongs) = (0u64, 0u64);
    let due = |number: u64| -> Instant { start + Duration::from_secs_f64(number as f64 * between_s) };
    let mut now = start;
    while now - start < time {
        while due(sent) <= now {
            side.conns.write((sent % count as u64) as usize, |out| out.extend_from_slice(&ping));
            sent += 1;
        }
        let wait = due(sent).saturating_duration_since(now).min(TURN);
        side.conns.turn(wait, &mut |_, event, _| pongs += u64::from(event == Event::Pong))?;
        now = clock::now();
    }
    let deadline = now + Duration::from_secs(5);
    while pongs < sent && clock::now() < deadline {
        side.conns.turn(TURN, &mut |_, event, _| pongs += u64::from(event == Event::Pong))?;
    }
    ensure!(pongs == sent, "{pongs} of {sent} keepalives were answered");
    Ok(sent)
}
