//! What one slot holds: a socket, its transport, its session and what waits for it.

use std::os::fd::OwnedFd;

use bytes::Bytes;

use crate::send_queue::SendQueue;
use crate::session::{Limits, Moment, Session};
use crate::transport::prefix::Source;
use crate::transport::tls::Tls;
use crate::transport::{Kind, Transport, tcp};

/// One connection. Its slot stays taken until the socket is closed, and the socket is closed only when no operation
/// of it is in flight.
#[derive(Debug)]
pub(super) struct Conn<S> {
    pub(super) session: Session,
    pub(super) queue: SendQueue,
    pub(super) transport: Transport,
    /// Under the transport.
    pub(super) tls: Option<Box<Tls>>,
    /// Gone once it is handed to the carrier to be closed.
    pub(super) socket: Option<S>,
    /// Where it comes from, if that counts.
    pub(super) source: Source,
    pub(super) is_counted: bool,
    /// A receive is in flight.
    pub(super) is_receiving: bool,
    /// It found no buffer, and since then receives one at a time: it had more to say each time than that held.
    pub(super) is_starved: bool,
    /// A send is in flight.
    pub(super) is_sending: bool,
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
const _: () = assert!(size_of::<Conn<OwnedFd>>() <= 256);

impl<S> Conn<S> {
    /// A connection just accepted; with `tls` when its kind says so.
    pub(super) fn new(socket: S, kind: Kind, tls: Option<Box<Tls>>, now: Moment, limits: &Limits) -> Self {
        Self {
            session: Session::new(now, limits),
            queue: SendQueue::new(kind.form()),
            transport: Transport::new(kind),
            tls,
            socket: Some(socket),
            source: Source::default(),
            is_counted: false,
            is_receiving: false,
            is_starved: false,
            is_sending: false,
            is_dirty: false,
            is_ending: false,
            is_at_eof: false,
            is_write_watched: false,
        }
    }

    /// Bytes wait that no send carries yet.
    pub(super) fn wants_send(&self) -> bool {
        let is_waiting = match &self.tls {
            None => !self.queue.is_empty(),
            Some(tls) => tls.has_unsent() || (tls.is_open() && !self.queue.is_empty()),
        };
        is_waiting && !self.is_ending && !self.is_sending
    }

    /// Nothing waits, and nothing is in flight.
    pub(super) fn is_drained(&self) -> bool {
        self.queue.is_empty() && self.tls.as_ref().is_none_or(|tls| !tls.has_unsent())
    }

    /// The close has begun before the peer could be told anything.
    pub(super) fn is_closing_untold(&self) -> bool {
        self.session.is_closing() && self.tls.as_ref().is_some_and(|tls| !tls.is_open() && !tls.has_unsent())
    }

    /// The bytes of the send that begins now; `None`: nothing can be sent.
    pub(super) fn start_send(&mut self) -> Option<Bytes> {
        let join_bytes_max = tcp::join_bytes_max(self.queue.cost_bytes());
        let Some(tls) = &mut self.tls else { return self.queue.start_send(join_bytes_max) };
        if let Some(records) = tls.next_send() {
            return Some(records);
        }
        let plain = self.queue.start_send(join_bytes_max)?;
        let is_last = self.session.is_closing() && self.queue.is_last();
        tls.encrypt(&plain, is_last)
    }

    /// The send in flight ended; the socket took so many bytes, or is broken.
    pub(super) fn finish_send(&mut self, result: Result<usize, i32>) {
        self.is_sending = false;
        let finished = match (&mut self.tls, result) {
            (None, result) => Some(result.unwrap_or(0)),
            (Some(tls), Ok(taken)) => tls.sent(taken),
            (Some(_), Err(_)) => self.queue.is_in_flight().then_some(0),
        };
        if let Some(bytes) = finished {
            self.queue.finish_send(bytes);
        }
    }

    /// Memory of what has not fully arrived, in bytes.
    pub(super) fn allocated(&self) -> usize {
        self.transport.allocated() + self.tls.as_ref().map_or(0, |tls| tls.allocated())
    }
}
