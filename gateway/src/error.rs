//! Why a gateway does not start. A fault of a peer is a close reason, never an error here.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::link::RemoteError;

/// A setting is out of its bounds.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name} is {value}; it must be {min} to {max}")]
pub struct ConfigError {
    /// Of the setting.
    pub name: &'static str,
    /// As configured.
    pub value: String,
    /// Smallest allowed value.
    pub min: String,
    /// Largest allowed value.
    pub max: String,
}

impl ConfigError {
    /// For a setting that is no number.
    pub(crate) fn text(name: &'static str, value: &str, min: &str, max: &str) -> Self {
        Self { name, value: format!("{value:?}"), min: min.to_owned(), max: max.to_owned() }
    }
}

/// Why a gateway does not start: one paragraph that says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of its bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something else listens there, or the address is not this machine's.
    #[error(
        "cannot listen on {address}: {source}. Stop what listens there (`ss -ltnp` shows it) or set another `listen`."
    )]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// No ring.
    #[error("cannot set up io_uring: {source}. In words: {advice}.")]
    Ring {
        /// What the system says.
        source: io::Error,
        /// What it means and how to mend it.
        advice: &'static str,
    },
    /// No descriptor, no thread, or no executor.
    #[error("cannot start shard {shard}: {source}")]
    Shard {
        /// From 0.
        shard: u8,
        /// What the system says.
        source: io::Error,
    },
    /// No certificate to show.
    #[error("no TLS: {0}. `gateway.tls` names the files")]
    Tls(#[from] TlsError),
    /// The remote link is not configured well.
    #[error(transparent)]
    Link(#[from] RemoteError),
}

/// What is wrong with the certificate, or with TLS as such.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{}: {source}", path.display())]
    File {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// PEM without a certificate in it.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// As configured.
        path: PathBuf,
    },
    /// It does not speak what QUIC begins with.
    #[error("no QUIC with it: {0}")]
    Quic(quinn_proto::crypto::rustls::NoInitialCipherSuite),
    /// The key is not that of the certificate, or of a kind that is not known.
    #[error("certificate and key cannot be used: {0}")]
    Setup(rustls::Error),
    /// Nobody looks after the files.
    #[error("no thread: {0}")]
    Thread(io::Error),
}
