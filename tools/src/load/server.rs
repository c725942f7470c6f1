//! A server of our own for one run: `gimbal serve --dev`, or a part of it, as a child process on free loopback ports.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use super::stop;
use crate::clock;

/// How long the server may take until it is ready: recovery of an empty store is far below.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to drain and stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at it.
const POLL: Duration = Duration::from_millis(20);

/// Where it differs from the defaults: a load is to find what the server can do, not what one client may.
const CONFIG_FILE: &str = "config.toml";
pub const CONFIG: &str = "[gateway]\nsignals_per_second = 0\nframes_per_second = 0\n\
    bytes_per_second = \"0B\"\nsign_ins_per_second = 0\n";

/// What a child is.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Gateway and control in one process.
    Serve,
    /// Control alone.
    Control,
    /// A gateway alone, linked to the control plane whose gRPC port this is.
    Gateway {
        /// Control's gRPC port.
        control: SocketAddr,
    },
}

/// A running child; stopped when dropped.
pub struct Server {
    child: Child,
    role: Role,
    dir: TempDir,
    args: Vec<String>,
    /// The gateway's TCP port.
    pub address: SocketAddr,
    /// The gateway's WebSocket port.
    pub websocket: SocketAddr,
    /// Control's gRPC port.
    pub grpc: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
}

impl Role {
    /// The verb and its own flags.
    fn args(self, dir: &Path, [address, websocket, grpc, _]: Ports) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        args.push(match self {
            Self::Serve => "serve".into(),
            Self::Control => "control".into(),
            Self::Gateway { .. } => "gateway".into(),
        });
        if let Self::Serve | Self::Control = self {
            args.extend(["--grpc-listen".into(), grpc.to_string().into()]);
            args.extend(["--data".into(), dir.join("data").into()]);
        }
        if let Self::Serve | Self::Gateway { .. } = self {
            args.extend(["--listen".into(), address.to_string().into()]);
            args.extend(["--websocket-listen".into(), websocket.to_string().into()]);
        }
        if let Self::Gateway { control } = self {
            args.extend(["--control".into(), format!("http://{control}").into()]);
        }
        args
    }
}

impl Server {
    /// Starts this binary as `serve --dev` with a new data directory and further `args`, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends early or is not ready in time; its log is quoted.
    pub fn start(args: &[&str]) -> Result<Self> {
        Self::start_as(Role::Serve, args)
    }

    /// As [`Self::start`], for part of a server. Ports that the part does not have are free ports that nobody listens on.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_as(role: Role, args: &[&str]) -> Result<Self> {
        Self::start_configured(role, args, CONFIG)
    }

    /// As [`Self::start_as`], with the text of its configuration file.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_configured(role: Role, args: &[&str], config: &str) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("gimbal-load-").tempdir().context("no temporary directory")?;
        let ports @ [address, websocket, grpc, http] = free_ports()?;
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        fs::write(dir.path().join(CONFIG_FILE), config).context("no configuration file")?;
        let child = spawn(role, dir.path(), ports, &args)?;
        let mut server = Self { child, role, dir, args, address, websocket, grpc, http };
        server.wait_ready()?;
        Ok(server)
    }

    /// Stops it by SIGTERM and starts it again on the same data and ports; returns as soon as it was started.
    ///
    /// # Errors
    /// As [`Self::start`], or when it does not stop.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let ports = [self.address, self.websocket, self.grpc, self.http];
        self.child = spawn(self.role, self.dir.path(), ports, &self.args)?;
        Ok(())
    }

    /// Ends it by SIGKILL and starts it again on the same data and ports; returns as soon as it was started.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn kill_and_start(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill the server")?;
        self.child.wait().context("lost the server")?;
        stop::remove_child(self.child.id());
        let ports = [self.address, self.websocket, self.grpc, self.http];
        self.child = spawn(self.role, self.dir.path(), ports, &self.args)?;
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps its data, configuration and log until it is dropped.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until it can take writes.
    ///
    /// # Errors
    /// When it ends early or is not ready in time; its log is quoted.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = clock::now() + READY_TIMEOUT;
        while !http_ok(self.http, "/readyz") {
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

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// All it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The last 20 lines it wrote.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn stop(&mut self) -> Result<()> {
        stop::tell(self.child.id(), Signal::TERM);
        let deadline = clock::now() + STOP_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            if clock::now() > deadline {
                bail!("the server does not stop");
            }
            thread::sleep(POLL);
        }
        stop::remove_child(self.child.id());
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stop().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The child, in a process group of its own: Ctrl-C is for the load, which stops the server when it is done.
fn spawn(role: Role, dir: &Path, ports: Ports, args: &[String]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log")).context("no log file")?;
    let child = Command::new(std::env::current_exe().context("where is this binary?")?)
        .args(role.args(dir, ports))
        .args(["--dev", "--http-listen", &ports[3].to_string()])
        .arg("--config")
        .arg(dir.join(CONFIG_FILE))
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("no log file")?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start a server")?;
    stop::add_child(child.id());
    Ok(child)
}

/// TCP, WebSocket, gRPC and HTTP.
type Ports = [SocketAddr; 4];

/// Loopback ports that nobody uses now, below the range from which the kernel usually takes those of outgoing connections: a
/// load makes so many of these that one could be taken before the server listens.
///
/// # Errors
/// When there are none.
pub fn free_ports() -> Result<[SocketAddr; 4]> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = PORTS_FIRST + (std::process::id() % PORT_BLOCKS) as u16 * PORTS_EACH;
    let mut free = Vec::new();
    for _ in 0..PORTS_EACH {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS_EACH;
        free.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        if let [a, b, c, d] = &free[..] {
            return Ok([a.local_addr()?, b.local_addr()?, c.local_addr()?, d.local_addr()?]);
        }
    }
    bail!("no free ports from {first} on")
}

/// Ports of all processes like this one, in blocks of which each takes one by its id.
const PORTS_FIRST: u16 = 27_000;
const PORTS_EACH: u16 = 32;
const PORT_BLOCKS: u32 = 170;

/// Whether `GET path` is answered with 200.
pub fn http_ok(address: SocketAddr, path: &str) -> bool {
    http_get(address, path).is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}

/// The whole answer to `GET path`, at most 4 MiB.
///
/// # Errors
/// When nobody answers within two seconds.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = Vec::new();
    stream.take(4 << 20).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
