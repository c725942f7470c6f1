//! WebSocket beside TCP: the same sessions, the same order, the same rooms; and what a hostile peer of its port gets.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use gimbal::websocket::put_frame;
use gimbal_codec::{CloseReason, Command, frame, limits};

use crate::harness::{Api, Client, Device, Event, PATIENCE, Server, Settings, http, server::until};

fn told(messages: &[crate::harness::client::Message]) -> Vec<(u64, u64, Vec<u8>)> {
    messages.iter().map(|message| (message.seq, message.id, message.content.clone())).collect()
}

#[test]
fn one_user_over_both_transports_sees_one_order_through_a_restart() {
    let mut server = Server::start();
    let api = Api::connect(server.grpc);
    let number = Api::phone();
    let (alice, phone, browser) = (api.device(), api.device_of(&number), api.device_of(&number));
    let mut over_tcp = Client::online(server.tcp, &phone);
    let mut over_websocket = Client::websocket_online(server.websocket, &browser, 0);
    let mut sender = Client::websocket_online(server.websocket, &alice, 0);
    for id in 1..=100u64 {
        sender.send(phone.user, id, &id.to_be_bytes()).unwrap();
    }
    let (mut one, mut other) = (over_tcp.receive(100), over_websocket.receive(100));

    server.terminate();
    for client in [&mut over_tcp, &mut over_websocket, &mut sender] {
        assert_eq!(client.closed(), CloseReason::Draining.code());
    }
    let codes = [&over_websocket, &sender].map(|client| client.websocket_closed());
    assert_eq!(codes, [Some(CloseReason::Draining.code()); 2], "the close frame says it too");
    assert!(server.wait().success());
    server.launch();

    let mut sender = Client::online(server.tcp, &alice);
    for id in 101..=150u64 {
        sender.send(phone.user, id, &id.to_be_bytes()).unwrap();
    }
    let mut over_tcp = Client::online_from(server.tcp, &phone, 100);
    let mut over_websocket = Client::websocket_online(server.websocket, &browser, 100);
    sender.send(phone.user, 151, b"live").unwrap();
    one.extend(over_tcp.receive(51));
    other.extend(over_websocket.receive(51));
    assert_eq!(told(&one), told(&other));
    assert_eq!(one.iter().map(|message| message.seq).collect::<Vec<_>>(), (1..=151).collect::<Vec<_>>());
}

#[test]
fn a_room_of_both_transports_hears_the_same_and_signals_cross() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let mut members: Vec<Client> = (0..32)
        .map(|number| match number % 2 {
            0 => Client::online(server.tcp, &api.device()),
            _ => Client::websocket_online(server.websocket, &api.device(), 0),
        })
        .collect();
    members.iter_mut().for_each(|client| client.join(&[9]).unwrap());
    assert!(until(|| api.publish(9, b"warm").gateways == 1));
    // Short ones, and some whose length takes every form.
    let sizes = [1usize, 90, 125, 126, 127, 300, 16_383, 60_000];
    for (number, size) in sizes.into_iter().enumerate() {
        api.publish(9, &vec![number as u8; size]);
    }
    for client in &mut members {
        let mut got = Vec::new();
        while got.len() < sizes.len() {
            got.extend(client.receive(1).into_iter().filter(|message| message.content != b"warm"));
        }
        let heard: Vec<usize> = got.iter().map(|message| message.content.len()).collect();
        assert_eq!(heard, sizes);
    }
    let signal = gimbal_codec::body::Signal {
        room: gimbal_codec::RoomId::new(9),
        command: 5,
        content: b"hand up",
        ..Default::default()
    };
    members[1].request(Command::Signal, &signal);
    for (number, client) in members.iter_mut().enumerate().filter(|(number, _)| *number != 1) {
        let mut got = Vec::new();
        assert!(until(|| {
            got.extend(client.signals());
            !got.is_empty()
        }));
        assert_eq!(got.len(), 1, "member {number}");
    }
}

#[test]
fn a_slow_websocket_reader_is_shed_from_its_room_and_keeps_its_mailbox() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, sleeper) = (api.device(), api.device());
    let mut slow = Client::websocket_online(server.websocket, &sleeper, 0);
    let mut witness = Client::websocket_online(server.websocket, &api.device(), 0);
    slow.join(&[6]).unwrap();
    witness.join(&[6]).unwrap();
    assert!(until(|| api.publish(6, b"warm").gateways == 1));
    slow.flush();
    while witness.receive(1)[0].content != b"warm" {}
    let content = vec![1; 8 * 1024];
    for _ in 0..1_000 {
        api.publish(6, &content);
        while witness.receive(1)[0].content != content {}
    }
    let mut sender = Client::online(server.tcp, &alice);
    for id in 1..=100u64 {
        sender.send(sleeper.user, id, &id.to_be_bytes()).unwrap();
    }
    assert!(until(|| http::labelled(server.gateway_http, "room_frame_shed") > 0.0));
    let mut stored = Vec::new();
    let mut of_room = 0;
    while slow.cursor() < 100 {
        let message = slow.receive(1).remove(0);
        if message.seq == 0 { of_room += 1 } else { stored.push(message.seq) }
    }
    assert_eq!(stored, (1..=100).collect::<Vec<_>>());
    assert!(of_room < 1_000);
}

/// A WebSocket whose frames the test makes itself.
struct Raw {
    socket: TcpStream,
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

impl Raw {
    fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    /// After the handshake.
    fn open(address: SocketAddr) -> Self {
        let mut raw = Self::connect(address);
        raw.ask(&request(address, "/ws", ""));
        let mut answer = vec![0; RFC_ANSWER.len()];
        raw.socket.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), RFC_ANSWER);
        raw
    }

    fn ask(&mut self, request: &str) {
        self.socket.write_all(request.as_bytes()).unwrap();
    }

    fn write(&mut self, first: u8, payload: &[u8]) {
        let mut out = Vec::new();
        put_frame(&mut out, first, payload, [1, 2, 3, 4]);
        self.socket.write_all(&out).unwrap();
    }

    /// Everything to the end of the stream.
    fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return all,
                Ok(count) => all.extend(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
                Err(error) => panic!("neither bytes nor an end: {error}"),
            }
        }
    }

    /// The frames to the end of the stream: first byte and payload.
    fn frames(&mut self) -> Vec<(u8, Vec<u8>)> {
        let rest = self.rest();
        let (mut frames, mut at) = (Vec::new(), 0);
        while at < rest.len() {
            let (length, head) = match rest[at + 1] {
                126 => (usize::from(u16::from_be_bytes([rest[at + 2], rest[at + 3]])), 4),
                length => (usize::from(length), 2),
            };
            frames.push((rest[at], rest[at + head..at + head + length].to_vec()));
            at += head + length;
        }
        frames
    }
}

/// RFC 6455, 1.3.
const RFC_ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn request(address: SocketAddr, path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// What breaks RFC 6455 or our own rules, and the code of the close frame: our packet says the same before it.
fn hostile() -> Vec<(&'static str, Vec<u8>, u16, CloseReason)> {
    let framed = |first: u8, payload: &[u8]| {
        let mut out = Vec::new();
        put_frame(&mut out, first, payload, [9, 9, 9, 9]);
        out
    };
    let long = vec![1; limits::FRAME_BYTES_MAX_FRESH + 1];
    let parts = [framed(0x02, &long[..600]), framed(0x80, &long[..600])].concat();
    let (broken, text) = (CloseReason::BadWebSocket, CloseReason::BadText);
    let too_large = CloseReason::FrameTooLarge;
    vec![
        ("no mask", vec![0x82, 1, 7], 1002, broken),
        ("a reserved bit", framed(0xc2, b"x"), 1002, broken),
        ("a reserved opcode", framed(0x83, b"x"), 1002, broken),
        ("a continuation of nothing", framed(0x80, b"x"), 1002, broken),
        ("a message within another", [framed(0x02, b"a"), framed(0x82, b"b")].concat(), 1002, broken),
        ("a ping in parts", framed(0x09, b"x"), 1002, broken),
        ("a long ping", framed(0x89, &[7; 126]), 1002, broken),
        ("a close of one byte", framed(0x88, b"x"), 1002, broken),
        ("a close code that nobody may send", framed(0x88, &[0x03, 0xed]), 1002, broken),
        ("a text that is none", framed(0x81, b"\xff\xfe"), 1007, text),
        ("a text that cannot become one", framed(0x01, b"\xed\xa0\x80"), 1007, text),
        ("a long message", framed(0x82, &long), too_large.code(), too_large),
        ("a long message in parts", parts, too_large.code(), too_large),
        (
            "a length of exabytes",
            vec![0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4],
            too_large.code(),
            too_large,
        ),
        ("an empty message", framed(0x82, b""), 4302, CloseReason::EmptyFrame),
        ("no packet", framed(0x82, b"\xff\xff"), 4303, CloseReason::BadPacket),
    ]
}

#[test]
fn what_breaks_the_protocol_is_closed_with_its_code_counted_and_harms_nobody() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let mut witness = Client::websocket_online(server.websocket, &api.device(), 0);
    for (what, bytes, code, reason) in hostile() {
        let before = http::labelled(server.gateway_http, reason.text());
        let mut raw = Raw::open(server.websocket);
        raw.socket.write_all(&bytes).unwrap();
        let frames = raw.frames();
        assert_eq!(frames.len(), 2, "{what}: {frames:02x?}");
        let close = gimbal_codec::body::Close::new(reason, 0);
        assert_eq!(
            (frames[0].0, &frames[0].1[..]),
            (0x82, &frame(Command::Close, "", 0, &close)[1..]),
            "{what}"
        );
        let told = [&code.to_be_bytes()[..], reason.text().as_bytes()].concat();
        assert_eq!(frames[1], (0x88, told), "{what}");
        assert!(
            until(|| http::labelled(server.gateway_http, reason.text()) > before),
            "{what} is not counted"
        );
        witness.heartbeat();
    }
}

#[test]
fn pings_are_answered_and_a_close_is_returned_with_its_code() {
    let server = Server::start();
    let mut raw = Raw::open(server.websocket);
    raw.write(0x89, b"are you there");
    raw.write(0x02, &[0x10]);
    raw.write(0x89, b"");
    raw.write(0x8a, b"nobody asked");
    // The rest of a heartbeat, which is refused before sign-in, as a text: what gim takes as well.
    raw.write(0x80, &[2]);
    raw.write(0x81, &[0x10, 2]);
    raw.write(0x88, &[0x03, 0xe9, b'b', b'y', b'e']);
    let frames = raw.frames();
    let refused = frame(
        Command::Heartbeat,
        "",
        0,
        &gimbal_codec::body::Reply {
            code: gimbal_codec::code::NOT_SIGNED_IN,
            message: "not signed in",
            data: &[],
        },
    );
    let expected = [
        (0x8a, b"are you there".to_vec()),
        (0x8a, Vec::new()),
        (0x82, refused[1..].to_vec()),
        (0x82, refused[1..].to_vec()),
        (0x88, vec![0x03, 0xe9]),
    ];
    assert_eq!(frames, expected);
    let pings = || http::value(server.gateway_http, "gimbal_gateway_websocket_pings_received_total");
    assert!(until(|| pings() == 2.0));
}

#[test]
fn requests_that_are_not_granted_are_answered_in_http_and_counted() {
    let server = Server::start();
    let address = server.websocket;
    let plain = |path: &str, more: &str| request(address, path, more);
    for (request, status, label) in [
        (plain("/", ""), "HTTP/1.1 404 ", "not_found"),
        (plain("/ws", "Origin: https://else.example\r\n"), "HTTP/1.1 403 ", "bad_origin"),
        (plain("/ws", "").replace("GET", "POST"), "HTTP/1.1 405 ", "bad_method"),
        (plain("/ws", "").replace("Version: 13", "Version: 7"), "HTTP/1.1 426 ", "bad_version"),
        (plain("/ws", "").replace(KEY, "c2hvcnQ="), "HTTP/1.1 400 ", "bad_key"),
        (format!("GET /ws HTTP/1.1\r\nHost: {address}\r\n\r\n"), "HTTP/1.1 426 ", "not_upgrade"),
        (plain("/ws", &format!("Cookie: {}\r\n", "c".repeat(9_000))), "HTTP/1.1 431 ", "too_large"),
        ("\u{16}\u{3}\u{1} a greeting of TLS".to_owned(), "HTTP/1.1 400 ", "bad_request"),
        (
            String::from_utf8(frame(Command::SignIn, "1", 0, &()).to_vec()).unwrap(),
            "HTTP/1.1 400 ",
            "bad_request",
        ),
    ] {
        let before = http::labelled(server.gateway_http, label);
        let mut raw = Raw::connect(address);
        raw.ask(&request);
        let answer = String::from_utf8(raw.rest()).unwrap();
        assert!(answer.starts_with(status), "{request:?}\n{answer}");
        assert!(until(|| http::labelled(server.gateway_http, label) > before), "{label} is not counted");
    }
    let own = plain("/ws", "Origin: http://127.0.0.1:8030\r\nSec-WebSocket-Protocol: gimbal\r\n");
    let mut raw = Raw::connect(address);
    raw.ask(&own);
    let mut answer = [0; 12];
    raw.socket.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
}

#[test]
fn who_does_not_finish_the_request_is_told_so_at_the_sign_in_deadline() {
    let server = Server::start_with(Settings::gateway("sign_in_deadline = \"400ms\""));
    let mut silent = Raw::connect(server.websocket);
    let mut half = Raw::connect(server.websocket);
    half.ask("GET /ws HTTP/1.1\r\nHost: half");
    // Pings are answered, but they prove no life: only what is welcome to the session does.
    let mut open = Raw::open(server.websocket);
    let mut pinging = open.socket.try_clone().unwrap();
    let pings = std::thread::spawn(move || {
        let mut ping = Vec::new();
        put_frame(&mut ping, 0x89, b"x", [1, 2, 3, 4]);
        while pinging.write_all(&ping).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    for raw in [&mut silent, &mut half] {
        let answer = String::from_utf8(raw.rest()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    let frames = open.frames();
    assert_eq!(
        frames.last().map(|(first, told)| (*first, &told[..2])),
        Some((0x88, &4002u16.to_be_bytes()[..]))
    );
    let _ = open.socket.shutdown(std::net::Shutdown::Both);
    pings.join().unwrap();
}

#[test]
fn who_floods_with_pings_and_does_not_read_is_closed() {
    let server = Server::start_with(Settings::gateway("sign_in_deadline = \"60s\""));
    let raw = Raw::open(server.websocket);
    let mut writer = raw.socket.try_clone().unwrap();
    let mut flood = Vec::new();
    (0..1_000).for_each(|_| put_frame(&mut flood, 0x89, &[7; 125], [1, 2, 3, 4]));
    // The pongs are not read: after the socket's buffers the queue is full.
    let flooding = std::thread::spawn(move || while writer.write_all(&flood).is_ok() {});
    let reason = CloseReason::TooSlow.text();
    assert!(until(|| http::labelled(server.gateway_http, reason) >= 1.0), "a flood is bounded");
    let _ = raw.socket.shutdown(std::net::Shutdown::Both);
    flooding.join().unwrap();
    drop(raw);
    let api = Api::connect(server.grpc);
    Client::websocket_online(server.websocket, &api.device(), 0).heartbeat();
}

#[test]
fn a_takeover_crosses_transports() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let device: Device = api.device();
    let mut older = Client::online(server.tcp, &device);
    let mut newer = Client::websocket_online(server.websocket, &device, 0);
    assert_eq!(older.closed(), CloseReason::Takeover.code());
    let _newest = Client::online(server.tcp, &device);
    loop {
        if let Event::Close { code, .. } = newer.event() {
            assert_eq!(code, CloseReason::Takeover.code());
            break;
        }
    }
}
