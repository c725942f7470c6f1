//! A blocking client on std sockets and the codec. It checks the server's promise on every message it is given.

use std::{
    collections::{HashSet, VecDeque},
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use gimbal_codec::{
    Body, ClientMessageId, Command, Decoder, Packet, RoomId, Seq, UserId, body, frame, limits,
};

use super::{Device, PATIENCE};
use gimbal::websocket::Pipe;

/// When a call is repeated instead of waited for.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// A message as the client keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    pub(crate) seq: u64,
    pub(crate) id: u64,
    pub(crate) from_user: UserId,
    pub(crate) room: u64,
    pub(crate) room_order: (u64, u64),
    pub(crate) command: i32,
    pub(crate) content: Vec<u8>,
}

impl From<body::Message<'_>> for Message {
    fn from(message: body::Message<'_>) -> Self {
        Self {
            seq: message.seq.get(),
            id: message.id.get(),
            from_user: message.from_user,
            room: message.room.get(),
            room_order: (message.room_epoch, message.room_seq),
            command: message.command,
            content: message.content.to_vec(),
        }
    }
}

/// What arrives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    Message(Message),
    Behind(u64),
    Signal {
        from: UserId,
        command: i32,
        content: Vec<u8>,
    },
    /// An answer: request id, command, content of the packet.
    Answer {
        request_id: String,
        command: i32,
        content: Vec<u8>,
    },
    Close {
        code: u16,
        retry_after_ms: u64,
    },
    /// The stream ended, with or without a close before.
    End,
}

impl Event {
    fn answers(&self, wanted: &str) -> bool {
        matches!(self, Self::Answer { request_id, .. } if request_id == wanted) || *self == Self::End
    }
}

/// A refused call: its reply code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused(pub(crate) i32);

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    /// Over WebSocket.
    pipe: Option<Pipe>,
    decoder: Decoder,
    arrived: VecDeque<Event>,
    messages: VecDeque<Message>,
    signals: VecDeque<(UserId, Vec<u8>)>,
    requests: u64,
    /// Requests nobody waits for any more.
    abandoned: HashSet<String>,
    /// Highest seq it was given; `None`: it signed in as gim's clients do.
    cursor: Option<u64>,
    behind: bool,
    closed: Option<u16>,
}

impl Client {
    /// Connects without signing in.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap()
    }

    pub(crate) fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            pipe: None,
            decoder: Decoder::new(),
            arrived: VecDeque::new(),
            messages: VecDeque::new(),
            signals: VecDeque::new(),
            requests: 0,
            abandoned: HashSet::new(),
            cursor: None,
            behind: false,
            closed: None,
        })
    }

    /// Connects over WebSocket without signing in; what is written is whole frames of the stream all the same.
    pub(crate) fn websocket(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        let (pipe, request) = Pipe::new(&address.to_string(), "/ws", u64::from(address.port()));
        client.stream.write_all(&request).unwrap();
        client.pipe = Some(pipe);
        client
    }

    /// Connects over WebSocket and signs in with a cursor.
    pub(crate) fn websocket_online(address: SocketAddr, device: &Device, cursor: u64) -> Self {
        let mut client = Self::websocket(address);
        client.sign_in(device, Some(cursor)).unwrap();
        client
    }

    /// The code of the WebSocket close frame, once it was read.
    pub(crate) fn websocket_closed(&self) -> Option<u16> {
        self.pipe.as_ref().and_then(Pipe::closed)
    }

    /// Connects and signs in with a cursor of 0.
    pub(crate) fn online(address: SocketAddr, device: &Device) -> Self {
        Self::online_from(address, device, 0)
    }

    /// As [`Self::online`], for a client that has everything up to `cursor`.
    pub(crate) fn online_from(address: SocketAddr, device: &Device, cursor: u64) -> Self {
        let mut client = Self::connect(address);
        client.sign_in(device, Some(cursor)).unwrap();
        client
    }

    /// Signs in; the mailbox's newest seq (0 without a cursor).
    pub(crate) fn sign_in(&mut self, device: &Device, cursor: Option<u64>) -> Result<u64, Refused> {
        let request = body::SignIn {
            user: device.user,
            device: device.device,
            token: &device.token,
            cursor: cursor.map(Seq::new),
        };
        self.cursor = cursor;
        let data = self.call(Command::SignIn, &request)?;
        Ok(body::SignInResult::decode(&data).unwrap().latest.get())
    }

    /// Writes bytes as they are; false once the server no longer takes them.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        let Some(pipe) = &mut self.pipe else { return self.stream.write_all(bytes).is_ok() };
        let mut messages = Vec::new();
        pipe.outgoing(bytes, &mut messages);
        self.stream.write_all(&messages).is_ok()
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a request without waiting; its request id.
    pub(crate) fn request<B: Body + ?Sized>(&mut self, command: Command, body: &B) -> String {
        self.requests += 1;
        let request_id = self.requests.to_string();
        self.write(&frame(command, &request_id, 0, body));
        request_id
    }

    /// Sends a request and waits for its answer's data; what is pushed meanwhile is kept.
    pub(crate) fn call<B: Body + ?Sized>(&mut self, command: Command, body: &B) -> Result<Vec<u8>, Refused> {
        let wanted = self.request(command, body);
        self.answer(&wanted)
    }

    /// As [`Self::call`], but gives up after a while, as the protocol allows a client to; a late answer is then ignored.
    pub(crate) fn try_call<B: Body + ?Sized>(
        &mut self,
        command: Command,
        body: &B,
    ) -> Option<Result<Vec<u8>, Refused>> {
        let wanted = self.request(command, body);
        self.stream.set_read_timeout(Some(IMPATIENCE)).unwrap();
        let mut in_time = true;
        while in_time && !self.arrived.iter().any(|event| event.answers(&wanted)) {
            in_time = self.arrive();
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if in_time {
            return Some(self.answer(&wanted));
        }
        self.abandoned.insert(wanted);
        None
    }

    /// Waits for the answer to a request.
    pub(crate) fn answer(&mut self, wanted: &str) -> Result<Vec<u8>, Refused> {
        loop {
            match self.event() {
                Event::Answer { request_id, .. } if self.abandoned.remove(&request_id) => {}
                Event::Answer { request_id, content, .. } if request_id == wanted => {
                    let reply = body::Reply::decode(&content).unwrap();
                    return if reply.code == 0 { Ok(reply.data.to_vec()) } else { Err(Refused(reply.code)) };
                }
                Event::Answer { request_id, .. } => {
                    panic!("answer to {request_id} while waiting for {wanted}")
                }
                Event::End | Event::Close { .. } => {
                    panic!("closed ({:?}) while waiting for {wanted}", self.closed)
                }
                event => self.keep(event),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        match event {
            Event::Message(message) => {
                if let (Some(cursor), true) = (self.cursor, message.seq != 0) {
                    assert_eq!(message.seq, cursor + 1, "live delivery out of order");
                    self.cursor = Some(message.seq);
                }
                self.messages.push_back(message);
            }
            Event::Behind(_) => self.behind = true,
            Event::Signal { from, content, .. } => self.signals.push_back((from, content)),
            other => panic!("unexpected: {other:?}"),
        }
    }

    /// The next thing that arrives; [`Event::End`] for ever after the end.
    ///
    /// # Panics
    /// When nothing arrives for as long as patience lasts.
    pub(crate) fn event(&mut self) -> Event {
        while self.arrived.is_empty() {
            assert!(self.arrive(), "nothing arrived for {PATIENCE:?}");
        }
        let event = self.arrived.pop_front().expect("not empty");
        if let Event::Close { code, .. } = event {
            self.closed = Some(code);
        }
        event
    }

    /// Reads once; false when the time for it is over.
    fn arrive(&mut self) -> bool {
        let mut chunk = [0; 65_536];
        let count = match self.stream.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return false;
            }
            Err(_) => 0,
        };
        if count == 0 {
            self.arrived.push_back(Event::End);
        }
        let mut frames = chunk[..count].to_vec();
        if let Some(pipe) = &mut self.pipe {
            let mut replies = Vec::new();
            frames.clear();
            pipe.incoming(&chunk[..count], &mut frames, &mut replies).unwrap();
            let _ = self.stream.write_all(&replies); // the server may be gone already
        }
        let mut feed = self.decoder.feed(&frames);
        while let Some(packet) = feed.next_frame(limits::FRAME_BYTES_MAX_DOWN).unwrap() {
            self.arrived.push_back(event(packet));
        }
        true
    }

    /// Reads until `count` messages are there, syncing when told to be behind, and takes them.
    pub(crate) fn receive(&mut self, count: usize) -> Vec<Message> {
        while self.messages.len() < count {
            if self.behind {
                self.sync();
            } else {
                let event = self.event();
                self.keep(event);
            }
        }
        self.messages.drain(..count).collect()
    }

    /// Takes all messages that are there, in the mailbox or on their way from the gateway, at this moment.
    pub(crate) fn flush(&mut self) -> Vec<Message> {
        self.heartbeat();
        while self.behind {
            self.sync();
            self.heartbeat();
        }
        self.messages.drain(..).collect()
    }

    /// A heartbeat and its echo.
    pub(crate) fn heartbeat(&mut self) {
        let wanted = self.request(Command::Heartbeat, b"beat".as_slice());
        loop {
            match self.event() {
                Event::Answer { request_id, content, .. } if request_id == wanted => {
                    assert_eq!(content, b"beat");
                    return;
                }
                Event::Answer { request_id, .. } if self.abandoned.remove(&request_id) => {}
                event => self.keep(event),
            }
        }
    }

    /// Pulls one page; when that leaves it short the server says so again.
    fn sync(&mut self) {
        let after = self.cursor.expect("signed in with a cursor");
        let data = self.call(Command::Sync, &body::Sync { after: Seq::new(after), limit: 0 }).unwrap();
        let page = body::SyncPage::decode(&data).unwrap();
        self.behind = false;
        for message in page.messages {
            let cursor = self.cursor.expect("kept since the sign-in");
            assert_eq!(message.seq.get(), cursor + 1, "a page with a hole");
            self.cursor = Some(message.seq.get());
            self.messages.push_back(message.into());
        }
    }

    pub(crate) fn cursor(&self) -> u64 {
        self.cursor.expect("signed in with a cursor")
    }

    pub(crate) fn send(&mut self, to: UserId, id: u64, content: &[u8]) -> Result<body::SendResult, Refused> {
        let client_message_id = ClientMessageId::new(id);
        let request = body::Send { client_message_id, to, command: 1, content, ..Default::default() };
        self.call(Command::Send, &request).map(|data| body::SendResult::decode(&data).unwrap())
    }

    pub(crate) fn ack(&mut self, seq: u64) -> u64 {
        let data = self.call(Command::Ack, &body::Ack { seq: Seq::new(seq) }).unwrap();
        body::Ack::decode(&data).unwrap().seq.get()
    }

    pub(crate) fn join(&mut self, rooms: &[u64]) -> Result<(), Refused> {
        self.call(Command::Join, &rooms_of(rooms)).map(drop)
    }

    pub(crate) fn leave(&mut self, rooms: &[u64]) -> Result<(), Refused> {
        self.call(Command::Leave, &rooms_of(rooms)).map(drop)
    }

    /// gim's way into its one room.
    pub(crate) fn subscribe(&mut self, room: u64) -> Result<(), Refused> {
        self.call(Command::SubscribeRoom, &body::SubscribeRoom { room: RoomId::new(room) }).map(drop)
    }

    pub(crate) fn signals(&mut self) -> Vec<(UserId, Vec<u8>)> {
        self.heartbeat();
        self.signals.drain(..).collect()
    }

    /// Waits for the close frame and then the end of the stream; other events on the way are dropped.
    pub(crate) fn closed(&mut self) -> u16 {
        while self.event() != Event::End {}
        self.closed.expect("the stream ended without a close frame")
    }
}

fn rooms_of(rooms: &[u64]) -> body::Rooms {
    body::Rooms { rooms: rooms.iter().copied().map(RoomId::new).collect() }
}

fn event(packet: &[u8]) -> Event {
    let packet = Packet::decode(packet).unwrap();
    match Command::try_from(packet.command) {
        Ok(Command::Message) => Event::Message(body::Message::decode(packet.content).unwrap().into()),
        Ok(Command::Behind) => Event::Behind(body::Behind::decode(packet.content).unwrap().latest.get()),
        Ok(Command::Close) => {
            let close = body::Close::decode(packet.content).unwrap();
            Event::Close { code: close.code, retry_after_ms: close.retry_after_ms }
        }
        Ok(Command::Signal) if packet.request_id.is_empty() => {
            let signal = body::Signal::decode(packet.content).unwrap();
            Event::Signal {
                from: signal.from_user,
                command: signal.command,
                content: signal.content.to_vec(),
            }
        }
        _ => Event::Answer {
            request_id: packet.request_id.to_owned(),
            command: packet.command,
            content: packet.content.to_vec(),
        },
    }
}
