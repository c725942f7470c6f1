//! Against rustls's own client: the same bytes whatever the split, the end told, and what is no TLS refused.

use std::io::{Read as _, Write as _};
use std::path::Path;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;
use crate::certificate::{Configs, Files, start};

fn configs() -> Configs {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
    start(Files { certificate: dir.join("one.pem"), key: dir.join("one.key") }).unwrap().0
}

fn client(version: &'static SupportedProtocolVersion, protocol: &[u8]) -> ClientConnection {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates/one.pem");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// Both ends, and what each has heard.
struct Pair {
    client: ClientConnection,
    server: Tls,
    heard: Vec<u8>,
    told: Vec<u8>,
    received: Received,
}

impl Pair {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let server = Tls::new(&configs().frames).unwrap();
        let client = client(version, b"gimbal");
        Self { client, server, heard: Vec::new(), told: Vec::new(), received: Received::More }
    }

    /// Carries bytes both ways in pieces of `size` until both are silent. The socket takes all but one byte at first.
    fn exchange(&mut self, size: usize) {
        loop {
            let mut sent = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut sent).unwrap();
            }
            for piece in sent.chunks_mut(size) {
                let received = self.server.receive(piece, &mut self.heard);
                if received != Received::More {
                    self.received = received;
                }
                assert!(self.server.allocated() <= 2 * RECORD_BYTES_MAX + 4096);
            }
            let mut is_silent = sent.is_empty();
            while let Some(records) = self.server.next_send() {
                is_silent = false;
                let taken = (records.len() - 1).max(1);
                self.hear(&records[..taken]);
                self.server.sent(taken);
            }
            if is_silent {
                return;
            }
        }
    }

    /// The client takes records.
    fn hear(&mut self, mut records: &[u8]) {
        while !records.is_empty() {
            self.client.read_tls(&mut records).unwrap();
            let state = self.client.process_new_packets().unwrap();
            let start = self.told.len();
            self.told.resize(start + state.plaintext_bytes_to_read(), 0);
            self.client.reader().read_exact(&mut self.told[start..]).unwrap();
        }
    }
}

#[test]
fn both_sides_hear_what_the_other_says_at_any_split() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for size in [1, 7, 1400, 40_000] {
            let mut pair = Pair::new(version);
            pair.exchange(size);
            assert!(pair.server.is_open() && !pair.client.is_handshaking(), "{version:?} {size}");
            assert_eq!(pair.client.alpn_protocol(), Some(&b"gimbal"[..]));
            let said: Vec<u8> = (0..60_000u32).map(|number| number as u8).collect();
            for part in said.chunks(20_000) {
                pair.client.writer().write_all(part).unwrap();
                pair.exchange(size);
            }
            assert!(pair.heard == said, "{version:?} {size}");
            assert_eq!(pair.server.allocated(), 0, "nothing is kept between records");

            let records = pair.server.encrypt(&said, true).unwrap();
            pair.hear(&records[..10]);
            assert_eq!(pair.server.sent(10), None);
            let rest = pair.server.next_send().unwrap();
            pair.hear(&rest);
            assert_eq!(pair.server.sent(rest.len()), Some(said.len()));
            assert!(pair.told == said && !pair.server.has_unsent());
            assert_eq!(pair.client.reader().read(&mut [0]).unwrap(), 0, "the end is told");
            pair.client.send_close_notify();
            pair.exchange(size);
            assert_eq!(pair.received, Received::Eof);
        }
    }
}

#[test]
fn what_is_no_tls_fails_with_an_alert_and_an_endless_greeting_is_bounded() {
    let config = configs().frames;
    for bytes in [&b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x16; 600], &[0x16, 3, 1, 0xff, 0xff]] {
        let mut tls = Tls::new(&config).unwrap();
        let received = tls.receive(&mut bytes.to_vec(), &mut Vec::new());
        assert_eq!((received, tls.is_open()), (Received::Failed, false), "{bytes:02x?}");
        assert!(tls.next_send().is_some_and(|alert| alert[0] == 21), "{bytes:02x?}");
    }
    let mut tls = Tls::new(&config).unwrap();
    assert!((0..10_000).any(|_| !tls.keep(&[0x16; 100])), "kept without end");
}

#[test]
fn another_protocol_than_ours_is_refused() {
    let mut client = client(&rustls::version::TLS13, b"h2");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut tls = Tls::new(&configs().websocket).unwrap();
    assert_eq!(tls.receive(&mut hello, &mut Vec::new()), Received::Failed);
    let records = tls.next_send().unwrap();
    client.read_tls(&mut &records[..]).unwrap();
    let told = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    assert_eq!(client.process_new_packets().unwrap_err(), told);
}

#[test]
fn new_keys_and_empty_records_are_work_and_bytes_are_not_counted_twice() {
    let mut pair = Pair::new(&rustls::version::TLS13);
    pair.exchange(usize::MAX);
    assert!(pair.server.take_work().records > 0, "the handshake");
    for _ in 0..100 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(b"a part of a frame").unwrap();
        pair.exchange(7);
    }
    assert_eq!(pair.received, Received::More, "as long as there are bytes between them");
    assert_eq!(pair.server.take_work(), Work { records: 200, empty: 100 });
    assert_eq!(pair.heard.len(), 1700);
    assert_eq!(pair.server.take_work(), Work::default());
    (0..100).for_each(|_| pair.client.refresh_traffic_keys().unwrap());
    pair.exchange(usize::MAX);
    assert_eq!(pair.received, Received::Failed, "none but new keys");
}
