//! The checks, for the fuzz targets and for the tests of the gateway, which include this file.

use super::{Policy, REQUEST_BYTES_MAX, Said, WebSocket};

/// Longest message of the conversation.
const MESSAGE_BYTES_MAX: usize = 300;

/// Fixed part of what a connection may allocate.
const FIXED_BYTES: usize = 256;

/// Grants `/ws` to pages of its own host and of one other.
pub(super) fn policy() -> Policy {
    Policy { path: "/ws".to_owned(), origins: vec!["https://app.example".to_owned()] }
}

/// What a client says that sends `bytes` in pieces of `sizes`, in words. At no time is more allocated than twice what has
/// arrived, and a fixed part; nor more than the bounds allow.
pub(super) fn conversation(bytes: &[u8], sizes: &[usize], policy: &Policy) -> Vec<String> {
    let mut socket = WebSocket::new();
    let mut said = Vec::new();
    let (mut rest, mut arrived) = (bytes, 0);
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(size.clamp(1, rest.len()));
        (rest, arrived) = (after, arrived + piece.len());
        let mut piece = piece.to_vec();
        let mut feed = socket.feed(&mut piece, policy);
        loop {
            match feed.next(MESSAGE_BYTES_MAX) {
                Ok(None) => break,
                Ok(Some(Said::Part)) => {}
                Ok(Some(Said::Message(payload))) => {
                    assert!(payload.len() <= MESSAGE_BYTES_MAX);
                    said.push(format!("message {payload:?}"));
                }
                Ok(Some(heard)) => said.push(format!("{heard:?}")),
                Err(violation) => said.push(format!("{violation:?}")),
            }
        }
        let kept = socket.allocated();
        let kept_max = FIXED_BYTES + 2 * arrived.min(REQUEST_BYTES_MAX + 1);
        assert!(kept <= kept_max, "{kept} bytes are kept of {arrived}");
    }
    said
}

/// A client says the same however its bytes arrive. The first byte tells whether they follow a good request, the next four
/// how they are cut.
pub(super) fn check_websocket(data: &[u8]) {
    let Some((&[kind, a, b, c, d], bytes)) = data.split_first_chunk() else { return };
    let policy = policy();
    let stream = if kind % 2 == 0 { [REQUEST, bytes].concat() } else { bytes.to_vec() };
    let whole = conversation(&stream, &[usize::MAX], &policy);
    let cuts = [a, b, c, d].map(|size| usize::from(size) + 1);
    assert_eq!(conversation(&stream, &cuts, &policy), whole);
    assert_eq!(conversation(&stream, &[1], &policy), whole);
}

/// One that is granted.
pub(super) const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: chat.example:8003\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// For the fuzz target.
#[cfg(not(test))]
pub fn websocket(data: &[u8]) {
    check_websocket(data);
}
