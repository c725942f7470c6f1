//! What a shard asks of whatever carries its connections' bytes, and what it hears from it: the ring for streams of the kernel,
//! or QUIC. One shard has one carrier, known when it is compiled.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use gimbal_codec::{CloseReason, SessionKey};

use crate::metrics::ShardMetrics;

/// Carries the bytes of one shard's connections. Built on the shard's thread, and never leaves it.
pub(crate) trait Carrier {
    /// One connection.
    type Socket: fmt::Debug;
    /// Received bytes, until they are given back.
    type Chunk;
    /// Where connections come from.
    type Listener;

    /// Accepts from `listener`, which is the caller's number `index`, until [`Completion::AcceptEnded`].
    fn accept(&mut self, index: u8, listener: &Self::Listener);

    /// Ends [`Self::accept`] of listener `index`; its end comes as a completion.
    fn cancel_accept(&mut self, index: u8);

    /// Ends a connection that was accepted and has found no place.
    fn refuse(&mut self, socket: Self::Socket);

    /// The peer's address; `None` when the connection is gone already.
    fn peer(&self, socket: &Self::Socket) -> Option<SocketAddr>;

    /// Receives from `socket` until [`Completion::ReceiveEnded`].
    fn receive(&mut self, key: SessionKey, socket: &Self::Socket);

    /// Receives from `socket` one chunk, and so no more than its share when all have much to say, and maybe more;
    /// [`Completion::ReceiveEnded`], or a chunk without `more`, follows.
    fn receive_once(&mut self, key: SessionKey, socket: &Self::Socket) {
        self.receive(key, socket);
    }

    /// Whether more may have arrived than this chunk could hold.
    fn is_full(&self, _chunk: &Self::Chunk) -> bool {
        false
    }

    /// Sends what of `bytes` is taken at once, or, when nothing is, as soon as some is; [`Completion::Sent`] follows. Two
    /// sends at a time have no order.
    fn send(&mut self, key: SessionKey, socket: &Self::Socket, bytes: Bytes);

    /// The close has begun, for this reason; the close frame is among what is sent from here on.
    fn closing(&mut self, socket: &Self::Socket, reason: CloseReason);

    /// Says that no more will be sent.
    fn shutdown_write(&mut self, socket: &Self::Socket);

    /// Ends both directions, which ends every operation in flight. With `reset` what is not sent yet is thrown away.
    fn shutdown_both(&mut self, socket: &Self::Socket, reset: bool);

    /// Closes `socket`, which has no operation in flight; [`Completion::Closed`] follows.
    fn close(&mut self, key: SessionKey, socket: Self::Socket);

    /// Hands on what is queued and, with `wait`, sleeps until something completes, the doorbell rings or a tick has passed.
    ///
    /// # Errors
    /// Only what no later call would mend.
    fn enter(&mut self, wait: bool) -> io::Result<()>;

    /// The next completion, if one has arrived.
    fn next(&mut self) -> Option<Completion<Self::Socket, Self::Chunk>>;

    /// Whether a completion waits, or work that would not wait for anybody.
    fn has_completions(&mut self) -> bool;

    /// What was received, for its owner to work in.
    fn bytes_mut<'a>(&'a mut self, chunk: &'a mut Self::Chunk) -> &'a mut [u8];

    /// Gives received bytes back.
    fn recycle(&mut self, chunk: Self::Chunk);

    /// Appends the sessions whose send is in flight.
    fn sends_in_flight(&self, out: &mut Vec<SessionKey>);

    /// Memory that it keeps for connections, in bytes, as far as it counts against the bound of all.
    fn held_bytes(&self) -> u64;

    /// Publishes its counters.
    fn publish(&self, metrics: &ShardMetrics);
}

/// Something that is finished.
#[derive(Debug)]
pub(crate) enum Completion<S, C> {
    /// A new connection.
    Accepted {
        /// Whose it is.
        listener: u8,
        /// To be received from, or refused.
        socket: S,
        /// Accepting goes on; else it must be armed again.
        more: bool,
    },
    /// No more connections of a listener until its next `accept`.
    AcceptEnded {
        /// Which.
        listener: u8,
        /// Why.
        end: AcceptEnd,
    },
    /// Bytes arrived, at least one. Without `more` the receive has ended and must be armed again for further bytes.
    Received {
        /// Whose they are; it may be gone.
        key: SessionKey,
        /// To be recycled.
        chunk: C,
        /// The receive goes on.
        more: bool,
    },
    /// No more bytes until the next `receive`.
    ReceiveEnded {
        /// Whose it was.
        key: SessionKey,
        /// Why.
        end: ReceiveEnd,
    },
    /// A send ended; its bytes are released.
    Sent {
        /// Whose it was.
        key: SessionKey,
        /// Bytes that were taken, maybe fewer than were given; or why the connection is broken (errno).
        result: Result<usize, i32>,
    },
    /// The connection is closed, and its key free.
    Closed {
        /// Whose it was.
        key: SessionKey,
    },
    /// Another thread left work.
    Doorbell,
    /// One tick has passed.
    Tick,
}

/// Why accepting ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AcceptEnd {
    /// Arm again at once.
    Again,
    /// No descriptor or memory is left (errno); arm again after a pause.
    Exhausted(i32),
    /// It was cancelled, or the listener is gone.
    Cancelled,
}

/// Why receiving ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReceiveEnd {
    /// The peer will send no more.
    Eof,
    /// Arm again: the kernel asks for it.
    Again,
    /// No buffer was free: arm again when it is this connection's turn.
    NoBuffer,
    /// The connection is broken (errno).
    Broken(i32),
}
