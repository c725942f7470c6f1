//! Many QUIC connections of one load client on one UDP socket: quinn's state machines, driven by whoever polls. Each has one
//! stream, which carries what a TCP connection would.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, ReadError, StreamEvent, StreamId, TransportConfig, VarInt, WriteError,
};
use socket2::SockRef;

use crate::{clock, quic::trust};

/// Longest datagram that is taken.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// Datagrams taken before the connections have their say.
const DATAGRAMS_PER_TURN: usize = 512;
/// What the server may send ahead of what is read, in bytes.
const WINDOW_BYTES: u32 = 64 * 1024;
/// What is kept of what was said until the server has it, in bytes.
const SEND_WINDOW_BYTES: u64 = 128 * 1024;
/// What the kernel is asked to keep of datagrams in either direction, in bytes.
const SOCKET_BYTES: usize = 4 << 20;
/// No error.
const NOTHING: VarInt = VarInt::from_u32(0);

/// Clients that trust the authority in file `ca`, with small windows.
///
/// # Errors
/// When the file is of no use.
pub fn client(ca: &Path) -> Result<ClientConfig> {
    let mut config = trust(ca)?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(None)
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// All connections, by the index that their owner gave them.
pub(super) struct Quic {
    endpoint: Endpoint,
    socket: UdpSocket,
    config: ClientConfig,
    links: HashMap<usize, Link>,
    by_handle: HashMap<ConnectionHandle, usize>,
    /// Entries that their link does not have any more mean nothing.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Connections that may have something to send.
    touched: Vec<usize>,
    readable: Vec<usize>,
    writable: Vec<usize>,
    datagram: Vec<u8>,
}

struct Link {
    handle: ConnectionHandle,
    conn: Connection,
    /// Once there is one.
    stream: Option<StreamId>,
    /// Why there is no more to come.
    ended: Option<String>,
    timer: Option<Instant>,
    is_touched: bool,
}

impl Quic {
    /// On a port of `source`, or of any address.
    ///
    /// # Errors
    /// When there is no port.
    pub(super) fn new(config: ClientConfig, source: Option<Ipv4Addr>) -> Result<Self> {
        let socket = UdpSocket::bind((source.unwrap_or(Ipv4Addr::UNSPECIFIED), 0)).context("no UDP port")?;
        socket.set_nonblocking(true)?;
        // The kernel gives what it allows.
        let _ = SockRef::from(&socket).set_recv_buffer_size(SOCKET_BYTES);
        let _ = SockRef::from(&socket).set_send_buffer_size(SOCKET_BYTES);
        Ok(Self {
            endpoint: endpoint(),
            socket,
            config,
            links: HashMap::new(),
            by_handle: HashMap::new(),
            timers: BinaryHeap::new(),
            touched: Vec::new(),
            readable: Vec::new(),
            writable: Vec::new(),
            datagram: vec![0; DATAGRAM_BYTES],
        })
    }

    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Begins connection `index`.
    ///
    /// # Errors
    /// When `address` is none to connect to.
    pub(super) fn connect(&mut self, index: usize, address: SocketAddr) -> io::Result<()> {
        let (handle, conn) = self.begin(address)?;
        let link = Link { handle, conn, stream: None, ended: None, timer: None, is_touched: false };
        self.links.insert(index, link);
        self.by_handle.insert(handle, index);
        self.touch(index);
        Ok(())
    }

    fn begin(&mut self, address: SocketAddr) -> io::Result<(ConnectionHandle, Connection)> {
        let name = address.ip().to_string();
        let begun = self.endpoint.connect(clock::now(), self.config.clone(), address, &name);
        begun.map_err(io::Error::other)
    }

    /// Says what a connection begins with, and forgets it.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub(super) fn knock(&mut self, address: SocketAddr) -> io::Result<()> {
        // Of an endpoint of its own: this one would remember it.
        let (name, now, mut bytes) = (address.ip().to_string(), clock::now(), Vec::new());
        let begun = endpoint().connect(now, self.config.clone(), address, &name);
        let (_, mut conn) = begun.map_err(io::Error::other)?;
        while conn.poll_transmit(now, 1, &mut bytes).is_some() {
            self.say(address, &bytes);
            bytes.clear();
        }
        Ok(())
    }

    /// Sends a datagram as it is. One that the kernel does not take is lost, as on any network.
    pub(super) fn say(&self, address: SocketAddr, bytes: &[u8]) {
        let _ = self.socket.send_to(bytes, address);
    }

    /// Appends to the stream of a connection; returns how many bytes were taken. Of one that is over all are, and lost.
    pub(super) fn write(&mut self, index: usize, bytes: &[u8]) -> usize {
        let Some(link) = self.links.get_mut(&index) else { return bytes.len() };
        let Some(stream) = link.stream else { return 0 };
        let taken = match link.conn.send_stream(stream).write(bytes) {
            Ok(taken) => taken,
            Err(WriteError::Blocked) => 0,
            Err(_) => bytes.len(),
        };
        self.touch(index);
        taken
    }

    /// The next bytes of a stream, 0 at its end.
    ///
    /// # Errors
    /// Of kind `WouldBlock` when there is nothing yet; else why there never will be.
    pub(super) fn read(&mut self, index: usize, into: &mut [u8]) -> io::Result<usize> {
        let over = || io::Error::other("the connection is over");
        let link = self.links.get_mut(&index).ok_or_else(over)?;
        let ended = || match &link.ended {
            Some(why) => io::Error::other(why.clone()),
            None => ErrorKind::WouldBlock.into(),
        };
        let Some(stream) = link.stream else { return Err(ended()) };
        let mut stream = link.conn.recv_stream(stream);
        let mut chunks = stream.read(true).map_err(|_| over())?;
        let read = match chunks.next(into.len()) {
            Ok(Some(chunk)) => {
                into[..chunk.bytes.len()].copy_from_slice(&chunk.bytes);
                Ok(chunk.bytes.len())
            }
            Ok(None) => Ok(0),
            Err(ReadError::Blocked) => Err(ended()),
            Err(ReadError::Reset(_)) => Err(io::Error::other("reset by the server")),
        };
        let _ = chunks.finalize(); // every turn sends what is due
        self.touch(index);
        read
    }

    /// Ends a connection without waiting for anything.
    pub(super) fn close(&mut self, index: usize) {
        if let Some(link) = self.links.get_mut(&index) {
            link.conn.close(clock::now(), NOTHING, bytes::Bytes::new());
            self.touch(index);
        }
    }

    /// Breaks off the stream of a connection, or ends one that has none yet.
    pub(super) fn reset(&mut self, index: usize) {
        let Some(link) = self.links.get_mut(&index) else { return };
        let Some(stream) = link.stream else { return self.close(index) };
        // One that is over needs no reset.
        let _ = link.conn.send_stream(stream).reset(NOTHING);
        self.touch(index);
    }

    /// Asks for new keys, if there are keys.
    pub(super) fn refresh_keys(&mut self, index: usize) {
        if let Some(link) = self.links.get_mut(&index).filter(|link| link.stream.is_some()) {
            link.conn.force_key_update();
            self.touch(index);
        }
    }

    /// A connection of which there may be something to read.
    pub(super) fn next_readable(&mut self) -> Option<usize> {
        self.readable.pop()
    }

    /// Tells of connection `index` once more.
    pub(super) fn look_again(&mut self, index: usize) {
        self.readable.push(index);
    }

    /// A connection that takes more than it did.
    pub(super) fn next_writable(&mut self) -> Option<usize> {
        self.writable.pop()
    }

    /// `wait`, or less when something is due before.
    pub(super) fn bounded(&self, wait: Duration) -> Duration {
        if !self.readable.is_empty() || !self.writable.is_empty() {
            return Duration::ZERO;
        }
        let next = self.timers.peek().map(|Reverse((at, _))| at.saturating_duration_since(clock::now()));
        next.map_or(wait, |next| wait.min(next))
    }

    /// Takes datagrams, wakes who has waited long enough, and sends what is due.
    pub(super) fn turn(&mut self) {
        self.receive();
        self.expire();
        self.flush();
    }

    fn receive(&mut self) {
        let mut answer = Vec::new();
        for _ in 0..DATAGRAMS_PER_TURN {
            // Anything but a datagram is for the timers to notice.
            let Ok((count, from)) = self.socket.recv_from(&mut self.datagram) else { return };
            let bytes = bytes::BytesMut::from(&self.datagram[..count]);
            answer.clear();
            match self.endpoint.handle(clock::now(), from, None, None, bytes, &mut answer) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    let Some(&index) = self.by_handle.get(&handle) else { continue };
                    if let Some(link) = self.links.get_mut(&index) {
                        link.conn.handle_event(event);
                        self.touch(index);
                    }
                }
                Some(DatagramEvent::Response(_)) => self.say(from, &answer),
                Some(DatagramEvent::NewConnection(incoming)) => self.endpoint.ignore(incoming),
                None => {}
            }
        }
    }

    fn expire(&mut self) {
        let now = clock::now();
        while let Some(&Reverse((at, index))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            let link = self.links.get_mut(&index).filter(|link| link.timer == Some(at));
            if let Some(link) = link {
                link.timer = None;
                link.conn.handle_timeout(now);
                self.touch(index);
            }
        }
    }

    fn touch(&mut self, index: usize) {
        let Some(link) = self.links.get_mut(&index) else { return };
        if !std::mem::replace(&mut link.is_touched, true) {
            self.touched.push(index);
        }
    }

    /// Sends what is due.
    pub(super) fn flush(&mut self) {
        let mut bytes = Vec::new();
        while let Some(index) = self.touched.pop() {
            let Some(link) = self.links.get_mut(&index) else { continue };
            link.is_touched = false;
            self.drive(index);
            let now = clock::now();
            while let Some(link) = self.links.get_mut(&index) {
                bytes.clear();
                let Some(transmit) = link.conn.poll_transmit(now, 1, &mut bytes) else { break };
                self.say(transmit.destination, &bytes);
            }
            self.drive(index);
            let Some(link) = self.links.get_mut(&index) else { continue };
            let at = link.conn.poll_timeout();
            if at != link.timer {
                link.timer = at;
                self.timers.extend(at.map(|at| Reverse((at, index))));
            }
        }
    }

    /// Takes what a connection has to say to the endpoint and to us.
    fn drive(&mut self, index: usize) {
        while let Some(link) = self.links.get_mut(&index) {
            if let Some(event) = link.conn.poll_endpoint_events() {
                let is_drained = event.is_drained();
                if let Some(answer) = self.endpoint.handle_event(link.handle, event) {
                    link.conn.handle_event(answer);
                }
                if is_drained {
                    self.by_handle.remove(&link.handle);
                    self.links.remove(&index);
                    self.readable.push(index);
                }
                continue;
            }
            match link.conn.poll() {
                Some(Event::Connected) => {
                    link.stream = link.conn.streams().open(Dir::Bi);
                    self.writable.push(index);
                }
                Some(Event::Stream(StreamEvent::Readable { .. })) => self.readable.push(index),
                Some(Event::Stream(StreamEvent::Writable { .. } | StreamEvent::Available { .. })) => {
                    self.writable.push(index);
                }
                Some(Event::ConnectionLost { reason }) => {
                    link.ended = Some(words(&reason));
                    self.readable.push(index);
                }
                Some(_) => {}
                None => return,
            }
        }
    }
}

fn endpoint() -> Endpoint {
    Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None)
}

fn words(reason: &ConnectionError) -> String {
    match reason {
        ConnectionError::ApplicationClosed(_) => "closed by the server".into(),
        other => other.to_string(),
    }
}
