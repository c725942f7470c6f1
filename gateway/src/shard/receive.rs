//! From received bytes to the session.

use gimbal_codec::{CloseReason, SessionKey};

use super::calls::note_debt;
use super::memory::Room;
use super::{FRAME_WORK, HANDSHAKES_PER_TURN, Shard};
use crate::carrier::Carrier;
use crate::metrics::{Drop, Total};
use crate::session::{Session, Turn};
use crate::transport::form::Form;
use crate::transport::tls::Received;
use crate::transport::websocket::Refusal;
use crate::transport::{Feed, Input};

/// Why no more is read of a connection.
enum Stop {
    /// We close it.
    Close(CloseReason),
    /// The peer ended the conversation; the answer to that waits for the socket.
    Goodbye,
    /// It asked over HTTP for what it does not get; the answer waits for the socket.
    Refused(Refusal),
}

/// What one chunk held.
#[derive(Default)]
struct Seen {
    /// Whole packets.
    packets: u64,
    /// Everything that takes time, packets included.
    work: usize,
    upgrades: u64,
    pings: u64,
}

/// Where received bytes are.
enum Source<'a, C: Carrier> {
    /// In a buffer of the carrier.
    Chunk { chunk: &'a mut C::Chunk, skip: usize },
    /// Decrypted.
    Plain(&'a mut [u8]),
}

/// The list of decrypted bytes keeps at most so much memory from one connection to the next.
const PLAIN_BYTES_KEPT: usize = 64 * 1024;

impl<C: Carrier> Shard<C> {
    /// Gives what is in `chunk`, from byte `skip` on, to the session, until something is not welcome. Memory for a frame that has not
    /// wholly arrived is given only while there is some.
    pub(super) fn feed(&mut self, key: SessionKey, chunk: &mut C::Chunk, skip: usize) {
        let before = self.partial_bytes;
        self.decrypt(key, chunk, skip);
        let is_over = |shard: &Self| {
            shard.partial_bytes as u64 > shard.memory.partial_max() || shard.memory_room() == Room::Full
        };
        if self.partial_bytes > before && is_over(self) {
            self.shed_partial(key);
        }
    }

    /// Ends a connection for the memory that its frame would take.
    fn shed_partial(&mut self, key: SessionKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.partial_bytes -= conn.transport.allocated();
        conn.transport.forget();
        self.metrics.dropped(Drop::PartialOverMemory, 1);
        self.call(key, |_, _| Err(CloseReason::Overloaded));
    }

    fn decrypt(&mut self, key: SessionKey, chunk: &mut C::Chunk, skip: usize) {
        let bytes = &mut self.carrier.bytes_mut(chunk)[skip..];
        self.metrics.add(Total::BytesIn, bytes.len() as u64);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_ending || conn.session.is_closing() {
            return;
        }
        let Some(tls) = &mut conn.tls else { return self.give(key, Source::Chunk { chunk, skip }) };
        let before = tls.allocated();
        let received = if tls.is_open() {
            tls.receive(bytes, &mut self.plain)
        } else if tls.keep(bytes) {
            if !std::mem::replace(&mut tls.is_queued, true) {
                self.handshakes.push_back(key);
            }
            Received::More
        } else {
            Received::Failed
        };
        self.partial_bytes = self.partial_bytes + tls.allocated() - before;
        let work = tls.take_work();
        self.work += work.records;
        self.take_plain(key, received);
        if work.empty > 0 {
            self.call(key, |session, turn| session.handle_other(work.empty, turn));
        }
    }

    /// Handshakes whose bytes have arrived, as many as a turn may.
    pub(super) fn go_on_with_handshakes(&mut self) {
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some(key) = self.handshakes.pop_front() else { return };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            let Some(tls) = &mut conn.tls else { continue };
            tls.is_queued = false;
            if conn.is_ending || conn.session.is_closing() {
                continue;
            }
            let before = tls.allocated();
            let received = tls.receive(&mut [], &mut self.plain);
            self.partial_bytes = self.partial_bytes + tls.allocated() - before;
            if tls.is_open() {
                self.handshaking -= 1;
                self.metrics.add(Total::TlsHandshakes, 1);
            }
            self.take_plain(key, received);
            self.settle(key);
        }
    }

    /// Gives what was decrypted to the session, and sees to the end of what can be decrypted.
    fn take_plain(&mut self, key: SessionKey, received: Received) {
        if !self.plain.is_empty() {
            let mut plain = std::mem::take(&mut self.plain);
            self.give(key, Source::Plain(&mut plain));
            plain.clear();
            plain.shrink_to(PLAIN_BYTES_KEPT);
            self.plain = plain;
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        match received {
            Received::More => {}
            // A peer that has said all may still read why it is closed.
            Received::Eof if conn.session.is_closing() => conn.is_at_eof = true,
            Received::Eof => self.gone(key, false),
            Received::Failed => {
                self.metrics.dropped(Drop::TlsFailed, 1);
                self.call(key, |session, turn| {
                    session.handle_goodbye(turn);
                    Ok(())
                });
                if self.conns.get(key).is_some_and(|conn| !conn.wants_send() && !conn.is_sending) {
                    self.end(key, false);
                }
            }
        }
    }

    fn give(&mut self, key: SessionKey, source: Source<'_, C>) {
        let bytes = match source {
            Source::Chunk { chunk, skip } => &mut self.carrier.bytes_mut(chunk)[skip..],
            Source::Plain(bytes) => bytes,
        };
        let Some(conn) = self.conns.get_mut(key) else { return };
        let before = conn.queue.own_bytes();
        let partial_before = conn.transport.allocated();
        let mut turn = Turn {
            key,
            now: self.now,
            unix_ms: self.unix_ms,
            link: self.link_seen,
            limits: &self.limits,
            queue: &mut conn.queue,
            out: &mut self.actions,
            counts: &mut self.counts,
        };
        let mut seen = Seen::default();
        let stop =
            take_all(conn.transport.feed(bytes, &self.policy), &mut conn.session, &mut turn, &mut seen);
        if let Err(stop) = stop {
            match stop {
                Stop::Close(reason) => {
                    note_debt(&self.live.debts, &conn.session, reason, &turn);
                    conn.session.begin_close(reason, 0, &mut turn);
                    if let Some(socket) = &conn.socket {
                        self.carrier.closing(socket, reason);
                    }
                }
                Stop::Goodbye => {
                    self.metrics.dropped(Drop::PeerGone, 1);
                    conn.session.handle_goodbye(&mut turn);
                }
                Stop::Refused(refusal) => {
                    self.metrics.upgrade_refused(refusal);
                    conn.session.handle_goodbye(&mut turn);
                }
            }
            conn.transport.forget();
        }
        self.work += seen.work * FRAME_WORK;
        self.partial_bytes = self.partial_bytes + conn.transport.allocated() - partial_before;
        self.queue_bytes = self.queue_bytes + conn.queue.own_bytes() - before;
        self.metrics.add(Total::FramesIn, seen.packets);
        if seen.upgrades + seen.pings > 0 {
            self.metrics.add(Total::Upgrades, seen.upgrades);
            self.metrics.add(Total::Pings, seen.pings);
        }
    }
}

fn take_all(
    mut feed: Feed<'_>,
    session: &mut Session,
    turn: &mut Turn<'_>,
    seen: &mut Seen,
) -> Result<(), Stop> {
    while let Some(input) = feed.next(session.frame_bytes_max()).map_err(Stop::Close)? {
        seen.work += 1;
        match input {
            Input::Packet(packet) => {
                seen.packets += 1;
                session.handle_frame(packet, turn).map_err(Stop::Close)?;
            }
            Input::Nothing => session.handle_other(1, turn).map_err(Stop::Close)?,
            Input::Answer(bytes) => {
                seen.pings += 1;
                session.handle_other(1, turn).map_err(Stop::Close)?;
                answer(bytes, turn)?;
            }
            Input::Upgrade(bytes) => {
                seen.upgrades += 1;
                answer(bytes, turn)?;
                turn.queue.set_form(Form::Messages);
            }
            Input::Goodbye(bytes) => {
                answer(bytes, turn)?;
                return Err(Stop::Goodbye);
            }
            Input::Refused(bytes, refusal) => {
                answer(bytes, turn)?;
                return Err(Stop::Refused(refusal));
            }
        }
    }
    Ok(())
}

/// Queues what the transport answers by itself; a client that asks on without reading is too slow, as in its own calls.
fn answer(bytes: bytes::Bytes, turn: &mut Turn<'_>) -> Result<(), Stop> {
    let queue_bytes_max = turn.limits.queue_bytes_max;
    turn.queue.push_answer(bytes, queue_bytes_max).map_err(|_| Stop::Close(CloseReason::TooSlow))
}
