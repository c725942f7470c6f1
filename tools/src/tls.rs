//! TLS as clients speak it: whom they trust, and what they ask for.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

/// What a gateway's listeners of frames and of WebSocket agree on by ALPN.
const ALPN: [&[u8]; 2] = [b"gimbal", b"http/1.1"];
/// Sessions that may be taken up again.
const RESUMABLE_MAX: usize = 65_536;

/// The authorities a client trusts, for both transports. Clones share what was learned for resumption.
#[derive(Clone, Debug)]
pub struct Trust {
    frames: Arc<ClientConfig>,
    websocket: Arc<ClientConfig>,
}

impl Trust {
    /// Reads the authorities' certificates, in PEM form.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn read(ca: &Path) -> Result<Self> {
        let roots = Arc::new(roots(ca)?);
        let [frames, websocket] = ALPN.map(|protocol| {
            let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("the provider has suites for both versions")
                .with_root_certificates(Arc::clone(&roots))
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            config.resumption = Resumption::in_memory_sessions(RESUMABLE_MAX);
            Arc::new(config)
        });
        Ok(Self { frames, websocket })
    }

    /// For one of the transports.
    pub fn config(&self, websocket: bool) -> &Arc<ClientConfig> {
        if websocket { &self.websocket } else { &self.frames }
    }
}

/// The authorities' certificates in a file, in PEM form; one at least.
pub(crate) fn roots(ca: &Path) -> Result<RootCertStore> {
    let name = ca.display();
    let pem = fs::read(ca).with_context(|| format!("cannot read {name}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.with_context(|| format!("{name} is not in PEM form"))?;
        roots.add(certificate).with_context(|| format!("{name} holds a certificate of no use"))?;
    }
    ensure!(!roots.is_empty(), "{name} holds no certificate");
    Ok(roots)
}

/// The name that a server's certificate must have: the host of `host:port`.
///
/// # Errors
/// When it is neither a name nor an address.
pub fn server_name(address: &str) -> Result<ServerName<'static>> {
    let host = host(address);
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(address.into()));
    }
    ServerName::try_from(host.to_owned()).with_context(|| format!("{host:?} is no name of a server"))
}

/// The name in `host:port`, or the address in `[host]:port`.
pub(crate) fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_goes_by_the_host_of_its_address() {
        for (address, name) in [
            ("localhost:8005", "localhost"),
            ("127.0.0.1:8005", "127.0.0.1"),
            ("[::1]:8005", "::1"),
            ("chat.example", "chat.example"),
        ] {
            assert_eq!(server_name(address).unwrap().to_str(), name);
        }
        assert!(server_name("no name:1").is_err());
    }

    #[test]
    fn files_without_an_authority_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(format!("{:#}", Trust::read(&path).unwrap_err()).contains("cannot read"));
        fs::write(&path, "nothing").unwrap();
        assert!(format!("{:#}", Trust::read(&path).unwrap_err()).contains("holds no certificate"));
    }
}
