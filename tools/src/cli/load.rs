//! `gimbal load`: scenarios and what they are aimed at.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use gimbal::{
    load::{
        Target, pin, pinned,
        server::{Role, Server},
    },
    proc::raise_open_files,
    report::write_json,
    scenario::{echo, idle, room, signal, steady},
};
use serde::Serialize;

use super::{GrpcArgs, KeyArgs};

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Verb {
    /// One-to-one durable sends, at a rate or as fast as they are acknowledged.
    Steady(Steady),
    /// Idle signed-in connections: memory and CPU of each.
    Idle(Idle),
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

/// Whom to load, and where the result goes.
#[derive(clap::Args, Debug)]
struct Aim {
    /// Start a server of our own with a temporary data directory, and stop it afterwards
    #[arg(long, conflicts_with = "target")]
    start: bool,
    /// The gateway's TCP port
    #[arg(long, env = "GIMBAL_ADDRESS", default_value = "127.0.0.1:8002", value_name = "HOST:PORT")]
    target: String,
    #[command(flatten)]
    grpc: GrpcArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// The server's process id, for its CPU and memory
    #[arg(long, conflicts_with = "start")]
    server_pid: Option<u32>,
    /// Shards of the server that --start starts
    #[arg(long, requires = "start")]
    server_shards: Option<u8>,
    /// Cores of the server that --start starts, as 0,2 or 0-3
    #[arg(long, requires = "start", value_name = "LIST")]
    server_cores: Option<String>,
    /// Cores of the load client
    #[arg(long, value_name = "LIST")]
    client_cores: Option<String>,
    /// Write the report as one JSON line; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    /// Seconds of measuring
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
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
    match verb {
        Verb::Steady(Steady { aim, connections, rate, window, bytes, warm_up, duration }) => {
            let parameters = steady::Parameters {
                connections,
                rate,
                window,
                bytes,
                warm_up_s: warm_up,
                duration_s: duration,
            };
            let report = steady::run(&aim.open()?, parameters)?;
            aim.finish(report.ok, &report.text(), &report)
        }
        Verb::Idle(Idle { aim, low, high, settle, hold, apart }) => {
            let control = apart.then(|| aim.start(Role::Control)).transpose()?;
            let target = match &control {
                Some(control) => aim.open_gateway(control)?,
                None => aim.open()?,
            };
            let parameters = idle::Parameters { low, high, settle_s: settle, hold_s: hold };
            let report = idle::run(&target, control.as_ref().map(Server::pid), parameters)?;
            aim.finish(report.ok, &report.text(), &report)
        }
        Verb::Room(Room { aim, members, window, bytes, round, rounds, bare }) => {
            let parameters = room::Parameters { members, window, bytes, round_s: round, rounds, bare };
            let report = room::run(&aim.open()?, parameters, aim.server_cores.as_deref())?;
            aim.finish(report.ok, &report.text(), &report)
        }
        Verb::Echo(Echo { aim, connections, window, rate, round, rounds, bare }) => {
            let parameters = echo::Parameters { connections, window, rate, round_s: round, rounds, bare };
            let report = echo::run(&aim.open()?, parameters, aim.server_cores.as_deref())?;
            aim.finish(report.ok, &report.text(), &report)
        }
        Verb::Signal(Signal { aim, connections, window, bytes, round, rounds }) => {
            let parameters = signal::Parameters { connections, window, bytes, round_s: round, rounds };
            let report = signal::run(&aim.open()?, parameters)?;
            aim.finish(report.ok, &report.text(), &report)
        }
        Verb::BareEcho { port, cores } => {
            echo::bare::serve(port, cores.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::BareSender { members, frame_bytes, window, cores } => {
            room::bare::serve(members, frame_bytes, window, cores.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Aim {
    /// The target; a server of our own is running when it returns.
    fn open(&self) -> Result<Target> {
        let key = self.key.read()?;
        if !self.start {
            self.client_cores.as_deref().map(pin).transpose()?;
            let address = resolve(&self.target)?;
            return Ok(Target {
                address,
                grpc: self.grpc.grpc.clone(),
                key,
                pid: self.server_pid,
                server: None,
            });
        }
        let server = self.start(Role::Serve)?;
        self.client_cores.as_deref().map(pin).transpose()?;
        let (address, grpc, pid) = (server.address, format!("http://{}", server.grpc), Some(server.pid()));
        Ok(Target { address, grpc, key, pid, server: Some(server) })
    }

    /// A gateway of our own that is linked to `control`.
    fn open_gateway(&self, control: &Server) -> Result<Target> {
        let key = self.key.read()?;
        let gateway = self.start(Role::Gateway { control: control.grpc })?;
        self.client_cores.as_deref().map(pin).transpose()?;
        let (address, grpc, pid) = (gateway.address, format!("http://{}", control.grpc), Some(gateway.pid()));
        Ok(Target { address, grpc, key, pid, server: Some(gateway) })
    }

    fn start(&self, role: Role) -> Result<Server> {
        let shards = self.server_shards.filter(|_| !matches!(role, Role::Control));
        let shards = shards.map(|shards| shards.to_string());
        let args: Vec<&str> = shards.iter().flat_map(|shards| ["--shards", shards.as_str()]).collect();
        pinned(self.server_cores.as_deref(), || Server::start_as(role, &args))
    }

    fn finish(&self, ok: bool, text: &str, report: &impl Serialize) -> Result<ExitCode> {
        if let Some(path) = &self.json {
            write_json(path, report)?;
        }
        if self.json.as_deref() != Some(std::path::Path::new("-")) {
            gimbal::say!("{text}");
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn resolve(address: &str) -> Result<SocketAddr> {
    let mut addresses = address.to_socket_addrs().with_context(|| format!("{address:?} is not host:port"))?;
    addresses.next().with_context(|| format!("{address:?} has no address"))
}
