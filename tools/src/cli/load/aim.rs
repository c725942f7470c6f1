//! Whom a scenario loads, from where, and where its result goes.

use std::{
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use gimbal::{
    load::{
        Target,
        certificates::Certificates,
        pin, pinned,
        server::{CONFIG, Role, Server},
        source,
    },
    report::{Report, write_json, write_page},
};

use crate::cli::{GrpcArgs, KeyArgs};

/// Where control and the gateway of one process show health and metrics unless configured otherwise.
const HTTP_PORT: u16 = 8030;

/// More client processes than any machine here has cores.
const PROCESSES_MAX: i64 = 256;

/// Whom to load, and where the result goes.
#[derive(clap::Args, Debug)]
pub(super) struct Aim {
    /// Start a server of our own with a temporary data directory, and stop it afterwards
    #[arg(long, conflicts_with = "target")]
    start: bool,
    /// The gateway's client port [default: 127.0.0.1:8002, with --websocket 127.0.0.1:8003, with --quic 127.0.0.1:8004]
    #[arg(long, env = "GIMBAL_ADDRESS", value_name = "HOST:PORT")]
    target: Option<String>,
    /// Load it over WebSocket
    #[arg(long)]
    websocket: bool,
    /// Load it over QUIC
    #[arg(long, conflicts_with = "websocket")]
    quic: bool,
    /// With --quic: the authority that has signed the gateway's certificate (PEM)
    #[arg(long, requires = "quic", conflicts_with = "start", value_name = "FILE")]
    gateway_ca: Option<PathBuf>,
    #[command(flatten)]
    grpc: GrpcArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// The server's process ids, for its CPU and memory; the gateway's first when it runs apart
    #[arg(long, conflicts_with = "start", value_delimiter = ',', value_name = "PID,..")]
    server_pid: Vec<u32>,
    /// The gateway's health and metrics, for bytes and calls [default with --server-pid: the target's host, port 8030]
    #[arg(long, conflicts_with = "start", value_name = "HOST:PORT")]
    server_http: Option<String>,
    /// Shards of the server that --start starts
    #[arg(long, requires = "start")]
    server_shards: Option<u8>,
    /// Cores of the server that --start starts, as 0,2 or 0-3
    #[arg(long, requires = "start", value_name = "LIST")]
    pub(super) server_cores: Option<String>,
    /// Cores of the load client
    #[arg(long, value_name = "LIST")]
    client_cores: Option<String>,
    /// Local addresses of the client's sockets, in turn: 127.0.0.2,127.0.1.0/24
    #[arg(long, value_name = "LIST")]
    source: Option<String>,
    /// Write the report as one JSON line; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as one page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// For scenarios that can share their connections among processes.
#[derive(clap::Args, Debug)]
pub(super) struct Processes {
    /// Client processes that share the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=PROCESSES_MAX))]
    processes: u16,
}

impl Aim {
    /// The target; a server of our own is running when it returns.
    pub(super) fn open(&self) -> Result<Target> {
        let key = self.key.read()?;
        let sources = self.sources()?;
        if !self.start {
            self.client_cores.as_deref().map(pin).transpose()?;
            let default = match (self.websocket, self.quic) {
                (true, _) => "127.0.0.1:8003",
                (_, true) => "127.0.0.1:8004",
                _ => "127.0.0.1:8002",
            };
            ensure!(!self.quic || self.gateway_ca.is_some(), "--quic needs --gateway-ca");
            let address = resolve(self.target.as_deref().unwrap_or(default))?;
            let guess = (!self.server_pid.is_empty()).then(|| SocketAddr::new(address.ip(), HTTP_PORT));
            let http = self.server_http.as_deref().map(resolve).transpose()?.or(guess);
            return Ok(Target {
                address,
                websocket: self.websocket,
                quic: self.gateway_ca.clone(),
                certificates: None,
                grpc: self.grpc.grpc.clone(),
                key,
                pids: self.server_pid.clone(),
                http,
                sources,
                processes: 1,
                server: None,
            });
        }
        if self.quic {
            return self.open_quic(sources);
        }
        let server = self.start(Role::Serve)?;
        self.aimed_at(server, Vec::new())
    }

    /// A server of our own with a certificate, which it keeps as long as it lives.
    fn open_quic(&self, sources: Vec<Ipv4Addr>) -> Result<Target> {
        let certificates = Certificates::new()?;
        let config = CONFIG.to_owned() + &certificates.tables("", "");
        let server = self.start_with(|args| Server::start_configured(Role::Serve, args, &config))?;
        let target = self.aimed_at(server, Vec::new())?;
        let (address, ca) = (certificates.quic, certificates.ca());
        Ok(Target { address, quic: Some(ca), sources, certificates: Some(certificates), ..target })
    }

    /// Control alone, without a gateway yet.
    pub(super) fn start_control(&self) -> Result<Server> {
        self.start(Role::Control)
    }

    /// A gateway of our own that is linked to `control`.
    pub(super) fn open_gateway(&self, control: &Server, processes: &Processes) -> Result<Target> {
        ensure!(!self.quic, "over QUIC gateway and control are one process here");
        let gateway = self.start(Role::Gateway { control: control.grpc })?;
        let target = self.aimed_at(gateway, vec![control.pid()])?;
        Ok(Target {
            grpc: format!("http://{}", control.grpc),
            processes: processes.processes.into(),
            ..target
        })
    }

    fn start(&self, role: Role) -> Result<Server> {
        self.start_with(|args| match role {
            Role::Control => Server::start_as(role, &[]),
            _ => Server::start_as(role, args),
        })
    }

    /// A server of our own with the text of its configuration file, for what is never aimed at anybody else's.
    pub(super) fn open_own(&self, config: &str) -> Result<Target> {
        ensure!(self.start, "this attacks the server: only one of our own may be loaded so (--start)");
        ensure!(!self.websocket && !self.quic, "here --transport says what is spoken");
        let server = self.start_with(|args| Server::start_configured(Role::Serve, args, config))?;
        self.aimed_at(server, Vec::new())
    }

    /// Whatever `start` starts with these arguments, on the server's cores.
    fn start_with(&self, start: impl FnOnce(&[&str]) -> Result<Server>) -> Result<Server> {
        let shards = self.server_shards.map(|shards| shards.to_string());
        let args: Vec<&str> = shards.iter().flat_map(|shards| ["--shards", shards.as_str()]).collect();
        pinned(self.server_cores.as_deref(), || start(&args))
    }

    /// `server`, and whose other processes belong to it.
    fn aimed_at(&self, server: Server, others: Vec<u32>) -> Result<Target> {
        self.client_cores.as_deref().map(pin).transpose()?;
        Ok(Target {
            address: if self.websocket { server.websocket } else { server.address },
            websocket: self.websocket,
            quic: None,
            certificates: None,
            grpc: format!("http://{}", server.grpc),
            key: self.key.read()?,
            pids: [vec![server.pid()], others].concat(),
            http: Some(server.http),
            sources: self.sources()?,
            processes: 1,
            server: Some(server),
        })
    }

    fn sources(&self) -> Result<Vec<Ipv4Addr>> {
        Ok(self.source.as_deref().map(source::parse).transpose()?.unwrap_or_default())
    }

    /// As [`Self::open`], with several client processes.
    pub(super) fn open_shared(&self, processes: &Processes) -> Result<Target> {
        Ok(Target { processes: processes.processes.into(), ..self.open()? })
    }

    /// Writes what was asked for and returns the verdict.
    pub(super) fn conclude(&self, report: &Report) -> Result<ExitCode> {
        if let Some(path) = &self.report {
            write_page(path, std::slice::from_ref(report))?;
        }
        if let Some(path) = &self.json {
            write_json(path, report)?;
        }
        if self.json.as_deref() != Some(Path::new("-")) {
            gimbal::say!("{}", report.text());
        }
        Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn resolve(address: &str) -> Result<SocketAddr> {
    let mut addresses = address.to_socket_addrs().with_context(|| format!("{address:?} is not host:port"))?;
    let found = addresses.next().with_context(|| format!("{address:?} has no address"))?;
    ensure!(found.port() != 0, "{address:?} has no port");
    Ok(found)
}
