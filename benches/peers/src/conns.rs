//! The client of every server: one thread, one epoll, one receive per ready socket into a large buffer, one send per
//! socket and turn. Only the function that reads an item differs.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gimbal::{clock, load::stop};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
};

use crate::{
    dialect::{Event, Fault, ItemFn, nats},
    server::INTERRUPTED,
};

/// Bytes of one receive: several bursts of a room.
const READ_BYTES: usize = 128 * 1024;
/// Sockets reported by one wait.
const EVENTS_MAX: usize = 1024;
/// Connections that may wait for their first answer at once.
const OPENING_MAX: usize = 128;
/// How long no answer may come.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait of one turn.
pub(crate) const TURN: Duration = Duration::from_millis(50);

/// One connection's incoming bytes; keeps the beginning of an item that is not complete.
#[derive(Default)]
pub(crate) struct Stream {
    partial: Vec<u8>,
}

impl Stream {
    /// Takes the next bytes and gives every item that they complete to `each`.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        item: ItemFn,
        mut each: impl FnMut(Event),
    ) -> Result<(), Fault> {
        if self.partial.is_empty() {
            let used = items(bytes, item, &mut each)?;
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            self.partial.extend_from_slice(bytes);
            let used = items(&self.partial, item, &mut each)?;
            self.partial.drain(..used);
        }
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(())
    }

    /// Bytes of an item that is not complete.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.partial.len()
    }
}

/// Bytes of all whole items.
fn items(bytes: &[u8], item: ItemFn, each: &mut impl FnMut(Event)) -> Result<usize, Fault> {
    let mut at = 0;
    while let Some((event, length)) = item(&bytes[at..])? {
        each(event);
        at += length;
    }
    Ok(at)
}

struct Conn {
    socket: TcpStream,
    stream: Stream,
    /// Bytes to send.
    out: Vec<u8>,
    /// In `Conns::dirty`.
    dirty: bool,
    /// The socket was full; epoll says when it takes more.
    blocked: bool,
    deliveries: u64,
}

/// The connections of one run, by the index in which they were opened. The end of any of them is an error.
pub(crate) struct Conns {
    epoll: OwnedFd,
    conns: Vec<Conn>,
    item: ItemFn,
    dirty: Vec<usize>,
    events: Vec<epoll::Event>,
    chunk: Vec<u8>,
    /// Deliveries on all connections.
    pub(crate) deliveries: u64,
    /// Bytes received on all connections.
    pub(crate) received_bytes: u64,
}

impl Conns {
    /// No connections yet.
    ///
    /// # Errors
    /// When the kernel gives no epoll descriptor.
    pub(crate) fn new(item: ItemFn) -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).context("no epoll")?,
            conns: Vec::new(),
            item,
            dirty: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            chunk: vec![0; READ_BYTES],
            deliveries: 0,
            received_bytes: 0,
        })
    }

    /// Connections opened.
    pub(crate) fn len(&self) -> usize {
        self.conns.len()
    }

    /// Opens `count` connections; `hello` writes the first bytes of each and says how many answers they get.
    ///
    /// # Errors
    /// When a connection fails or is refused, or the answers do not come in time.
    pub(crate) fn open(
        &mut self,
        address: SocketAddr,
        count: usize,
        hello: &mut dyn FnMut(usize, &mut Vec<u8>) -> usize,
    ) -> Result<()> {
        let first = self.conns.len();
        let (mut waiting, mut unanswered) = (vec![0usize; count], 0);
        let (mut opened, mut last_answer) = (0, clock::now());
        while opened < count || unanswered > 0 {
            while opened < count && unanswered < OPENING_MAX {
                self.connect(address).with_context(|| format!("connection {} fails", first + opened))?;
                let mut answers = 0;
                self.write(first + opened, |out| answers = hello(first + opened, out));
                waiting[opened] = answers;
                unanswered += usize::from(answers > 0);
                opened += 1;
            }
            let mut answered = false;
            self.turn(TURN, &mut |index, event, _| {
                if matches!(event, Event::Ready | Event::Pong) && index >= first {
                    answered = true;
                    let left = &mut waiting[index - first];
                    unanswered -= usize::from(*left == 1);
                    *left = left.saturating_sub(1);
                }
            })?;
            if answered || unanswered == 0 {
                last_answer = clock::now();
            }
            let is_alive = clock::now() - last_answer < ANSWER_TIMEOUT;
            ensure!(is_alive, "{unanswered} of {opened} connections are not answered");
        }
        Ok(())
    }

    /// Lets `write` ask on each connection, and waits for the answers it says there will be.
    ///
    /// # Errors
    /// When a connection ends or is refused, or the answers do not come in time.
    pub(crate) fn ask(&mut self, write: &mut dyn FnMut(usize, &mut Vec<u8>) -> usize) -> Result<()> {
        let mut wanted = 0;
        for index in 0..self.conns.len() {
            self.write(index, |out| wanted += write(index, out));
        }
        let mut last_answer = clock::now();
        while wanted > 0 {
            let before = wanted;
            self.turn(TURN, &mut |_, event, _| {
                wanted -= usize::from(wanted > 0 && matches!(event, Event::Ready | Event::Pong));
            })?;
            if wanted < before {
                last_answer = clock::now();
            }
            ensure!(clock::now() - last_answer < ANSWER_TIMEOUT, "{wanted} subscriptions are not answered");
        }
        Ok(())
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<()> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        epoll::add(&self.epoll, &socket, EventData::new_u64(self.conns.len() as u64), EventFlags::IN)?;
        let stream = Stream::default();
        self.conns.push(Conn {
            socket,
            stream,
            out: Vec::new(),
            dirty: false,
            blocked: false,
            deliveries: 0,
        });
        Ok(())
    }

    /// Lets `write` append to what a connection sends with the next turn.
    pub(crate) fn write(&mut self, index: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let conn = &mut self.conns[index];
        write(&mut conn.out);
        if !conn.dirty && !conn.blocked && !conn.out.is_empty() {
            conn.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Sends, waits at most `wait` and gives every item that came to `each`, with its connection's index and output.
    ///
    /// # Errors
    /// When a connection ends, sends what is not its protocol, or refuses, and when the run is interrupted.
    pub(crate) fn turn(
        &mut self,
        wait: Duration,
        each: &mut impl FnMut(usize, Event, &mut Vec<u8>),
    ) -> Result<()> {
        ensure!(!stop::is_requested(), INTERRUPTED);
        self.flush()?;
        self.events.clear();
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll fails"),
        }
        for at in 0..self.events.len() {
            let event = self.events[at];
            let (index, flags) = (event.data.u64() as usize, event.flags);
            if flags.contains(EventFlags::OUT) {
                self.send(index)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.receive(index, each).with_context(|| format!("connection {index}"))?;
            }
        }
        Ok(())
    }

    /// Turns until `wanted` deliveries have come in all.
    ///
    /// # Errors
    /// As [`Self::turn`], and when more come, or they do not come before `deadline`.
    pub(crate) fn await_deliveries(&mut self, wanted: u64, deadline: Instant) -> Result<()> {
        while self.deliveries < wanted {
            self.turn(TURN, &mut |_, _, _| {})?;
            if self.deliveries < wanted && clock::now() > deadline {
                bail!("{} of {wanted} deliveries came in time", self.deliveries);
            }
        }
        ensure!(self.deliveries == wanted, "{} deliveries came where {wanted} are due", self.deliveries);
        Ok(())
    }

    /// Deliveries on one connection.
    pub(crate) fn deliveries_of(&self, index: usize) -> u64 {
        self.conns[index].deliveries
    }

    fn flush(&mut self) -> Result<()> {
        while let Some(index) = self.dirty.pop() {
            self.conns[index].dirty = false;
            self.send(index)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> Result<()> {
        let conn = &mut self.conns[index];
        let was_blocked = conn.blocked;
        match conn.socket.write(&conn.out) {
            Ok(bytes) if bytes == conn.out.len() => conn.out.clear(),
            Ok(bytes) => drop(conn.out.drain(..bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).with_context(|| format!("connection {index}")),
        }
        conn.blocked = !conn.out.is_empty();
        if conn.blocked != was_blocked {
            let flags = if conn.blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &conn.socket, EventData::new_u64(index as u64), flags)?;
        }
        Ok(())
    }

    /// One receive; level-triggered epoll comes back when there is more.
    fn receive(&mut self, index: usize, each: &mut impl FnMut(usize, Event, &mut Vec<u8>)) -> Result<()> {
        let conn = &mut self.conns[index];
        let bytes = match conn.socket.read(&mut self.chunk) {
            Ok(0) => bail!("closed by the server"),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.received_bytes += bytes as u64;
        let (out, mut deliveries) = (&mut conn.out, 0);
        conn.stream.feed(&self.chunk[..bytes], self.item, |event| {
            match event {
                Event::Delivery => deliveries += 1,
                Event::Ping => out.extend_from_slice(nats::PONG),
                _ => {}
            }
            each(index, event, out);
        })?;
        conn.deliveries += deliveries;
        self.deliveries += deliveries;
        if !conn.dirty && !conn.blocked && !conn.out.is_empty() {
            conn.dirty = true;
            self.dirty.push(index);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;
    use crate::dialect::resp;

    /// A server that greets its only client, answers the next ping with `bytes` and closes.
    fn one_client(bytes: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut ping = [0; 14];
            socket.read_exact(&mut ping).unwrap();
            socket.write_all(b"+PONG\r\n").unwrap();
            socket.read_exact(&mut ping).unwrap();
            socket.write_all(bytes).unwrap();
        });
        address
    }

    fn opened(bytes: &'static [u8]) -> Conns {
        let mut conns = Conns::new(resp::item).unwrap();
        let hello = &mut |_: usize, out: &mut Vec<u8>| {
            resp::ping(out);
            1
        };
        conns.open(one_client(bytes), 1, hello).unwrap();
        conns.write(0, resp::ping);
        conns
    }

    #[test]
    fn deliveries_are_counted_per_connection_and_the_end_is_an_error() {
        let message =
            b"*3\r\n$7\r\nmessage\r\n$1\r\np\r\n$2\r\nhi\r\n*3\r\n$7\r\nmessage\r\n$1\r\np\r\n$2\r\nho\r\n";
        let mut conns = opened(message);
        conns.await_deliveries(2, clock::now() + ANSWER_TIMEOUT).unwrap();
        assert_eq!((conns.deliveries_of(0), conns.received_bytes), (2, 7 + message.len() as u64));
        let error = conns.await_deliveries(3, clock::now() + ANSWER_TIMEOUT).unwrap_err();
        assert!(format!("{error:#}").contains("closed by the server"), "{error:#}");
    }

    #[test]
    fn another_protocol_is_an_error() {
        let mut conns = opened(b"SSH-2.0\r\n");
        let error = conns.await_deliveries(1, clock::now() + ANSWER_TIMEOUT).unwrap_err();
        assert!(format!("{error:#}").contains("not an item"), "{error:#}");
    }
}
