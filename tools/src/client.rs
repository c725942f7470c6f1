//! Reference client: the wire over TCP, WebSocket (both plain or in TLS) or QUIC, on codec alone.
//!
//! [`Client::connect`] signs in and gives a [`Client`] to ask with and [`Events`] to listen to. Two tasks serve them: a
//! writer, which also keeps the connection alive, and a reader. Events wait in a bounded queue; when nobody takes them
//! the reader stops, and answers with it, so take events while requests are open. [`Mailbox`] does so and keeps the
//! cursor's rules.

mod mailbox;
mod message;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    marker::PhantomData,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gimbal_codec::{
    ClientMessageId, CloseReason, Command, DecodeError, DeviceId, GroupId, RoomId, Seq, UserId,
    body::{self, SendResult, SignInResult},
    frame,
};
use tokio::{
    io::split,
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    quic,
    tls::{self, Trust},
    websocket::Pipe,
};

pub use mailbox::{Cursor, Item, Mailbox, Step};
pub use message::{Message, Page};
use reader::Reader;
use writer::Writer;

/// Events that wait for their taker: about one full sync page.
const EVENTS_MAX: usize = 512;
/// Frames that wait for the socket.
const FRAMES_MAX: usize = 256;
/// Requests without an answer: more would mean that nobody reads the answers.
const REQUESTS_OPEN_MAX: usize = 65_536;

/// How to connect and as whom.
#[derive(Clone)]
pub struct Options {
    /// `host:port` of the gateway's TCP, WebSocket or QUIC port.
    pub address: String,
    /// Speak WebSocket, on path `/ws`.
    pub websocket: bool,
    /// Over TLS with a server that these authorities vouch for; the address is then that of a TLS port.
    pub tls: Option<Trust>,
    /// Speak QUIC, and trust whom this says.
    pub quic: Option<quinn::ClientConfig>,
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// The device's token.
    pub token: String,
    /// Highest seq this device has; `None` signs in as gim's clients do, without one.
    pub cursor: Option<Seq>,
    /// Bound on connecting and signing in, and on each answer.
    pub timeout: Duration,
    /// Send heartbeats at a third of the server's idle limit.
    pub heartbeat: bool,
}

impl Options {
    /// A client with a cursor, heartbeats and a timeout of 10 s.
    pub fn new(address: impl Into<String>, user: UserId, device: DeviceId, token: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            websocket: false,
            tls: None,
            quic: None,
            user,
            device,
            token: token.into(),
            cursor: Some(Seq::new(0)),
            timeout: Duration::from_secs(10),
            heartbeat: true,
        }
    }
}

/// Why the connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// The server's close code; `None` when the connection broke without one.
    pub code: Option<u16>,
    /// The server's text, or what broke.
    pub reason: String,
    /// When to come back.
    pub retry_after: Duration,
}

impl Closed {
    /// The reason, when it is one this version knows.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.code.and_then(CloseReason::from_code)
    }
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => write!(f, "closed by the server: {} ({code})", self.reason)?,
            None => write!(f, "connection lost: {}", self.reason)?,
        }
        if !self.retry_after.is_zero() {
            write!(f, ", come back in {:?}", self.retry_after)?;
        }
        Ok(())
    }
}

/// Why something did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection could not be made.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// Where to.
        address: String,
        /// The system's word.
        why: String,
    },
    /// The server said no.
    #[error("refused with code {code}: {message}")]
    Refused {
        /// A code of `gimbal_codec::code`.
        code: i32,
        /// Its text.
        message: String,
    },
    /// The connection is over.
    #[error("{0}")]
    Closed(Closed),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server sent what is not in the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// The server gave a seq before the one that was due.
    #[error("seq {got} came where {expected} was due")]
    Gap {
        /// The next seq of the mailbox.
        expected: Seq,
        /// What came.
        got: Seq,
    },
    /// Too many requests are open.
    #[error("{REQUESTS_OPEN_MAX} requests are open")]
    TooManyOpen,
}

/// What the server sends by itself, in its order. [`Event::Closed`] is the last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A message: of the mailbox, of a room, or to all.
    Message(Message),
    /// The answer to [`Client::request_page`].
    Page(Result<Page, ClientError>),
    /// Messages wait in the mailbox; ask for pages.
    Behind {
        /// The mailbox's newest seq.
        latest: Seq,
    },
    /// Something never stored, from another session.
    Signal {
        /// Sender.
        from_user: UserId,
        /// Sending device.
        from_device: DeviceId,
        /// The room it was sent to, or 0.
        room: RoomId,
        /// Opaque type code.
        command: i32,
        /// Opaque content.
        content: Bytes,
    },
    /// A signal of ours was not passed on.
    SignalRefused(ClientError),
    /// The connection is over.
    Closed(Closed),
}

/// What waits for an answer.
enum Waiter {
    Answer(oneshot::Sender<Result<Bytes, ClientError>>),
    Page,
}

/// Requests without an answer, and why the connection ended, once it has.
#[derive(Default)]
struct Open {
    waiters: HashMap<u64, Waiter>,
    closed: Option<Closed>,
}

#[derive(Default)]
struct Shared {
    open: Mutex<Open>,
    next_request: AtomicU64,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The asking side of a signed-in connection. Clones share it; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    frames: mpsc::Sender<Bytes>,
    timeout: Duration,
}

/// The listening side of a signed-in connection.
pub struct Events {
    queue: mpsc::Receiver<Event>,
}

impl Events {
    /// The next event; `None` after [`Event::Closed`].
    ///
    /// # Cancel-safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await
    }
}

/// A request under way; dropping it forgets the answer, not the request.
#[must_use]
pub struct Answer<T> {
    answer: oneshot::Receiver<Result<Bytes, ClientError>>,
    timeout: Duration,
    decode: fn(&[u8]) -> Result<T, DecodeError>,
    of: PhantomData<T>,
}

impl<T> Answer<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// What the server said, or that it said nothing in time, or that the connection ended.
    pub async fn wait(self) -> Result<T, ClientError> {
        let answer =
            timeout(self.timeout, self.answer).await.map_err(|_| ClientError::Timeout(self.timeout))?;
        let data = answer.map_err(|_| ClientError::Closed(lost("the client is gone")))??;
        Ok((self.decode)(&data)?)
    }
}

fn lost(why: &str) -> Closed {
    Closed { code: None, reason: why.to_owned(), retry_after: Duration::ZERO }
}

impl Client {
    /// Connects and signs in. The third value is `None` when the client signed in without a cursor.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Refused`] with the server's code, or what broke.
    pub async fn connect(options: Options) -> Result<(Self, Events, Option<SignInResult>), ClientError> {
        let limit = options.timeout;
        timeout(limit, Self::connect_and_sign_in(options)).await.map_err(|_| ClientError::Timeout(limit))?
    }

    async fn connect_and_sign_in(
        options: Options,
    ) -> Result<(Self, Events, Option<SignInResult>), ClientError> {
        let refused = |error: std::io::Error| ClientError::Connect {
            address: options.address.clone(),
            why: error.to_string(),
        };
        let (mut reader, mut writer) = open(&options).await.map_err(refused)?;
        reader.opened().await?;
        let sign_in = body::SignIn {
            user: options.user,
            device: options.device,
            token: &options.token,
            cursor: options.cursor,
        };
        writer.write(&frame(Command::SignIn, SIGN_IN_ID, 0, &sign_in)).await.map_err(refused)?;

        let data = reader.sign_in_answer().await?;
        let result = options.cursor.map(|_| SignInResult::decode(&data)).transpose()?;

        let (frames, frames_out) = mpsc::channel(FRAMES_MAX);
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::new(Shared::default());
        let idle = result.map_or(IDLE_DEFAULT, |result| Duration::from_millis(result.idle_ms));
        let heartbeat = (options.heartbeat && !idle.is_zero()).then_some(idle / 3);
        tokio::spawn(writer.run(frames_out, heartbeat));
        tokio::spawn(reader.run(Arc::clone(&shared), events_in));
        Ok((Self { shared, frames, timeout: options.timeout }, Events { queue: events }, result))
    }

    async fn begin<T, B: gimbal_codec::Body>(
        &self,
        command: Command,
        content: &B,
        decode: fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Answer<T>, ClientError> {
        let (waiter, answer) = oneshot::channel();
        self.request(command, content, Waiter::Answer(waiter)).await?;
        Ok(Answer { answer, timeout: self.timeout, decode, of: PhantomData })
    }

    async fn request<B: gimbal_codec::Body>(
        &self,
        command: Command,
        content: &B,
        waiter: Waiter,
    ) -> Result<(), ClientError> {
        let id = self.shared.next_request.fetch_add(1, Ordering::Relaxed) + 1;
        {
            let mut open = self.shared.open();
            if let Some(closed) = &open.closed {
                return Err(ClientError::Closed(closed.clone()));
            }
            if open.waiters.len() >= REQUESTS_OPEN_MAX {
                return Err(ClientError::TooManyOpen);
            }
            open.waiters.insert(id, waiter);
        }
        self.write(frame(command, &id.to_string(), 0, content)).await
    }

    async fn write(&self, frame: Bytes) -> Result<(), ClientError> {
        if self.frames.send(frame).await.is_ok() {
            return Ok(());
        }
        let closed = self.shared.open().closed.clone();
        Err(ClientError::Closed(closed.unwrap_or_else(|| lost("the socket takes no more"))))
    }

    /// Hands a message to the connection and returns at once; the answer comes after it is durable. The same
    /// `client_message_id` again is the same message.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn begin_send(
        &self,
        to: UserId,
        client_message_id: ClientMessageId,
        command: i32,
        content: &[u8],
    ) -> Result<Answer<SendResult>, ClientError> {
        let send = body::Send { client_message_id, to, command, content, ..Default::default() };
        self.begin(Command::Send, &send, SendResult::decode).await
    }

    /// Sends a message and waits until it is durable.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn send(
        &self,
        to: UserId,
        client_message_id: ClientMessageId,
        command: i32,
        content: &[u8],
    ) -> Result<SendResult, ClientError> {
        self.begin_send(to, client_message_id, command, content).await?.wait().await
    }

    /// Sends a message to a group and waits until it is durable; its seq is the place in the group's order.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn send_to_group(
        &self,
        group: GroupId,
        client_message_id: ClientMessageId,
        command: i32,
        content: &[u8],
    ) -> Result<SendResult, ClientError> {
        let send = body::Send { client_message_id, group, command, content, ..Default::default() };
        self.begin(Command::Send, &send, SendResult::decode).await?.wait().await
    }

    /// One page of the mailbox, outside of [`Mailbox`]. It moves the session's cursor to the page's end.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn sync(&self, after: Seq, limit: u32) -> Result<Page, ClientError> {
        self.begin(Command::Sync, &body::Sync { after, limit }, Page::decode).await?.wait().await
    }

    /// Asks for a page that comes as [`Event::Page`], in order with messages.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn request_page(&self, after: Seq, limit: u32) -> Result<(), ClientError> {
        self.request(Command::Sync, &body::Sync { after, limit }, Waiter::Page).await
    }

    /// Tells what this device has processed and returns at once.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn begin_ack(&self, seq: Seq) -> Result<Answer<Seq>, ClientError> {
        self.begin(Command::Ack, &body::Ack { seq }, |data| Ok(body::Ack::decode(data)?.seq)).await
    }

    /// Tells what this device has processed and waits for it; returns the device's ack now.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn ack(&self, seq: Seq) -> Result<Seq, ClientError> {
        self.begin_ack(seq).await?.wait().await
    }

    /// Joins rooms; messages come as events.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn join(&self, rooms: &[RoomId]) -> Result<(), ClientError> {
        let rooms = body::Rooms { rooms: rooms.to_vec() };
        self.begin(Command::Join, &rooms, |_| Ok(())).await?.wait().await
    }

    /// Leaves rooms; none: all.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn leave(&self, rooms: &[RoomId]) -> Result<(), ClientError> {
        let rooms = body::Rooms { rooms: rooms.to_vec() };
        self.begin(Command::Leave, &rooms, |_| Ok(())).await?.wait().await
    }

    /// gim's way into a room: this one and no other; 0 leaves.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn subscribe_room(&self, room: RoomId) -> Result<(), ClientError> {
        self.begin(Command::SubscribeRoom, &body::SubscribeRoom { room }, |_| Ok(())).await?.wait().await
    }

    /// Something never stored, to a user's sessions. A refusal comes as [`Event::SignalRefused`].
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn signal_user(&self, to: UserId, command: i32, content: &[u8]) -> Result<(), ClientError> {
        self.signal(&body::Signal { to_user: to, command, content, ..Default::default() }).await
    }

    /// Something never stored, to the members of a room this session is in.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn signal_room(&self, room: RoomId, command: i32, content: &[u8]) -> Result<(), ClientError> {
        self.signal(&body::Signal { room, command, content, ..Default::default() }).await
    }

    async fn signal(&self, signal: &body::Signal<'_>) -> Result<(), ClientError> {
        self.write(frame(Command::Signal, SIGNAL_ID, 0, signal)).await
    }

    /// There and back.
    ///
    /// # Errors
    /// As [`Answer::wait`].
    pub async fn heartbeat(&self) -> Result<(), ClientError> {
        self.begin(Command::Heartbeat, &(), |_| Ok(())).await?.wait().await
    }

    /// Whether the connection has ended, and why.
    pub fn closed(&self) -> Option<Closed> {
        self.shared.open().closed.clone()
    }
}

/// What both halves of a connection over WebSocket share.
type SharedPipe = Arc<Mutex<Pipe>>;

/// A WebSocket to `address`, and the request that opens it.
/// A connection of the kind that is asked for, not signed in.
async fn open(options: &Options) -> std::io::Result<(Reader, Writer)> {
    if let Some(config) = &options.quic {
        let (connection, read, write) = quic::connect(&options.address, config.clone()).await?;
        return Ok((Reader::new(Box::new(read), None, Some(connection)), Writer::new(Box::new(write), None)));
    }
    let (read, write) = socket(options).await?;
    let (pipe, request) = if options.websocket { open_pipe(&options.address) } else { (None, Vec::new()) };
    let mut writer = Writer::new(write, pipe.clone());
    writer.write_as_is(&request).await?;
    Ok((Reader::new(read, pipe, None), writer))
}

/// Both halves, after the handshake of TLS if there is to be any.
async fn socket(options: &Options) -> std::io::Result<(reader::Half, writer::Half)> {
    let stream = TcpStream::connect(&options.address).await?;
    stream.set_nodelay(true)?;
    let Some(trust) = &options.tls else {
        let (read, write) = stream.into_split();
        return Ok((Box::new(read), Box::new(write)));
    };
    let name = tls::server_name(&options.address).map_err(std::io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(trust.config(options.websocket)));
    let (read, write) = split(connector.connect(name, stream).await?);
    Ok((Box::new(read), Box::new(write)))
}

fn open_pipe(address: &str) -> (Option<SharedPipe>, Vec<u8>) {
    let seed = RandomState::new().build_hasher().finish();
    let (pipe, request) = Pipe::new(address, "/ws", seed);
    (Some(Arc::new(Mutex::new(pipe))), request)
}

fn lock(pipe: &SharedPipe) -> MutexGuard<'_, Pipe> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Request id of the sign-in.
const SIGN_IN_ID: &str = "sign-in";
/// Request id of signals, which tells a refusal from a signal of somebody else.
const SIGNAL_ID: &str = "signal";
/// Idle limit assumed when the server does not tell it: gim's.
const IDLE_DEFAULT: Duration = Duration::from_secs(11 * 60);
