//! `gimbal load`: scenarios and what they are aimed at.

mod aim;
mod hostile;
mod page;
mod shapes;
mod social;

use std::process::ExitCode;

use anyhow::Result;
use gimbal::{
    load::{stop, worker},
    proc::raise_open_files,
    scenario::{echo, idle, room, signal, steady},
};

use aim::Aim;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Verb {
    /// One-to-one durable sends, at a rate or as fast as they are acknowledged.
    Steady(Steady),
    /// Idle signed-in connections: memory and CPU of each.
    Idle(Idle),
    /// A storm of connections and sign-ins.
    Connect(shapes::Connect),
    /// Hostile peers beside honest clients, one attack after the other, each on a server of its own.
    Hostile(Box<hostile::Hostile>),
    /// Readers that stall, beside healthy ones in one room.
    Slow(shapes::Slow),
    /// All clients come back at once after a restart of the server.
    Reconnect(shapes::Reconnect),
    /// Durable messages of the backend to many users in one call.
    Group(shapes::Group),
    /// A day in miniature: sends, rooms, heartbeats, comings and goings at once.
    Mixed(shapes::Mixed),
    /// A day of a product against a model: sign-ups, friends, groups, messages, second devices, a server that is killed.
    Social(social::Social),
    /// One room: server CPU per delivery, beside a bare send loop.
    Room(Room),
    /// Heartbeats: server CPU of each, beside an echo on a bare ring.
    Echo(Echo),
    /// Signals in pairs: server CPU of each.
    Signal(Signal),
    /// The bare echo itself, until it is killed; `echo --bare` starts it.
    #[command(hide = true)]
    BareEcho {
        /// 0: a free one; either way the address is printed.
        #[arg(long, default_value_t = 0)]
        port: u16,
        #[arg(long)]
        cores: Option<String>,
    },
    /// Put the reports of earlier runs on one page, to compare them.
    Report(page::Page),
    /// A client process of a load; --processes starts them.
    #[command(hide = true)]
    Worker,
    /// The bare loop itself; `room --bare` starts it.
    #[command(hide = true)]
    BareSender {
        #[arg(long)]
        members: usize,
        #[arg(long)]
        frame_bytes: usize,
        #[arg(long)]
        window: usize,
        #[arg(long)]
        cores: Option<String>,
    },
}

#[derive(clap::Args, Debug)]
pub(crate) struct Steady {
    #[command(flatten)]
    aim: Aim,
    /// Connections; they write to each other in pairs
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Messages per second over all connections; 0 sends as fast as they are acknowledged
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// Open messages of each connection when the rate is 0
    #[arg(long, default_value_t = 16)]
    window: usize,
    /// Bytes of each message's content
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Seconds before measuring
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    warm_up: f64,
    /// Seconds of measuring, in each round
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Rounds; the medians are compared
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Measure in turn what bounds the acknowledgement: a bare io_uring echo at the same rate, and syncs of the same disk
    #[arg(long, requires = "start")]
    bare: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Idle {
    #[command(flatten)]
    aim: Aim,
    /// Connections at the first reading
    #[arg(long, default_value_t = 2_000)]
    low: usize,
    /// Connections at the second reading
    #[arg(long, default_value_t = 10_000)]
    high: usize,
    /// Quiet seconds before each reading
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    settle: f64,
    /// Seconds in which idle CPU is measured
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    hold: f64,
    /// Start gateway and control as two processes, and tell their memory apart
    #[arg(long, requires = "start")]
    apart: bool,
    /// Seconds from one heartbeat of a client to its next in that time; 0: none
    #[arg(long, default_value_t = 25.0, value_parser = seconds)]
    heartbeat: f64,
    #[command(flatten)]
    processes: aim::Processes,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Room {
    #[command(flatten)]
    aim: Aim,
    /// Members
    #[arg(long, default_value_t = 1_000)]
    members: usize,
    /// Publishes under way at once
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Bytes of each message's content
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Seconds of each round
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    round: f64,
    /// Rounds; the medians are reported
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure a bare send loop in turn, over as many sockets with frames as long
    #[arg(long)]
    bare: bool,
    #[command(flatten)]
    processes: aim::Processes,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Echo {
    #[command(flatten)]
    aim: Aim,
    /// Connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Open heartbeats of each connection, when there is no rate
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Heartbeats per second over all connections; 0 sends as fast as they are answered
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Seconds of each round
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    round: f64,
    /// Rounds; the medians are reported
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure a bare io_uring echo in turn, over as many connections
    #[arg(long)]
    bare: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Signal {
    #[command(flatten)]
    aim: Aim,
    /// Connections; they signal each other in pairs
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Open signals of each connection
    #[arg(long, default_value_t = 16)]
    window: usize,
    /// Bytes of each signal's content
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Seconds of each round
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    round: f64,
    /// Rounds; the medians are reported
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Seconds: zero to a day.
fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.0..=86_400.0).contains(&value) { Ok(value) } else { Err("0 to 86400 seconds".into()) }
}

pub(crate) fn run(verb: Verb) -> Result<ExitCode> {
    raise_open_files();
    stop::install()?;
    match verb {
        Verb::Steady(Steady { aim, connections, rate, window, bytes, warm_up, duration, rounds, bare }) => {
            let parameters = steady::Parameters {
                connections,
                rate,
                window,
                bytes,
                warm_up_s: warm_up,
                duration_s: duration,
                rounds,
                bare,
            };
            aim.conclude(&steady::run(&aim.open()?, parameters, aim.server_cores.as_deref())?)
        }
        Verb::Idle(Idle { aim, low, high, settle, hold, apart, heartbeat, processes }) => {
            idle::without_huge_pages()?;
            let control = apart.then(|| aim.start_control()).transpose()?;
            let target = match &control {
                Some(control) => aim.open_gateway(control, &processes)?,
                None => aim.open_shared(&processes)?,
            };
            let parameters =
                idle::Parameters { low, high, settle_s: settle, hold_s: hold, heartbeat_s: heartbeat };
            aim.conclude(&idle::run(&target, &parameters)?)
        }
        Verb::Room(Room { aim, members, window, bytes, round, rounds, bare, processes }) => {
            let parameters = room::Parameters { members, window, bytes, round_s: round, rounds, bare };
            let target = aim.open_shared(&processes)?;
            aim.conclude(&room::run(&target, parameters, aim.server_cores.as_deref())?)
        }
        Verb::Echo(Echo { aim, connections, window, rate, round, rounds, bare }) => {
            let parameters = echo::Parameters { connections, window, rate, round_s: round, rounds, bare };
            aim.conclude(&echo::run(&aim.open()?, &parameters, aim.server_cores.as_deref())?)
        }
        Verb::Signal(Signal { aim, connections, window, bytes, round, rounds }) => {
            let parameters = signal::Parameters { connections, window, bytes, round_s: round, rounds };
            aim.conclude(&signal::run(&aim.open()?, &parameters)?)
        }
        Verb::BareEcho { port, cores } => {
            echo::bare::serve(port, cores.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Connect(connect) => connect.run(),
        Verb::Slow(slow) => slow.run(),
        Verb::Hostile(hostile) => hostile.run(),
        Verb::Reconnect(reconnect) => reconnect.run(),
        Verb::Group(group) => group.run(),
        Verb::Mixed(mixed) => mixed.run(),
        Verb::Social(social) => social.run(),
        Verb::Report(page) => page.run(),
        Verb::Worker => worker::serve().map(|()| ExitCode::SUCCESS),
        Verb::BareSender { members, frame_bytes, window, cores } => {
            room::bare::serve(members, frame_bytes, window, cores.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
