//! What the shard asks for.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use gimbal_codec::CloseReason;

use super::link::Read;
use super::{Chunk, Completion, Key, Quic, Socket, read_clock};
use crate::carrier::{AcceptEnd, Carrier, ReceiveEnd};
use crate::metrics::{Drop, ShardMetrics};

/// Bytes read at once; a stream frame is never longer than a datagram.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Memory counted for each connection, in bytes: quinn's and rustls's state; measured at 19.3 kB with all that the shard keeps.
const LINK_BYTES: u64 = 24 * 1024;

impl Carrier for Quic {
    type Socket = Socket;
    type Chunk = Chunk;
    type Listener = ();

    fn accept(&mut self, _index: u8, _listener: &()) {
        self.is_open = true;
    }

    fn cancel_accept(&mut self, index: u8) {
        self.is_open = false;
        self.ready.push_back(Completion::AcceptEnded { listener: index, end: AcceptEnd::Cancelled });
    }

    fn refuse(&mut self, socket: Socket) {
        if let Some(link) = self.links.get_mut(socket) {
            link.reason = Some(CloseReason::Overloaded);
        }
        self.close_now(socket);
        self.release(socket);
    }

    fn peer(&self, socket: &Socket) -> Option<SocketAddr> {
        Some(self.links.get(*socket)?.conn.as_ref()?.remote_address())
    }

    fn receive(&mut self, key: Key, socket: &Socket) {
        if let Some(link) = self.links.get_mut(*socket) {
            link.start_receiving(key);
            self.wake_reader(*socket);
        }
    }

    fn send(&mut self, _key: Key, socket: &Socket, bytes: Bytes) {
        self.write(*socket, bytes);
    }

    fn closing(&mut self, socket: &Socket, reason: CloseReason) {
        if let Some(link) = self.links.get_mut(*socket) {
            link.reason = Some(reason);
        }
    }

    fn shutdown_write(&mut self, socket: &Socket) {
        if self.links.get_mut(*socket).is_some_and(super::Link::finish) {
            self.touch(*socket);
        } else {
            self.close_now(*socket);
            self.end_receive(*socket, ReceiveEnd::Eof);
        }
    }

    fn shutdown_both(&mut self, socket: &Socket, _reset: bool) {
        self.close_now(*socket);
        self.break_send(*socket);
        self.end_receive(*socket, ReceiveEnd::Eof);
    }

    fn close(&mut self, key: Key, socket: Socket) {
        self.close_now(socket);
        self.release(socket);
        self.ready.push_back(Completion::Closed { key });
    }

    fn enter(&mut self, wait: bool) -> io::Result<()> {
        self.flush();
        let is_idle = self.ready.is_empty()
            && self.readable.is_empty()
            && self.waiting.is_empty()
            && (self.touched.is_empty() || self.udp.is_blocked());
        if wait && is_idle {
            let until = self.timers.next().map_or(self.tick_at, |at| at.min(self.tick_at));
            self.udp.wait(&self.doorbell, until.saturating_duration_since(self.now))?;
        }
        self.now = read_clock();
        if self.now >= self.tick_at {
            self.tick_at = self.now + self.tick;
            self.tick();
            self.ready.push_back(Completion::Tick);
        }
        self.receive_datagrams();
        self.expire();
        self.begin_handshakes();
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.ready.pop_front() {
                return Some(completion);
            }
            let socket = self.readable.pop_front()?;
            if let Some(completion) = self.read(socket) {
                return Some(completion);
            }
        }
    }

    fn has_completions(&mut self) -> bool {
        !self.ready.is_empty() || !self.readable.is_empty() || !self.waiting.is_empty()
    }

    fn bytes_mut<'a>(&'a mut self, chunk: &'a mut Chunk) -> &'a mut [u8] {
        chunk
    }

    fn recycle(&mut self, _chunk: Chunk) {}

    fn sends_in_flight(&self, out: &mut Vec<Key>) {
        let keys = self.blocked.iter().filter_map(|socket| self.links.get(*socket)?.key);
        out.extend(keys);
    }

    fn held_bytes(&self) -> u64 {
        let links = self.links.count() as u64 * LINK_BYTES;
        links + self.blocked.len() as u64 * self.bounds.send_bytes_max
    }

    fn publish(&self, metrics: &ShardMetrics) {
        self.publish_to(metrics);
    }
}

impl Quic {
    /// The next bytes of a connection's stream, or their end.
    fn read(&mut self, socket: Socket) -> Option<Completion> {
        let link = self.links.get_mut(socket)?;
        link.is_readable = false;
        if !link.is_receiving() {
            return None;
        }
        let (key, read) = (link.key?, link.read(READ_BYTES_MAX));
        let end = match read {
            Read::Bytes(bytes) => {
                // The window moves, and there may be more.
                self.touch(socket);
                self.wake_reader(socket);
                return Some(Completion::Received { key, chunk: BytesMut::from(bytes), more: true });
            }
            Read::NotYet => link.end?,
            Read::Eof => ReceiveEnd::Eof,
            Read::Reset => ReceiveEnd::Broken(libc::ECONNRESET),
        };
        link.stop_receiving();
        if matches!(read, Read::Reset) {
            self.dropped(Drop::QuicStreamReset);
        }
        Some(Completion::ReceiveEnded { key, end })
    }
}
