//! A running server: control, gateway or both in one process, from start to drained end.

mod chat;
mod http;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::Router;
use gimbal_control::ControlServer;
use gimbal_gateway::{
    link::RemoteConfig,
    metrics::Metrics,
    server::{Plane, Server},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Flags, Log, LogFormat};

/// How long calls under way may take when control stops.
const CALLS_DEADLINE: Duration = Duration::from_secs(5);
/// Exit code after a second signal.
const EXIT_IMPATIENT: i32 = 130;

/// Starts the process's log on standard error.
///
/// # Errors
/// When the filter does not parse or a log was started before.
pub fn start_log(log: &Log) -> Result<()> {
    let filter = EnvFilter::try_new(&log.filter).context("log.filter is not a filter")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

/// SIGTERM and SIGINT: the first asks, the second ends.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From now on the signals are ours.
    ///
    /// # Errors
    /// When the system refuses handlers.
    pub fn new() -> Result<Self> {
        let take = |kind| signal(kind).context("cannot handle signals");
        Ok(Self { terminate: take(SignalKind::terminate())?, interrupt: take(SignalKind::interrupt())? })
    }

    /// Returns at a signal.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    }

    /// Runs the stop itself; another signal ends the process at once.
    async fn during<T>(&mut self, stopping: impl Future<Output = T>) -> T {
        tokio::select! {
            done = stopping => done,
            () = self.asked() => {
                eprintln!("gimbal: second signal, ending at once");
                std::process::exit(EXIT_IMPATIENT);
            }
        }
    }
}

/// SIGHUP: the file is read again; the gateway takes over its limits, control its limits and keys.
pub struct Reload {
    hangup: Signal,
    flags: Flags,
    current: Config,
}

impl Reload {
    /// From now on the signal is ours. `current` is what `flags` gave at the start.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn new(flags: Flags, current: Config) -> Result<Self> {
        let hangup = signal(SignalKind::hangup()).context("cannot handle signals")?;
        Ok(Self { hangup, flags, current })
    }

    /// Follows the signal for ever, for what runs here.
    async fn follow(&mut self, gateway: Option<&Server>, control: Option<&ControlServer>) {
        while self.hangup.recv().await.is_some() {
            match self.read(gateway, control) {
                Ok(()) => tracing::info!("SIGHUP: the limits of the file hold"),
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "SIGHUP: the file is of no use, all stays as it is"
                    );
                }
            }
        }
        // No more signals can come.
        std::future::pending().await
    }

    /// Nothing is taken over unless all of it can be.
    fn read(&mut self, gateway: Option<&Server>, control: Option<&ControlServer>) -> Result<()> {
        let newer = Config::load(&self.flags)?;
        let Config { gateway: of_gateway, control: of_control, .. } = &newer;
        let checked = control.map(|_| of_control.clone().check(self.flags.common.dev)).transpose()?;
        let same =
            Config { gateway: of_gateway.clone(), control: of_control.clone(), ..self.current.clone() };
        if same != newer
            || self.current.gateway.needs_start_for(of_gateway)
            || self.current.control.needs_start_for(of_control)
        {
            tracing::warn!("SIGHUP: some of what has changed takes effect at the next start");
        }
        if let Some(gateway) = gateway {
            gateway.reload(of_gateway).context("[gateway]")?;
        }
        if let (Some(control), Some(checked)) = (control, checked) {
            control.reload(&checked);
        }
        self.current = newer;
        Ok(())
    }
}

/// Control and gateway in one process.
pub struct Node {
    control: ControlServer,
    gateway: Server,
}

impl Node {
    /// Starts control, then the gateway on it; ready when both have. With `dev` the HTTP listener has the chat page, too.
    ///
    /// # Errors
    /// Whatever refuses to start, with what to change; nothing is left running.
    pub async fn start(mut config: Config, dev: bool) -> Result<Self> {
        let gateway_config = config.gateway;
        let (chat_ports, websocket_path) = (chat::Ports::default(), gateway_config.websocket.path.clone());
        let mut pages = Router::new();
        if dev {
            chat::admit(&mut config.control);
            pages = chat::router(Arc::clone(&chat_ports));
        }
        let control = ControlServer::start_not_ready(config.control.check(dev)?, pages).await?;
        let plane = control.plane();
        let started =
            tokio::task::spawn_blocking(move || Server::start(&gateway_config, Plane::Local(plane)));
        let gateway = match started.await.context("the gateway's start ended badly")? {
            Ok(gateway) => gateway,
            Err(error) => {
                control.stop(CALLS_DEADLINE).await;
                return Err(error.into());
            }
        };
        let registry = registry(&gateway.metrics());
        control.add_metrics(Arc::new(move |page| render(&registry, page)));
        chat::found(&chat_ports, &gateway, control.grpc_address().port(), &websocket_path);
        control.set_ready(true).await;
        Ok(Self { control, gateway })
    }

    /// The control plane.
    pub const fn control(&self) -> &ControlServer {
        &self.control
    }

    /// The gateway.
    pub const fn gateway(&self) -> &Server {
        &self.gateway
    }

    /// Waits for a signal, then stops in order: readiness off, clients told and flushed, control stopped.
    ///
    /// # Errors
    /// When a shard did not end.
    pub async fn run(self, mut stop: Stop, mut reload: Reload, drain_over: Duration) -> Result<()> {
        tokio::select! {
            () = stop.asked() => {}
            () = reload.follow(Some(&self.gateway), Some(&self.control)) => {}
        }
        stop.during(async {
            self.control.set_ready(false).await;
            let drained = drain(self.gateway, drain_over).await;
            self.control.stop(CALLS_DEADLINE).await;
            drained
        })
        .await
    }
}

/// The control plane alone.
///
/// # Errors
/// Whatever refuses to start.
pub async fn start_control(config: Config, dev: bool) -> Result<ControlServer> {
    Ok(ControlServer::start(config.control.check(dev)?).await?)
}

/// Waits for a signal and stops control.
pub async fn run_control(control: ControlServer, mut stop: Stop, mut reload: Reload) {
    tokio::select! {
        () = stop.asked() => {}
        () = reload.follow(None, Some(&control)) => {}
    }
    stop.during(control.stop(CALLS_DEADLINE)).await;
}

/// A gateway alone, linked to control over gRPC.
pub struct EdgeNode {
    gateway: Arc<Server>,
    http: http::Http,
}

impl EdgeNode {
    /// Starts the gateway; that control cannot be reached yet is no error.
    ///
    /// # Errors
    /// Whatever refuses to start.
    pub async fn start(config: Config, dev: bool) -> Result<Self> {
        let remote = RemoteConfig {
            endpoint: config.edge.control.clone(),
            key: config.link_key(dev)?,
            tls: config.edge.tls()?,
        };
        let listener = http::bind(config.edge.http_listen).await?;
        let gateway_config = config.gateway;
        let started =
            tokio::task::spawn_blocking(move || Server::start(&gateway_config, Plane::Remote(remote)));
        let gateway = Arc::new(started.await.context("the gateway's start ended badly")??);
        let http = http::Http::start(listener, Arc::clone(&gateway))?;
        Ok(Self { gateway, http })
    }

    /// The gateway.
    pub fn gateway(&self) -> &Server {
        &self.gateway
    }

    /// Where health and metrics are.
    pub const fn http_address(&self) -> std::net::SocketAddr {
        self.http.address
    }

    /// Waits for a signal, then readiness off, clients told and flushed.
    ///
    /// # Errors
    /// When a shard did not end.
    pub async fn run(self, mut stop: Stop, mut reload: Reload, drain_over: Duration) -> Result<()> {
        tokio::select! {
            () = stop.asked() => {}
            () = reload.follow(Some(&self.gateway), None) => {}
        }
        stop.during(async {
            self.http.stop().await;
            let gateway = Arc::into_inner(self.gateway).context("the gateway is still in use")?;
            drain(gateway, drain_over).await
        })
        .await
    }
}

async fn drain(gateway: Server, over: Duration) -> Result<()> {
    let drained =
        tokio::task::spawn_blocking(move || gateway.drain(over)).await.context("the drain ended badly")?;
    tracing::info!(cut = drained.cut, stuck = drained.stuck, "gateway drained");
    anyhow::ensure!(drained.stuck == 0, "{} shards did not end in time", drained.stuck);
    Ok(())
}

fn registry(metrics: &Metrics) -> Registry {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    registry
}

fn render(registry: &Registry, page: &mut String) {
    if let Err(error) = encode(page, registry) {
        tracing::error!(%error, "metrics cannot be written");
    }
}
