//! What happens between two turns: datagrams in, deadlines, events of connections, datagrams out.

use std::time::Duration;

use bytes::BytesMut;
use quinn_proto::{ConnectionError, DatagramEvent, Dir, Event, StreamEvent};

use super::link::{Phase, Wrote};
use super::{BATCHES_PER_ENTER, Completion, Quic, Socket};
use crate::carrier::ReceiveEnd;
use crate::metrics::{Drop, Total};

/// Deadlines handled between two turns.
const TIMEOUTS_PER_ENTER: usize = 1024;

/// System calls that send for one connection before another gets its turn.
const SENDS_PER_LINK: usize = 4;

/// A peer from which nothing has come for so long, while something was sent, is gone; as TCP_USER_TIMEOUT has it on TCP.
const SILENCE_MAX: Duration = Duration::from_secs(60);

impl Quic {
    /// Sends what connections have to send, each a part in turn.
    pub(super) fn flush(&mut self) {
        self.udp.send_kept();
        let mut buffer = Vec::new();
        for _ in 0..self.touched.len() {
            if self.udp.is_blocked() {
                return;
            }
            let Some(socket) = self.touched.pop_front() else { return };
            let Some(link) = self.links.get_mut(socket) else { continue };
            link.is_touched = false;
            self.drive(socket);
            if self.transmit(socket, &mut buffer) {
                self.touch(socket);
            }
            self.drive(socket);
            self.set_timer(socket);
            self.links.remove_if_done(socket);
        }
    }

    /// `true`: there is more to send.
    fn transmit(&mut self, socket: Socket, buffer: &mut Vec<u8>) -> bool {
        let segments_max = self.udp.segments_max();
        for _ in 0..SENDS_PER_LINK {
            if self.udp.is_blocked() {
                return true;
            }
            let Some(conn) = self.links.get_mut(socket).and_then(|link| link.conn.as_mut()) else {
                return false;
            };
            buffer.clear();
            let Some(transmit) = conn.poll_transmit(self.now, segments_max, buffer) else { return false };
            let segments = transmit.segment_size.map_or(1, |size| transmit.size.div_ceil(size));
            self.metrics.add(Total::QuicDatagramsOut, segments as u64);
            self.udp.send(transmit, buffer);
        }
        true
    }

    fn set_timer(&mut self, socket: Socket) {
        let Some(link) = self.links.get_mut(socket) else { return };
        let at = link.conn.as_mut().and_then(quinn_proto::Connection::poll_timeout);
        self.timers.set(socket, &mut link.timeout, at);
    }

    /// Takes datagrams from the kernel.
    pub(super) fn receive_datagrams(&mut self) {
        let mut response = Vec::new();
        let (mut touched, mut begun) = (Vec::new(), Vec::new());
        for _ in 0..BATCHES_PER_ENTER {
            if !self.udp.receive() {
                return;
            }
            let mut answers = Vec::new();
            for datagram in self.udp.received() {
                self.metrics.add(Total::QuicDatagramsIn, 1);
                response.clear();
                let bytes = BytesMut::from(datagram.bytes);
                let (from, to, ecn) = (datagram.from, datagram.to, datagram.ecn);
                match self.endpoint.handle(self.now, from, to, ecn, bytes, &mut response) {
                    Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                        let Some(socket) = self.links.by_handle(handle) else { continue };
                        let Some(link) = self.links.get_mut(socket) else { continue };
                        let Some(conn) = &mut link.conn else { continue };
                        let before = conn.remote_address();
                        conn.handle_event(event);
                        self.metrics.add(Total::QuicMoves, u64::from(conn.remote_address() != before));
                        link.unanswered_since = None;
                        touched.push(socket);
                    }
                    Some(DatagramEvent::NewConnection(incoming)) => begun.push(incoming),
                    Some(DatagramEvent::Response(transmit)) => answers.push((transmit, response.clone())),
                    None => self.metrics.dropped(Drop::QuicIgnored, 1),
                }
            }
            for (transmit, bytes) in answers {
                self.metrics.add(Total::QuicDatagramsOut, 1);
                self.udp.send(transmit, &bytes);
            }
            for socket in touched.drain(..) {
                self.drive(socket);
                self.touch(socket);
            }
            self.sort_out(begun.drain(..));
        }
    }

    /// Wakes connections whose deadline is over.
    pub(super) fn expire(&mut self) {
        for _ in 0..TIMEOUTS_PER_ENTER {
            let Some(socket) = self.timers.due(self.now) else { return };
            if let Some(conn) = self.links.get_mut(socket).and_then(|link| link.conn.as_mut()) {
                conn.handle_timeout(self.now);
            }
            self.drive(socket);
            self.set_timer(socket);
            self.touch(socket);
        }
    }

    /// Once a tick: handshakes and peers that are given up.
    pub(super) fn tick(&mut self) {
        self.give_up_handshakes();
        for socket in self.links.next_slice() {
            let since = self.links.get(socket).and_then(|link| link.unanswered_since);
            if since.is_some_and(|since| self.now.saturating_duration_since(since) > SILENCE_MAX) {
                self.dropped(Drop::QuicSilent);
                self.close_now(socket);
                self.break_send(socket);
                self.end_receive(socket, ReceiveEnd::Broken(libc::ETIMEDOUT));
            }
        }
    }

    fn give_up_handshakes(&mut self) {
        while let Some(&(at, socket, serial)) = self.handshakes.front() {
            let link = self.links.get(socket).filter(|link| link.serial == serial);
            let is_over = link.is_none_or(|link| link.phase != Phase::Handshaking);
            if !is_over && at > self.now {
                return;
            }
            self.handshakes.pop_front();
            if !is_over {
                self.dropped(Drop::QuicHandshakeDeadline);
                self.close_now(socket);
                self.release(socket);
            }
        }
    }

    /// Takes what the connection has to say to the endpoint and to us.
    pub(super) fn drive(&mut self, socket: Socket) {
        loop {
            let Some(link) = self.links.get_mut(socket) else { return };
            let handle = link.handle;
            let Some(conn) = &mut link.conn else { return };
            if let Some(event) = conn.poll_endpoint_events() {
                let is_drained = event.is_drained();
                if let Some(answer) = self.endpoint.handle_event(handle, event) {
                    conn.handle_event(answer);
                    self.touch(socket);
                }
                if is_drained {
                    self.drained(socket);
                    return;
                }
                continue;
            }
            let Some(event) = conn.poll() else { return };
            self.take_event(socket, event);
        }
    }

    fn take_event(&mut self, socket: Socket, event: Event) {
        match event {
            Event::Connected => self.connected(socket),
            Event::ConnectionLost { reason } => self.lost(socket, &reason),
            Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => self.opened(socket),
            Event::Stream(StreamEvent::Readable { .. }) => self.wake_reader(socket),
            Event::Stream(StreamEvent::Writable { .. }) => self.write_on(socket),
            Event::Stream(StreamEvent::Stopped { .. }) => self.write_on(socket),
            // All that we had to say is read: the connection may end, and says why.
            Event::Stream(StreamEvent::Finished { .. }) => {
                self.close_now(socket);
                self.end_receive(socket, ReceiveEnd::Eof);
            }
            _ => {}
        }
    }

    fn connected(&mut self, socket: Socket) {
        if self.links.set_phase(socket, Phase::Open) {
            self.metrics.add(Total::QuicHandshakes, 1);
            self.ready.push_back(Completion::Accepted { listener: 0, socket, more: true });
        }
    }

    fn opened(&mut self, socket: Socket) {
        let Some(link) = self.links.get_mut(socket) else { return };
        let Some(conn) = &mut link.conn else { return };
        if link.stream.is_none() {
            link.stream = conn.streams().accept(Dir::Bi);
        }
        self.wake_reader(socket);
    }

    /// Goes on with the send that waits, if there is one.
    fn write_on(&mut self, socket: Socket) {
        let Some(link) = self.links.get_mut(socket) else { return };
        if let Some(bytes) = link.sending.take() {
            self.blocked.remove(&socket);
            self.write(socket, bytes);
        }
    }

    /// Bytes of the shard for the peer.
    pub(super) fn write(&mut self, socket: Socket, bytes: bytes::Bytes) {
        let Some(link) = self.links.get_mut(socket) else { return };
        let Some(key) = link.key else { return };
        let result = match link.write(bytes) {
            Wrote::Taken(bytes) => Ok(bytes),
            Wrote::Broken(errno) => Err(errno),
            Wrote::Later(bytes) => {
                link.sending = Some(bytes);
                self.blocked.insert(socket);
                return;
            }
        };
        if link.unanswered_since.is_none() {
            link.unanswered_since = Some(self.now);
        }
        self.ready.push_back(Completion::Sent { key, result });
        self.touch(socket);
    }

    /// quinn has ended the connection.
    fn lost(&mut self, socket: Socket, reason: &ConnectionError) {
        let was_handshaking = self.links.get(socket).is_some_and(|link| link.phase == Phase::Handshaking);
        match reason {
            _ if was_handshaking => self.dropped(Drop::QuicHandshakeFailed),
            ConnectionError::TransportError(_) => self.dropped(Drop::QuicViolation),
            _ => {}
        }
        if was_handshaking {
            self.release(socket);
            return;
        }
        let end = match reason {
            ConnectionError::ApplicationClosed(_) | ConnectionError::LocallyClosed => ReceiveEnd::Eof,
            ConnectionError::TimedOut => ReceiveEnd::Broken(libc::ETIMEDOUT),
            _ => ReceiveEnd::Broken(libc::ECONNRESET),
        };
        self.break_send(socket);
        self.end_receive(socket, end);
    }

    /// The receive ends as soon as what has come is read.
    pub(super) fn end_receive(&mut self, socket: Socket, end: ReceiveEnd) {
        let Some(link) = self.links.get_mut(socket) else { return };
        link.end.get_or_insert(end);
        self.wake_reader(socket);
    }

    /// The send that waits, if one does, will never be done.
    pub(super) fn break_send(&mut self, socket: Socket) {
        let Some(link) = self.links.get_mut(socket) else { return };
        if link.sending.take().is_some()
            && let Some(key) = link.key
        {
            self.blocked.remove(&socket);
            self.ready.push_back(Completion::Sent { key, result: Err(libc::ECONNRESET) });
        }
    }

    /// Closes the connection with the code that was told.
    pub(super) fn close_now(&mut self, socket: Socket) {
        let now = self.now;
        if let Some(link) = self.links.get_mut(socket) {
            link.close(now);
            self.touch(socket);
        }
    }

    /// The shard has nothing to do with the connection any more.
    pub(super) fn release(&mut self, socket: Socket) {
        self.links.set_phase(socket, Phase::Released);
        self.links.remove_if_done(socket);
    }

    /// quinn has let go of the connection.
    fn drained(&mut self, socket: Socket) {
        if let Some(link) = self.links.get_mut(socket) {
            self.timers.set(socket, &mut link.timeout, None);
        }
        self.links.drained(socket);
        self.break_send(socket);
        self.end_receive(socket, ReceiveEnd::Eof);
        self.links.remove_if_done(socket);
    }
}
