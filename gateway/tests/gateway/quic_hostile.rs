//! Peers over QUIC that do what they should not: each gets its close code or its counter, and harms nobody.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gimbal_codec::CloseReason;
use quinn::ConnectionError;
use quinn_proto::{ConnectionHandle, EndpointConfig};

use crate::quic_client::{ALPN, Quicly, closed, wait};
use crate::support::eventually;

/// The first datagram of a connection, of a client that is never heard of again.
fn initial(quic: &Quicly) -> Vec<u8> {
    let config = Arc::new(EndpointConfig::default());
    let mut endpoint = quinn_proto::Endpoint::new(config, None, false, None);
    #[expect(clippy::disallowed_methods, reason = "a client has a clock of its own")]
    let now = Instant::now();
    let config = quic.client_config(Some(ALPN));
    let (ConnectionHandle(_), mut connection) =
        endpoint.connect(now, config, quic.address(), "localhost").unwrap();
    let mut datagram = Vec::new();
    let _ = connection.poll_transmit(now, 1, &mut datagram).unwrap();
    assert_eq!(datagram.len(), 1200);
    datagram
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// What has arrived, in bytes.
fn arrived(socket: &UdpSocket) -> usize {
    let mut chunk = [0; 65536];
    let mut total = 0;
    while let Ok((bytes, _)) = socket.recv_from(&mut chunk) {
        total += bytes;
    }
    total
}

fn count(quic: &Quicly, what: &str) -> u64 {
    quic.world.server.metrics().total(what).unwrap()
}

#[test]
fn a_peer_that_never_answers_is_sent_at_most_three_times_its_bytes() {
    let quic = Quicly::new(|config| config.sign_in_deadline = Duration::from_millis(1500));
    let silent = socket();
    silent.send_to(&initial(&quic), quic.address()).unwrap();
    // The handshake is given up only after it was repeated.
    quic.world.await_dropped("quic_handshake_deadline", 1);
    let bytes = arrived(&silent);
    println!("{bytes} bytes for one datagram of 1200");
    assert!((1..=3 * 1200).contains(&bytes), "{bytes} bytes");
    assert_eq!(quic.world.server.metrics().connections(), 0);
}

#[test]
fn beyond_a_number_of_handshakes_addresses_are_to_be_shown_first() {
    let quic = Quicly::new(|config| {
        config.quic.retry_from = 4;
        config.quic.handshakes_max = 1000;
        config.sign_in_deadline = Duration::from_secs(600);
    });
    let silent = socket();
    for _ in 0..50 {
        silent.send_to(&initial(&quic), quic.address()).unwrap();
    }
    eventually(|| count(&quic, "quic_retries") == 46, "retries");
    // Who answers is let in, flood or not.
    let mut client = quic.online(1);
    assert!(client.flush().is_empty());
    assert!(count(&quic, "quic_retries") >= 47);
    assert_eq!(count(&quic, "quic_handshakes"), 1);
}

#[test]
fn beyond_the_bound_of_handshakes_nobody_is_answered() {
    let quic = Quicly::new(|config| {
        config.quic.retry_from = 1000;
        config.quic.handshakes_max = 3;
        config.sign_in_deadline = Duration::from_secs(600);
    });
    for _ in 0..10 {
        socket().send_to(&initial(&quic), quic.address()).unwrap();
    }
    quic.world.await_dropped("quic_handshake_over_limit", 7);
    let late = socket();
    late.send_to(&initial(&quic), quic.address()).unwrap();
    quic.world.await_dropped("quic_handshake_over_limit", 8);
    assert_eq!(arrived(&late), 0);
}

#[test]
fn who_speaks_another_protocol_is_refused_in_the_handshake() {
    let quic = Quicly::new(|_| {});
    for alpn in [Some(&b"h3"[..]), None] {
        match quic.try_connect(quic.client_config(alpn)) {
            // The alert no_application_protocol (RFC 9001, 8.1).
            Err(ConnectionError::ConnectionClosed(close)) => {
                assert_eq!(u64::from(close.error_code), 0x100 + 120, "{close}");
            }
            other => panic!("{:?}", other.map(|_| "connected")),
        }
    }
    quic.world.await_dropped("quic_handshake_failed", 2);
    assert!(quic.online(1).flush().is_empty());
}

#[test]
fn bad_frames_get_the_codes_they_get_on_tcp() {
    let quic = Quicly::new(|_| {});
    let mut neighbour = quic.online(1);
    let cases: [(&[u8], CloseReason); 5] = [
        (&[0], CloseReason::EmptyFrame),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], CloseReason::BadLength),
        (&[0x81, 0x08], CloseReason::FrameTooLarge),
        (&[3, 0xff, 0xff, 0xff], CloseReason::BadPacket),
        (&[6, 0x10, 0x01, 0x1a, 2, 0x0a, 9], CloseReason::BadBody),
    ];
    for (bytes, reason) in cases {
        let mut client = quic.connect();
        crate::support::Wire::write_all(&mut client.socket, bytes).unwrap();
        assert_eq!(client.close_code(), reason.code(), "{bytes:?}");
        assert_eq!(client.socket.closed(), (reason.code().into(), reason.text().to_owned()));
        quic.world.await_closed(reason, 1);
    }
    let mut online = quic.online(2);
    online.write(&[0x81, 0x80, 0x80, 0x01]);
    assert_eq!(online.close_code(), CloseReason::FrameTooLarge.code());
    assert!(neighbour.flush().is_empty());
    quic.world.await_connections(1);
}

#[test]
fn who_never_opens_a_stream_is_closed_at_the_sign_in_deadline() {
    let quic = Quicly::new(|config| config.sign_in_deadline = Duration::from_secs(2));
    // The deadline is that of the handshake, too, which a slow machine may miss.
    let (_endpoint, connection) = loop {
        if let Ok(connected) = quic.try_connect(quic.client_config(Some(ALPN))) {
            break connected;
        }
    };
    assert_eq!(closed(&connection), (4002, "sign_in_deadline".to_owned()));
    quic.world.await_closed(CloseReason::SignInDeadline, 1);
    quic.world.await_connections(0);
}

#[test]
fn a_stream_that_breaks_off_within_a_frame_ends_its_session_alone() {
    let quic = Quicly::new(|_| {});
    let mut neighbour = quic.online(1);
    let mut client = quic.online(2);
    client.write(&[50, 1, 2, 3]);
    client.socket.send.reset(7u32.into()).unwrap();
    quic.world.await_dropped("quic_stream_reset", 1);
    quic.world.await_dropped("peer_gone", 1);
    // There is no code for what the peer has ended itself.
    assert_eq!(client.socket.closed(), (0, String::new()));
    quic.world.await_connections(1);
    assert!(neighbour.flush().is_empty());
    eventually(|| quic.world.server.metrics().partial_frame_bytes() == 0, "partial frames");
}

#[test]
fn one_stream_is_all_there_is() {
    let quic = Quicly::new(|_| {});
    let mut client = quic.online(1);
    let connection = client.socket.connection.clone();
    assert_eq!(connection.max_datagram_size(), None, "datagrams are not taken");
    let (mut second, mut one_way) = (Box::pin(connection.open_bi()), Box::pin(connection.open_uni()));
    for _ in 0..3 {
        assert!(client.flush().is_empty());
        let granted = wait(async {
            let second = std::future::poll_fn(|context| {
                std::task::Poll::Ready(second.as_mut().poll(context).is_ready())
            });
            let one_way = std::future::poll_fn(|context| {
                std::task::Poll::Ready(one_way.as_mut().poll(context).is_ready())
            });
            (second.await, one_way.await)
        });
        assert_eq!(granted, (false, false));
    }
}

#[test]
fn datagrams_of_nobody_are_counted_and_forgotten() {
    let quic = Quicly::new(|_| {});
    let mut neighbour = quic.online(1);
    let stranger = socket();
    let mut random = 1u64;
    let mut sent = 0;
    for length in (1..1400).step_by(7) {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            bytes.push((random >> 56) as u8);
        }
        stranger.send_to(&bytes, quic.address()).unwrap();
        sent += bytes.len();
    }
    // A short header asks for nothing but may be answered by a reset; a long one of a version of its own by ours.
    let mut initial = initial(&quic);
    initial[6] ^= 0xff;
    stranger.send_to(&initial[..600], quic.address()).unwrap();
    quic.world.await_dropped("quic_datagram_ignored", 20);
    assert!(neighbour.flush().is_empty());
    assert!(arrived(&stranger) <= 3 * sent);
    assert_eq!(count(&quic, "quic_handshakes"), 1);
    quic.world.await_connections(1);
}

#[test]
fn connections_of_one_address_are_bounded() {
    let quic = Quicly::new(|config| {
        config.connections_unlimited_from = Vec::new();
        config.connections_per_address = 2;
    });
    let _first = quic.online(1);
    let mut on_tcp = quic.world.online(2);
    let (_endpoint, third) = quic.connection();
    assert_eq!(closed(&third), (4102, "overloaded".to_owned()));
    quic.world.await_dropped("connection_per_address", 1);
    assert!(on_tcp.flush().is_empty());
}

#[test]
fn connections_over_quic_are_bounded_by_themselves() {
    let quic = Quicly::new(|config| config.quic.connections_max = 1);
    let mut first = quic.online(1);
    match quic.try_connect(quic.client_config(Some(ALPN))) {
        Err(ConnectionError::ConnectionClosed(close)) => {
            assert_eq!(u64::from(close.error_code), 2, "{close}")
        }
        other => panic!("{:?}", other.map(|_| "connected")),
    }
    quic.world.await_dropped("connection_over_limit", 1);
    assert!(first.flush().is_empty());
}
