//! The servers: each started fresh, pinned, on a port of its own, and stopped when dropped.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use gimbal::{
    clock,
    load::{pinned, server::http_ok, stop},
};
use rustix::process::Signal;
use serde::Serialize;

/// How long a server may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Why a work ends early.
pub(crate) const INTERRUPTED: &str = "interrupted";
/// Between two looks at it.
const POLL: Duration = Duration::from_millis(10);
/// Ports are taken from here up to [`PORT_END`], below the range from which the kernel takes those of clients.
const PORT_FIRST: u16 = 20_000;
const PORT_END: u16 = 32_000;
/// Above the default of 10,000.
const REDIS_CLIENTS_MAX: &str = "19000";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    /// The least a server can do for the same work; has no rules, no state and no checks.
    Bare,
    Gimbal,
    Nats,
    Mosquitto,
    Redis,
}

impl Peer {
    pub(crate) const ALL: &[Self] = &[Self::Bare, Self::Gimbal, Self::Nats, Self::Mosquitto, Self::Redis];
    /// All but the bound.
    pub(crate) const SERVERS: &[Self] = &[Self::Gimbal, Self::Nats, Self::Mosquitto, Self::Redis];

    /// As in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Gimbal => "gimbal",
            Self::Nats => "nats",
            Self::Mosquitto => "mosquitto",
            Self::Redis => "redis",
        }
    }
}

/// The programs that are there.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) gimbal: PathBuf,
    pub(crate) nats: Option<PathBuf>,
    pub(crate) mosquitto: Option<PathBuf>,
    pub(crate) redis: Option<PathBuf>,
}

impl Programs {
    /// Where `peer` is; the bare bounds are this very program.
    pub(crate) fn of(&self, peer: Peer) -> Option<PathBuf> {
        match peer {
            Peer::Bare => std::env::current_exe().ok(),
            Peer::Gimbal => Some(self.gimbal.clone()),
            Peer::Nats => self.nats.clone(),
            Peer::Mosquitto => self.mosquitto.clone(),
            Peer::Redis => self.redis.clone(),
        }
    }

    /// First line of what it says about its version; mosquitto says it with its usage, and in vain.
    pub(crate) fn version(&self, peer: Peer) -> Option<String> {
        let argument = if peer == Peer::Mosquitto { "-h" } else { "--version" };
        let output = Command::new(self.of(peer)?).arg(argument).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(|line| line.trim().to_owned())
    }
}

/// How to see that a server is ready.
enum Ready {
    /// It accepts connections.
    Accepts,
    /// `/readyz` of this address says so.
    Http(SocketAddr),
    /// The first line of its output is its address.
    SaysAddress,
}

/// What a run needs of the machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) programs: Programs,
    /// Core of the servers.
    pub(crate) server_core: String,
    /// Data, configurations and logs: all on one disk.
    pub(crate) work_dir: PathBuf,
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    command: Command,
    ready: Ready,
    dir: PathBuf,
    pub(crate) address: SocketAddr,
    /// gimbal's gRPC port.
    pub(crate) grpc: Option<SocketAddr>,
}

impl Machine {
    /// Starts `peer`; NATS with its durable half when `durable`.
    ///
    /// # Errors
    /// When it is not installed, ends early or is not ready in time; its log is quoted.
    pub(crate) fn start(&self, peer: Peer, durable: bool) -> Result<Server> {
        let program = self.programs.of(peer).with_context(|| format!("{} is not installed", peer.name()))?;
        let dir = self.fresh_dir(peer)?;
        let mut command = Command::new(program);
        let (address, grpc, http) = (free_port()?, free_port()?, free_port()?);
        let mut ready = Ready::Accepts;
        match peer {
            Peer::Bare => bail!("the bare bounds are started by their work"),
            Peer::Gimbal => {
                command.args(["serve", "--dev", "--shards", "1", "--data"]).arg(dir.join("data"));
                // No peer bounds what one connection may say.
                let config = "[gateway]\nsignals_per_second = 0\nframes_per_second = 0\n\
                    bytes_per_second = \"0B\"\nsign_ins_per_second = 0\n";
                command.arg("--config").arg(written(&dir, "gimbal.toml", config)?);
                command.args(["--listen", &address.to_string(), "--grpc-listen", &grpc.to_string()]);
                command.args(["--http-listen", &http.to_string(), "--websocket-listen", "off"]);
                ready = Ready::Http(http);
            }
            Peer::Nats => {
                let mut config = format!("listen: \"{address}\"\n");
                if durable {
                    let store = dir.join("store");
                    config += &format!("jetstream {{ store_dir: {store:?}, sync_interval: always }}\n");
                }
                command.arg("-c").arg(written(&dir, "nats.conf", &config)?);
            }
            Peer::Mosquitto => {
                let config = format!(
                    "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\nset_tcp_nodelay true\n",
                    address.port()
                );
                command.arg("-c").arg(written(&dir, "mosquitto.conf", &config)?);
            }
            Peer::Redis => {
                command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
                command.args(["--appendonly", "no", "--maxclients", REDIS_CLIENTS_MAX, "--dir"]).arg(&dir);
            }
        }
        let mut server = self.spawn(command, dir, address, ready)?;
        server.grpc = (peer == Peer::Gimbal).then_some(grpc);
        Ok(server)
    }

    /// Starts a bare bound, whose first line of output is its address.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn start_bare(&self, program: &Path, arguments: &[&str]) -> Result<Server> {
        let dir = self.fresh_dir(Peer::Bare)?;
        let mut command = Command::new(program);
        command.args(arguments);
        self.spawn(command, dir, free_port()?, Ready::SaysAddress)
    }

    fn spawn(&self, mut command: Command, dir: PathBuf, address: SocketAddr, ready: Ready) -> Result<Server> {
        let log = File::create(dir.join("log")).context("no log file")?;
        command.stdin(Stdio::null()).stdout(log.try_clone().context("no log file")?).stderr(log);
        let child = self.spawn_pinned(&mut command)?;
        let mut server = Server { child, command, ready, dir, address, grpc: None };
        server.wait()?;
        Ok(server)
    }

    /// In a process group of its own: Ctrl-C is for this program, which ends the server itself.
    fn spawn_pinned(&self, command: &mut Command) -> Result<Child> {
        command.process_group(0);
        let child = pinned(Some(&self.server_core), || {
            command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))
        })?;
        stop::add_child(child.id());
        Ok(child)
    }

    fn fresh_dir(&self, peer: Peer) -> Result<PathBuf> {
        let dir = self.work_dir.join(peer.name());
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it and starts it again with the data it has.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub(crate) fn restart(&mut self, machine: &Machine) -> Result<()> {
        self.stop();
        self.child = machine.spawn_pinned(&mut self.command)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = clock::now() + READY_TIMEOUT;
        while !self.is_ready() {
            ensure!(!stop::is_requested(), INTERRUPTED);
            if let Some(status) = self.child.try_wait().context("lost the server")? {
                bail!("the server ended with {status}:\n{}", self.log_tail());
            }
            if clock::now() > deadline {
                bail!("the server is not ready after {READY_TIMEOUT:?}:\n{}", self.log_tail());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn is_ready(&mut self) -> bool {
        match self.ready {
            Ready::Accepts => TcpStream::connect(self.address).is_ok(),
            Ready::Http(address) => http_ok(address, "/readyz"),
            Ready::SaysAddress => {
                let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                let said = text.split_once('\n').and_then(|(line, _)| line.trim().parse().ok());
                self.address = said.unwrap_or(self.address);
                said.is_some()
            }
        }
    }

    /// The last lines it wrote.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    fn stop(&mut self) {
        stop::tell(self.child.id(), Signal::TERM);
        let deadline = clock::now() + STOP_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && clock::now() < deadline {
            thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        stop::remove_child(self.child.id());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn written(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// A loopback port nobody listens on, never given twice in a row: connections of the last server may linger.
fn free_port() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORT_END - PORT_FIRST;
    for _ in 0..span {
        let port = PORT_FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % span;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr().context("no address of our own");
        }
    }
    bail!("no free port from {PORT_FIRST} to {PORT_END}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_lie_below_those_of_clients() {
        let (a, b) = (free_port().unwrap().port(), free_port().unwrap().port());
        assert!(a != b && (PORT_FIRST..PORT_END).contains(&a) && (PORT_FIRST..PORT_END).contains(&b));
    }

    #[test]
    fn a_server_that_ends_at_once_is_quoted() {
        let work_dir = std::env::temp_dir().join(format!("peers-{}", std::process::id()));
        let programs = Programs { gimbal: "none".into(), nats: None, mosquitto: None, redis: None };
        let machine = Machine { programs, server_core: "0".into(), work_dir: work_dir.clone() };
        let error = machine.start_bare(Path::new("/bin/sh"), &["-c", "echo no room; exit 3"]).err().unwrap();
        assert!(error.to_string().contains("no room"), "{error:#}");
        assert!(machine.start(Peer::Redis, false).err().unwrap().to_string().contains("not installed"));
        fs::remove_dir_all(work_dir).unwrap();
    }
}
