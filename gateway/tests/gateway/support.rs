//! What the tests share: a gateway on a free port, a control plane in memory, and a client on codec alone.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use gimbal_codec::body::{Close, Message, Reply, Rooms, SignIn};
use gimbal_codec::{
    Attach, CloseReason, Command, Decoder, DeviceId, MessageId, Packet, RoomId, Seq, SessionKey, ShardId,
    UserId, code, frame,
};
use gimbal_gateway::config::{Config, WebSocket};
use gimbal_gateway::server::{Plane, Server};
use gimbal_rpc::link::{
    Body, Caller, Control, Down, Downlink, Grant, Hello, LinkFull, Page, Recipient, Refusal, RoomPlace,
    SendResult, Target, Up, Uplink,
};

/// Longest wait for anything; only reached when a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A token the control plane of the tests takes.
pub(crate) const TOKEN: &str = "good";

/// Two shards that float, a free port on loopback.
pub(crate) fn config() -> Config {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let websocket = WebSocket { listen: Some(free), ..WebSocket::default() };
    Config { listen: free, websocket, shards: 2, pin: false, ..Config::default() }
}

/// A gateway with its control plane.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) control: Arc<Brain>,
}

impl World {
    pub(crate) fn new(config: &Config) -> Self {
        let control = Arc::new(Brain::default());
        let plane = Plane::Local(Arc::new(FakeControl(Arc::clone(&control))));
        let server = Server::start(config, plane).unwrap();
        Self { server, control }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.server.local_addr())
    }

    /// A signed-in client without a cursor.
    pub(crate) fn online(&self, user: u64) -> Client {
        self.online_as(user, user, None)
    }

    pub(crate) fn online_as(&self, user: u64, device: u64, cursor: Option<u64>) -> Client {
        let mut client = self.connect();
        client.sign_in(user, device, TOKEN, cursor);
        let answer = client.packet().unwrap();
        assert_eq!(answer.command, Command::SignIn.number());
        client
    }

    /// Waits for a counter of the gateway.
    pub(crate) fn await_dropped(&self, what: &str, least: u64) {
        eventually(|| self.server.metrics().dropped(what).unwrap() >= least, what);
    }

    pub(crate) fn await_closed(&self, reason: CloseReason, least: u64) {
        eventually(|| self.server.metrics().closed(reason) >= least, reason.text());
    }

    pub(crate) fn await_connections(&self, count: u64) {
        eventually(|| self.server.metrics().connections() == count, "connections");
    }
}

/// Polls until `done`, which stays so.
pub(crate) fn eventually(mut done: impl FnMut() -> bool, what: &str) {
    let step = Duration::from_millis(5);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if done() {
            return;
        }
        std::thread::sleep(step);
    }
    panic!("{what}: not within {PATIENCE:?}");
}

/// A packet as the client got it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Got {
    pub(crate) request_id: String,
    pub(crate) command: i32,
    pub(crate) content: Vec<u8>,
    pub(crate) seq: u64,
}

impl Got {
    pub(crate) fn is(&self, command: Command) -> bool {
        self.command == command.number()
    }

    pub(crate) fn reply_code(&self) -> i32 {
        Reply::decode(&self.content).unwrap().code
    }

    pub(crate) fn message_seq(&self) -> u64 {
        Message::decode(&self.content).unwrap().seq.get()
    }

    pub(crate) fn message_content(&self) -> Vec<u8> {
        Message::decode(&self.content).unwrap().content.to_vec()
    }
}

/// What carries a client's bytes: as much of a [`TcpStream`] as the tests use.
pub(crate) trait Wire {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize>;
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn shutdown_write(&mut self);
    fn set_patience(&mut self, patience: Duration);
}

impl Wire for TcpStream {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        Read::read(self, chunk)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn shutdown_write(&mut self) {
        self.shutdown(Shutdown::Write).unwrap();
    }

    fn set_patience(&mut self, patience: Duration) {
        self.set_read_timeout(Some(patience)).unwrap();
    }
}

/// A blocking client.
pub(crate) struct Client<W = TcpStream> {
    pub(crate) socket: W,
    decoder: Decoder,
    ready: std::collections::VecDeque<Got>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket)
    }
}

impl<W: Wire> Client<W> {
    pub(crate) fn over(mut socket: W) -> Self {
        socket.set_patience(PATIENCE);
        Self { socket, decoder: Decoder::new(), ready: Default::default() }
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.socket.set_patience(patience);
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// As much as the gateway reads before it ends the connection.
    pub(crate) fn write_what_it_takes(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    pub(crate) fn send<B: gimbal_codec::Body + ?Sized>(&mut self, command: Command, seq: u64, content: &B) {
        self.write(&frame(command, "r", seq, content));
    }

    pub(crate) fn sign_in(&mut self, user: u64, device: u64, token: &str, cursor: Option<u64>) {
        let body = SignIn {
            user: UserId::new(user),
            device: DeviceId::new(device),
            token,
            cursor: cursor.map(Seq::new),
        };
        self.send(Command::SignIn, 1, &body);
    }

    /// Joins rooms and waits for the answer.
    pub(crate) fn join(&mut self, rooms: &[u64]) {
        self.send(Command::Join, 2, &Rooms { rooms: rooms.iter().copied().map(RoomId::new).collect() });
        let answer = self.packet().unwrap();
        assert!(answer.is(Command::Join) && answer.reply_code() == code::OK, "{answer:?}");
    }

    /// Leaves rooms and waits for the answer.
    pub(crate) fn leave(&mut self, rooms: &[u64]) {
        self.send(Command::Leave, 2, &Rooms { rooms: rooms.iter().copied().map(RoomId::new).collect() });
        let answer = self.packet().unwrap();
        assert!(answer.is(Command::Leave) && answer.reply_code() == code::OK, "{answer:?}");
    }

    /// The next packet; `None` at the end of the stream.
    pub(crate) fn packet(&mut self) -> Option<Got> {
        loop {
            if let Some(got) = self.ready.pop_front() {
                return Some(got);
            }
            if !self.read().expect("a packet within the patience of the test") {
                return None;
            }
        }
    }

    /// Whether a packet arrives within the patience set.
    pub(crate) fn try_packet(&mut self) -> Option<Got> {
        while self.ready.is_empty() {
            match self.read() {
                Ok(true) => {}
                _ => return None,
            }
        }
        self.ready.pop_front()
    }

    fn read(&mut self) -> std::io::Result<bool> {
        let mut chunk = [0; 16384];
        let length = match self.socket.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            result => result?,
        };
        let mut feed = self.decoder.feed(&chunk[..length]);
        while let Some(body) = feed.next_frame(1 << 20).unwrap() {
            let packet = Packet::decode(body).unwrap();
            self.ready.push_back(Got {
                request_id: packet.request_id.to_owned(),
                command: packet.command,
                content: packet.content.to_vec(),
                seq: packet.seq,
            });
        }
        Ok(length > 0)
    }

    /// Reads on to the close frame and the end of the stream.
    pub(crate) fn close_code(&mut self) -> u16 {
        self.close_frame().0
    }

    /// Code and retry-after of the close frame, after which the stream ends.
    pub(crate) fn close_frame(&mut self) -> (u16, u64) {
        let mut close = None;
        while let Some(got) = self.packet() {
            assert!(close.is_none(), "{got:?} after the close frame");
            if got.is(Command::Close) {
                let body = Close::decode(&got.content).unwrap();
                close = Some((body.code, body.retry_after_ms));
            }
        }
        close.expect("a close frame before the end of the stream")
    }

    /// A heartbeat there and back: whatever the gateway had for us before has arrived. Returns what came before.
    pub(crate) fn flush(&mut self) -> Vec<Got> {
        static MARK: AtomicU64 = AtomicU64::new(1 << 40);
        let mark = MARK.fetch_add(1, Ordering::Relaxed);
        self.send(Command::Heartbeat, mark, &());
        let mut before = Vec::new();
        loop {
            let got = self.packet().expect("an echo");
            if got.is(Command::Heartbeat) && got.seq == mark {
                return before;
            }
            before.push(got);
        }
    }

    pub(crate) fn shutdown_write(&mut self) {
        self.socket.shutdown_write();
    }
}

#[derive(Default)]
struct Inner {
    down: Option<Arc<dyn Downlink>>,
    next_attach: u64,
    online: HashMap<(UserId, DeviceId), (SessionKey, Attach)>,
    mailboxes: HashMap<UserId, Vec<Arc<Body>>>,
    rooms: HashMap<(RoomId, ShardId), u32>,
    log: Vec<Up>,
}

/// Control as far as a gateway sees it, in memory and at once.
#[derive(Default)]
pub(crate) struct Brain {
    inner: Mutex<Inner>,
    /// Refuse every batch, as a full link does.
    pub(crate) is_full: AtomicBool,
    /// Take calls and do not answer.
    pub(crate) is_silent: AtomicBool,
}

struct FakeControl(Arc<Brain>);

impl Control for FakeControl {
    fn connect(&self, _hello: Hello, down: Arc<dyn Downlink>) -> Arc<dyn Uplink> {
        self.0.inner.lock().unwrap().down = Some(down);
        Arc::clone(&self.0) as Arc<dyn Uplink>
    }
}

impl Uplink for Brain {
    fn submit(&self, _shard: ShardId, items: &mut Vec<Up>) -> Result<(), LinkFull> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(LinkFull);
        }
        assert!(items.len() <= 1024, "a batch so large finds room as a whole or not at all");
        let mut inner = self.inner.lock().unwrap();
        let mut out = Vec::new();
        for up in items.drain(..) {
            inner.log.push(up.clone());
            if !self.is_silent.load(Ordering::Relaxed) {
                inner.handle(up, &mut out);
            }
        }
        inner.deliver(&mut out);
        Ok(())
    }
}

impl Inner {
    fn deliver(&self, out: &mut Vec<Down>) {
        self.down.as_ref().unwrap().deliver(out).unwrap();
    }

    fn latest(&self, user: UserId) -> Seq {
        Seq::new(self.mailboxes.get(&user).map_or(0, Vec::len) as u64)
    }

    fn attach(&mut self, session: SessionKey, user: UserId, device: DeviceId, out: &mut Vec<Down>) -> Attach {
        self.next_attach += 1;
        let attach = Attach::new(self.next_attach);
        if let Some((old, attach)) = self.online.insert((user, device), (session, attach))
            && old != session
        {
            out.push(Down::Kick { session: old, attach, reason: CloseReason::Takeover });
        }
        attach
    }

    fn handle(&mut self, up: Up, out: &mut Vec<Down>) {
        match up {
            Up::SignIn { session, token, .. } if token != TOKEN => {
                let refusal = Refusal { code: code::NOT_SIGNED_IN, message: "bad token".to_owned() };
                out.push(Down::SignInRefused { session, refusal });
            }
            Up::SignIn { session, user, device, .. } => {
                let attach = self.attach(session, user, device, out);
                let grant = Grant { user, device, expires_at_ms: 0 };
                out.push(Down::SignedIn { session, attach, latest: self.latest(user), grant });
            }
            Up::Announce { caller, .. } => {
                let attach = self.attach(caller.session, caller.user, caller.device, out);
                out.push(Down::Announced {
                    session: caller.session,
                    attach,
                    latest: self.latest(caller.user),
                });
            }
            Up::Detach { caller } => {
                let key = (caller.user, caller.device);
                let is_its =
                    |(session, attach): &(_, _)| *session == caller.session && caller.attach <= *attach;
                if self.online.get(&key).is_some_and(is_its) {
                    self.online.remove(&key);
                }
            }
            Up::Send { caller, tag, to, command, content, .. } => {
                let body =
                    Body { from_user: caller.user, from_device: caller.device, command, content, ..body() };
                let Recipient::User(to) = to else { panic!("the tests send to users") };
                let seq = self.store(to, body, out);
                let result =
                    SendResult { message_id: MessageId::new(1), seq, created_at_ms: 0, duplicate: false };
                out.push(Down::SendDone { to: (caller.session, caller.attach), tag, result: Ok(result) });
            }
            Up::Sync { caller, tag, after, .. } => {
                let mailbox = self.mailboxes.entry(caller.user).or_default();
                let entries: Vec<_> = (1..)
                    .map(Seq::new)
                    .zip(mailbox.iter().cloned())
                    .filter(|(seq, _)| *seq > after)
                    .take(50)
                    .collect();
                let latest = Seq::new(mailbox.len() as u64);
                let end = entries.last().map_or(after.min(latest), |(seq, _)| *seq);
                let page = Page { entries, end, latest, has_more: end < latest, trimmed_to: Seq::new(0) };
                out.push(Down::SyncDone { to: (caller.session, caller.attach), tag, result: Ok(page) });
            }
            Up::Ack { caller, tag, seq } => {
                out.push(Down::AckDone { to: (caller.session, caller.attach), tag, result: Ok(seq) });
            }
            Up::RoomInterest { room, shard, members } => {
                self.rooms.insert((room, shard), members);
            }
            Up::Publish { caller, tag, room, command, content } => {
                let to = (caller.session, caller.attach);
                let result = self.publish(caller, room, command, &content, out);
                out.push(Down::PublishDone { to, tag, result });
            }
            Up::Signal(_) => {}
        }
    }

    /// As control does it: nobody is a member of a room that it was not told of.
    fn publish(
        &self,
        caller: Caller,
        room: RoomId,
        command: i32,
        content: &[u8],
        out: &mut Vec<Down>,
    ) -> Result<RoomPlace, Refusal> {
        if !self.rooms.iter().any(|((of, _), members)| *of == room && *members > 0) {
            return Err(Refusal { code: code::UNAVAILABLE, message: "unknown room".into() });
        }
        let (from_user, from_device) = (caller.user, caller.device);
        let message = Message { command, content, room, from_user, from_device, ..Message::default() };
        out.push(Down::Room { room, frame: frame(Command::Message, "", 0, &message) });
        Ok(RoomPlace { epoch: 1, seq: 2, created_at_ms: 3 })
    }

    fn store(&mut self, to: UserId, body: Body, out: &mut Vec<Down>) -> Seq {
        let body = Arc::new(body);
        let mailbox = self.mailboxes.entry(to).or_default();
        mailbox.push(Arc::clone(&body));
        let seq = Seq::new(mailbox.len() as u64);
        let of_user = self.online.iter().filter(|((user, _), _)| *user == to);
        let targets: Vec<_> =
            of_user.map(|(_, &(session, attach))| Target { session, attach, seq }).collect();
        if !targets.is_empty() {
            out.push(Down::Deliver { body, targets });
        }
        seq
    }
}

/// An empty stored message.
fn body() -> Body {
    Body {
        message_id: MessageId::new(1),
        from_user: UserId::new(0),
        from_device: DeviceId::new(0),
        command: 1,
        content: Bytes::new(),
        created_at_ms: 1000,
        ..Body::default()
    }
}

impl Brain {
    /// Stores a message for a user and delivers it.
    pub(crate) fn push(&self, user: u64, content: impl Into<Bytes>) {
        let mut inner = self.inner.lock().unwrap();
        let mut out = Vec::new();
        inner.store(UserId::new(user), Body { content: content.into(), ..body() }, &mut out);
        inner.deliver(&mut out);
    }

    /// Sends items as they are.
    pub(crate) fn deliver(&self, mut items: Vec<Down>) {
        self.inner.lock().unwrap().deliver(&mut items);
    }

    /// Publishes one message of a room.
    pub(crate) fn publish(&self, room: u64, content: &[u8]) {
        self.deliver(vec![Down::Room { room: RoomId::new(room), frame: room_frame(room, content) }]);
    }

    /// Where a device is online.
    pub(crate) fn session(&self, user: u64, device: u64) -> Option<(SessionKey, Attach)> {
        self.inner.lock().unwrap().online.get(&(UserId::new(user), DeviceId::new(device))).copied()
    }

    pub(crate) fn online_count(&self) -> usize {
        self.inner.lock().unwrap().online.len()
    }

    /// Members of a room, as the shards reported.
    pub(crate) fn room_members(&self, room: u64) -> u32 {
        let inner = self.inner.lock().unwrap();
        inner.rooms.iter().filter(|((id, _), _)| id.get() == room).map(|(_, members)| members).sum()
    }

    /// Answers all sign-ins that were taken in silence.
    pub(crate) fn answer_sign_ins(&self) {
        self.is_silent.store(false, Ordering::Relaxed);
        let mut inner = self.inner.lock().unwrap();
        let mut out = Vec::new();
        for up in inner.log.clone() {
            if matches!(up, Up::SignIn { .. }) {
                inner.handle(up, &mut out);
            }
        }
        inner.deliver(&mut out);
    }

    /// How many items of the log match.
    pub(crate) fn count(&self, matches: impl Fn(&Up) -> bool) -> usize {
        self.inner.lock().unwrap().log.iter().filter(|up| matches(up)).count()
    }
}

/// A frame for the members of a room.
pub(crate) fn room_frame(room: u64, content: &[u8]) -> Bytes {
    frame(
        Command::Message,
        "",
        0,
        &Message { command: 1, content, room: RoomId::new(room), ..Message::default() },
    )
}

/// For a gateway that must not start.
pub(crate) struct NoControl;

impl Control for NoControl {
    fn connect(&self, _hello: Hello, _down: Arc<dyn Downlink>) -> Arc<dyn Uplink> {
        panic!("nothing may be connected before the listeners stand")
    }
}
