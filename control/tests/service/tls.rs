//! TLS in front of both listeners, and client certificates in place of keys.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use gimbal_control::{Config, ControlServer, api_key::Role, config::Tls};
use gimbal_rpc::v1::{self, admin_client::AdminClient, rooms_client::RoomsClient};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::rig::{Rig, WAIT, config, keyed};

/// An authority and what it has signed, in PEM form.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key.
    pub(super) fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A server for localhost, whose clients may bring certificates of `clients`.
    fn config(&self, dir: &Path, clients: &[(&str, Role)]) -> Config {
        let (certificate, key) = self.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth);
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let clients: BTreeMap<_, _> = clients.iter().map(|&(name, role)| (name.to_owned(), role)).collect();
        let tls = Tls {
            certificate: file("server.pem", &certificate),
            key: file("server.key", &key),
            client_ca: if clients.is_empty() { None } else { file("ca.pem", &self.pem) },
            clients,
            ..Tls::default()
        };
        Config { tls, ..config(dir) }
    }

    /// A client that trusts this authority.
    async fn channel(
        &self,
        server: &ControlServer,
        client: Option<&str>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pem));
        if let Some(name) = client {
            let (certificate, key) = self.sign(name, ExtendedKeyUsagePurpose::ClientAuth);
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let url = format!("https://localhost:{}", server.grpc_address().port());
        Endpoint::from_shared(url)?.tls_config(tls)?.connect().await
    }
}

async fn start(config: Config) -> ControlServer {
    ControlServer::start(config.check(true).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_over_tls_and_plain_text_gets_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let server = start(authority.config(dir.path(), &[])).await;
    let mut admin = AdminClient::new(authority.channel(&server, None).await.unwrap());
    admin.stats(keyed("dev", v1::StatsRequest {})).await.unwrap();
    assert!(Authority::new().channel(&server, None).await.is_err(), "a client that trusts another authority");
    let plain = Endpoint::from_shared(format!("http://{}", server.grpc_address())).unwrap();
    let refused = match plain.connect().await {
        Err(_) => true,
        Ok(channel) => AdminClient::new(channel).stats(keyed("dev", v1::StatsRequest {})).await.is_err(),
    };
    assert!(refused);
    let mut page = TcpStream::connect(server.http_address()).await.unwrap();
    page.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = page.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "the pages speak TLS, too");
    drop(admin);
    server.stop(WAIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_stands_for_its_role_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let clients = [("push.example", Role::Backend), ("ops.example", Role::Admin)];
    let server = start(authority.config(dir.path(), &clients)).await;
    let count = v1::CountRequest { room_ids: vec![1] };
    for (client, counts, lists) in [
        (Some("push.example"), Code::Ok, Code::PermissionDenied),
        (Some("ops.example"), Code::PermissionDenied, Code::Ok),
        (Some("other.example"), Code::Unauthenticated, Code::Unauthenticated),
        (None, Code::Unauthenticated, Code::Unauthenticated),
    ] {
        let channel = authority.channel(&server, client).await.unwrap();
        let counted = RoomsClient::new(channel.clone()).count(count.clone()).await;
        assert_eq!(counted.map_or_else(|status| status.code(), |_| Code::Ok), counts, "{client:?}");
        let listed = AdminClient::new(channel.clone()).stats(v1::StatsRequest {}).await;
        assert_eq!(listed.map_or_else(|status| status.code(), |_| Code::Ok), lists, "{client:?}");
        let with_key = RoomsClient::new(channel).count(keyed("dev", count.clone())).await;
        assert!(with_key.is_ok(), "a key is as good: {client:?}");
    }
    let stranger = Authority::new();
    let (certificate, key) = stranger.sign("ops.example", ExtendedKeyUsagePurpose::ClientAuth);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&authority.pem))
        .identity(Identity::from_pem(certificate, key));
    let url = format!("https://localhost:{}", server.grpc_address().port());
    let connected = Endpoint::from_shared(url).unwrap().tls_config(tls).unwrap().connect().await;
    let refused = match connected {
        Err(_) => true,
        Ok(channel) => AdminClient::new(channel).stats(v1::StatsRequest {}).await.is_err(),
    };
    assert!(refused, "a certificate of another authority");
    server.stop(WAIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_certifies_himself_by_a_header() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut request = tonic::Request::new(v1::StatsRequest {});
    request.metadata_mut().insert("gimbal-certified-role", "admin".parse().unwrap());
    let refused = rig.admin().stats(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_does_not_come_ends_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let mut config = authority.config(dir.path(), &[]);
    config.limits.handshake_deadline = Duration::from_millis(500);
    config.tls.http = false;
    let server = start(config).await;
    for begun in [&b""[..], b"\x16\x03\x01"] {
        let mut socket = TcpStream::connect(server.grpc_address()).await.unwrap();
        socket.write_all(begun).await.unwrap();
        let ended = tokio::time::timeout(WAIT, socket.read(&mut [0; 16])).await.expect("it ends");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    // The listener of pages has the same deadline, which a busy machine may miss: it is asked again.
    let counted = async {
        loop {
            let mut answer = String::new();
            if let Ok(mut page) = TcpStream::connect(server.http_address()).await {
                let request = b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
                let _ = page.write_all(request).await;
                let _ = page.read_to_string(&mut answer).await;
            }
            if answer.contains("gimbal_control_dropped_total{reason=\"tls_late\"} 2") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WAIT, counted).await.expect("both are counted");
    server.stop(WAIT).await;
}

#[test]
fn halves_of_tls_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Authority::new().config(dir.path(), &[("a.example", Role::Admin)]);
    assert!(whole.clone().check(true).is_ok());
    let broken = |tls: Tls| Config { tls, ..whole.clone() }.check(true).err().unwrap().to_string();
    let tls = &whole.tls;
    assert!(broken(Tls { key: None, ..tls.clone() }).contains("tls.key must be set"));
    assert!(broken(Tls { certificate: None, ..tls.clone() }).contains("tls.certificate must be set"));
    assert!(broken(Tls { client_ca: None, ..tls.clone() }).contains("tls.clients need"));
    let absent = Some(dir.path().join("absent"));
    assert!(broken(Tls { certificate: absent, ..tls.clone() }).starts_with("control.tls: cannot read"));
    for origin in ["app.example", "https://", "https://*", "https://a/b", "*"] {
        let config = Config { cors_origins: vec![origin.into()], ..whole.clone() };
        assert!(config.check(true).err().unwrap().to_string().contains("cors_origins"), "{origin}");
    }
}
