//! A storm of connections: each is open when the server has answered its first request.

use std::{thread, time::Duration};

use anyhow::Result;

use super::{Done, Machine, Meter, Parameters};
use crate::{server::Peer, side::Side};

/// Storms of each fresh server: the first meets empty pools.
const STORMS: usize = 2;
/// What a server does after its answers counts as well; and between storms it may forget the last.
const SETTLE: Duration = Duration::from_millis(300);

pub(super) fn run(machine: &Machine, parameters: &Parameters, peer: Peer) -> Result<Done> {
    let mut side = Side::start(machine, peer, false, parameters.connections)?;
    let mut done = Done::new();
    for _ in 0..STORMS {
        thread::sleep(SETTLE);
        let (meter, rate) = (Meter::start(side.server.pid())?, Meter::start(side.server.pid())?);
        side.open(parameters.connections)?;
        let rate = rate.stop()?.values(parameters.connections as u64);
        thread::sleep(SETTLE);
        let mut values = meter.stop()?.values(parameters.connections as u64);
        for key in ["per_s", "client_busy", "server_busy", "others_busy"] {
            values.insert(key, rate[key]);
        }
        done.push(("connect".to_owned(), values));
        side.close()?;
    }
    Ok(done)
}
