//! The request that opens a WebSocket: who is let in, and what each of the others is told.

use super::super::Refusal;
use super::check::policy;
use super::*;

const LINES: [&str; 6] = [
    "GET /ws HTTP/1.1",
    "Host: chat.example:8003",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
];

fn request(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\r\n")).collect::<String>() + "\r\n"
}

/// One that is granted.
fn plain() -> String {
    request(&LINES)
}

/// The plain request with one line in place of another, or without it.
fn with(old: &str, new: &[&str]) -> String {
    let at = LINES.iter().position(|line| line.starts_with(old)).unwrap();
    let mut lines = LINES.to_vec();
    lines.splice(at..=at, new.iter().copied());
    request(&lines)
}

fn and(more: &[&str]) -> String {
    request(&[&LINES[..], more].concat())
}

/// The whole answer, and the reason when it is a refusal.
fn ask(request: &str, policy: &Policy) -> (String, Option<Refusal>) {
    let mut socket = WebSocket::new();
    let mut bytes = request.as_bytes().to_vec();
    let mut feed = socket.feed(&mut bytes, policy);
    match feed.next(1024).unwrap() {
        Some(Said::Upgrade(answer)) => (String::from_utf8(answer.to_vec()).unwrap(), None),
        Some(Said::Refused(answer, refusal)) => (String::from_utf8(answer.to_vec()).unwrap(), Some(refusal)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_answer_is_that_of_the_rfc() {
    let (answer, refused) = ask(&plain(), &policy());
    assert_eq!(refused, None);
    assert_eq!(
        answer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    let (answer, _) = ask(&and(&["Sec-WebSocket-Protocol: chat, Gimbal"]), &policy());
    assert!(answer.contains("\r\nSec-WebSocket-Protocol: gimbal\r\n"), "{answer}");
    let asked = and(&["Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: other"]);
    let (answer, _) = ask(&asked, &policy());
    assert!(!answer.contains("Extensions") && !answer.contains("Protocol:"), "{answer}");
}

#[test]
fn what_browsers_and_proxies_send_is_granted() {
    let own = "Origin: http://chat.example:8030";
    for granted in [
        with("GET", &["GET /ws?token=none HTTP/1.1"]),
        with("Connection", &["Connection: keep-alive, Upgrade"]),
        with("Connection", &["Connection: keep-alive", "connection: upgrade"]),
        with("Upgrade", &["upgrade: WebSocket"]),
        with("Sec-WebSocket-Key", &["sec-websocket-key:   AQIDBAUGBwgJCgsMDQ4PEC==  "]),
        and(&[own]),
        and(&["Origin: HTTPS://App.Example"]),
        and(&["Content-Length: 0", "Cookie: a=b"]),
        with("Host", &["Host: [::1]:8003", "Origin: http://[::1]"]),
        with("Host", &["Host: localhost", "Origin: http://localhost:3000"]),
    ] {
        assert_eq!(ask(&granted, &policy()).1, None, "{granted}");
    }
    let any = Policy { origins: vec!["*".to_owned()], ..policy() };
    assert_eq!(ask(&and(&["Origin: https://else.example"]), &any).1, None);
    let sandboxed = Policy { origins: vec!["null".to_owned()], ..policy() };
    assert_eq!(ask(&and(&["Origin: null"]), &sandboxed).1, None);
}

#[test]
fn each_refusal_has_its_status_and_its_reason() {
    let many: Vec<String> = (0..70).map(|number| format!("X-{number}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = format!("Cookie: {}", "c".repeat(REQUEST_BYTES_MAX));
    let old = "HTTP/1.1 426 Upgrade Required";
    for (request, status, refusal) in [
        (with("GET", &["POST /ws HTTP/1.1"]), "HTTP/1.1 405 Method", Refusal::BadMethod),
        (with("GET", &["GET / HTTP/1.1"]), "HTTP/1.1 404 Not Found", Refusal::NotFound),
        (with("GET", &["GET /ws/ HTTP/1.1"]), "HTTP/1.1 404 Not Found", Refusal::NotFound),
        (with("GET", &["GET /WS HTTP/1.1"]), "HTTP/1.1 404 Not Found", Refusal::NotFound),
        (with("GET", &["GET /ws HTTP/1.0"]), "HTTP/1.1 400 Bad", Refusal::BadRequest),
        (with("GET", &["GET /ws SPDY/3"]), "HTTP/1.1 400 Bad", Refusal::BadRequest),
        (with("Host", &["Host chat.example"]), "HTTP/1.1 400 Bad", Refusal::BadRequest),
        (with("Host", &[]), "HTTP/1.1 400 Bad", Refusal::BadHost),
        (and(&["Host: other.example"]), "HTTP/1.1 400 Bad", Refusal::BadHost),
        (and(&["Content-Length: 5"]), "HTTP/1.1 400 Bad", Refusal::HasBody),
        (and(&["Transfer-Encoding: chunked"]), "HTTP/1.1 400 Bad", Refusal::HasBody),
        (with("Upgrade", &[]), old, Refusal::NotUpgrade),
        (with("Upgrade", &["Upgrade: h2c"]), old, Refusal::NotUpgrade),
        (with("Connection", &[]), old, Refusal::NotUpgrade),
        (with("Connection", &["Connection: upgraded"]), old, Refusal::NotUpgrade),
        (with("Sec-WebSocket-Version", &[]), old, Refusal::BadVersion),
        (with("Sec-WebSocket-Version", &["Sec-WebSocket-Version: 8"]), old, Refusal::BadVersion),
        (with("Sec-WebSocket-Key", &[]), "HTTP/1.1 400 Bad", Refusal::BadKey),
        (with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: c2hvcnQ="]), "HTTP/1.1 400 Bad", Refusal::BadKey),
        (and(&["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]), "HTTP/1.1 400 Bad", Refusal::BadKey),
        (and(&["Origin: https://else.example"]), "HTTP/1.1 403 Forbidden", Refusal::BadOrigin),
        (and(&["Origin: http://app.example"]), "HTTP/1.1 403 Forbidden", Refusal::BadOrigin),
        (and(&["Origin: http://xchat.example"]), "HTTP/1.1 403 Forbidden", Refusal::BadOrigin),
        (and(&["Origin: null"]), "HTTP/1.1 403 Forbidden", Refusal::BadOrigin),
        (and(&["Origin: "]), "HTTP/1.1 403 Forbidden", Refusal::BadOrigin),
        (
            and(&["Origin: http://chat.example", "Origin: x://y"]),
            "HTTP/1.1 403 Forbidden",
            Refusal::BadOrigin,
        ),
        (and(&many), "HTTP/1.1 431 Request Header", Refusal::TooLarge),
        (and(&[&long]), "HTTP/1.1 431 Request Header", Refusal::TooLarge),
        ("\x16\x03\x01\x02\0\x01".to_owned(), "HTTP/1.1 400 Bad", Refusal::BadRequest),
        ("get /ws HTTP/1.1\r\n".to_owned(), "HTTP/1.1 400 Bad", Refusal::BadRequest),
        ("PROPFINDX".to_owned(), "HTTP/1.1 400 Bad", Refusal::BadRequest),
    ] {
        let (answer, refused) = ask(&request, &policy());
        assert_eq!(refused, Some(refusal), "{request}");
        assert!(answer.starts_with(status), "{request}\n{answer}");
        assert_eq!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), status == old, "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
    }
}

#[test]
fn a_request_that_never_ends_is_bounded() {
    let policy = policy();
    let mut socket = WebSocket::new();
    for (arrived, byte) in (1..).zip(b"GET /".iter().chain(std::iter::repeat(&b'a'))) {
        let mut byte = [*byte];
        let mut feed = socket.feed(&mut byte, &policy);
        match feed.next(1024).unwrap() {
            None => {}
            Some(Said::Refused(_, refusal)) => {
                assert_eq!((refusal, arrived), (Refusal::TooLarge, REQUEST_BYTES_MAX + 1));
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(socket.allocated() <= 64 + 2 * arrived.max(8));
    }
    assert_eq!(socket.allocated(), 0, "nothing is kept of it");
}
