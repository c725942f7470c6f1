//! The client's connection over QUIC: quinn, one stream, and the gateway's own word for why it ended.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig,
    crypto::rustls::QuicClientConfig,
    rustls::{
        self, RootCertStore,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, pem::PemObject as _},
        version::TLS13,
    },
};

/// What clients of a gateway name (RFC 9001, 8.1).
const ALPN: &[u8] = b"gimbal-quic";

/// Trusts servers whose certificate one of those in the file `ca` (PEM) has signed, or is.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn trust(ca: &Path) -> Result<ClientConfig> {
    let shown = ca.display();
    let read = || format!("cannot read certificates from {shown}");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(read)? {
        roots.add(certificate.with_context(read)?).with_context(read)?;
    }
    ensure!(!roots.is_empty(), "{shown} holds no certificate");
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = TransportConfig::default();
    // How long a session may be silent is the server's own rule.
    transport.max_idle_timeout(None);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Connects to `address`, a host with its port, and opens the stream of the session.
///
/// # Errors
/// When the name is not known, nobody answers there, or whoever does is not trusted.
pub async fn connect(
    address: &str,
    config: ClientConfig,
) -> io::Result<(Connection, RecvStream, SendStream)> {
    let to = tokio::net::lookup_host(address).await?.next();
    let to = to.ok_or_else(|| io::Error::other("the name has no address"))?;
    let from: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let endpoint = Endpoint::client(SocketAddr::new(from, 0))?;
    let connecting = endpoint.connect_with(config, to, host(address)).map_err(io::Error::other)?;
    let connection = connecting.await?;
    let (send, recv) = connection.open_bi().await?;
    Ok((connection, recv, send))
}

/// Code and words of the server, if it has ended the connection with a code of the protocol.
pub fn closed(connection: &Connection) -> Option<(u16, String)> {
    match connection.close_reason()? {
        ConnectionError::ApplicationClosed(close) => {
            let code = u16::try_from(close.error_code.into_inner()).ok().filter(|code| *code > 0)?;
            Some((code, String::from_utf8_lossy(&close.reason).into_owned()))
        }
        _ => None,
    }
}

/// The name in `host:port`, or the address in `[host]:port`.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_told_from_its_port() {
        for (address, expected) in
            [("localhost:8004", "localhost"), ("127.0.0.1:1", "127.0.0.1"), ("[::1]:8004", "::1")]
        {
            assert_eq!(host(address), expected);
        }
    }

    #[test]
    fn a_file_without_certificates_is_no_authority() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        assert!(trust(&file).unwrap_err().to_string().contains("cannot read"));
        std::fs::write(&file, "nothing").unwrap();
        assert!(trust(&file).unwrap_err().to_string().contains("holds no certificate"));
    }
}
