//! Starts that must fail, each with a text that says what is wrong; and a disk that fills while running.

use std::{fs, net::TcpListener, path::Path};

use tempfile::TempDir;

use crate::harness::{Api, Client, Server, Settings, http, server};

/// A configuration and an empty folder.
pub(crate) struct Attempt {
    folder: TempDir,
    config: String,
}

impl Attempt {
    pub(crate) fn new() -> Self {
        let port = server::free_port;
        let config = format!(
            "[gateway]\nlisten = \"127.0.0.1:{}\"\nshards = 1\npin = false\n[gateway.websocket]\nlisten = \"127.0.0.1:{}\"\n[control]\ngrpc_listen = \"127.0.0.1:{}\"\nhttp_listen = \"127.0.0.1:{}\"\n",
            port(),
            port(),
            port(),
            port()
        );
        Self { folder: tempfile::tempdir().unwrap(), config }
    }

    /// Starts and expects a failure whose text contains all of `words`; nothing may panic.
    pub(crate) fn fails(&self, data: &Path, words: &[&str]) -> String {
        self.fails_with(&["--dev"], data, words)
    }

    fn fails_with(&self, flags: &[&str], data: &Path, words: &[&str]) -> String {
        let path = self.folder.path().join("gimbal.toml");
        fs::write(&path, &self.config).unwrap();
        let (config, data) = (path.display().to_string(), data.display().to_string());
        let arguments = [&["serve"], flags, &["--config", &config, "--data", &data]].concat();
        let (status, text) = server::run(&arguments, self.folder.path());
        assert!(!status.success(), "it started:\n{text}");
        assert!(status.code().is_some(), "ended by a signal:\n{text}");
        assert!(!text.contains("panicked"), "{text}");
        for word in words {
            assert!(text.to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in:\n{text}");
        }
        text
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let running = Server::start();
    Attempt::new().fails(&running.data(), &["another gimbal process"]);
    Client::online(running.tcp, &Api::connect(running.grpc).device()).heartbeat();
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let attempt = Attempt::new();
    attempt.fails(Path::new("/proc/gimbal-data"), &["/proc/gimbal-data"]);
    let file = attempt.folder.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    attempt.fails(&file, &["file"]);
}

#[test]
fn a_busy_port_is_named() {
    for (key, table) in [("listen", "gateway"), ("grpc_listen", "control"), ("http_listen", "control")] {
        let mut attempt = Attempt::new();
        let busy = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port().to_string();
        let line =
            attempt.config.lines().find(|line| line.starts_with(&format!("{key} ="))).unwrap().to_owned();
        attempt.config = attempt.config.replace(&line, &format!("{key} = \"127.0.0.1:{port}\""));
        let text = attempt.fails(&attempt.data(), &[&port]);
        assert_eq!(text.matches("os error").count(), 1, "the cause is said once:\n{text}");
        println!("{table}.{key} is refused");
    }
}

#[test]
fn an_unknown_key_and_a_value_out_of_bounds_are_named() {
    let mut attempt = Attempt::new();
    attempt.config = attempt.config.replace("shards = 1", "shardz = 1");
    attempt.fails(&attempt.data(), &["shardz"]);
    attempt.config = attempt.config.replace("shardz = 1", "shards = 65");
    attempt.fails(&attempt.data(), &["shards", "0 to 63"]);
    attempt.config = "[control]\nhttp_listen = 3\n".to_owned();
    attempt.fails(&attempt.data(), &["http_listen"]);
    attempt.config = "this is not toml".to_owned();
    attempt.fails(&attempt.data(), &["gimbal.toml"]);
}

#[test]
fn outside_of_development_nothing_starts_without_secrets() {
    let attempt = Attempt::new();
    attempt.fails_with(&[], &attempt.data(), &["backend_key_file"]);
}

/// Writes fail from some size on, as on a full disk: nothing that was acknowledged is lost, nothing more is acknowledged.
#[test]
fn a_disk_that_fills_up_stops_acknowledgements_but_loses_none() {
    let mut server = Server::start_with(Settings { file_kib_max: Some(8 * 1024), ..Settings::default() });
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut sender = Client::online(server.tcp, &alice);
    let content = vec![5; 48 * 1024];
    let acknowledged =
        (1..=1_000).find(|id| sender.send(bob.user, *id, &content).is_err()).expect("it never fills") - 1;
    assert!(acknowledged > 20);
    assert!(sender.send(bob.user, 2_000, b"small").is_err(), "the store stays closed");
    let (status, body) = http::get(server.http, "/readyz").unwrap();
    assert_ne!(status, 200, "{body}");
    assert_eq!(
        http::get(server.http, "/healthz").unwrap().0,
        200,
        "it lives, so that someone can ask what is wrong"
    );
    server.kill();
    server.set_file_kib_max(None);
    server.launch();
    let api = Api::connect(server.grpc);
    let mailbox = api.mailbox(&bob);
    assert!(mailbox.len() as u64 >= acknowledged, "{} of {acknowledged} are there", mailbox.len());
    let mut sender = Client::online(server.tcp, &alice);
    sender.send(bob.user, 3_000, b"room again").unwrap();
}
