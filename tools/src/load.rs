//! What all load scenarios share: a server to aim at, a fleet of registered devices, cheap sockets.

pub mod certificates;
pub mod crowd;
pub mod fleet;
pub mod inbox;
pub mod limits;
pub mod mailboxes;
pub mod probe;
pub mod publisher;
pub mod quic;
pub mod rounds;
pub mod server;
pub mod sockdiag;
pub mod sockets;
pub mod source;
pub mod stage;
pub mod stop;
pub mod tls;
pub mod watch;
pub mod worker;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// Where a run is aimed at.
pub struct Target {
    /// The gateway's TCP port, or its WebSocket port.
    pub address: SocketAddr,
    /// Speak WebSocket.
    pub websocket: bool,
    /// Connections are over QUIC, and trust the authority in this file.
    pub quic: Option<PathBuf>,
    /// Control's gRPC port.
    pub grpc: String,
    /// Backend key.
    pub key: String,
    /// The server's processes, when it runs on this machine: gateway and control may run apart.
    pub pids: Vec<u32>,
    /// The gateway's health and metrics.
    pub http: Option<SocketAddr>,
    /// Local addresses of the client's sockets, in turn; none leaves the choice to the kernel.
    pub sources: Vec<Ipv4Addr>,
    /// Client processes.
    pub processes: usize,
    /// The server this run started itself; stopped when the target is dropped.
    pub server: Option<server::Server>,
    /// Of that server, if it has one.
    pub certificates: Option<certificates::Certificates>,
}

/// Where and how clients connect.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Place {
    /// Of the gateway.
    pub address: SocketAddr,
    /// Speak WebSocket.
    pub websocket: bool,
    /// Speak QUIC, and trust the authority in this file.
    pub quic: Option<PathBuf>,
}

impl Place {
    /// Sockets that speak so, of these local addresses.
    ///
    /// # Errors
    /// When the kernel gives none, or the authority is of no use.
    pub fn sockets(&self, sources: &[Ipv4Addr]) -> Result<sockets::Sockets> {
        let sockets = sockets::Sockets::with_sources(sources).context("no epoll")?;
        let quic = self.quic.as_deref().map(quic::client).transpose()?;
        sockets.over_websocket(self.websocket).over_quic(quic)
    }
}

impl Target {
    /// Where and how clients connect.
    pub fn place(&self) -> Place {
        Place { address: self.address, websocket: self.websocket, quic: self.quic.clone() }
    }

    /// Just a process to look at, on ports nobody listens on: what the watch's tests need.
    #[cfg(test)]
    fn of_process(pid: u32) -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            websocket: false,
            quic: None,
            certificates: None,
            grpc: "http://127.0.0.1:1".into(),
            key: String::new(),
            pids: vec![pid],
            http: None,
            sources: Vec::new(),
            processes: 1,
            server: None,
        }
    }
}

/// Ties the calling thread, and those it starts from now on, to `cores`: `0`, `0,2` or `0-3`.
///
/// # Errors
/// When the list does not parse or the kernel refuses it.
pub fn pin(cores: &str) -> Result<()> {
    let mut set = CpuSet::new();
    for part in cores.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |text: &str| {
            text.trim().parse::<usize>().with_context(|| format!("{cores:?} is not a list of cores"))
        };
        let (first, last) = (parse(first)?, parse(last)?);
        if first > last || last >= CpuSet::MAX_CPU {
            bail!("{cores:?} is not a list of cores");
        }
        (first..=last).for_each(|core| set.set(core));
    }
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on cores {cores}"))
}

/// Runs `f` with the calling thread tied to `cores`, which a child process that `f` starts inherits.
///
/// # Errors
/// As [`pin`], and what `f` says.
pub fn pinned<T>(cores: Option<&str>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None).context("cannot read our affinity")?;
    cores.map(pin).transpose()?;
    let result = f();
    sched_setaffinity(None, &before).context("cannot restore our affinity")?;
    result
}

/// A progress bar on standard error, hidden when that is no terminal.
pub fn progress(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {pos}/{len} {msg}");
    let bar = ProgressBar::new(length).with_prefix(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

/// Nanoseconds of a duration; 584 years at most.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_list_of_cores_is_refused() {
        for bad in ["", "a", "1-", "3-1", "99999999"] {
            assert!(pin(bad).is_err(), "{bad:?}");
        }
    }
}
