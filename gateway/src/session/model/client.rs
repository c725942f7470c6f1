//! A client by the book, and the laziest one: it syncs when told `behind` and none is under way, and never otherwise by
//! itself.

use gimbal_codec::body::{Behind, Close, Message, Reply, SignIn, SignInResult, Sync, SyncPage};
use gimbal_codec::limits::FRAME_BYTES_MAX_DOWN;
use gimbal_codec::{Advice, Body, CloseReason, Command, Decoder, DeviceId, Packet, Seq, UserId};

/// What a client knows and counts.
pub(super) struct Client {
    keeps_cursor: bool,
    /// Highest seq received, all before it received too.
    pub(super) cursor: u64,
    decoder: Decoder,
    is_signed_in: bool,
    is_syncing: bool,
    /// The mailbox at the moment of the sign-in. A client without a cursor syncs so far by other means.
    pub(super) latest_at_sign_in: u64,
    pub(super) is_closed: bool,
    /// Packets to send.
    pub(super) outbox: Vec<Vec<u8>>,
    pub(super) live: u64,
    pub(super) pages: u64,
    pub(super) refused: u64,
    pub(super) behind: u64,
    pub(super) closes: u64,
    /// On this connection.
    pub(super) behind_here: u64,
    pub(super) sync_answers_here: u64,
}

impl Client {
    pub(super) fn new(keeps_cursor: bool) -> Self {
        Self {
            keeps_cursor,
            cursor: 0,
            decoder: Decoder::new(),
            is_signed_in: false,
            is_syncing: false,
            latest_at_sign_in: 0,
            is_closed: true,
            outbox: Vec::new(),
            live: 0,
            pages: 0,
            refused: 0,
            behind: 0,
            closes: 0,
            behind_here: 0,
            sync_answers_here: 0,
        }
    }

    /// A new connection: the first packet.
    pub(super) fn connect(&mut self) {
        self.decoder = Decoder::new();
        self.is_signed_in = false;
        self.is_syncing = false;
        self.is_closed = false;
        self.behind_here = 0;
        self.sync_answers_here = 0;
        let cursor = self.keeps_cursor.then(|| Seq::new(self.cursor));
        let sign_in = SignIn { user: UserId::new(1), device: DeviceId::new(2), token: "t", cursor };
        self.outbox.clear();
        self.send(Command::SignIn, &sign_in);
    }

    pub(super) fn sync(&mut self) {
        if self.is_signed_in && !self.is_syncing && !self.is_closed && self.keeps_cursor {
            self.is_syncing = true;
            self.send(Command::Sync, &Sync { after: Seq::new(self.cursor), limit: 0 });
        }
    }

    /// A heartbeat of `bytes`, which is echoed.
    pub(super) fn beat(&mut self, bytes: usize) {
        if self.is_signed_in && !self.is_closed {
            self.send(Command::Heartbeat, &vec![7u8; bytes][..]);
        }
    }

    pub(super) fn can_sync(&self) -> bool {
        self.is_signed_in && !self.is_syncing && !self.is_closed && self.keeps_cursor
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut feed = decoder.feed(bytes);
        while let Some(body) = feed.next_frame(FRAME_BYTES_MAX_DOWN).unwrap() {
            let body = body.to_vec();
            self.handle(&Packet::decode(&body).unwrap());
        }
        drop(feed);
        self.decoder = decoder;
    }

    fn handle(&mut self, packet: &Packet<'_>) {
        assert!(!self.is_closed, "a frame after the close");
        match Command::try_from(packet.command).unwrap() {
            Command::SignIn => self.signed_in(packet.content),
            Command::Heartbeat => {}
            Command::Message => {
                let message = Message::decode(packet.content).unwrap();
                self.live += u64::from(self.take(&message));
            }
            Command::Sync => self.sync_answered(packet.content),
            Command::Behind => {
                let latest = Behind::decode(packet.content).unwrap().latest.get();
                assert!(self.keeps_cursor && latest > self.cursor, "behind {latest} at {}", self.cursor);
                self.behind += 1;
                self.behind_here += 1;
                self.sync();
            }
            Command::Close => {
                let close = Close::decode(packet.content).unwrap();
                let reason = CloseReason::from_code(close.code).unwrap();
                assert_ne!(reason.advice(), Advice::Never, "{reason:?}");
                self.is_closed = true;
                self.closes += 1;
            }
            command => panic!("unexpected {command:?}"),
        }
    }

    fn signed_in(&mut self, content: &[u8]) {
        let reply = Reply::decode(content).unwrap();
        if reply.code == 0 {
            self.is_signed_in = true;
            if !self.keeps_cursor {
                self.cursor = self.latest_at_sign_in;
            }
            assert_eq!(self.keeps_cursor, !reply.data.is_empty());
            let result = SignInResult::decode(reply.data).unwrap();
            assert!(!self.keeps_cursor || result.latest.get() >= self.cursor);
        }
    }

    fn sync_answered(&mut self, content: &[u8]) {
        assert!(self.is_syncing);
        self.is_syncing = false;
        self.sync_answers_here += 1;
        let reply = Reply::decode(content).unwrap();
        if reply.code != 0 {
            self.refused += 1;
            return;
        }
        self.pages += 1;
        let page = SyncPage::decode(reply.data).unwrap();
        self.cursor = self.cursor.max(page.trimmed_to.get());
        for message in &page.messages {
            self.take(message);
        }
    }

    /// Whether the message was new.
    fn take(&mut self, message: &Message<'_>) -> bool {
        let seq = message.seq.get();
        assert!(seq <= self.cursor + 1, "given {seq} at {}", self.cursor);
        assert_eq!(message.content, content_of(seq), "another message has seq {seq}");
        let is_new = seq > self.cursor;
        self.cursor = self.cursor.max(seq);
        is_new
    }

    fn send<B: Body + ?Sized>(&mut self, command: Command, content: &B) {
        let mut bytes = Vec::new();
        content.encode(&mut bytes);
        let packet = Packet { request_id: "r", command: command.number(), content: &bytes, seq: 3 };
        let frame = packet.to_frame();
        self.outbox.push(frame[frame.len() - packet.body_bytes()..].to_vec());
    }
}

/// What the message with this seq says.
pub(super) fn content_of(seq: u64) -> Vec<u8> {
    seq.to_be_bytes().repeat(10)
}
