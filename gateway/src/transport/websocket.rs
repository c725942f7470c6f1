//! WebSocket (RFC 6455) as a server meets it: bytes of one client in; its request, messages and control frames out. No
//! socket, no clock. Between messages an open connection owns no memory beyond this value.
//!
//! No extension is offered, so every reserved bit is refused. What goes to the client is made in `form`.

mod handshake;
mod head;
mod reader;
mod utf8;

#[cfg(test)]
mod tests;

use bytes::Bytes;

use super::form::put_head;
use handshake::{Head, Request};
use reader::Reader;

pub(crate) use handshake::{Policy, Refusal};
pub(crate) use reader::{Event, Violation};

const CLOSE: u8 = 0x88;
const PONG: u8 = 0x8a;

/// Longest request with all its headers: browsers send some cookies along.
pub(crate) const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// What one client says.
#[derive(Debug)]
pub(crate) enum WebSocket {
    /// Its request has not fully arrived.
    Upgrading(Option<Box<Request>>),
    /// It sends frames.
    Open(Reader),
    /// It has said its last word, or nothing it says counts any more.
    Over,
}

/// What a client has said.
#[derive(Debug)]
pub(crate) enum Said<'a> {
    /// A request that is granted: the answer. Frames follow.
    Upgrade(Bytes),
    /// A request that is not: the answer, after which the connection ends.
    Refused(Bytes, Refusal),
    /// A whole message.
    Message(&'a [u8]),
    /// Something that takes time and wants no answer: a part of a message, or a pong.
    Part,
    /// A ping: the pong.
    Ping(Bytes),
    /// The end: the close frame that answers it.
    Goodbye(Bytes),
}

impl WebSocket {
    /// A client that has just connected.
    pub(crate) const fn new() -> Self {
        Self::Upgrading(None)
    }

    /// Takes the next bytes of the client, which are unmasked in place. Call [`Feed::next`] until it gives `None`.
    pub(crate) fn feed<'a>(&'a mut self, chunk: &'a mut [u8], policy: &'a Policy) -> Feed<'a> {
        Feed { socket: self, chunk, policy, joined: Vec::new() }
    }

    /// Bytes allocated for what has not fully arrived: at most twice that, and a fixed part.
    pub(crate) fn allocated(&self) -> usize {
        match self {
            Self::Upgrading(Some(request)) => request.allocated(),
            Self::Open(reader) => reader.allocated(),
            Self::Upgrading(None) | Self::Over => 0,
        }
    }
}

/// What ends in one chunk.
#[derive(Debug)]
#[must_use = "what is not taken is lost"]
pub(crate) struct Feed<'a> {
    socket: &'a mut WebSocket,
    chunk: &'a mut [u8],
    policy: &'a Policy,
    /// The payload that was put together from several chunks.
    joined: Vec<u8>,
}

impl Feed<'_> {
    /// The next thing the client said. `None`: the rest is kept for the next feed. A message that lies wholly in the chunk
    /// is not copied.
    ///
    /// # Errors
    /// What breaks the protocol, or a message above `message_bytes_max`. Nothing more is heard of the client then.
    pub(crate) fn next(&mut self, message_bytes_max: usize) -> Result<Option<Said<'_>>, Violation> {
        match self.socket {
            WebSocket::Upgrading(request) => {
                let Some((answer, taken)) = handshake::take(request, self.chunk, self.policy) else {
                    return Ok(None);
                };
                let chunk = std::mem::take(&mut self.chunk);
                self.chunk = &mut chunk[taken..];
                Ok(Some(self.answered(answer)))
            }
            WebSocket::Open(reader) => {
                let mut rest = reader::Rest { chunk: std::mem::take(&mut self.chunk) };
                let event = reader.next(&mut rest, message_bytes_max, &mut self.joined);
                self.chunk = rest.chunk;
                match event {
                    Ok(event) => Ok(event.map(|event| said(event, self.socket))),
                    Err(violation) => {
                        *self.socket = WebSocket::Over;
                        Err(violation)
                    }
                }
            }
            WebSocket::Over => Ok(None),
        }
    }

    fn answered(&mut self, answer: Head) -> Said<'static> {
        match answer {
            Head::Granted(answer) => {
                *self.socket = WebSocket::Open(Reader::default());
                Said::Upgrade(answer.into())
            }
            Head::Refused(refusal) => {
                *self.socket = WebSocket::Over;
                Said::Refused(refusal.answer().into(), refusal)
            }
        }
    }
}

fn said<'a>(event: Event<'a>, socket: &mut WebSocket) -> Said<'a> {
    match event {
        Event::Message { payload, .. } => Said::Message(payload),
        Event::Part | Event::Pong(_) => Said::Part,
        Event::Ping(payload) => Said::Ping(control(PONG, payload)),
        Event::Close { code, .. } => {
            *socket = WebSocket::Over;
            Said::Goodbye(match code {
                Some(code) => control(CLOSE, &code.to_be_bytes()),
                None => control(CLOSE, &[]),
            })
        }
    }
}

/// A control frame with a payload of at most 125 bytes.
fn control(first: u8, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(2 + payload.len());
    put_head(&mut out, first, payload.len());
    out.extend_from_slice(payload);
    out.into()
}
