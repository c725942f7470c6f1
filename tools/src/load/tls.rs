//! TLS of a load client's connection, between its socket and what it carries. No socket, no clock.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::Resumption,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use std::io::{Read as _, Write as _};

/// One connection.
pub struct Tls {
    conn: ClientConnection,
}

/// Trusts the authority in file `ca`. Every handshake is a full one; `websocket` says what is named as carried.
///
/// # Errors
/// When the file is of no use.
pub fn client(ca: &Path, websocket: bool) -> Result<Arc<ClientConfig>> {
    let of_no_use = || anyhow!("{} is of no use", ca.display());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(ca).map_err(|error| anyhow!("{error}"));
    roots.add(authority.with_context(of_no_use)?).with_context(of_no_use)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().context("ring speaks TLS 1.2 and 1.3")?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![if websocket { b"http/1.1".to_vec() } else { b"gimbal".to_vec() }];
    Ok(Arc::new(config))
}

impl Tls {
    /// A connection to `address`, which the server's certificate must name.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn new(config: &Arc<ClientConfig>, address: SocketAddr) -> Result<Self, rustls::Error> {
        let name = ServerName::IpAddress(address.ip().into());
        let mut conn = ClientConnection::new(Arc::clone(config), name)?;
        conn.set_buffer_limit(None); // what is said before the handshake is over waits for it
        Ok(Self { conn })
    }

    /// Bytes of the peer: what they carry is appended to `plain`. What they are answered with leaves with the next
    /// [`Self::outgoing`].
    ///
    /// # Errors
    /// When they are no TLS, or not such as we trust.
    pub fn incoming(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        while !bytes.is_empty() {
            self.conn.read_tls(&mut bytes).map_err(|error| error.to_string())?;
            let state = self.conn.process_new_packets().map_err(|error| error.to_string())?;
            let length = plain.len();
            plain.resize(length + state.plaintext_bytes_to_read(), 0);
            self.conn.reader().read_exact(&mut plain[length..]).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Appends to `out` the records that carry `plain`, behind all that waits.
    pub fn outgoing(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        self.conn.writer().write_all(plain).expect("there is no limit to what waits");
        self.flush(out);
    }

    /// Appends to `out` a request for new keys, if TLS 1.3 is spoken by now.
    pub fn refresh_keys(&mut self, out: &mut Vec<u8>) {
        // Before that there is nothing to refresh.
        let _ = self.conn.refresh_traffic_keys();
        self.flush(out);
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.conn.wants_write() {
            self.conn.write_tls(out).expect("memory takes all bytes");
        }
    }
}
