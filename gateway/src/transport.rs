//! What carries frames. Only here, in `ring` and in `quic` is known what that is.

pub(crate) mod form;
pub(crate) mod prefix;
pub(crate) mod proxy;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod websocket;

use bytes::Bytes;
use gimbal_codec::{CloseReason, Decoder};

use form::Form;
use websocket::{Policy, Refusal, Said, Violation, WebSocket};

/// What the connections of a listener speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Frames.
    Tcp,
    /// HTTP, then WebSocket messages.
    WebSocket,
    /// Frames in TLS.
    Tls,
    /// HTTP, then WebSocket messages, in TLS.
    WebSocketTls,
    /// Frames on a stream of QUIC.
    Quic,
}

/// One connection's received bytes on their way to packets.
#[derive(Debug)]
pub(crate) enum Transport {
    /// Frames.
    Tcp(Decoder),
    /// WebSocket messages.
    WebSocket(WebSocket),
}

// WebSocket costs plain TCP nothing.
const _: () = assert!(size_of::<Transport>() == size_of::<Decoder>());

/// One thing that arrived.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    /// For the session: one packet.
    Packet(&'a [u8]),
    /// Something that took time and is done.
    Nothing,
    /// To be answered with these very bytes.
    Answer(Bytes),
    /// To be answered with these very bytes; from then on the peer reads messages.
    Upgrade(Bytes),
    /// The peer asks for what it does not get; the connection ends with the answer.
    Refused(Bytes, Refusal),
    /// The peer ends the conversation; the connection ends with the answer.
    Goodbye(Bytes),
}

impl Transport {
    /// For a connection just accepted.
    pub(crate) const fn new(kind: Kind) -> Self {
        match kind {
            Kind::Tcp | Kind::Tls | Kind::Quic => Self::Tcp(Decoder::new()),
            Kind::WebSocket | Kind::WebSocketTls => Self::WebSocket(WebSocket::new()),
        }
    }

    /// Takes the next bytes, in which it may work. Call [`Feed::next`] until it gives `None`.
    pub(crate) fn feed<'a>(&'a mut self, bytes: &'a mut [u8], policy: &'a Policy) -> Feed<'a> {
        match self {
            Self::Tcp(decoder) => Feed::Tcp(decoder.feed(bytes)),
            Self::WebSocket(socket) => Feed::WebSocket(socket.feed(bytes, policy)),
        }
    }

    /// Bytes allocated for what has not fully arrived.
    pub(crate) fn allocated(&self) -> usize {
        match self {
            Self::Tcp(decoder) => decoder.allocated(),
            Self::WebSocket(socket) => socket.allocated(),
        }
    }

    /// Nothing is read any more: what has not fully arrived is given up.
    pub(crate) fn forget(&mut self) {
        *self = Self::Tcp(Decoder::new());
    }
}

impl Kind {
    /// What the peer reads at first.
    pub(crate) const fn form(self) -> Form {
        match self {
            Self::Tcp | Self::Tls | Self::Quic => Form::Stream,
            Self::WebSocket | Self::WebSocketTls => Form::Upgrade,
        }
    }
}

/// What ends in one chunk.
#[must_use = "what is not taken is lost"]
pub(crate) enum Feed<'a> {
    Tcp(gimbal_codec::Feed<'a>),
    WebSocket(websocket::Feed<'a>),
}

impl Feed<'_> {
    /// The next thing that arrived; `None`: the rest is kept for the next feed.
    ///
    /// # Errors
    /// The reason to close; nothing more is to be asked for then.
    #[inline]
    pub(crate) fn next(&mut self, packet_bytes_max: usize) -> Result<Option<Input<'_>>, CloseReason> {
        match self {
            Self::Tcp(feed) => match feed.next_frame(packet_bytes_max) {
                Ok(packet) => Ok(packet.map(Input::Packet)),
                Err(error) => Err(error.close_reason()),
            },
            Self::WebSocket(feed) => match feed.next(packet_bytes_max) {
                Ok(said) => said.map(input).transpose(),
                Err(violation) => Err(reason(violation)),
            },
        }
    }
}

fn input(said: Said<'_>) -> Result<Input<'_>, CloseReason> {
    Ok(match said {
        Said::Message([]) => return Err(CloseReason::EmptyFrame),
        Said::Message(packet) => Input::Packet(packet),
        Said::Part => Input::Nothing,
        Said::Ping(pong) => Input::Answer(pong),
        Said::Upgrade(answer) => Input::Upgrade(answer),
        Said::Refused(answer, refusal) => Input::Refused(answer, refusal),
        Said::Goodbye(answer) => Input::Goodbye(answer),
    })
}

const fn reason(violation: Violation) -> CloseReason {
    match violation {
        Violation::TooLong => CloseReason::FrameTooLarge,
        Violation::NotUtf8 => CloseReason::BadText,
        _ => CloseReason::BadWebSocket,
    }
}
