//! A certificate for a server of our own, and ports for what needs one.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::server::free_ports;

/// Removed when dropped.
pub struct Certificates {
    dir: TempDir,
    /// Frames over TLS.
    pub tls: SocketAddr,
    /// WebSocket over TLS.
    pub wss: SocketAddr,
    /// Frames over QUIC.
    pub quic: SocketAddr,
}

impl Certificates {
    /// Made for this machine by this binary's own verb.
    ///
    /// # Errors
    /// When there is no room or no free port.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gimbal-certs-").tempdir().context("no directory")?;
        let made = Command::new(std::env::current_exe().context("where is this binary?")?)
            .args(["cert", "--dir"])
            .arg(dir.path())
            .output()
            .context("cannot make certificates")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let [tls, wss, quic, _] = free_ports()?;
        Ok(Self { dir, tls, wss, quic })
    }

    /// The authority, for clients.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Tables of the server's configuration, with further lines in each.
    pub fn tables(&self, of_tls: &str, of_quic: &str) -> String {
        let file = |name: &str| path(&self.dir.path().join(name));
        let Self { tls, wss, quic, .. } = self;
        format!(
            "[gateway.tls]\ncertificate = {}\nkey = {}\nlisten = \"{tls}\"\nwebsocket_listen = \"{wss}\"\n{of_tls}\n\
             [gateway.quic]\nlisten = \"{quic}\"\n{of_quic}\n",
            file("server.pem"),
            file("server.key"),
        )
    }
}

/// As a string of TOML.
fn path(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
