//! Many client connections on one thread: non-blocking sockets, epoll with nanosecond timeouts, one send per socket and turn.
//!
//! The load client shares a machine with the server it measures, so it must be cheap and its timer fine.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use gimbal_codec::{Decoder, Packet};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::websocket::Pipe;

/// Bytes read from one socket at a time.
const READ_BYTES: usize = 64 * 1024;
/// Sockets reported by one wait.
const EVENTS_MAX: usize = 1024;
/// Largest frame that is accepted from the server.
pub const FRAME_BYTES_MAX: usize = gimbal_codec::limits::FRAME_BYTES_MAX_DOWN;

/// What happened on a connection.
pub enum Event<'a> {
    /// A frame arrived.
    Frame(Packet<'a>),
    /// It is over: the server closed it, or it sent what is not a frame.
    Closed(String),
}

struct Conn {
    stream: TcpStream,
    decoder: Decoder,
    /// Over WebSocket.
    pipe: Option<Box<Pipe>>,
    /// Bytes to send; those before `sent` are gone.
    out: Vec<u8>,
    sent: usize,
    /// In `Sockets::dirty`.
    dirty: bool,
    /// The socket took less than it was given, or is not connected yet; epoll says when it takes more.
    blocked: bool,
    /// Nothing is read.
    stalled: bool,
}

/// The connections, by the index that [`Sockets::connect`] returned. A closed one keeps its index.
pub struct Sockets {
    epoll: OwnedFd,
    conns: Vec<Option<Conn>>,
    dirty: Vec<usize>,
    ready: Vec<(usize, EventFlags)>,
    events: Vec<epoll::Event>,
    chunk: Vec<u8>,
    sources: Vec<Ipv4Addr>,
    websocket: bool,
}

impl Sockets {
    /// No connections yet.
    ///
    /// # Errors
    /// When the kernel gives no epoll descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            conns: Vec::new(),
            dirty: Vec::new(),
            ready: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            chunk: vec![0; READ_BYTES],
            sources: Vec::new(),
            websocket: false,
        })
    }

    /// Connections made from now on speak WebSocket, if so; all else stays the same.
    #[must_use]
    pub fn over_websocket(self, websocket: bool) -> Self {
        Self { websocket, ..self }
    }

    /// As [`Self::new`], with local addresses that connections take in turn.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_sources(sources: &[Ipv4Addr]) -> io::Result<Self> {
        Ok(Self { sources: sources.to_vec(), ..Self::new()? })
    }

    /// Connects, waiting for it, and returns the connection's index.
    ///
    /// # Errors
    /// When the server refuses or no descriptor is free.
    pub fn connect(&mut self, address: SocketAddr) -> io::Result<usize> {
        let socket = self.socket(address)?;
        socket.connect(&address.into())?;
        socket.set_nonblocking(true)?;
        self.add(socket.into(), address, false)
    }

    /// As [`Self::connect`] without waiting: what is written leaves when the connection is there, and a refusal is an
    /// [`Event::Closed`].
    ///
    /// # Errors
    /// When no descriptor or local port is free.
    pub fn begin_connect(&mut self, address: SocketAddr) -> io::Result<usize> {
        let socket = self.socket(address)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        self.add(socket.into(), address, true)
    }

    /// Ends a connection without a word to anybody; its index stays its own.
    pub fn close(&mut self, index: usize) {
        if let Some(slot) = self.conns.get_mut(index) {
            *slot = None; // closing the descriptor takes it out of epoll
        }
    }

    /// Stops to read a connection, or goes on: its bytes wait in the kernel, and then at the server.
    pub fn stall(&mut self, index: usize, stalled: bool) {
        let Some(Some(conn)) = self.conns.get_mut(index) else { return };
        conn.stalled = stalled;
        // An error shows at the next read of the same socket.
        let _ = epoll::modify(&self.epoll, &conn.stream, EventData::new_u64(index as u64), conn.flags());
    }

    fn socket(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if !self.sources.is_empty() {
            let source = self.sources[self.conns.len() % self.sources.len()];
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        Ok(socket)
    }

    fn add(&mut self, stream: TcpStream, address: SocketAddr, blocked: bool) -> io::Result<usize> {
        stream.set_nodelay(true)?;
        let index = self.conns.len();
        let (pipe, out) = match self.websocket {
            true => {
                let (pipe, request) = Pipe::new(&address.to_string(), "/ws", index as u64);
                (Some(Box::new(pipe)), request)
            }
            false => (None, Vec::new()),
        };
        let decoder = Decoder::new();
        let conn = Conn { stream, decoder, pipe, out, sent: 0, dirty: false, blocked, stalled: false };
        epoll::add(&self.epoll, &conn.stream, EventData::new_u64(index as u64), conn.flags())?;
        self.conns.push(Some(conn));
        self.write(index, |_| ()); // the request
        Ok(index)
    }

    /// Lets `write` append frames for a connection; they leave with the next [`Self::flush`]. Nothing happens on a closed one.
    pub fn write(&mut self, index: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(Some(conn)) = self.conns.get_mut(index) else { return };
        conn.put(write);
        if !conn.dirty && !conn.blocked {
            conn.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Sends what was written, one call per socket. Sockets that are full go on when they have room.
    pub fn flush(&mut self) {
        while let Some(index) = self.dirty.pop() {
            let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
            conn.dirty = false;
            let was_blocked = conn.blocked;
            conn.send();
            if conn.blocked != was_blocked {
                // An error shows at the next read of the same socket.
                let data = EventData::new_u64(index as u64);
                let _ = epoll::modify(&self.epoll, &conn.stream, data, conn.flags());
            }
        }
    }

    /// Flushes, waits at most `timeout` and gives every frame that arrived to `each`, with its connection's index and
    /// output. What `each` writes there is flushed as well.
    ///
    /// # Errors
    /// When epoll itself fails; trouble of one socket is an [`Event::Closed`].
    pub fn poll(
        &mut self,
        timeout: Duration,
        each: &mut impl FnMut(usize, Event<'_>, &mut Vec<u8>),
    ) -> io::Result<()> {
        self.flush();
        self.events.clear();
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.ready.clear();
        self.ready.extend(self.events.iter().map(|event| (event.data.u64() as usize, event.flags)));
        for at in 0..self.ready.len() {
            let (index, flags) = self.ready[at];
            let stalled =
                self.conns.get(index).is_some_and(|conn| conn.as_ref().is_some_and(|conn| conn.stalled));
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && !stalled {
                self.read(index, each);
            }
            let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
            let has_room = flags.contains(EventFlags::OUT);
            // A new connection without anything to say waits for room too; one look tells it that there is.
            let wants = (conn.sent < conn.out.len() && !conn.blocked) || (conn.blocked && has_room);
            if wants && !conn.dirty {
                conn.dirty = true;
                self.dirty.push(index);
            }
        }
        self.flush();
        Ok(())
    }

    /// Connections that are still open.
    pub fn open(&self) -> usize {
        self.conns.iter().flatten().count()
    }

    fn read(&mut self, index: usize, each: &mut impl FnMut(usize, Event<'_>, &mut Vec<u8>)) {
        let Some(slot) = self.conns.get_mut(index) else { return };
        let Some(conn) = slot else { return };
        if let Err(why) =
            conn.receive(&mut self.chunk, &mut |packet, out| each(index, Event::Frame(packet), out))
        {
            *slot = None; // closing the descriptor takes it out of epoll
            each(index, Event::Closed(why), &mut Vec::new());
        }
    }
}

impl Conn {
    fn flags(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.stalled);
        flags.set(EventFlags::OUT, self.blocked);
        flags
    }

    /// Lets `write` append whole frames to what is sent.
    fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(pipe) = &mut self.pipe else { return write(&mut self.out) };
        let mut frames = Vec::new();
        write(&mut frames);
        pipe.outgoing(&frames, &mut self.out);
    }

    fn send(&mut self) {
        if self.out.is_empty() {
            self.blocked = false;
            return;
        }
        match self.stream.write(&self.out[self.sent..]) {
            Ok(bytes) => self.sent += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.sent = self.out.len(), // the read side reports the broken connection
        }
        self.blocked = self.sent < self.out.len();
        if !self.blocked {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > READ_BYTES {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// One read; level-triggered epoll comes back when there is more.
    fn receive(
        &mut self,
        chunk: &mut [u8],
        each: &mut impl FnMut(Packet<'_>, &mut Vec<u8>),
    ) -> Result<(), String> {
        let bytes = match self.stream.read(chunk) {
            Ok(0) => return Err("closed by the server".into()),
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        let Some(pipe) = &mut self.pipe else {
            return take(&mut self.decoder, &chunk[..bytes], &mut self.out, each);
        };
        let (mut frames, mut answers) = (Vec::new(), Vec::new());
        pipe.incoming(&chunk[..bytes], &mut frames, &mut self.out).map_err(|error| error.to_string())?;
        take(&mut self.decoder, &frames, &mut answers, each)?;
        pipe.outgoing(&answers, &mut self.out);
        Ok(())
    }
}

/// Gives every frame that ends in `chunk` to `each`.
fn take(
    decoder: &mut Decoder,
    chunk: &[u8],
    out: &mut Vec<u8>,
    each: &mut impl FnMut(Packet<'_>, &mut Vec<u8>),
) -> Result<(), String> {
    let mut feed = decoder.feed(chunk);
    loop {
        match feed.next_frame(FRAME_BYTES_MAX) {
            Ok(Some(body)) => each(Packet::decode(body).map_err(|error| error.to_string())?, out),
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}
