//! Many client connections on one thread: non-blocking sockets, epoll with nanosecond timeouts, one send per socket and turn.
//!
//! The load client shares a machine with the server it measures, so it must be cheap and its timer fine.

mod conn;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use gimbal_codec::Packet;
use quinn_proto::ClientConfig as QuicConfig;
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
};
use rustls::ClientConfig;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{quic::Quic, tls::Tls};
use crate::websocket::Pipe;

use conn::{Conn, Layer, Stream};

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
    tls: Option<Arc<ClientConfig>>,
    quic: Option<Box<Quic>>,
}

/// What epoll tells of the socket of all QUIC connections.
const QUIC: u64 = u64::MAX;

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
            tls: None,
            quic: None,
        })
    }

    /// Connections made from now on speak WebSocket, if so; all else stays the same.
    #[must_use]
    pub fn over_websocket(self, websocket: bool) -> Self {
        Self { websocket, ..self }
    }

    /// Connections made from now on speak TLS as `config` says, if there is one.
    #[must_use]
    pub fn over_tls(self, config: Option<Arc<ClientConfig>>) -> Self {
        Self { tls: config, ..self }
    }

    /// Connections are over QUIC as `config` says, if there is one; nothing else then is.
    ///
    /// # Errors
    /// When there is no UDP port.
    pub fn over_quic(mut self, config: Option<QuicConfig>) -> anyhow::Result<Self> {
        let Some(config) = config else { return Ok(self) };
        let quic = Quic::new(config, self.sources.first().copied())?;
        epoll::add(&self.epoll, quic.socket(), EventData::new_u64(QUIC), EventFlags::IN)?;
        self.quic = Some(Box::new(quic));
        Ok(self)
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
        if self.quic.is_some() {
            return self.begin_connect(address);
        }
        let socket = self.socket(address)?;
        socket.connect(&address.into())?;
        socket.set_nonblocking(true)?;
        let (layer, tls, out) = self.layers(address)?;
        self.add(Stream::Tcp(socket.into()), layer, tls, out, false)
    }

    /// As [`Self::connect`] without waiting: what is written leaves when the connection is there, and a refusal is an
    /// [`Event::Closed`].
    ///
    /// # Errors
    /// When no descriptor or local port is free.
    pub fn begin_connect(&mut self, address: SocketAddr) -> io::Result<usize> {
        if let Some(quic) = &mut self.quic {
            quic.connect(self.conns.len(), address)?;
            return self.add(Stream::Quic(address), Layer::Frames, None, Vec::new(), true);
        }
        let (layer, tls, out) = self.layers(address)?;
        self.begin(address, layer, tls, out)
    }

    /// As [`Self::begin_connect`], with nothing above TCP: what is to be said is [`Self::write_wire`]'s, and of the answers
    /// only the end is told. Over QUIC a handshake is begun and forgotten, and nothing is told.
    ///
    /// # Errors
    /// As [`Self::begin_connect`].
    pub fn begin_bare(&mut self, address: SocketAddr) -> io::Result<usize> {
        if let Some(quic) = &mut self.quic {
            quic.knock(address)?;
            return self.add(Stream::Quic(address), Layer::Bare, None, Vec::new(), true);
        }
        self.begin(address, Layer::Bare, None, Vec::new())
    }

    fn begin(
        &mut self,
        address: SocketAddr,
        layer: Layer,
        tls: Option<Box<Tls>>,
        out: Vec<u8>,
    ) -> io::Result<usize> {
        let socket = self.socket(address)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        self.add(Stream::Tcp(socket.into()), layer, tls, out, true)
    }

    /// What a new connection speaks, and its first bytes.
    fn layers(&self, address: SocketAddr) -> io::Result<(Layer, Option<Box<Tls>>, Vec<u8>)> {
        let (layer, request) = match self.websocket {
            true => {
                let (pipe, request) = Pipe::new(&address.to_string(), "/ws", self.conns.len() as u64);
                (Layer::Messages(Box::new(pipe)), request)
            }
            false => (Layer::Frames, Vec::new()),
        };
        let Some(config) = &self.tls else { return Ok((layer, None, request)) };
        let mut tls = Tls::new(config, address).map_err(io::Error::other)?;
        let mut out = Vec::new();
        tls.outgoing(&request, &mut out);
        Ok((layer, Some(Box::new(tls)), out))
    }

    /// Ends a connection without a word to anybody; its index stays its own.
    pub fn close(&mut self, index: usize) {
        if let Some(slot) = self.conns.get_mut(index) {
            *slot = None; // closing the descriptor takes it out of epoll
        }
        if let Some(quic) = &mut self.quic {
            quic.close(index);
        }
    }

    /// Stops to read a connection, or goes on: its bytes wait in the kernel, and then at the server.
    pub fn stall(&mut self, index: usize, stalled: bool) {
        let Some(Some(conn)) = self.conns.get_mut(index) else { return };
        conn.stalled = stalled;
        conn.watch(&self.epoll, index);
        if let Some(quic) = &mut self.quic {
            quic.look_again(index);
        }
    }

    fn socket(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if !self.sources.is_empty() {
            let source = self.sources[self.conns.len() % self.sources.len()];
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        Ok(socket)
    }

    fn add(
        &mut self,
        stream: Stream,
        layer: Layer,
        tls: Option<Box<Tls>>,
        out: Vec<u8>,
        blocked: bool,
    ) -> io::Result<usize> {
        let index = self.conns.len();
        let conn = Conn::new(stream, layer, tls, out, blocked);
        if let Stream::Tcp(stream) = &conn.stream {
            stream.set_nodelay(true)?;
            epoll::add(&self.epoll, stream, EventData::new_u64(index as u64), conn.flags())?;
        }
        self.conns.push(Some(conn));
        self.write(index, |_| ()); // what it begins with
        Ok(index)
    }

    /// Ends a connection with a reset instead of an end.
    pub fn reset(&mut self, index: usize) {
        if let (Some(quic), Some(slot)) = (&mut self.quic, self.conns.get_mut(index)) {
            *slot = None;
            return quic.reset(index);
        }
        if let Some(stream) = self.tcp(index) {
            // It is closed all the same when the option is not taken.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        self.close(index);
    }

    /// Bounds what the kernel keeps of what a TCP connection was sent and has not read, in bytes.
    pub fn keep_received(&mut self, index: usize, bytes: usize) {
        if let Some(stream) = self.tcp(index) {
            // Without it only more is kept.
            let _ = SockRef::from(stream).set_recv_buffer_size(bytes);
        }
    }

    fn tcp(&self, index: usize) -> Option<&TcpStream> {
        self.conns.get(index).and_then(Option::as_ref).and_then(Conn::tcp)
    }

    /// Bytes of a connection that the kernel has not taken.
    pub fn unsent(&self, index: usize) -> usize {
        self.conns.get(index).and_then(Option::as_ref).map_or(0, |conn| conn.out.len() - conn.sent)
    }

    /// Whether a connection is open.
    pub fn is_open(&self, index: usize) -> bool {
        matches!(self.conns.get(index), Some(Some(_)))
    }

    /// Local ports of all open TCP connections.
    pub fn local_ports(&self) -> Vec<u16> {
        let port = |conn: &Conn| conn.tcp()?.local_addr().ok().map(|address| address.port());
        self.conns.iter().flatten().filter_map(port).collect()
    }

    /// As [`Self::write`], of bytes that are no frames: they are not put into messages, but encrypted where there is TLS.
    pub fn write_raw(&mut self, index: usize, bytes: &[u8]) {
        self.write_with(index, |conn| conn.put_raw(bytes));
    }

    /// As [`Self::write`], of bytes that go into the socket as they are; over QUIC as one datagram.
    pub fn write_wire(&mut self, index: usize, bytes: &[u8]) {
        if let (Some(quic), Some(Some(Conn { stream: Stream::Quic(address), .. }))) =
            (&self.quic, self.conns.get(index))
        {
            return quic.say(*address, bytes);
        }
        self.write_with(index, |conn| conn.out.extend_from_slice(bytes));
    }

    /// Asks the peer for new keys, and takes new ones (RFC 8446, 4.6.3; RFC 9001, 6). Without TLS nothing happens.
    pub fn refresh_keys(&mut self, index: usize) {
        if let Some(quic) = &mut self.quic {
            return quic.refresh_keys(index);
        }
        self.write_with(index, |conn| {
            if let Some(tls) = &mut conn.tls {
                tls.refresh_keys(&mut conn.out);
            }
        });
    }

    /// Lets `write` append frames for a connection; they leave with the next [`Self::flush`]. Nothing happens on a closed one.
    pub fn write(&mut self, index: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.write_with(index, |conn| conn.put(write));
    }

    fn write_with(&mut self, index: usize, write: impl FnOnce(&mut Conn)) {
        let Some(Some(conn)) = self.conns.get_mut(index) else { return };
        write(conn);
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
            conn.send(index, self.quic.as_deref_mut());
            if conn.blocked != was_blocked {
                conn.watch(&self.epoll, index);
            }
        }
        if let Some(quic) = &mut self.quic {
            quic.flush();
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
        let timeout = self.quic.as_ref().map_or(timeout, |quic| quic.bounded(timeout));
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
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && !self.is_stalled(index)
            {
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
        self.poll_quic(each);
        self.flush();
        Ok(())
    }

    fn poll_quic(&mut self, each: &mut impl FnMut(usize, Event<'_>, &mut Vec<u8>)) {
        let Some(quic) = &mut self.quic else { return };
        quic.turn();
        while let Some(index) = self.quic.as_mut().and_then(|quic| quic.next_readable()) {
            while !self.is_stalled(index) && self.read(index, each) {}
            let has_more = self.unsent(index) > 0;
            self.send_soon(index, has_more);
        }
        while let Some(index) = self.quic.as_mut().and_then(|quic| quic.next_writable()) {
            // Also one that has nothing to say learns that it may.
            self.send_soon(index, true);
        }
    }

    fn is_stalled(&self, index: usize) -> bool {
        self.conns.get(index).is_some_and(|conn| conn.as_ref().is_some_and(|conn| conn.stalled))
    }

    fn send_soon(&mut self, index: usize, is_due: bool) {
        let Some(Some(conn)) = self.conns.get_mut(index) else { return };
        if is_due && !conn.dirty {
            conn.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Connections that are still open.
    pub fn open(&self) -> usize {
        self.conns.iter().flatten().count()
    }

    /// `true`: there was something, and may be more.
    fn read(&mut self, index: usize, each: &mut impl FnMut(usize, Event<'_>, &mut Vec<u8>)) -> bool {
        let Some(slot) = self.conns.get_mut(index) else { return false };
        let Some(conn) = slot else { return false };
        let quic = self.quic.as_deref_mut();
        let each_packet = &mut |packet: Packet<'_>, out: &mut Vec<u8>| each(index, Event::Frame(packet), out);
        match conn.receive(index, quic, &mut self.chunk, each_packet) {
            Ok(there_was) => there_was,
            Err(why) => {
                self.close(index);
                each(index, Event::Closed(why), &mut Vec::new());
                false
            }
        }
    }
}
