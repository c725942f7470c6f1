//! The release binary as child processes on free loopback ports, with data in a temporary folder.

use std::{
    fs::{self, File},
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{PATIENCE, http};

/// Between two looks at something that is not ready yet.
const POLL: Duration = Duration::from_millis(5);

/// A loopback port nobody listens on, below the range from which the kernel takes ports for outgoing connections.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (std::process::id() as u16 % 150 * 100 + step) % 15_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// What differs from the defaults: lines of TOML for each table.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    pub(crate) gateway: String,
    pub(crate) control: String,
    /// Folder with what `gimbal cert` has made: control speaks TLS on its gRPC port.
    pub(crate) certs: Option<PathBuf>,
    /// Limits each file of the server to so many KiB, as a full disk would.
    pub(crate) file_kib_max: Option<u64>,
    /// Most open files of the server.
    pub(crate) open_files_max: Option<u64>,
}

impl Settings {
    pub(crate) fn gateway(lines: &str) -> Self {
        Self { gateway: lines.to_owned(), ..Self::default() }
    }
}

/// Which processes make up a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    Apart,
}

/// A running server. Dropping it kills its processes.
pub(crate) struct Server {
    shape: Shape,
    folder: TempDir,
    settings: Settings,
    pub(crate) tcp: SocketAddr,
    pub(crate) websocket: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    /// Health and metrics of the gateway process; the same as `http` in one process.
    pub(crate) gateway_http: SocketAddr,
    serve: Option<Child>,
    control: Option<Child>,
    gateway: Option<Child>,
}

impl Server {
    /// `gimbal serve --dev` with two shards.
    pub(crate) fn start() -> Self {
        Self::start_with(Settings::default())
    }

    pub(crate) fn start_with(settings: Settings) -> Self {
        let mut server = Self::new(Shape::One, settings);
        server.launch();
        server
    }

    /// `gimbal control` and `gimbal gateway` as two processes.
    pub(crate) fn start_apart(settings: Settings) -> Self {
        let mut server = Self::new(Shape::Apart, settings);
        server.launch_control();
        server.launch_gateway();
        server
    }

    fn new(shape: Shape, settings: Settings) -> Self {
        let folder = tempfile::Builder::new().prefix("gimbal-e2e-").tempdir().unwrap();
        let http = loopback();
        let gateway_http = if shape == Shape::One { http } else { loopback() };
        let server = Self {
            shape,
            folder,
            settings,
            tcp: loopback(),
            websocket: loopback(),
            grpc: loopback(),
            http,
            gateway_http,
            serve: None,
            control: None,
            gateway: None,
        };
        fs::write(server.config(), server.config_text()).unwrap();
        server
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("gimbal.toml")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn config_text(&self) -> String {
        let Settings { gateway, control, .. } = &self.settings;
        let (tcp, websocket) = (self.tcp, self.websocket);
        let (grpc, http, gateway_http) = (self.grpc, self.http, self.gateway_http);
        let (scheme, host, tls, ca) = match &self.settings.certs {
            None => ("http", grpc.ip().to_string(), String::new(), String::new()),
            Some(certs) => {
                let file = |name| certs.join(name).display().to_string();
                let (certificate, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
                let tls = format!(
                    "[control.tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\nhttp = false\n"
                );
                ("https", "localhost".to_owned(), tls, format!("ca = \"{ca}\"\n"))
            }
        };
        let grpc_port = grpc.port();
        let shards = if gateway.contains("shards") { "" } else { "shards = 2\n" };
        // Tests say at full speed what they have to say.
        let flow = "frames_per_second = 0\nbytes_per_second = \"0B\"\n";
        let flow = if gateway.contains("per_second") { "" } else { flow };
        format!(
            "[gateway]\nlisten = \"{tcp}\"\npin = false\n{shards}{flow}{gateway}\n\
             [gateway.websocket]\nlisten = \"{websocket}\"\n\
             [control]\ngrpc_listen = \"{grpc}\"\nhttp_listen = \"{http}\"\n{control}\n{tls}\
             [edge]\ncontrol = \"{scheme}://{host}:{grpc_port}\"\n{ca}http_listen = \"{gateway_http}\"\n\
             [process]\ndrain_over = \"200ms\"\n"
        )
    }

    fn spawn(&self, verb: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.folder.path().join(verb)).unwrap();
        let mut arguments = vec![
            verb.to_owned(),
            "--dev".to_owned(),
            "--config".to_owned(),
            self.config().display().to_string(),
        ];
        if verb != "gateway" {
            arguments.extend(["--data".to_owned(), self.data().display().to_string()]);
        }
        let mut command = match self.settings {
            Settings { file_kib_max: None, open_files_max: None, .. } => {
                Command::new(env!("CARGO_BIN_EXE_gimbal"))
            }
            Settings { file_kib_max, open_files_max, .. } => limited(file_kib_max, open_files_max),
        };
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    /// Starts what [`Self::kill`] or [`Self::terminate`] ended, on the same data and ports.
    pub(crate) fn launch(&mut self) {
        self.launch_unready();
        self.wait_ready("serve", self.http);
        self.wait_listening("serve");
    }

    /// As [`Self::launch`], without waiting for anything.
    pub(crate) fn launch_unready(&mut self) {
        assert!(self.serve.is_none() && self.shape == Shape::One);
        self.serve = Some(self.spawn("serve"));
    }

    pub(crate) fn launch_control(&mut self) {
        assert!(self.control.is_none() && self.shape == Shape::Apart);
        self.control = Some(self.spawn("control"));
        self.wait_ready("control", self.http);
    }

    fn launch_gateway(&mut self) {
        self.gateway = Some(self.spawn("gateway"));
        self.wait_ready("gateway", self.gateway_http);
        self.wait_listening("gateway");
    }

    fn child(&mut self, verb: &str) -> &mut Option<Child> {
        match verb {
            "serve" => &mut self.serve,
            "control" => &mut self.control,
            _ => &mut self.gateway,
        }
    }

    fn wait_ready(&mut self, verb: &str, address: SocketAddr) {
        let ready = until(|| {
            let ended = self.child(verb).as_mut().and_then(|child| child.try_wait().unwrap());
            ended.is_some() || matches!(http::get(address, "/readyz"), Ok((200, _)))
        });
        let ended = self.child(verb).as_mut().and_then(|child| child.try_wait().unwrap());
        assert!(ready && ended.is_none(), "{verb} is not ready ({ended:?}):\n{}", self.log(verb));
    }

    /// Control is ready before the gateway of the same process listens.
    fn wait_listening(&self, verb: &str) {
        let listens = until(|| TcpStream::connect(self.tcp).is_ok());
        assert!(listens, "{verb} does not listen:\n{}", self.log(verb));
    }

    /// All the process has printed, over all its lives.
    pub(crate) fn log(&self, verb: &str) -> String {
        let mut text = String::new();
        let _ = File::open(self.folder.path().join(verb)).and_then(|mut file| file.read_to_string(&mut text));
        text
    }

    /// kill -9 of the whole server.
    pub(crate) fn kill(&mut self) {
        let mut child = self.serve.take().expect("running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn kill_control(&mut self) {
        let mut child = self.control.take().expect("running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits for the end of the process that [`Self::terminate`] asked to stop.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.serve.take().expect("running");
        let mut status = None;
        until(|| {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("serve does not stop:\n{}", self.log("serve")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.serve.as_ref().or(self.gateway.as_ref()).expect("running").id()
    }

    /// Memory in use by the process that owns the sockets, bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Lifts the limit for the next launch.
    pub(crate) fn set_file_kib_max(&mut self, kib: Option<u64>) {
        self.settings.file_kib_max = kib;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in [&mut self.serve, &mut self.gateway, &mut self.control].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            for verb in ["serve", "control", "gateway"] {
                let log = self.log(verb);
                let tail: Vec<&str> = log.lines().rev().take(40).collect();
                if !tail.is_empty() {
                    eprintln!("-- end of the log of {verb}:");
                    tail.iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
        }
    }
}

/// The binary within limits. The signal that would end it at a file's bound is ignored, so that the write fails instead.
fn limited(file_kib_max: Option<u64>, open_files_max: Option<u64>) -> Command {
    let set = |flag: &str, limit: Option<u64>| {
        limit.map_or(String::new(), |limit| format!("ulimit {flag} {limit};"))
    };
    let (size, files) = (set("-f", file_kib_max), set("-n", open_files_max));
    let script = format!("trap '' XFSZ; {size} {files} exec \"$0\" \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_gimbal")]);
    command
}

/// Runs the binary to its end: its status and all it printed.
pub(crate) fn run(arguments: &[&str], folder: &Path) -> (ExitStatus, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gimbal"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = until(|| child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(ended, "gimbal {} does not end:\n{text}", arguments.join(" "));
    (output.status, text)
}

/// Looks again and again until `done`; false when patience ends first.
#[expect(clippy::disallowed_methods, reason = "waiting for another process")]
pub(crate) fn until(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(POLL);
    }
}
