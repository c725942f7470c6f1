//! Pings: 64 connections, each with one on the way.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gimbal::clock;

use super::{Done, Machine, Meter, Parameters};
use crate::{conns::TURN, dialect::Event, server::Peer, side::Side};

const CONNECTIONS: usize = 64;

pub(super) fn run(machine: &Machine, parameters: &Parameters, peer: Peer) -> Result<Done> {
    let mut side = match peer {
        Peer::Bare => start_bare(machine)?,
        _ => Side::start(machine, peer, false, CONNECTIONS)?,
    };
    side.open(CONNECTIONS)?;
    let ping = side.ping();
    (0..CONNECTIONS).for_each(|index| side.conns.write(index, |out| out.extend_from_slice(&ping)));
    run_for(&mut side, &ping, parameters.warm_up())?;
    let meter = Meter::start(side.server.pid())?;
    let pongs = run_for(&mut side, &ping, parameters.measured())?;
    Ok(vec![("echo".to_owned(), meter.stop()?.values(pongs))])
}

/// The io_uring echo without any logic; given gimbal's heartbeats, which come back as they are.
fn start_bare(machine: &Machine) -> Result<Side> {
    let gimbal = machine.programs.of(Peer::Gimbal).context("where is gimbal?")?;
    let server = machine.start_bare(&gimbal, &["load", "bare-echo"]).context("no bare echo")?;
    Side::of_bare(server)
}

fn run_for(side: &mut Side, ping: &[u8], time: Duration) -> Result<u64> {
    let (end, mut pongs) = (clock::now() + time, 0);
    while clock::now() < end {
        side.conns.turn(TURN, &mut |_, event, out| {
            if event == Event::Pong {
                pongs += 1;
                out.extend_from_slice(ping);
            }
        })?;
    }
    ensure!(pongs > 0, "no ping is answered");
    Ok(pongs)
}
