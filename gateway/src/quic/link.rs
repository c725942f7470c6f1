//! One connection: quinn's state machine, its stream, and what the shard has asked of it.

use std::time::Instant;

use bytes::Bytes;
use gimbal_codec::CloseReason;
use quinn_proto::{Connection, ConnectionHandle, ReadError, StreamId, VarInt, WriteError};

use super::{Key, Socket};
use crate::carrier::ReceiveEnd;

/// No error: the peer ended the connection itself, or never came so far that there was a session.
const NO_ERROR: VarInt = VarInt::from_u32(0);

/// Who knows of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Only we: its handshake is under way.
    Handshaking,
    /// The shard has it, or will be told.
    Open,
    /// The shard has closed it, or never had it.
    Released,
}

/// One connection.
pub(super) struct Link {
    pub(super) handle: ConnectionHandle,
    /// Tells it from others that were in its place before.
    pub(super) serial: u64,
    /// Gone once nothing more of it will come or go.
    pub(super) conn: Option<Connection>,
    pub(super) phase: Phase,
    /// Once the shard has begun to receive.
    pub(super) key: Option<Key>,
    /// Once the peer has opened it.
    pub(super) stream: Option<StreamId>,
    /// Told with the close.
    pub(super) reason: Option<CloseReason>,
    /// A send that waits for the peer.
    pub(super) sending: Option<Bytes>,
    /// A receive is under way.
    is_receiving: bool,
    /// After what is still to be read.
    pub(super) end: Option<ReceiveEnd>,
    pub(super) is_touched: bool,
    pub(super) is_readable: bool,
    /// As the timers have it.
    pub(super) timeout: Option<Instant>,
    /// When something was sent first since the peer was last heard.
    pub(super) unanswered_since: Option<Instant>,
}

/// What came of a write.
pub(super) enum Wrote {
    /// So many bytes are taken.
    Taken(usize),
    /// None, until the peer makes room; what is given back is to be tried again then.
    Later(Bytes),
    /// Nobody reads (errno).
    Broken(i32),
}

/// What came of a read.
pub(super) enum Read {
    Bytes(Bytes),
    NotYet,
    /// The peer has said all.
    Eof,
    /// The peer has broken it off.
    Reset,
}

impl Link {
    pub(super) fn new(handle: ConnectionHandle, conn: Connection, serial: u64) -> Self {
        Self {
            handle,
            serial,
            conn: Some(conn),
            phase: Phase::Handshaking,
            key: None,
            stream: None,
            reason: None,
            sending: None,
            is_receiving: false,
            end: None,
            is_touched: false,
            is_readable: false,
            timeout: None,
            unanswered_since: None,
        }
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.is_receiving
    }

    pub(super) fn start_receiving(&mut self, key: Key) {
        self.key = Some(key);
        self.is_receiving = true;
    }

    pub(super) fn stop_receiving(&mut self) {
        self.is_receiving = false;
    }

    /// The next bytes of the stream, at most so many.
    pub(super) fn read(&mut self, bytes_max: usize) -> Read {
        let (Some(conn), Some(stream)) = (&mut self.conn, self.stream) else { return Read::NotYet };
        let mut stream = conn.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else { return Read::Eof };
        let read = match chunks.next(bytes_max) {
            Ok(Some(chunk)) => Read::Bytes(chunk.bytes),
            Ok(None) => Read::Eof,
            Err(ReadError::Blocked) => Read::NotYet,
            Err(ReadError::Reset(_)) => Read::Reset,
        };
        let _ = chunks.finalize(); // whoever reads looks for something to send anyway
        read
    }

    /// Bytes for the stream. Before the peer has opened it nobody can read: they count as taken, and the close code says all.
    pub(super) fn write(&mut self, bytes: Bytes) -> Wrote {
        let Some(conn) = self.conn.as_mut().filter(|conn| !conn.is_closed()) else {
            return Wrote::Broken(libc::EPIPE);
        };
        let Some(stream) = self.stream else { return Wrote::Taken(bytes.len()) };
        let mut rest = [bytes];
        match conn.send_stream(stream).write_chunks(&mut rest) {
            Ok(written) => Wrote::Taken(written.bytes),
            Err(WriteError::Blocked) => {
                let [bytes] = rest;
                Wrote::Later(bytes)
            }
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => Wrote::Broken(libc::EPIPE),
        }
    }

    /// Says that the stream ends; `false`: nobody would hear it.
    pub(super) fn finish(&mut self) -> bool {
        match (&mut self.conn, self.stream) {
            (Some(conn), Some(stream)) if !conn.is_closed() => conn.send_stream(stream).finish().is_ok(),
            _ => false,
        }
    }

    /// Closes the connection with the code that is told, or none.
    pub(super) fn close(&mut self, now: Instant) {
        let (code, text) = match self.reason {
            Some(reason) => (VarInt::from_u32(reason.code().into()), reason.text()),
            None => (NO_ERROR, ""),
        };
        if let Some(conn) = &mut self.conn {
            conn.close(now, code, Bytes::from_static(text.as_bytes()));
        }
    }
}

/// All connections, each in a place of its own until both the shard and quinn have let go of it.
#[derive(Default)]
pub(super) struct Links {
    places: Vec<Option<Box<Link>>>,
    free: Vec<u32>,
    /// By quinn's handle.
    by_handle: Vec<Option<Socket>>,
    count: usize,
    handshaking: usize,
    next_serial: u64,
    /// Places before this were in the last slices.
    looked_at: usize,
}

impl Links {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Those whose handshake is under way.
    pub(super) fn handshaking(&self) -> usize {
        self.handshaking
    }

    pub(super) fn sockets(&self) -> Vec<Socket> {
        let taken = (0..).zip(&self.places).filter(|(_, place)| place.is_some());
        taken.map(|(index, _)| Socket(index)).collect()
    }

    /// The next places to look after, a hundredth of all.
    pub(super) fn next_slice(&mut self) -> Vec<Socket> {
        let end = self.places.len();
        let start = if self.looked_at < end { self.looked_at } else { 0 };
        self.looked_at = (start + end.div_ceil(100)).min(end);
        (start..self.looked_at).map(|index| Socket(index as u32)).collect()
    }

    /// A connection whose handshake begins.
    pub(super) fn insert(&mut self, handle: ConnectionHandle, conn: Connection) -> Socket {
        self.next_serial += 1;
        let link = Box::new(Link::new(handle, conn, self.next_serial));
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("connections are bounded far below 2^32")
        });
        self.places[index as usize] = Some(link);
        if self.by_handle.len() <= handle.0 {
            self.by_handle.resize(handle.0 + 1, None);
        }
        self.by_handle[handle.0] = Some(Socket(index));
        self.count += 1;
        self.handshaking += 1;
        Socket(index)
    }

    pub(super) fn by_handle(&self, handle: ConnectionHandle) -> Option<Socket> {
        self.by_handle.get(handle.0).copied().flatten()
    }

    pub(super) fn get(&self, socket: Socket) -> Option<&Link> {
        self.places.get(socket.0 as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, socket: Socket) -> Option<&mut Link> {
        self.places.get_mut(socket.0 as usize)?.as_deref_mut()
    }

    /// The connection goes on to `phase`. `true` when it was handshaking.
    pub(super) fn set_phase(&mut self, socket: Socket, phase: Phase) -> bool {
        let Some(link) = self.get_mut(socket) else { return false };
        let was_handshaking = link.phase == Phase::Handshaking && phase != Phase::Handshaking;
        link.phase = phase;
        self.handshaking -= usize::from(was_handshaking);
        was_handshaking
    }

    /// quinn has let go of the connection.
    pub(super) fn drained(&mut self, socket: Socket) {
        let Some(link) = self.get_mut(socket) else { return };
        link.conn = None;
        let handle = link.handle;
        self.by_handle[handle.0] = None;
    }

    /// Gives the place free if nobody has it any more.
    pub(super) fn remove_if_done(&mut self, socket: Socket) {
        let is_done = |link: &Link| link.conn.is_none() && link.phase == Phase::Released;
        if self.get(socket).is_some_and(is_done) {
            self.places[socket.0 as usize] = None;
            self.free.push(socket.0);
            self.count -= 1;
        }
    }
}
