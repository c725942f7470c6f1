//! The client's connection over QUIC: quinn, one stream, and the gateway's own word for why it ended.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig,
    crypto::rustls::QuicClientConfig,
    rustls::{self, crypto::ring::default_provider, version::TLS13},
};

use crate::tls::{host, roots};

/// What clients of a gateway name (RFC 9001, 8.1).
const ALPN: &[u8] = b"gimbal-quic";

/// Trusts servers whose certificate one of those in the file `ca` (PEM) has signed, or is.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn trust(ca: &Path) -> Result<ClientConfig> {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(ca)?)
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
