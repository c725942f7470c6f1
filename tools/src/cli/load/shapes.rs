//! Arguments of the scenarios that need no more than to be handed on.

use std::process::ExitCode;

use anyhow::Result;
use gimbal::scenario::{connect, group, mixed, reconnect, slow};

use super::{
    aim::{Aim, Processes},
    seconds,
};

/// A number above zero.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e9 => Ok(value),
        _ => Err("a number above 0 and up to 1e9".into()),
    }
}

/// As [`rate`], or zero.
pub(super) fn rate_or_none(text: &str) -> Result<f64, String> {
    if text == "0" { Ok(0.0) } else { rate(text) }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Connect {
    #[command(flatten)]
    aim: Aim,
    /// Connections
    #[arg(long, default_value_t = 5_000)]
    connections: usize,
    /// Connections begun per second, open loop; 0: as --open allows
    #[arg(long, default_value = "0", value_parser = rate_or_none)]
    rate: f64,
    /// Sign-ins under way at once when there is no rate; 0: all at once
    #[arg(long, default_value_t = 128)]
    open: usize,
    /// Seconds online at the end
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    hold: f64,
    #[command(flatten)]
    processes: Processes,
}

impl Connect {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { aim, connections, rate, open, hold, processes } = self;
        let parameters = connect::Parameters { connections, rate, open, hold_s: hold };
        aim.conclude(&connect::run(&aim.open_shared(&processes)?, &parameters)?)
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Slow {
    #[command(flatten)]
    aim: Aim,
    /// Members of the room
    #[arg(long, default_value_t = 1_000)]
    members: usize,
    /// Share of them that stalls in every other round
    #[arg(long, default_value_t = 0.1)]
    stalled: f64,
    /// Publishes per second
    #[arg(long, default_value = "100", value_parser = rate)]
    rate: f64,
    /// Bytes of each message's content
    #[arg(long, default_value_t = 1_000)]
    bytes: usize,
    /// Seconds of each round; below the server's write deadline, or it closes the stalled
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    round: f64,
    /// Rounds of each kind; the medians are compared
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

impl Slow {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { aim, members, stalled, rate, bytes, round, rounds } = self;
        let parameters = slow::Parameters { members, stalled, rate, bytes, round_s: round, rounds };
        aim.conclude(&slow::run(&aim.open()?, &parameters)?)
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Reconnect {
    #[command(flatten)]
    aim: Aim,
    /// Connections
    #[arg(long, default_value_t = 2_000)]
    connections: usize,
    /// Messages that wait for each user
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    missed: u16,
    /// Bytes of each message's content
    #[arg(long, default_value_t = 100)]
    bytes: usize,
}

impl Reconnect {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { aim, connections, missed, bytes } = self;
        let parameters = reconnect::Parameters { connections, missed: missed.into(), bytes };
        aim.conclude(&reconnect::run(aim.open()?, &parameters)?)
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Group {
    #[command(flatten)]
    aim: Aim,
    /// Users, each with one connection
    #[arg(long, default_value_t = 512)]
    users: usize,
    /// Users of each group; 512 at most
    #[arg(long, default_value_t = 512)]
    group: usize,
    /// Calls per second over all groups
    #[arg(long, default_value = "20", value_parser = rate)]
    rate: f64,
    /// Bytes of each message's content
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Seconds before measuring
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    warm_up: f64,
    /// Seconds of measuring
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
}

impl Group {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { aim, users, group, rate, bytes, warm_up, duration } = self;
        let (warm_up_s, duration_s) = (warm_up, duration);
        let parameters = group::Parameters { users, group, rate, bytes, warm_up_s, duration_s };
        aim.conclude(&group::run(&aim.open()?, &parameters)?)
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Mixed {
    #[command(flatten)]
    aim: Aim,
    /// Users, each with one connection; a quarter wanders between rooms, a quarter comes and goes
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// Durable messages per second over all
    #[arg(long, default_value = "1000", value_parser = rate)]
    rate: f64,
    /// Rooms
    #[arg(long, default_value_t = 10)]
    rooms: usize,
    /// Publishes per second over all rooms
    #[arg(long, default_value = "50", value_parser = rate)]
    publishes: f64,
    /// Seconds from one heartbeat of a client to its next
    #[arg(long, default_value = "25", value_parser = rate)]
    heartbeat: f64,
    /// People per second who leave or enter a room, and as many who go or come back
    #[arg(long, default_value = "20", value_parser = rate)]
    churn: f64,
    /// Bytes of each message's content
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Seconds of measuring
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    duration: f64,
}

impl Mixed {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { aim, users, rate, rooms, publishes, heartbeat, churn, bytes, duration } = self;
        let (heartbeat_s, duration_s) = (heartbeat, duration);
        let parameters =
            mixed::Parameters { users, rate, rooms, publishes, heartbeat_s, churn, bytes, duration_s };
        aim.conclude(&mixed::run(&aim.open()?, &parameters)?)
    }
}
