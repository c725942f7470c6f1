//! How the frames of a session look to its peer. They are made in the form of the stream (length prefix and packet); a
//! connection that carries messages gets each packet as one WebSocket message, in buffers of the same kind.

use bytes::Bytes;
use gimbal_codec::CloseReason;
use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Longest head of a WebSocket frame that a server sends: two bytes and 64 bits of length (RFC 6455, 5.2).
pub(crate) const HEAD_BYTES_MAX: usize = 10;

/// Longest reason that fits a close frame beside its code (RFC 6455, 5.5).
const CLOSE_TEXT_BYTES_MAX: usize = 123;

/// FIN and the opcode, first byte of a WebSocket frame.
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// What the peer of one connection reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Form {
    /// Frames as they are made.
    #[default]
    Stream,
    /// The answer to its HTTP request, and nothing before it.
    Upgrade,
    /// WebSocket messages, each one packet.
    Messages,
}

impl Form {
    /// Whole frames of the stream in this form; a stream's are not copied.
    ///
    /// # Panics
    /// For a peer that still asks to upgrade: it has sent no packet, so no session answers it.
    pub(crate) fn of(self, frames: Bytes) -> Bytes {
        match self {
            Self::Stream => frames,
            Self::Messages => messages(&frames, 0).into(),
            Self::Upgrade => unreachable!("a session that got no packet sends none but its close"),
        }
    }

    /// The end of the conversation: `frame` is the close frame of the stream.
    pub(crate) fn of_close(self, frame: Bytes, reason: CloseReason, retry_after_ms: u64) -> Bytes {
        match self {
            Self::Stream => frame,
            Self::Messages => {
                let text = reason.text();
                let mut out = messages(&frame, 4 + text.len());
                put_close(&mut out, close_code(reason), text);
                out.into()
            }
            Self::Upgrade => http_close(reason, retry_after_ms).into(),
        }
    }
}

/// The code of a WebSocket close frame for a reason of ours: its own number, which lies in the range for private use; only
/// where the peer breaks RFC 6455 itself is it that RFC's number (7.4.1).
pub(crate) const fn close_code(reason: CloseReason) -> u16 {
    match reason {
        CloseReason::BadWebSocket => 1002,
        CloseReason::BadText => 1007,
        other => other.code(),
    }
}

/// Whole frames for many sessions, made once in each form that one of them reads.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    stream: Bytes,
    messages: OnceCell<Bytes>,
    memory: Option<SharedMemory>,
}

/// Bytes of frames that several queues hold, each counted once for as long as one of them does.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedMemory(Arc<AtomicUsize>);

impl SharedMemory {
    /// So many now.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: Bytes) -> Bytes {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes, memory: self.clone() })
    }
}

/// Bytes that are counted.
struct Counted {
    bytes: Bytes,
    memory: SharedMemory,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Shared {
    /// Frames of the stream.
    pub(crate) fn new(stream: Bytes) -> Self {
        Self { stream, messages: OnceCell::new(), memory: None }
    }

    /// The same, counted in `memory`.
    pub(crate) fn counted(self, memory: &SharedMemory) -> Self {
        Self { stream: memory.count(self.stream), messages: OnceCell::new(), memory: Some(memory.clone()) }
    }

    /// Bytes of the frames in the stream's form.
    pub(crate) fn len(&self) -> usize {
        self.stream.len()
    }

    /// A handle on the frames in one form.
    pub(crate) fn get(&self, form: Form) -> Bytes {
        match form {
            Form::Stream => self.stream.clone(),
            _ => self.messages.get_or_init(|| self.in_form(form)).clone(),
        }
    }

    fn in_form(&self, form: Form) -> Bytes {
        let bytes = form.of(self.stream.clone());
        match &self.memory {
            Some(memory) => memory.count(bytes),
            None => bytes,
        }
    }
}

/// Each frame of `frames` as a binary message, with room for `more` bytes behind them.
fn messages(frames: &[u8], more: usize) -> Vec<u8> {
    let total: usize = Packets(frames).map(|packet| head_bytes(packet.len()) + packet.len()).sum();
    let mut out = Vec::with_capacity(total + more);
    for packet in Packets(frames) {
        put_head(&mut out, BINARY, packet.len());
        out.extend_from_slice(packet);
    }
    out
}

/// The packets of whole frames that we made ourselves.
struct Packets<'a>(&'a [u8]);

impl<'a> Iterator for Packets<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (mut length, mut prefix) = (0usize, 0);
        loop {
            let byte = *self.0.get(prefix)?;
            length |= usize::from(byte & 0x7f) << (7 * prefix);
            prefix += 1;
            if byte < 0x80 {
                break;
            }
        }
        let (packet, rest) = self.0[prefix..].split_at(length);
        self.0 = rest;
        Some(packet)
    }
}

const fn head_bytes(payload: usize) -> usize {
    match payload {
        0..126 => 2,
        126..0x1_0000 => 4,
        _ => HEAD_BYTES_MAX,
    }
}

/// Appends the head of an unmasked frame.
pub(crate) fn put_head(out: &mut Vec<u8>, first: u8, payload: usize) {
    out.push(first);
    match head_bytes(payload) {
        2 => out.push(payload as u8),
        4 => {
            out.push(126);
            out.extend_from_slice(&(payload as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
}

/// Appends a close frame with a code and a reason of at most 123 bytes.
fn put_close(out: &mut Vec<u8>, code: u16, text: &str) {
    debug_assert!(text.len() <= CLOSE_TEXT_BYTES_MAX);
    put_head(out, CLOSE, 2 + text.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The answer to a peer that has not finished its request.
fn http_close(reason: CloseReason, retry_after_ms: u64) -> Vec<u8> {
    let status = match reason {
        CloseReason::SignInDeadline => "408 Request Timeout",
        _ => "503 Service Unavailable",
    };
    let retry = match retry_after_ms {
        0 => String::new(),
        ms => format!("Retry-After: {}\r\n", ms.div_ceil(1000)),
    };
    http(status, &retry, reason.text())
}

/// A whole HTTP answer of one line of text, after which the connection ends.
pub(crate) fn http(status: &str, headers: &str, text: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain\r\n{headers}Content-Length: {}\r\n\r\n{text}\n",
        text.len() + 1
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use gimbal_codec::{Command, frame, frame_of_packet};

    use super::*;

    fn heads(payload: usize) -> Vec<u8> {
        let out = messages(&frame_of_packet(&vec![7; payload]), 0);
        assert_eq!(out.capacity(), out.len());
        out[..out.len() - payload].to_vec()
    }

    #[test]
    fn each_packet_becomes_one_binary_message_with_the_shortest_head() {
        assert_eq!(heads(1), [0x82, 1]);
        assert_eq!(heads(125), [0x82, 125]);
        assert_eq!(heads(126), [0x82, 126, 0, 126]);
        assert_eq!(heads(0xffff), [0x82, 126, 0xff, 0xff]);
        assert_eq!(heads(0x1_0000), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        let two = [frame(2, "1", 0, &()), frame_of_packet(&[9; 200])].concat();
        let mut expected = [&[0x82, 5][..], &two[1..6]].concat();
        expected.extend([&[0x82, 126, 0, 200][..], &[9; 200]].concat());
        assert_eq!(Form::Messages.of(two.into()), expected);
    }

    #[test]
    fn a_stream_is_not_copied_and_messages_are_made_once_for_all() {
        let frames = frame(2, "1", 0, &());
        let shared = Shared::new(frames.clone());
        assert_eq!(shared.get(Form::Stream).as_ptr(), frames.as_ptr());
        assert_eq!(shared.get(Form::Messages).as_ptr(), shared.get(Form::Messages).as_ptr());
    }

    #[test]
    fn frames_of_many_are_counted_once_in_each_form_until_the_last_lets_go() {
        let (memory, frames) = (SharedMemory::default(), frame(2, "1", 0, &()));
        let shared = Shared::new(frames.clone()).counted(&memory);
        let held: Vec<Bytes> = (0..10).map(|_| shared.get(Form::Stream)).collect();
        assert_eq!(held[9].as_ptr(), frames.as_ptr());
        assert_eq!(memory.bytes(), frames.len());
        let message = shared.get(Form::Messages);
        assert_eq!(memory.bytes(), frames.len() + message.len());
        drop((shared, held));
        assert_eq!(memory.bytes(), message.len(), "a message still waits somewhere");
        drop(message);
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn the_close_packet_is_followed_by_a_close_frame_with_the_same_code() {
        for &reason in CloseReason::ALL {
            let close = frame(Command::Close, "", 0, &gimbal_codec::body::Close::new(reason, 0));
            assert_eq!(Form::Stream.of_close(close.clone(), reason, 0), close);
            let told = Form::Messages.of_close(close.clone(), reason, 0);
            let packet = &close[1..];
            let mut expected = [&[0x82, packet.len() as u8][..], packet].concat();
            let code = match reason.code() {
                4308 => 1002u16,
                4309 => 1007,
                own => own,
            };
            expected.extend([&[0x88, 2 + reason.text().len() as u8][..], &code.to_be_bytes()].concat());
            expected.extend(reason.text().as_bytes());
            assert_eq!(told, expected, "{reason:?}");
        }
    }

    #[test]
    fn who_has_not_upgraded_is_told_in_http() {
        let text = |reason, ms| {
            String::from_utf8(Form::Upgrade.of_close(Bytes::new(), reason, ms).to_vec()).unwrap()
        };
        let late = text(CloseReason::SignInDeadline, 0);
        assert!(late.starts_with("HTTP/1.1 408 ") && late.ends_with("\r\n\r\nsign_in_deadline\n"), "{late}");
        let draining = text(CloseReason::Draining, 1001);
        assert!(
            draining.starts_with("HTTP/1.1 503 ") && draining.contains("\r\nRetry-After: 2\r\n"),
            "{draining}"
        );
    }
}
