//! TLS of the listeners: certificate, key and client authority from files, read again when they change; and who a client
//! certificate stands for.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Count;
use crate::api_key::Role;

/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Longer files are no certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where everything is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// PEM: the server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// PEM: authorities whose client certificates are taken; absent: none are asked for.
    pub client_ca: Option<PathBuf>,
    /// What a client certificate may do, by a DNS name of its subject alternative names.
    pub clients: BTreeMap<String, Role>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path:?}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path:?} holds no {what} in PEM form")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The parts do not make a whole: a key of another certificate, as a rule.
    #[error("certificate and key are of no use: {0}")]
    Unusable(#[from] rustls::Error),
    /// The client authority is of no use.
    #[error("client_ca is of no use: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A listener's TLS. Clones share it.
#[derive(Clone)]
pub(crate) struct Tls {
    files: Arc<TlsFiles>,
    config: Arc<ArcSwap<ServerConfig>>,
    handshakes: Arc<Semaphore>,
}

impl Tls {
    /// Reads the files; at most `handshakes_max` handshakes at a time.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn open(files: TlsFiles, handshakes_max: usize) -> Result<Self, TlsError> {
        let config = Arc::new(ArcSwap::from(load(&files)?));
        let handshakes = Arc::new(Semaphore::new(handshakes_max.max(1)));
        Ok(Self { files: Arc::new(files), config, handshakes })
    }

    /// Carries out one handshake within `deadline`.
    ///
    /// # Errors
    /// What to count.
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
        deadline: Duration,
    ) -> Result<(TlsStream<TcpStream>, Option<Role>), &'static str> {
        let _place = self.handshakes.try_acquire().map_err(|_| "tls_handshakes_full")?;
        let accepting = TlsAcceptor::from(self.config.load_full()).accept(socket);
        let stream =
            tokio::time::timeout(deadline, accepting).await.map_err(|_| "tls_late")?.map_err(|error| {
                tracing::debug!(%error, "TLS");
                "tls_failed"
            })?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let role = certificate.and_then(|certificate| self.role(certificate));
        Ok((stream, role))
    }

    /// The first name of the certificate that stands for something.
    fn role(&self, certificate: &CertificateDer<'_>) -> Option<Role> {
        let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
        certificate.valid_dns_names().find_map(|name| self.files.clients.get(name)).copied()
    }

    /// Reads the files anew whenever they have changed. What cannot be used is told and leaves the old in place.
    pub(crate) async fn follow(self, count: Count) {
        let mut seen = state(&self.files);
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            self.look(&mut seen, &count).await;
        }
    }

    async fn look(&self, seen: &mut Vec<Option<Stamp>>, count: &Count) {
        let files = Arc::clone(&self.files);
        let looked = tokio::task::spawn_blocking(move || (state(&files), load(&files)));
        let Ok((now, loaded)) = looked.await else { return };
        if now == *seen {
            return;
        }
        *seen = now;
        match loaded {
            Ok(config) => {
                self.config.store(config);
                tracing::info!(certificate = %self.files.certificate.display(), "TLS files read again");
            }
            Err(error) => {
                count("tls_reload_failed");
                tracing::error!(%error, "TLS files have changed and are of no use: the old ones stay");
            }
        }
    }
}

/// Time of the last change and length.
type Stamp = (SystemTime, u64);

fn state(files: &TlsFiles) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let file = fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    };
    [&files.certificate, &files.key].into_iter().chain(&files.client_ca).map(stamp).collect()
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&files.certificate)?;
    let pem = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| TlsError::NotPem { path: files.key.clone(), what: "private key" })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(TlsError::NotPem { path: path.into(), what: "certificate" }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |cause| TlsError::Unreadable { path: path.into(), cause };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other("longer than 1 MiB: is this the right file?")));
    }
    fs::read(path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate for `name`, signed by itself, in files below `dir`.
    fn files(dir: &Path, name: &str) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let [certificate, key] = ["certificate.pem", "key.pem"].map(|file| dir.join(file));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        TlsFiles { certificate, key, client_ca: None, clients: BTreeMap::new() }
    }

    #[test]
    fn files_that_make_no_whole_are_refused_by_name() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (good, foreign) = (files(one.path(), "a.example"), files(other.path(), "b.example"));
        assert!(Tls::open(good.clone(), 1).is_ok());
        let why = |files: TlsFiles| Tls::open(files, 1).err().unwrap().to_string();
        let mixed = TlsFiles { key: foreign.key.clone(), ..good.clone() };
        assert!(why(mixed).starts_with("certificate and key are of no use"));
        let swapped = TlsFiles { certificate: good.key.clone(), ..good.clone() };
        assert!(why(swapped).contains("holds no certificate"));
        let absent = TlsFiles { key: one.path().join("absent"), ..good.clone() };
        assert!(why(absent).contains("cannot read"));
        let keyless = TlsFiles { key: good.certificate.clone(), ..good };
        assert!(why(keyless).contains("holds no private key"));
    }

    #[test]
    fn a_certificate_stands_for_what_is_listed_by_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path(), "push.example");
        files.clients.insert("push.example".into(), Role::Backend);
        let tls = Tls::open(files, 1).unwrap();
        let of = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            tls.role(made.cert.der())
        };
        assert_eq!((of("push.example"), of("other.example")), (Some(Role::Backend), None));
    }

    #[tokio::test]
    async fn changed_files_are_read_and_bad_ones_leave_the_old_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let tls = Tls::open(files(dir.path(), "a.example"), 1).unwrap();
        let counted = Arc::new(std::sync::Mutex::new(Vec::new()));
        let of_count = Arc::clone(&counted);
        let count: Count = Arc::new(move |reason| of_count.lock().unwrap().push(reason));
        let mut seen = state(&tls.files);
        let first = tls.config.load_full();
        tls.look(&mut seen, &count).await;
        assert!(Arc::ptr_eq(&first, &tls.config.load_full()), "nothing has changed");
        fs::write(&tls.files.key, "no key").unwrap();
        tls.look(&mut seen, &count).await;
        assert!(Arc::ptr_eq(&first, &tls.config.load_full()));
        assert_eq!(*counted.lock().unwrap(), ["tls_reload_failed"]);
        files(dir.path(), "longer-name.example");
        tls.look(&mut seen, &count).await;
        assert!(!Arc::ptr_eq(&first, &tls.config.load_full()));
    }
}
