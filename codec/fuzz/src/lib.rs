//! What each fuzz target checks. Ordinary tests include this file and replay the corpus through it.
//!
//! `cargo +nightly fuzz run decode` (or `split`, `round_trip`) in `codec/`; what it finds goes to `corpus/`.

use gimbal_codec::body::{
    Ack, Behind, Close, Message, Publish, Published, Reply, ReplyWith, Rooms, Send, SendResult, SignIn,
    SignInResult, Signal, SubscribeRoom, Sync, SyncPage,
};
use gimbal_codec::limits::{
    FRAME_BYTES_MAX_DOWN, REQUEST_ID_BYTES_MAX, ROOMS_PER_FRAME_MAX, TOKEN_BYTES_MAX,
};
use gimbal_codec::{
    Body, ClientMessageId, DecodeError, Decoder, DeviceId, GroupId, MessageId, Packet, RoomId, Seq, UserId,
};

/// Encodes a body, checking that it is as long as it says.
pub fn encoded<B: Body + ?Sized>(body: &B) -> Vec<u8> {
    let mut out = Vec::new();
    body.encode(&mut out);
    assert_eq!(out.len(), body.encoded_len());
    out
}

/// Checks that a value survives encoding.
macro_rules! assert_survives {
    ($kind:ident, $value:expr) => {{
        let value = $value;
        let bytes = encoded(&value);
        assert_eq!($kind::decode(&bytes), Ok(value));
    }};
}

/// Any bytes as every message: never a panic, and what decodes survives encoding.
pub fn decode(data: &[u8]) {
    macro_rules! try_each {
        ($bytes:expr, $($kind:ident)*) => {$(
            match $kind::decode($bytes) {
                Ok(value) => assert_survives!($kind, value),
                Err(error) => assert!(matches!(error, DecodeError::BadBody(_))),
            }
        )*};
    }
    let content = match Packet::decode(data) {
        Ok(packet) => {
            let frame = packet.to_frame();
            assert_eq!(Packet::decode(&frame[frame.len() - packet.body_bytes()..]), Ok(packet));
            packet.content
        }
        Err(error) => {
            assert!(matches!(error, DecodeError::BadPacket(_)));
            data
        }
    };
    for bytes in [data, content] {
        try_each!(bytes, Ack Behind Close Message Reply Rooms Send SendResult SignIn SignInResult);
        try_each!(bytes, Publish Published Signal SubscribeRoom Sync SyncPage);
    }
}

/// The frames of a stream that arrives in `chunks`, and how it ends.
pub fn frames_of<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    frame_bytes_max: usize,
) -> (Vec<Vec<u8>>, Result<usize, DecodeError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for chunk in chunks {
        let mut feed = decoder.feed(chunk);
        loop {
            match feed.next_frame(frame_bytes_max) {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(feed.next_frame(frame_bytes_max), Err(error));
                    return (frames, Err(error));
                }
            }
        }
        assert_eq!(feed.unread(), 0);
        assert!(decoder.allocated() <= 2 * decoder.buffered(), "never more than twice what arrived");
    }
    (frames, Ok(decoder.buffered()))
}

/// The same stream in one chunk, and cut by the first 16 bytes of `data`, gives the same frames and the same end.
pub fn split(data: &[u8]) {
    let Some((cuts, stream)) = data.split_first_chunk::<16>() else { return };
    let frame_bytes_max = 1 + usize::from(cuts[0]) * 8;
    let mut rest = stream;
    let mut chunks = Vec::new();
    for &bytes in cuts[1..].iter().cycle() {
        if rest.is_empty() {
            break;
        }
        // At least one byte of each chunk, so that the walk ends.
        let (chunk, after) = rest.split_at((1 + usize::from(bytes)).min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    let whole = frames_of([stream], frame_bytes_max);
    assert_eq!(frames_of(chunks, frame_bytes_max), whole);
    assert_eq!(frames_of(stream.chunks(1), frame_bytes_max), whole);
    let kept = whole.0.iter().map(|frame| frame.len()).sum::<usize>();
    assert!(kept <= stream.len() && whole.0.iter().all(|frame| (1..=frame_bytes_max).contains(&frame.len())));
}

/// Values made of arbitrary bytes: little-endian numbers and short byte strings.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn uint64(&mut self) -> u64 {
        // The first byte says how many follow, so that small numbers are common.
        let bytes = self.bytes(8);
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// Up to `bytes_max` bytes, as many as the next byte says.
    fn bytes(&mut self, bytes_max: usize) -> &'a [u8] {
        let Some((&bytes, rest)) = self.0.split_first() else { return &[] };
        let (taken, rest) = rest.split_at(usize::from(bytes).min(bytes_max).min(rest.len()));
        self.0 = rest;
        taken
    }

    fn str(&mut self, bytes_max: usize) -> &'a str {
        let bytes = self.bytes(bytes_max);
        std::str::from_utf8(bytes).unwrap_or_else(|error| {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).expect("valid up to there")
        })
    }

    fn message(&mut self) -> Message<'a> {
        Message {
            command: self.uint64() as i32,
            content: self.bytes(255),
            seq: Seq::new(self.uint64()),
            created_at: self.uint64() as i64,
            room: RoomId::new(self.uint64()),
            id: MessageId::new(self.uint64()),
            from_user: UserId::new(self.uint64()),
            from_device: DeviceId::new(self.uint64()),
            created_at_ms: self.uint64() as i64,
            room_epoch: self.uint64(),
            room_seq: self.uint64(),
            group: GroupId::new(self.uint64()),
            group_seq: Seq::new(self.uint64()),
        }
    }

    fn send(&mut self) -> Send<'a> {
        Send {
            client_message_id: ClientMessageId::new(self.uint64()),
            to: UserId::new(self.uint64()),
            command: self.uint64() as i32,
            content: self.bytes(255),
            group: GroupId::new(self.uint64()),
        }
    }

    fn sign_in(&mut self) -> SignIn<'a> {
        SignIn {
            user: UserId::new(self.uint64()),
            device: DeviceId::new(self.uint64()),
            token: self.str(TOKEN_BYTES_MAX),
            cursor: (!self.bytes(1).is_empty()).then(|| Seq::new(self.uint64())),
        }
    }

    fn signal(&mut self) -> Signal<'a> {
        Signal {
            to_user: UserId::new(self.uint64()),
            room: RoomId::new(self.uint64()),
            command: self.uint64() as i32,
            content: self.bytes(255),
            from_user: UserId::new(self.uint64()),
            from_device: DeviceId::new(self.uint64()),
        }
    }
}

/// Values made of `data` survive encoding, alone and inside a frame.
pub fn round_trip(data: &[u8]) {
    let mut source = Source(data);
    assert_survives!(SignIn, source.sign_in());
    assert_survives!(Send, source.send());
    assert_survives!(Signal, source.signal());
    assert_survives!(
        Reply,
        Reply { code: source.uint64() as i32, message: source.str(255), data: source.bytes(255) }
    );
    assert_survives!(
        Close,
        Close { code: source.uint64() as u16, reason: source.str(255), retry_after_ms: source.uint64() }
    );
    assert_survives!(
        SendResult,
        SendResult {
            message_id: MessageId::new(source.uint64()),
            seq: Seq::new(source.uint64()),
            created_at_ms: source.uint64() as i64,
            duplicate: !source.bytes(1).is_empty(),
        }
    );
    assert_survives!(Sync, Sync { after: Seq::new(source.uint64()), limit: source.uint64() as u32 });
    let rooms =
        source.bytes(ROOMS_PER_FRAME_MAX.min(255)).iter().map(|&room| RoomId::new(u64::from(room) << 4));
    assert_survives!(Rooms, Rooms { rooms: rooms.collect() });

    let room = RoomId::new(source.uint64());
    assert_survives!(Publish, Publish { room, command: source.uint64() as i32, content: source.bytes(255) });
    let (room_epoch, room_seq) = (source.uint64(), source.uint64());
    assert_survives!(Published, Published { room_epoch, room_seq, created_at_ms: source.uint64() as i64 });

    let request_id = source.str(REQUEST_ID_BYTES_MAX);
    let (command, seq) = (source.uint64() as i32, source.uint64());
    let mut page = SyncPage { latest: Seq::new(source.uint64()), ..SyncPage::default() };
    while !source.0.is_empty() && page.messages.len() < 40 {
        page.messages.push(source.message());
    }
    let content = encoded(&ReplyWith(&page));
    let packet = Packet { request_id, command, content: &content, seq };
    let frame = packet.answer(&ReplyWith(&page));
    assert_eq!(frame, packet.to_frame(), "encoded in place or copied, the bytes are the same");
    let (frames, end) = frames_of([&frame[..]], FRAME_BYTES_MAX_DOWN);
    if frame[..] == [0] {
        assert_eq!(end, Err(DecodeError::EmptyFrame));
        return;
    }
    let decoded = Packet::decode(&frames[0]).expect("our own packet");
    assert_eq!((decoded, end), (packet, Ok(0)));
    let reply = Reply::decode(decoded.content).expect("our own reply");
    assert_eq!(SyncPage::decode(reply.data), Ok(page));
}
