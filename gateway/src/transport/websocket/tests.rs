//! What clients may and may not send, as a table of cases in the groups of the well-known WebSocket test suite: 1 framing,
//! 2 pings and pongs, 3 reserved bits, 4 opcodes, 5 fragments, 6 UTF-8, 7 closing, 9 limits, 10 the rest; and M for masks and
//! lengths. Each case arrives whole, byte by byte and in pieces, and comes to the same.

#[path = "../../../fuzz/src/check.rs"]
mod check;
mod closing;
mod control;
mod fragments;
mod framing;
mod limits;
mod properties;
mod request;
mod text;

use std::collections::BTreeSet;

use super::reader::{Event, Reader, Rest, Violation};
use super::{Policy, REQUEST_BYTES_MAX, Said, WebSocket};

/// Longest message where a case does not say otherwise.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// A case is played byte by byte up to this length.
const BYTEWISE_MAX: usize = 16 * 1024;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What the server hears.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Heard {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
    Fails(Violation),
}

struct Case {
    id: String,
    bytes: Vec<u8>,
    message_bytes_max: usize,
    heard: Vec<Heard>,
}

impl Case {
    fn new(id: impl Into<String>, frames: &[Vec<u8>], heard: &[Heard]) -> Self {
        let message_bytes_max = MESSAGE_BYTES_MAX;
        Self { id: id.into(), bytes: frames.concat(), message_bytes_max, heard: heard.to_vec() }
    }

    fn with_max(self, message_bytes_max: usize) -> Self {
        Self { message_bytes_max, ..self }
    }
}

/// A masked frame with the first byte as given: FIN, reserved bits, opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = head(first, payload.len());
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// The head of a masked frame.
fn head(first: u8, length: usize) -> Vec<u8> {
    let mut out = vec![first];
    match length {
        0..126 => out.push(0x80 | length as u8),
        126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    out
}

fn text(payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(FIN | TEXT, payload.as_ref())
}

fn binary(payload: &[u8]) -> Vec<u8> {
    frame(FIN | BINARY, payload)
}

fn heard_text(payload: impl AsRef<[u8]>) -> Heard {
    Heard::Text(payload.as_ref().to_vec())
}

/// Plays `bytes` in pieces of `size`. What is allocated never exceeds twice what has arrived, and the fixed part.
fn play(bytes: &[u8], size: usize, message_bytes_max: usize) -> Vec<Heard> {
    let (mut reader, mut heard, mut arrived) = (Reader::default(), Vec::new(), 0);
    for piece in bytes.chunks(size) {
        arrived += piece.len();
        let mut piece = piece.to_vec();
        let mut rest = Rest { chunk: &mut piece };
        loop {
            let mut joined = Vec::new();
            let event = match reader.next(&mut rest, message_bytes_max, &mut joined) {
                Ok(None) => break,
                Ok(Some(event)) => event,
                Err(violation) => {
                    heard.push(Heard::Fails(violation));
                    return heard;
                }
            };
            heard.push(match event {
                Event::Message { is_text: true, payload } => Heard::Text(payload.to_vec()),
                Event::Message { is_text: false, payload } => Heard::Binary(payload.to_vec()),
                Event::Part => continue,
                Event::Ping(payload) => Heard::Ping(payload.to_vec()),
                Event::Pong(payload) => Heard::Pong(payload.to_vec()),
                Event::Close { code, reason } => {
                    heard.push(Heard::Close(code, reason.to_vec()));
                    return heard;
                }
            });
        }
        assert!(reader.allocated() <= 256 + 2 * arrived, "{} allocated of {arrived}", reader.allocated());
    }
    heard
}

fn check(case: &Case) {
    let mut sizes = vec![usize::MAX, 997, 2048];
    if case.bytes.len() <= BYTEWISE_MAX {
        sizes.extend([1, 2, 3, 7]);
    }
    for size in sizes {
        let heard = play(&case.bytes, size, case.message_bytes_max);
        assert_eq!(heard.len(), case.heard.len(), "case {} in pieces of {size}", case.id);
        for (heard, wanted) in heard.iter().zip(&case.heard) {
            assert!(heard == wanted, "case {} in pieces of {size}: {}", case.id, briefly(heard, wanted));
        }
    }
}

fn briefly(heard: &Heard, wanted: &Heard) -> String {
    let short = |heard: &Heard| format!("{heard:?}").chars().take(200).collect::<String>();
    format!("{} and not {}", short(heard), short(wanted))
}

#[test]
fn every_case_comes_to_the_same_however_it_arrives() {
    let cases: Vec<Case> = [
        framing::cases(),
        control::cases(),
        fragments::cases(),
        text::cases(),
        closing::cases(),
        limits::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    cases.iter().for_each(check);
    let ids: BTreeSet<&str> = cases.iter().map(|case| case.id.as_str()).collect();
    assert_eq!(ids.len(), cases.len(), "two cases have one number");
    println!("{} cases", cases.len());
    assert!(cases.len() >= 300, "{} cases", cases.len());
}
