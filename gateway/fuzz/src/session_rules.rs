//! A session under whatever frames a client sends, whatever control answers and whenever, over a socket that takes what it
//! likes. Included by the gateway's tests, too.
//!
//! The client is arbitrary; of control only the order of one mailbox is believed in.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use gimbal_codec::body::{Close, Message, Reply, SyncPage};
use gimbal_codec::limits::{FRAME_BYTES_MAX_DOWN, REQUEST_ID_BYTES_MAX};
use gimbal_codec::{
    Attach, CloseReason, Command, Decoder, DeviceId, MessageId, Packet, RoomId, Seq, SessionKey, ShardId,
    UserId, code,
};
use gimbal_rpc::link::{Body, Grant, Page, Refusal, RoomPlace, SendResult, Tag, Up};

use crate::fanout::offer;
use crate::send_queue::{RESERVE_BYTES, SendQueue};
use crate::session::{Action, Counts, Deliver, Flow, Limits, Moment, Pace, Session, SignInRequest, Turn};
use crate::transport::form::Shared;

const QUEUE_BYTES_MAX: usize = 2_000;
/// What an empty queue takes at most: an echo of all of an input.
const ONE_FRAME_BYTES_MAX: usize = 8_000;
const ROOMS_MAX: usize = 3;
/// SENDs and ACKs that wait for control.
const CALLS_MAX: u64 = 256;
/// Messages in a page.
const PAGE_MESSAGES: u64 = 3;
const KEY: SessionKey = SessionKey::new(ShardId(1), 2, 3);
const USER: UserId = UserId::new(10_000);

/// Arbitrary bytes as numbers and slices; when they are used up, all is 0 and empty.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Small ones mostly.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => self.bytes(8).iter().fold(0, |number, &byte| number << 8 | u64::from(byte)),
            small => u64::from(small),
        }
    }
}

/// One session with all that surrounds it.
struct World<'a> {
    source: Source<'a>,
    session: Session,
    queue: SendQueue,
    counts: Counts,
    limits: Limits,
    now: Moment,
    link: u64,
    /// What the client sees.
    decoder: Decoder,
    client: Client,
    control: Control,
    shard: Shard,
}

#[derive(Default)]
struct Client {
    /// The place in the mailbox that the last message or page left it at; `None`: a page said nothing of it.
    at: Option<u64>,
    keeps_cursor: bool,
    is_closed: bool,
}

#[derive(Default)]
struct Control {
    latest: u64,
    attach: u64,
    /// The sign-in that waits for its answer.
    asked: Option<SignInRequest>,
    asked_once: bool,
    /// What it believes to be online.
    online: Option<Attach>,
    /// The last call and the last sync.
    call: Option<Up>,
    sync: Option<(Tag, Seq)>,
    calls: u64,
}

#[derive(Default)]
struct Shard {
    is_online: bool,
    rooms: BTreeSet<RoomId>,
    is_shut: bool,
    is_aborted: bool,
}

/// The rules hold after every step, and in the end the session ends in time.
pub(super) fn check_session(data: &[u8]) {
    let mut world = World::new(data);
    while !world.source.0.is_empty() && !world.shard.is_aborted {
        world.step();
        world.check();
    }
    world.end();
}

impl<'a> World<'a> {
    fn new(data: &'a [u8]) -> Self {
        let mut source = Source(data);
        let flow = if source.byte() % 2 == 0 { Flow::new(0, 1) } else { Flow::new(20, 1) };
        let limits = Limits {
            queue_bytes_max: QUEUE_BYTES_MAX,
            rooms_max: ROOMS_MAX,
            signals: Pace::new(2, 3),
            frames: flow,
            ..Limits::default()
        };
        let now = Moment::from_ms(5);
        Self {
            source,
            session: Session::new(now, &limits),
            queue: SendQueue::default(),
            counts: Counts::default(),
            limits,
            now,
            link: 1,
            decoder: Decoder::new(),
            client: Client::default(),
            control: Control::default(),
            shard: Shard::default(),
        }
    }

    fn step(&mut self) {
        match self.source.byte() % 20 {
            0..=5 => self.client_sends(),
            6 => self.client_sends_bytes(),
            7 | 8 => self.socket_takes(),
            9 => self.control_attaches(),
            10 => self.control_refuses(),
            11 | 12 => self.control_delivers(),
            13 => self.control_gives_a_page(),
            14 => self.control_answers_a_call(),
            15 => self.link_changes(),
            16 => self.control_announces(),
            17 => self.shard_acts(),
            18 => self.time_goes_by(),
            _ => self.shard_fails_to_submit(),
        }
    }

    /// A packet that means something: a command, and fields of the shapes that commands have.
    fn client_sends(&mut self) {
        let commands = [1, 2, 3, 16, 17, 18, 19, 20, 21, 4, 23, 24, 0, 99, 22];
        let command = commands[usize::from(self.source.byte()) % commands.len()];
        let mut content = Vec::new();
        for _ in 0..self.source.byte() % 7 {
            let field = self.source.byte();
            content.push((field & 0x78) | if field.is_multiple_of(2) { 0 } else { 2 });
            if field.is_multiple_of(2) {
                let mut number = self.source.number();
                while number >= 0x80 {
                    content.push(number as u8 | 0x80);
                    number >>= 7;
                }
                content.push(number as u8);
            } else {
                let count = self.source.byte() % 100;
                let bytes = self.source.bytes(count.into());
                content.push(bytes.len() as u8);
                content.extend(bytes);
            }
        }
        let id = ["", "7", "abcdefgh"][usize::from(self.source.byte()) % 3];
        let packet = Packet { request_id: id, command, content: &content, seq: self.source.number() };
        let frame = packet.to_frame();
        let body = frame.slice(frame.len() - packet.body_bytes()..);
        self.on(|session, turn| session.handle_frame(&body, turn));
    }

    fn client_sends_bytes(&mut self) {
        let count = usize::from(self.source.byte());
        let body = self.source.bytes(count);
        if !body.is_empty() {
            self.on(|session, turn| session.handle_frame(body, turn));
        }
    }

    /// A part of what waits, or all.
    fn socket_takes(&mut self) {
        let part = usize::from(self.source.byte());
        self.take(part);
    }

    fn take(&mut self, part: usize) {
        let Some(bytes) = self.queue.start_send(64 * part) else { return };
        self.session.handle_write_progress(self.now, &self.limits);
        let written = if part.is_multiple_of(2) { bytes.len() } else { part.min(bytes.len()) };
        self.queue.finish_send(written);
        if self.queue.is_empty() {
            self.on(|session, turn| {
                session.handle_drained(turn);
                Ok(())
            });
        }
        self.client.receive(&mut self.decoder, &bytes[..written]);
    }

    fn control_attaches(&mut self) {
        let Some(asked) = self.control.asked.take() else { return };
        self.control.attach += 1;
        self.control.latest += self.source.number() % 9;
        let (attach, latest) = (Attach::new(self.control.attach), Seq::new(self.control.latest));
        // Who does not say who it is, is told.
        let is_named = !asked.user.is_none() && !asked.device.is_none();
        let grant = Grant {
            user: if is_named { UserId::default() } else { USER },
            device: if is_named { DeviceId::default() } else { DeviceId::new(7) },
            expires_at_ms: if self.source.byte().is_multiple_of(4) {
                1_000_000 + self.source.number() as i64
            } else {
                0
            },
        };
        self.control.online = Some(attach);
        if is_named && self.session.is_closing() {
            // It was told so in the client's own name, before.
            self.control.online = None;
        }
        let cursor = asked.cursor.map_or(latest.get(), |cursor| cursor.get().min(latest.get()));
        self.client.at = Some(cursor);
        self.client.keeps_cursor = asked.cursor.is_some();
        self.on(|session, turn| session.handle_signed_in(attach, latest, grant, turn));
    }

    fn control_refuses(&mut self) {
        if self.control.asked.take().is_none() {
            return;
        }
        let codes = [code::NOT_SIGNED_IN, code::BUSY, code::UNAVAILABLE, code::SERVER_ERROR, 10_001];
        let refusal = self.refusal(&codes);
        self.on(|session, turn| session.handle_sign_in_refused(&refusal, turn));
    }

    fn refusal(&mut self, codes: &[i32]) -> Refusal {
        let code = codes[usize::from(self.source.byte()) % codes.len()];
        Refusal { code, message: "no".to_owned() }
    }

    /// The newest of its attach numbers mostly; sometimes one that is not the session's.
    fn some_attach(&mut self) -> Attach {
        let older = u64::from(self.source.byte() % 8 == 7);
        Attach::new(self.control.attach.wrapping_sub(older))
    }

    /// The next message, one again that is stored, one that is not stored; or one is stored and lost on its way.
    fn control_delivers(&mut self) {
        let attach = self.some_attach();
        let seq = match self.source.byte() % 8 {
            0 => 0,
            1 => self.source.number().min(self.control.latest),
            2 => {
                self.control.latest += 1;
                return;
            }
            _ => {
                self.control.latest += 1;
                self.control.latest
            }
        };
        let body = body_of(seq, usize::from(self.source.byte()));
        self.on(|session, turn| {
            session.handle_deliver(attach, Seq::new(seq), &mut Deliver::new(&body, 1), turn)
        });
    }

    /// The answer to the last sync: what follows its place, or a refusal.
    fn control_gives_a_page(&mut self) {
        let attach = self.some_attach();
        let Some((tag, after)) = self.control.sync.take() else { return };
        if self.source.byte().is_multiple_of(4) {
            let refusal = self.refusal(&[code::BUSY, code::UNAVAILABLE]);
            self.on(|session, turn| session.handle_sync_done(attach, &tag, Err(&refusal), turn));
            return;
        }
        let latest = self.control.latest;
        let trimmed_to = u64::from(self.source.byte()).min(latest);
        let after = after.get().clamp(trimmed_to, latest);
        let end = (after + PAGE_MESSAGES).min(latest);
        let bytes = usize::from(self.source.byte()) * 4;
        let entries = (after + 1..=end).map(|seq| (Seq::new(seq), Arc::new(body_of(seq, bytes))));
        let page = Page {
            entries: entries.collect(),
            end: Seq::new(end),
            latest: Seq::new(latest),
            has_more: end < latest,
            trimmed_to: Seq::new(trimmed_to),
        };
        self.on(|session, turn| session.handle_sync_done(attach, &tag, Ok(&page), turn));
    }

    fn control_answers_a_call(&mut self) {
        let attach = self.some_attach();
        let Some(call) = self.control.call.clone() else { return };
        let is_ours = self.session.caller().is_some_and(|caller| caller.attach == attach);
        self.control.calls = self.control.calls.saturating_sub(u64::from(is_ours));
        let refusal = self.refusal(&[code::BUSY, code::UNAVAILABLE]);
        let is_refused = self.source.byte().is_multiple_of(3);
        match call {
            Up::Send { tag, .. } => {
                let sent = SendResult {
                    message_id: MessageId::new(1),
                    seq: Seq::new(2),
                    created_at_ms: 3,
                    duplicate: false,
                };
                let result = if is_refused { Err(&refusal) } else { Ok(sent) };
                self.on(|session, turn| session.handle_send_done(attach, &tag, result, turn));
            }
            Up::Ack { tag, seq, .. } => {
                let result = if is_refused { Err(&refusal) } else { Ok(seq) };
                self.on(|session, turn| session.handle_ack_done(attach, &tag, result, turn));
            }
            Up::Publish { tag, .. } => {
                let place = RoomPlace { epoch: 1, seq: 2, created_at_ms: 3 };
                let result = if is_refused { Err(&refusal) } else { Ok(place) };
                self.on(|session, turn| session.handle_publish_done(attach, &tag, result, turn));
            }
            _ => {}
        }
    }

    /// Down or up; then the shard tells the session, sooner or later.
    fn link_changes(&mut self) {
        self.link += 1;
        self.control.sync = None;
        if self.source.byte().is_multiple_of(4) {
            return;
        }
        self.control.calls = 0;
        self.on(Session::handle_link_lost);
        if !self.link.is_multiple_of(2) {
            self.session.announce(self.link);
        }
    }

    fn control_announces(&mut self) {
        if !self.source.byte().is_multiple_of(4) {
            self.control.attach += 1;
        }
        let attach = self.some_attach();
        self.control.calls = 0;
        let latest = Seq::new(self.control.latest);
        self.control.online = self.control.online.map(|online| online.max(attach));
        self.on(|session, turn| session.handle_announced(attach, latest, turn));
    }

    /// What the shard does by itself, and the socket.
    fn shard_acts(&mut self) {
        let choice = self.source.byte();
        let attach = self.some_attach();
        match choice % 8 {
            0 => self.on(|session, turn| session.handle_kick(attach, CloseReason::Takeover, turn)),
            1 => self.on(|_, _| Err(CloseReason::Draining)),
            2 => self.on(|session, turn| {
                session.handle_goodbye(turn);
                Ok(())
            }),
            3 => {
                self.on(|session, turn| {
                    session.handle_gone(turn);
                    Ok(())
                });
                self.shard.is_aborted = true;
            }
            _ => {
                let content = vec![1; usize::from(choice) * 4];
                let frame = Packet { command: 4, content: &content, ..Packet::default() }.to_frame();
                offer(&self.session, &mut self.queue, &Shared::new(frame), QUEUE_BYTES_MAX);
            }
        }
    }

    fn time_goes_by(&mut self) {
        let ms = self.source.number().min(1 << 32) * 50;
        self.now = self.now.plus_ms(ms);
        self.on(Session::handle_timeout);
    }

    fn shard_fails_to_submit(&mut self) {
        let call = match (self.control.asked.take(), self.control.call.take()) {
            (Some(SignInRequest { user, device, token, cursor }), _) => {
                Up::SignIn { session: KEY, user, device, token, cursor, peer: String::new() }
            }
            (None, Some(call)) => call,
            (None, None) => return,
        };
        self.control.calls = self.control.calls.saturating_sub(1);
        self.on(|session, turn| session.handle_not_submitted(&call, turn));
    }

    /// Calls the session, closes it if it says so, and does what it wants done.
    fn on(&mut self, call: impl FnOnce(&mut Session, &mut Turn<'_>) -> Result<(), CloseReason>) {
        let mut out = Vec::new();
        let was_closing = self.session.is_closing();
        let mut turn = Turn {
            key: KEY,
            now: self.now,
            unix_ms: 1_000_000,
            link: self.link,
            limits: &self.limits,
            queue: &mut self.queue,
            out: &mut out,
            counts: &mut self.counts,
        };
        if let Err(reason) = call(&mut self.session, &mut turn) {
            assert!(!was_closing || matches!(reason, CloseReason::Draining), "closed twice: {reason:?}");
            self.session.begin_close(reason, 0, &mut turn);
        }
        for action in out {
            self.act(action, was_closing);
        }
    }

    fn act(&mut self, action: Action, was_closing: bool) {
        match action {
            Action::SignIn(asked) => {
                assert!(!std::mem::replace(&mut self.control.asked_once, true), "a second sign-in");
                self.control.asked = Some(asked);
            }
            Action::Up(Up::Detach { caller }) => {
                assert_eq!(caller.session, KEY);
                // One that took a number older than its own for the session's.
                if self.control.online.is_some_and(|attach| caller.attach <= attach) {
                    self.control.online = None;
                }
            }
            Action::Up(up) | Action::UpToRoom(up) => {
                assert!(!was_closing && self.shard.is_online, "{up:?} of a session that is not online");
                if let Up::Sync { tag, after, .. } = &up {
                    self.control.sync = Some((tag.clone(), *after));
                } else {
                    self.control.calls += 1;
                    self.control.call = Some(up);
                }
            }
            Action::Online { .. } => assert!(!std::mem::replace(&mut self.shard.is_online, true)),
            Action::Offline { .. } => {
                assert!(std::mem::replace(&mut self.shard.is_online, false));
                self.shard.rooms.clear();
            }
            Action::Join(room) => assert!(self.shard.is_online && self.shard.rooms.insert(room), "{room:?}"),
            Action::Leave(room) => {
                assert!(self.shard.is_online && self.shard.rooms.remove(&room), "{room:?}")
            }
            Action::Signal(_) => assert!(self.shard.is_online && !was_closing),
            Action::ShutdownWrite => assert!(!std::mem::replace(&mut self.shard.is_shut, true)),
            Action::Abort => self.shard.is_aborted = true,
        }
    }

    fn check(&self) {
        let cost = self.queue.cost_bytes();
        assert!(cost <= ONE_FRAME_BYTES_MAX + RESERVE_BYTES, "{cost} bytes wait");
        assert!(self.shard.rooms.len() <= ROOMS_MAX + 1, "one more for gim's");
        assert!(self.control.calls <= CALLS_MAX, "{} calls wait", self.control.calls);
        assert_eq!(self.shard.is_online, self.session.is_online());
        assert!(self.session.is_online() || self.session.caller().is_none());
        assert!(
            self.shard.is_aborted || self.session.deadline() < Moment::NEVER,
            "it would hold its place for ever: {:?}",
            self.session
        );
    }

    /// Nobody says anything any more: all ends by itself, and nobody believes in the session.
    fn end(&mut self) {
        for _ in 0..8 {
            if self.shard.is_aborted {
                break;
            }
            self.now = self.session.deadline().max(self.now);
            self.on(Session::handle_timeout);
        }
        assert!(self.shard.is_aborted, "{:?} goes on", self.session);
        assert!(!self.shard.is_online && self.shard.rooms.is_empty());
        assert_eq!(self.control.online, None, "control believes in a session that is gone");
        while self.queue.start_send(0).is_some_and(|bytes| {
            self.queue.finish_send(bytes.len());
            self.client.receive(&mut self.decoder, &bytes);
            true
        }) {}
    }
}

impl Client {
    /// Whole frames alone, the close last; and of the mailbox what follows, or a page.
    fn receive(&mut self, decoder: &mut Decoder, bytes: &[u8]) {
        let mut feed = decoder.feed(bytes);
        while let Some(body) = feed.next_frame(FRAME_BYTES_MAX_DOWN).expect("our own frame") {
            assert!(!self.is_closed, "a frame after the close");
            let packet = Packet::decode(body).expect("our own packet");
            assert!(packet.request_id.len() <= REQUEST_ID_BYTES_MAX);
            match Command::try_from(packet.command) {
                Ok(Command::Message) => self.given(&packet),
                Ok(Command::Sync) => self.page(&packet),
                // Or the answer to a client that sends one before it has signed in.
                Ok(Command::Close) => self.is_closed = is_close(packet.content),
                _ => {}
            }
        }
    }

    fn given(&mut self, packet: &Packet<'_>) {
        // A room's, or one not stored: those that are have a content of their number.
        let message = Message::decode(packet.content);
        let Ok(Message { seq, content, .. }) = message else { return };
        if seq.is_none() {
            return;
        }
        assert_eq!(content.first(), Some(&(seq.get() as u8)));
        if let Some(at) = self.at {
            assert_eq!(seq.get(), at + 1, "live delivery has a hole");
        }
        self.at = Some(seq.get());
    }

    fn page(&mut self, packet: &Packet<'_>) {
        let Ok(reply) = Reply::decode(packet.content) else { return };
        if reply.code == 0
            && self.keeps_cursor
            && let Ok(page) = SyncPage::decode(reply.data)
        {
            self.at = page.messages.last().map(|message| message.seq.get());
        }
    }
}

fn is_close(content: &[u8]) -> bool {
    Close::decode(content).is_ok_and(|close| CloseReason::from_code(close.code).is_some())
}

/// Of a message with this place in the mailbox; its content tells it.
fn body_of(seq: u64, bytes: usize) -> Body {
    let mut content = vec![7; bytes + 1];
    content[0] = seq as u8;
    Body {
        message_id: MessageId::new(seq),
        from_user: UserId::new(3),
        from_device: DeviceId::new(4),
        command: 5,
        content: Bytes::from(content),
        created_at_ms: 6,
        ..Body::default()
    }
}

/// For the fuzz target.
#[cfg(not(test))]
pub fn session(data: &[u8]) {
    check_session(data);
}
