//! The server under attack, seen from outside: its configuration, its page of metrics, its memory, its sockets.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustls::ClientConfig;
use serde::Serialize;

use super::{Parameters, attack::Transport};
use crate::load::{
    certificates::Certificates,
    quic,
    server::http_get,
    sockdiag::sockets_of,
    tls::{self, Tls},
    watch::read_server,
};

/// Between two looks at memory and sockets.
const PERIOD: Duration = Duration::from_millis(250);

/// As by default; half the attackers, if they are fewer.
const HANDSHAKES_MAX: usize = 1024;

/// Certificates and ports of a run.
pub(super) struct Ground {
    pub(super) certificates: Certificates,
}

impl Ground {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { certificates: Certificates::new()? })
    }

    /// The server's configuration: limits as they are by default, deadlines that end within a round, and memory and handshakes
    /// that an attack can fill.
    pub(super) fn config(&self, parameters: &Parameters) -> String {
        let Parameters { memory_max, deadline_s, attackers, .. } = parameters;
        let deadline_ms = (deadline_s * 1e3) as u64;
        let handshakes = (attackers / 2).clamp(4, HANDSHAKES_MAX);
        format!(
            "[gateway]\nsign_in_deadline = \"{deadline_ms}ms\"\nwrite_deadline = \"{deadline_ms}ms\"\n\
             memory_max = \"{memory_max}B\"\n{}\n{}",
            parameters.gateway.join("\n"),
            self.certificates.tables(
                &format!("handshakes_max = {handshakes}"),
                &format!("handshakes_max = {handshakes}\nretry_from = {}", handshakes / 2),
            ),
        )
    }

    /// How clients of `transport` speak TLS, if they do.
    pub(super) fn client(&self, transport: Transport) -> Result<Option<Arc<ClientConfig>>> {
        let ca = self.certificates.ca();
        transport.is_tls().then(|| tls::client(&ca, transport.is_websocket())).transpose()
    }

    /// How clients of `transport` speak QUIC, if they do.
    pub(super) fn quic_client(&self, transport: Transport) -> Result<Option<quinn_proto::ClientConfig>> {
        let ca = self.certificates.ca();
        (transport == Transport::Quic).then(|| quic::client(&ca)).transpose()
    }

    /// The first bytes of such a client.
    pub(super) fn hello(&self, transport: Transport, address: SocketAddr) -> Result<Vec<u8>> {
        let mut hello = Vec::new();
        if let Some(config) = self.client(transport)? {
            Tls::new(&config, address)?.outgoing(&[], &mut hello);
        }
        Ok(hello)
    }
}

/// Every number of the page of metrics, by name and labels, without `gimbal_`.
pub(super) type Page = BTreeMap<String, u64>;

/// Reads the page.
pub(super) fn read_page(http: SocketAddr) -> Result<Page> {
    let text = http_get(http, "/metrics").context("the server's page of metrics cannot be read")?;
    let number = |line: &str| {
        let (name, value) = line.strip_prefix("gimbal_")?.rsplit_once(' ')?;
        Some((name.to_owned(), value.trim().parse::<f64>().ok()? as u64))
    };
    let page: Page = text.lines().filter_map(number).collect();
    ensure!(!page.is_empty(), "the server's page of metrics is empty");
    Ok(page)
}

/// One entry of a page; 0 when it has none yet.
pub(super) fn of(page: &Page, name: &str) -> u64 {
    page.get(name).copied().unwrap_or(0)
}

/// What a server held at most, while it was looked at.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Peaks {
    /// Resident anonymous memory of its processes, bytes.
    pub(super) rss_bytes: u64,
    /// Connections of attackers, as the kernel counts them.
    pub(super) hostile_sockets: u64,
    /// The most that one of them had unsent, bytes.
    pub(super) unsent_bytes: u32,
    /// The most memory that the send queue of one of them took, bookkeeping included, bytes.
    pub(super) send_bytes: u32,
    /// Both for all of them at once, bytes.
    pub(super) unsent_bytes_all: u64,
    pub(super) send_bytes_all: u64,
}

impl Peaks {
    fn look(&mut self, pids: &[u32], port: u16, honest: &HashSet<u16>) {
        if let Ok(figures) = read_server(pids) {
            self.rss_bytes = self.rss_bytes.max(figures.rss_anon_bytes);
        }
        let found = sockets_of(port).unwrap_or_default();
        let hostile: Vec<_> = found.iter().filter(|held| !honest.contains(&held.peer_port)).collect();
        let max = |of: fn(&crate::load::sockdiag::Held) -> u32| {
            hostile.iter().map(|held| of(held)).max().unwrap_or(0)
        };
        let sum = |of: fn(&crate::load::sockdiag::Held) -> u32| {
            hostile.iter().map(|held| u64::from(of(held))).sum()
        };
        self.hostile_sockets = self.hostile_sockets.max(hostile.len() as u64);
        self.unsent_bytes = self.unsent_bytes.max(max(|held| held.unsent_bytes));
        self.send_bytes = self.send_bytes.max(max(|held| held.send_bytes));
        self.unsent_bytes_all = self.unsent_bytes_all.max(sum(|held| held.unsent_bytes));
        self.send_bytes_all = self.send_bytes_all.max(sum(|held| held.send_bytes));
    }
}

/// Looks at a server until it is dropped.
pub(super) struct Eye {
    peaks: Arc<Mutex<Peaks>>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Eye {
    /// At the processes `pids` and the sockets of `port`, but those of the `honest` ports.
    pub(super) fn open(pids: Vec<u32>, port: u16, honest: Vec<u16>) -> Result<Self> {
        let peaks = Arc::new(Mutex::new(Peaks::default()));
        let (end, ended) = channel();
        let (seen, honest) = (Arc::clone(&peaks), HashSet::from_iter(honest));
        let look = move || {
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let mut peaks = *seen.lock().unwrap_or_else(PoisonError::into_inner);
                peaks.look(&pids, port, &honest);
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = peaks;
            }
        };
        let thread = thread::Builder::new().name("eye".into()).spawn(look).context("no thread")?;
        Ok(Self { peaks, end: Some(end), thread: Some(thread) })
    }

    /// What was seen so far.
    pub(super) fn peaks(&self) -> Peaks {
        *self.peaks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join); // it has nothing more to tell
    }
}
