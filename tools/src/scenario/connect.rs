//! A storm of connections and sign-ins: at a rate, as fast as they are answered, or all at once.

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{
    load::{Target, crowd::Order, stage::Stage, worker::Crowds},
    report::{Figure, Report},
};

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Connections.
    pub connections: usize,
    /// Connections begun per second, open loop; 0: as `open` allows.
    pub rate: f64,
    /// Sign-ins under way at once when there is no rate; 0: all at once.
    pub open: usize,
    /// Time online at the end, seconds: a server that cannot keep them shows it.
    pub hold_s: f64,
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made at all; refused and broken connections are counted.
pub fn run(target: &Target, parameters: &Parameters) -> Result<Report> {
    ensure!(parameters.connections > 0, "at least one connection");
    let stage = Stage::open(target, parameters.connections)?;
    let mut crowds = Crowds::start(&stage)?;
    let watch = stage.watch(&crowds.pids())?;
    let (total, rate) = (parameters.connections, parameters.rate);
    let open = if rate > 0.0 { 0 } else { parameters.open };
    watch.begin_at_rest();
    let mut arrived = crowds.execute(&Order::Arrive { total, rate, open }, || Ok(()))?;
    watch.end();
    let held = crowds.execute(&Order::Hold { seconds: parameters.hold_s, heartbeat_s: 0.0 }, || Ok(()))?;
    arrived.counts.add(&held.counts);
    arrived.faults.extend(held.faults);
    let mut watched = watch.finish();
    if let Some(server) = &mut watched.server {
        server.divide("connection", arrived.counts.signed_in);
    }
    let per_second = arrived.counts.signed_in as f64 / arrived.seconds.max(1e-9);
    let sign_ins = arrived.latency.table();
    let mut report = stage.report("connect", parameters, arrived.counts, watched);
    report.ok &= report.counts.signed_in == total as u64 && held.online == total;
    report.headline = vec![
        Figure::new("connections signed in", per_second, "/s"),
        Figure::new("p99 sign-in", sign_ins.p99_us, "us"),
    ];
    let cpu_us = report.server.as_ref().map(|server| server.per[0].cpu_us);
    report.headline.extend(cpu_us.map(|us| Figure::new("server CPU per connection", us, "us")));
    report.latency = [("sign-in".to_owned(), sign_ins)].into();
    report.detail("connections_per_second", per_second);
    report.detail("seconds", arrived.seconds);
    report.detail("server_cpu_us_per_connection", cpu_us);
    report.faults = arrived.faults;
    Ok(report)
}
