//! Listeners and the connections they give.

use gimbal_codec::CloseReason;

use super::Shard;
use super::conn::Conn;
use crate::carrier::{AcceptEnd, Carrier};
use crate::metrics::{Drop, Total};
use crate::session::Moment;
use crate::transport::Kind;
use crate::transport::tls::Tls;

/// Accepting pauses for so long when no descriptor or memory is left.
const ACCEPT_PAUSE_MS: u64 = 100;

/// One word so often about accepting that pauses.
const ACCEPT_WARN_MS: u64 = 10_000;

/// One listener, and whether its connections are accepted.
pub(super) struct Accepting<L> {
    kind: Kind,
    /// Gone once the drain has begun.
    pub(super) listener: Option<L>,
    is_armed: bool,
    retry_at: Option<Moment>,
    /// When it was last armed again at once after an error.
    again_at: Moment,
    /// The next word about a lack of descriptors is not before.
    warn_at: Moment,
}

impl<L> Accepting<L> {
    /// Not armed yet.
    pub(super) fn new(kind: Kind, listener: L, now: Moment) -> Self {
        Self {
            kind,
            listener: Some(listener),
            is_armed: false,
            retry_at: None,
            again_at: Moment::NEVER,
            warn_at: now,
        }
    }
}

impl<C: Carrier> Shard<C> {
    /// Arms what is to be armed again.
    pub(super) fn retry_accepts(&mut self) {
        for index in 0..self.accepting.len() {
            if self.accepting[index].retry_at.is_some_and(|at| at <= self.now) {
                self.arm_accept(index as u8);
            }
        }
    }

    pub(super) fn arm_accept(&mut self, index: u8) {
        let accepting = &mut self.accepting[usize::from(index)];
        accepting.retry_at = None;
        if let Some(listener) = &accepting.listener
            && !accepting.is_armed
        {
            accepting.is_armed = true;
            self.carrier.accept(index, listener);
        }
    }

    /// For good; a listener that is armed is closed when the kernel has let go of it.
    pub(super) fn stop_accepting(&mut self) {
        for (index, accepting) in (0..).zip(&mut self.accepting) {
            accepting.retry_at = None;
            if accepting.is_armed {
                self.carrier.cancel_accept(index);
            } else {
                accepting.listener = None;
            }
        }
    }

    pub(super) fn accepted(&mut self, listener: u8, socket: C::Socket, more: bool) {
        let accepting = &mut self.accepting[usize::from(listener)];
        accepting.is_armed = more;
        let kind = accepting.kind;
        let is_late = self.walks.is_draining();
        if !is_late {
            self.arm_accept(listener);
        } else if !more {
            accepting.listener = None;
        }
        self.metrics.add(Total::Accepted, 1);
        let tls = match self.begin_tls(kind) {
            Ok(tls) => tls,
            Err(why) => {
                self.metrics.dropped(why, 1);
                self.carrier.refuse(socket);
                return;
            }
        };
        let is_encrypted = tls.is_some();
        let Some(from) = self.admit(&socket) else { return self.carrier.refuse(socket) };
        if self.conns.is_full() {
            self.metrics.dropped(Drop::OverLimit, 1);
            self.forget_source(from);
            self.carrier.refuse(socket);
            return;
        }
        let (now, limits) = (self.now, &self.limits);
        let conn = Conn::new(socket, kind, tls, now, limits);
        let key = self.conns.insert_with(|_| conn).expect("a slot was free above");
        self.entered(key, from);
        self.encrypted += u32::from(is_encrypted);
        self.handshaking += u32::from(is_encrypted);
        self.arm_receive(key);
        if is_late {
            self.close(key, CloseReason::Draining);
        } else {
            self.settle(key);
        }
    }

    /// TLS for a new connection, if its kind has it.
    fn begin_tls(&self, kind: Kind) -> Result<Option<Box<Tls>>, Drop> {
        let config = match (&self.tls, kind) {
            (Some(configs), Kind::Tls) => &configs.frames,
            (Some(configs), Kind::WebSocketTls) => &configs.websocket,
            (_, Kind::Tcp | Kind::WebSocket | Kind::Quic) => return Ok(None),
            (None, Kind::Tls | Kind::WebSocketTls) => return Err(Drop::TlsFailed),
        };
        if self.handshaking >= self.handshakes_max {
            return Err(Drop::HandshakeOverLimit);
        }
        Tls::new(config).map(|tls| Some(Box::new(tls))).map_err(|_| Drop::TlsFailed)
    }

    /// Accepting goes on whatever ended it, unless we ended it.
    pub(super) fn accept_ended(&mut self, listener: u8, end: AcceptEnd) {
        let accepting = &mut self.accepting[usize::from(listener)];
        accepting.is_armed = false;
        if self.walks.is_draining() {
            accepting.listener = None;
            return;
        }
        match end {
            // At once, but not again and again: an error that lasts would keep the shard busy with nothing else.
            AcceptEnd::Again if accepting.again_at != self.now => {
                accepting.again_at = self.now;
                self.arm_accept(listener);
            }
            AcceptEnd::Again => accepting.retry_at = Some(self.now.plus_ms(ACCEPT_PAUSE_MS)),
            AcceptEnd::Exhausted(errno) => {
                if accepting.warn_at <= self.now {
                    accepting.warn_at = self.now.plus_ms(ACCEPT_WARN_MS);
                    tracing::warn!(
                        shard = self.id.0,
                        errno,
                        "accepting pauses: no descriptor or memory left"
                    );
                }
                self.metrics.dropped(Drop::NoDescriptor, 1);
                accepting.retry_at = Some(self.now.plus_ms(ACCEPT_PAUSE_MS));
            }
            AcceptEnd::Cancelled => {
                tracing::error!(shard = self.id.0, "accepting was ended by the kernel");
                accepting.retry_at = Some(self.now.plus_ms(ACCEPT_PAUSE_MS));
            }
        }
    }
}
