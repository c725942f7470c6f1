//! WebSocket (RFC 6455) as a client speaks it, between a socket and code that knows the stream's frames: what is written as
//! frames leaves as masked messages, and messages that arrive are given as frames. No socket, no clock.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gimbal_codec::{Decoder, frame_of_packet, limits::FRAME_BYTES_MAX_DOWN};
use sha1::{Digest as _, Sha1};

/// Appended to a key (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Longest answer to the request.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// Why a server is not one we can speak with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PipeError {
    /// The request was not granted.
    #[error("the server answers {0:?}")]
    Refused(String),
    /// Its key is not the answer to ours.
    #[error("the server's Sec-WebSocket-Accept is wrong")]
    BadAccept,
    /// Bytes that are no WebSocket frame of a server.
    #[error("the server broke the WebSocket protocol: {0}")]
    Protocol(&'static str),
}

/// One connection.
#[derive(Debug)]
pub struct Pipe {
    /// What the server's Accept must be, until it has answered.
    accept: Option<String>,
    /// Bytes of the server that are not yet a whole answer or frame.
    partial: Vec<u8>,
    /// Payload of a message whose last frame has not come.
    message: Vec<u8>,
    /// What waits for the server's answer, or to leave with the next messages.
    waiting: Vec<u8>,
    /// State of the masks' generator (SplitMix64).
    mask: u64,
    closed: Option<u16>,
}

impl Pipe {
    /// A connection to `host` (with its port), and the request that opens it. `seed` makes the key and the masks.
    pub fn new(host: &str, path: &str, seed: u64) -> (Self, Vec<u8>) {
        let mut mask = seed;
        let key = STANDARD.encode([next(&mut mask).to_be_bytes(), next(&mut mask).to_be_bytes()].concat());
        let accept = STANDARD.encode(Sha1::new().chain_update(&key).chain_update(GUID).finalize());
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: gimbal\r\n\r\n"
        );
        let pipe = Self {
            accept: Some(accept),
            partial: Vec::new(),
            message: Vec::new(),
            waiting: Vec::new(),
            mask,
            closed: None,
        };
        (pipe, request.into_bytes())
    }

    /// The code of the server's close frame, once it has come.
    pub const fn closed(&self) -> Option<u16> {
        self.closed
    }

    /// The server has granted the request.
    pub const fn is_open(&self) -> bool {
        self.accept.is_none()
    }

    /// Whole frames of the stream, as the bytes to send now; what comes before the server's answer waits for it.
    pub fn outgoing(&mut self, frames: &[u8], out: &mut Vec<u8>) {
        if self.accept.is_none() {
            out.append(&mut self.waiting);
        }
        let mut decoder = Decoder::new();
        let mut feed = decoder.feed(frames);
        while let Ok(Some(packet)) = feed.next_frame(usize::MAX >> 8) {
            let mask = self.next_mask();
            let to = if self.accept.is_some() { &mut self.waiting } else { &mut *out };
            put_frame(to, FIN | BINARY, packet, mask);
        }
    }

    /// Keeps what [`Self::incoming`] wants sent, until something else is.
    pub fn hold(&mut self, replies: &[u8]) {
        self.waiting.extend_from_slice(replies);
    }

    /// The server's bytes: whole frames of the stream go to `frames`, and what is to be sent in return to `out`.
    ///
    /// # Errors
    /// When the server does not speak WebSocket with us; nothing more is to be read then.
    pub fn incoming(
        &mut self,
        bytes: &[u8],
        frames: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), PipeError> {
        self.partial.extend_from_slice(bytes);
        if !self.opens(out)? {
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        let mut at = 0;
        while let Some((head, end)) = head(&partial[at..])? {
            let payload = &partial[at + head.bytes..at + end];
            at += end;
            self.frame(head, payload, frames, out)?;
        }
        partial.drain(..at);
        self.partial = partial;
        Ok(())
    }

    /// Whether the server has granted the request.
    fn opens(&mut self, out: &mut Vec<u8>) -> Result<bool, PipeError> {
        let Some(accept) = &self.accept else { return Ok(true) };
        let Some(end) = self.partial.windows(4).position(|window| window == b"\r\n\r\n") else {
            return match self.partial.len() {
                0..=ANSWER_BYTES_MAX => Ok(false),
                _ => Err(PipeError::Protocol("an answer without an end")),
            };
        };
        let answer = String::from_utf8_lossy(&self.partial[..end]).into_owned();
        let mut lines = answer.lines();
        let status = lines.next().unwrap_or_default();
        if !status.starts_with("HTTP/1.1 101 ") {
            return Err(PipeError::Refused(status.to_owned()));
        }
        let given = lines.filter_map(|line| line.split_once(": ")).find_map(|(name, value)| {
            name.eq_ignore_ascii_case("sec-websocket-accept").then_some(value.trim())
        });
        if given != Some(accept) {
            return Err(PipeError::BadAccept);
        }
        self.accept = None;
        self.partial.drain(..end + 4);
        out.append(&mut self.waiting);
        Ok(true)
    }

    fn frame(
        &mut self,
        head: Head,
        payload: &[u8],
        frames: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), PipeError> {
        match head.opcode {
            BINARY | CONTINUATION => {
                self.message.extend_from_slice(payload);
                if head.is_final {
                    frames.extend_from_slice(&frame_of_packet(&self.message));
                    self.message.clear();
                }
            }
            PING => {
                let mask = self.next_mask();
                put_frame(out, FIN | PONG, payload, mask);
            }
            PONG => {}
            CLOSE => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                self.closed.get_or_insert(code);
                let mask = self.next_mask();
                put_frame(out, FIN | CLOSE, &payload[..payload.len().min(2)], mask);
            }
            _ => return Err(PipeError::Protocol("an opcode that nobody defined")),
        }
        Ok(())
    }

    fn next_mask(&mut self) -> [u8; 4] {
        (next(&mut self.mask) as u32).to_be_bytes()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
const fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Appends a masked frame.
pub fn put_frame(out: &mut Vec<u8>, first: u8, payload: &[u8], mask: [u8; 4]) {
    out.push(first);
    match payload.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// The head of a server's frame.
struct Head {
    is_final: bool,
    opcode: u8,
    bytes: usize,
}

/// The head of the frame at the start of `bytes`, and where the frame ends; `None` when it is not whole.
fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, PipeError> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & 0x70 != 0 || second & 0x80 != 0 {
        return Err(PipeError::Protocol("a reserved bit or a mask"));
    }
    let (length, head_bytes) = match second {
        126 => match bytes.get(2..4) {
            Some(length) => (u64::from(length[0]) << 8 | u64::from(length[1]), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..).and_then(|rest| rest.first_chunk()) {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        length => (u64::from(length), 2),
    };
    if length > FRAME_BYTES_MAX_DOWN as u64 {
        return Err(PipeError::Protocol("a message that is too long"));
    }
    let end = head_bytes + length as usize;
    let head = Head { is_final: first & FIN != 0, opcode: first & 0x0f, bytes: head_bytes };
    Ok((bytes.len() >= end).then_some((head, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer of a server to `request`.
    fn grant(request: &[u8]) -> Vec<u8> {
        let request = String::from_utf8(request.to_vec()).unwrap();
        let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
        format!("HTTP/1.1 101 Switching Protocols\r\nSEC-WEBSOCKET-ACCEPT: {accept}\r\n\r\n").into_bytes()
    }

    #[test]
    fn messages_become_frames_at_any_split_and_nothing_leaves_before_the_answer() {
        let (mut pipe, request) = Pipe::new("localhost:8003", "/ws", 7);
        let mut sent = Vec::new();
        pipe.outgoing(&frame_of_packet(b"early"), &mut sent);
        assert!(sent.is_empty());
        let mut bytes = grant(&request);
        bytes
            .extend([&[0x82, 1, 9, 0x89, 1, 5, 0x02, 1, 7, 0x80, 1, 8][..], &[0x88, 2, 0x10, 0x04]].concat());
        let mut frames = Vec::new();
        for byte in bytes {
            pipe.incoming(&[byte], &mut frames, &mut sent).unwrap();
        }
        assert_eq!(frames, [1, 9, 2, 7, 8]);
        assert_eq!(pipe.closed(), Some(4100));
        assert_eq!(sent[..2], [0x82, 0x85]);
        let unmasked: Vec<u8> =
            sent[6..11].iter().zip(sent[2..6].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(unmasked, b"early");
        assert_eq!((sent[11], sent[12], sent[18], sent[19]), (0x8a, 0x81, 0x88, 0x82), "pong and close");
    }

    #[test]
    fn a_server_that_does_not_grant_is_told_apart() {
        let take = |answer: &[u8]| {
            let (mut pipe, _) = Pipe::new("localhost", "/ws", 1);
            pipe.incoming(answer, &mut Vec::new(), &mut Vec::new())
        };
        let refused = Err(PipeError::Refused("HTTP/1.1 404 Not Found".to_owned()));
        assert_eq!(take(b"HTTP/1.1 404 Not Found\r\n\r\nnothing"), refused);
        assert_eq!(take(b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: AAAA\r\n\r\n"), Err(PipeError::BadAccept));
    }
}
