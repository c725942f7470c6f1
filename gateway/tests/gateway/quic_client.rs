//! A client over QUIC, on quinn: for tests that are about QUIC alone it shows what is under the stream.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gimbal_gateway::config::{Config, Quic, Tls};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig, VarInt,
};
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::support::{Client, PATIENCE, Wire, World, config};

/// What clients of the gateway name.
pub(crate) const ALPN: &[u8] = b"gimbal-quic";

/// Drives all clients of the tests.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    })
}

/// Waits for `future`, as long as the tests wait for anything.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    runtime().block_on(async { tokio::time::timeout(PATIENCE, future).await }).expect("within patience")
}

/// A certificate of its own and a gateway that shows it.
pub(crate) struct Quicly {
    pub(crate) world: World,
    certificate: CertificateDer<'static>,
    folder: TempDir,
}

/// Writes a certificate for `localhost` and its key into `folder`.
fn certify(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

impl Quicly {
    /// With the settings that `change` makes of the usual ones.
    pub(crate) fn new(change: impl FnOnce(&mut Config)) -> Self {
        let folder = TempDir::new().unwrap();
        let certificate = certify(folder.path());
        let mut config = config();
        config.tls = Tls {
            certificate: Some(folder.path().join("cert.pem")),
            key: Some(folder.path().join("key.pem")),
            listen: None,
            websocket_listen: None,
            ..Tls::default()
        };
        config.quic = Quic { listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..Quic::default() };
        change(&mut config);
        Self { world: World::new(&config), certificate, folder }
    }

    /// Puts another certificate in place, which clients trust from here on.
    pub(crate) fn certify_anew(&mut self) {
        self.certificate = certify(self.folder.path());
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.world.server.quic_addr().unwrap()
    }

    /// A client that names `alpn`, if anything.
    pub(crate) fn client_config(&self, alpn: Option<&[u8]>) -> ClientConfig {
        trusting(&self.certificate, alpn)
    }

    /// What the gateway shows.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Tries to connect.
    pub(crate) fn try_connect(
        &self,
        config: ClientConfig,
    ) -> Result<(Endpoint, Connection), ConnectionError> {
        let _inside = runtime().enter();
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let connecting = endpoint.connect_with(config, self.address(), "localhost").unwrap();
        wait(connecting).map(|connection| (endpoint, connection))
    }

    /// A connection without a stream.
    pub(crate) fn connection(&self) -> (Endpoint, Connection) {
        self.try_connect(self.client_config(Some(ALPN))).unwrap()
    }

    pub(crate) fn connect(&self) -> Client<QuicWire> {
        let (endpoint, connection) = self.connection();
        let (send, recv) = wait(connection.open_bi()).unwrap();
        let patience = PATIENCE;
        Client::over(QuicWire { endpoint, connection, send, recv, patience })
    }

    /// A signed-in client without a cursor.
    pub(crate) fn online(&self, user: u64) -> Client<QuicWire> {
        self.online_as(user, user, None)
    }

    pub(crate) fn online_as(&self, user: u64, device: u64, cursor: Option<u64>) -> Client<QuicWire> {
        let mut client = self.connect();
        client.sign_in(user, device, crate::support::TOKEN, cursor);
        let answer = client.packet().unwrap();
        assert!(answer.is(gimbal_codec::Command::SignIn), "{answer:?}");
        client
    }
}

/// A client that trusts `certificate` and names `alpn`, if anything.
pub(crate) fn trusting(certificate: &CertificateDer<'static>, alpn: Option<&[u8]>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    // What a client that does not read takes: little, so that the tests need not send much.
    transport.stream_receive_window(VarInt::from_u32(64 << 10)).max_idle_timeout(None);
    config.transport_config(Arc::new(transport));
    config
}

/// One stream.
pub(crate) struct QuicWire {
    endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    recv: RecvStream,
    patience: Duration,
}

impl QuicWire {
    /// From here on the client is at another address.
    pub(crate) fn rebind(&self) {
        let _inside = runtime().enter();
        let before = self.endpoint.local_addr().unwrap();
        self.endpoint.rebind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        assert_ne!(self.endpoint.local_addr().unwrap(), before);
    }

    /// How the server ended the connection: its code and words.
    pub(crate) fn closed(&self) -> (u64, String) {
        closed(&self.connection)
    }
}

/// As [`QuicWire::closed`].
pub(crate) fn closed(connection: &Connection) -> (u64, String) {
    match wait(connection.closed()) {
        ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
        }
        other => panic!("{other}"),
    }
}

impl Wire for QuicWire {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let read =
            runtime().block_on(async { tokio::time::timeout(self.patience, self.recv.read(chunk)).await });
        match read {
            Ok(Ok(bytes)) => Ok(bytes.unwrap_or(0)),
            Ok(Err(quinn::ReadError::ConnectionLost(ConnectionError::ApplicationClosed(_)))) => Ok(0),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        wait(self.send.write_all(bytes)).map_err(io::Error::other)
    }

    fn shutdown_write(&mut self) {
        self.send.finish().unwrap();
    }

    fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }
}
