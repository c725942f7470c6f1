//! What one slot holds: a socket, its transport, its session and what waits for it.

use std::os::fd::OwnedFd;

use crate::send_queue::SendQueue;
use crate::session::{Limits, Moment, Session};
use crate::transport::prefix::Source;
use crate::transport::{Kind, Transport};

/// One connection. Its slot stays taken until the socket is closed, and the socket is closed only when no operation
/// of it is in flight.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) session: Session,
    pub(super) queue: SendQueue,
    pub(super) transport: Transport,
    /// Gone once it is handed to the ring to be closed.
    pub(super) socket: Option<OwnedFd>,
    /// Where it comes from, if that counts.
    pub(super) source: Source,
    pub(super) is_counted: bool,
    /// A receive is in flight.
    pub(super) is_receiving: bool,
    /// On the shard's list of queues to send from.
    pub(super) is_dirty: bool,
    /// The socket is to be closed as soon as nothing of it is in flight.
    pub(super) is_ending: bool,
    /// The peer will send no more.
    pub(super) is_at_eof: bool,
    /// A send was found in flight at a tick, so the write deadline runs.
    pub(super) is_write_watched: bool,
}

// With 12 bytes of timer and about 40 of the user table: well within 512 B of user memory for an idle online session.
const _: () = assert!(size_of::<Conn>() <= 256);

impl Conn {
    /// A connection just accepted.
    pub(super) fn new(socket: OwnedFd, kind: Kind, now: Moment, limits: &Limits) -> Self {
        Self {
            session: Session::new(now, limits),
            queue: SendQueue::new(kind.form()),
            transport: Transport::new(kind),
            socket: Some(socket),
            source: Source::default(),
            is_counted: false,
            is_receiving: false,
            is_dirty: false,
            is_ending: false,
            is_at_eof: false,
            is_write_watched: false,
        }
    }

    /// Bytes wait that no send carries yet.
    pub(super) fn wants_send(&self) -> bool {
        !self.is_ending && !self.queue.is_in_flight() && !self.queue.is_empty()
    }
}
