//! The server's certificate: read from files, and read again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use crate::error::{StartError, TlsError};

/// The files are looked at this often.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// What TLS clients that name a protocol may name (RFC 7301): frames, and HTTP/1.1 for the request of a WebSocket.
const ALPN_FRAMES: &[u8] = b"gimbal";
/// What QUIC clients have to name (RFC 9001, 8.1).
const ALPN_QUIC: &[u8] = b"gimbal-quic";
const ALPN_HTTP: &[u8] = b"http/1.1";

/// How connections are encrypted, by what they carry.
#[derive(Clone, Debug)]
pub(crate) struct Configs {
    pub(crate) frames: Arc<ServerConfig>,
    pub(crate) websocket: Arc<ServerConfig>,
    /// For QUIC, which is never begun with data of a client that is not known yet (0-RTT).
    pub(crate) quic: Arc<ServerConfig>,
}

/// A certificate chain and its key, in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Looks after the files until it is dropped.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Shown in every handshake.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Reads the files and looks after them from now on.
///
/// # Errors
/// What is wrong with a file, or that the system has no random bytes or thread.
pub(crate) fn start(files: Files) -> Result<(Configs, Watch), StartError> {
    let before = times(&files);
    let current = Arc::new(Current(ArcSwap::from_pointee(read(&files)?)));
    let configs = configs(&current).map_err(TlsError::Setup)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = thread::Builder::new()
        .name("gimbal-certificate".to_owned())
        .spawn(move || watch(&files, before, &current, &stopped))
        .map_err(TlsError::Thread)?;
    Ok((configs, Watch { stop, thread: Some(thread) }))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // it has nothing to say
        }
    }
}

fn watch(files: &Files, before: [Option<SystemTime>; 2], current: &Current, stop: &AtomicBool) {
    let mut seen = before;
    while !stop.load(Ordering::Acquire) {
        thread::park_timeout(LOOK_PERIOD);
        let now = times(files);
        if now == seen {
            continue;
        }
        seen = now;
        match read(files) {
            Ok(key) => {
                current.0.store(Arc::new(key));
                tracing::info!(certificate = %files.certificate.display(), "certificate read again");
            }
            // Both files change one after the other: a pair that does not match yet is looked at again.
            Err(error) => tracing::warn!(%error, "the certificate in use is kept"),
        }
    }
}

fn times(files: &Files) -> [Option<SystemTime>; 2] {
    let time = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    [time(&files.certificate), time(&files.key)]
}

fn read(files: &Files) -> Result<CertifiedKey, TlsError> {
    let bad = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.certificate)
        .map_err(bad(&files.certificate))?
        .collect::<Result<_, _>>()
        .map_err(bad(&files.certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: files.certificate.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(bad(&files.key))?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(TlsError::Setup)
}

fn configs(current: &Arc<Current>) -> Result<Configs, rustls::Error> {
    let ticketer = Ticketer::new()?;
    let make = |protocol: &[u8],
                versions: &[&'static SupportedProtocolVersion]|
     -> Result<Arc<ServerConfig>, rustls::Error> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(current) as _;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![protocol.to_vec()];
        // Resumption by tickets alone: a session that is over owns nothing here.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&ticketer);
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    };
    let either = [&TLS13, &TLS12];
    Ok(Configs {
        frames: make(ALPN_FRAMES, &either)?,
        websocket: make(ALPN_HTTP, &either)?,
        quic: make(ALPN_QUIC, &[&TLS13])?,
    })
}
