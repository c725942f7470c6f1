//! What holds for every value and every stream.

use gimbal_codec::body::{
    Ack, Behind, Close, Message, Publish, Published, Reply, ReplyWith, Rooms, Send, SendResult, SignIn,
    SignInResult, Signal, SubscribeRoom, Sync, SyncPage,
};
use gimbal_codec::limits::{FRAME_BYTES_MAX, REQUEST_ID_BYTES_MAX, ROOMS_PER_FRAME_MAX, TOKEN_BYTES_MAX};
use gimbal_codec::{
    ClientMessageId, Command, DecodeError, Decoder, DeviceId, GroupId, MessageId, Packet, RoomId, Seq,
    UserId, frame, frame_of_packet,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::checks::{self, encoded, frames_of};

/// Numbers of every width, not only large ones.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(value, shift)| value >> shift)
}

fn seq() -> impl Strategy<Value = Seq> {
    number().prop_map(Seq::new)
}

fn user() -> impl Strategy<Value = UserId> {
    number().prop_map(UserId::new)
}

fn device() -> impl Strategy<Value = DeviceId> {
    number().prop_map(DeviceId::new)
}

fn room() -> impl Strategy<Value = RoomId> {
    number().prop_map(RoomId::new)
}

fn group() -> impl Strategy<Value = GroupId> {
    number().prop_map(GroupId::new)
}

fn message_id() -> impl Strategy<Value = MessageId> {
    number().prop_map(MessageId::new)
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..200), vec(any::<u8>(), 0..40_000)]
}

/// At most `bytes_max` bytes of any UTF-8.
fn text(bytes_max: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..bytes_max / 4).prop_map(String::from_iter)
}

fn message(content: &[u8]) -> impl Strategy<Value = Message<'_>> {
    let numbers = (any::<i32>(), seq(), any::<i64>(), room(), message_id(), (group(), seq()));
    (numbers, user(), device(), any::<i64>(), number(), number()).prop_map(
        move |(first, from_user, from_device, created_at_ms, room_epoch, room_seq)| {
            let (command, seq, created_at, room, id, (group, group_seq)) = first;
            let mut message = Message { command, content, seq, created_at, room, id, ..Message::default() };
            message.from_user = from_user;
            message.from_device = from_device;
            message.created_at_ms = created_at_ms;
            message.room_epoch = room_epoch;
            message.room_seq = room_seq;
            message.group = group;
            message.group_seq = group_seq;
            message
        },
    )
}

macro_rules! assert_survives {
    ($kind:ident, $value:expr) => {{
        let value = $value;
        let bytes = encoded(&value);
        prop_assert_eq!($kind::decode(&bytes), Ok(value));
    }};
}

proptest! {
    #[test]
    fn bodies_of_numbers_survive(
        a in number(), b in number(), c in number(),
        limit in any::<u32>(), time in any::<i64>(), duplicate in any::<bool>(),
    ) {
        assert_survives!(Ack, Ack { seq: Seq::new(a) });
        assert_survives!(Behind, Behind { latest: Seq::new(a) });
        assert_survives!(SubscribeRoom, SubscribeRoom { room: RoomId::new(a) });
        assert_survives!(Sync, Sync { after: Seq::new(a), limit });
        assert_survives!(SignInResult, SignInResult {
            latest: Seq::new(a), idle_ms: b, frame_bytes_max: c, server_time_ms: time,
            user: UserId::new(b), device: DeviceId::new(c)
        });
        assert_survives!(SendResult, SendResult {
            message_id: MessageId::new(a), seq: Seq::new(b), created_at_ms: time, duplicate
        });
    }

    #[test]
    fn a_sign_in_survives(
        user in user(), device in device(), token in text(TOKEN_BYTES_MAX), cursor in proptest::option::of(seq()),
    ) {
        assert_survives!(SignIn, SignIn { user, device, token: &token, cursor });
    }

    #[test]
    fn a_reply_and_a_close_survive(
        code in any::<i32>(), short in any::<u16>(), words in text(400), data in content(), wait in number(),
    ) {
        assert_survives!(Reply, Reply { code, message: &words, data: &data });
        assert_survives!(Close, Close { code: short, reason: &words, retry_after_ms: wait });
        let in_place = encoded(&ReplyWith(&data[..]));
        prop_assert_eq!(Reply::decode(&in_place), Ok(Reply { code: 0, message: "", data: &data }));
    }

    #[test]
    fn a_send_and_a_signal_survive(
        id in number(), to in user(), room in room(), group in group(), command in any::<i32>(),
        content in content(), from in user(), device in device(),
    ) {
        let client_message_id = ClientMessageId::new(id);
        assert_survives!(Send, Send { client_message_id, to, command, content: &content, group });
        assert_survives!(Signal, Signal {
            to_user: to, room, command, content: &content, from_user: from, from_device: device
        });
    }

    #[test]
    fn a_publish_and_its_place_survive(
        room in room(), command in any::<i32>(), content in content(), room_epoch in number(),
        room_seq in number(), created_at_ms in any::<i64>(),
    ) {
        assert_survives!(Publish, Publish { room, command, content: &content });
        assert_survives!(Published, Published { room_epoch, room_seq, created_at_ms });
    }

    #[test]
    fn a_list_of_rooms_survives(rooms in vec(room(), 0..=ROOMS_PER_FRAME_MAX)) {
        assert_survives!(Rooms, Rooms { rooms });
    }

    #[test]
    fn a_sync_page_survives(
        messages in vec(message(b"content of any message"), 0..40),
        latest in seq(), trimmed_to in seq(), has_more in any::<bool>(),
    ) {
        for message in &messages {
            assert_survives!(Message, *message);
        }
        assert_survives!(SyncPage, SyncPage { messages, latest, has_more, trimmed_to });
    }

    #[test]
    fn a_packet_survives_and_its_frame_is_exact(
        request_id in text(REQUEST_ID_BYTES_MAX), command in any::<i32>(), content in content(), seq in number(),
    ) {
        let packet = Packet { request_id: &request_id, command, content: &content, seq };
        let frame = packet.to_frame();
        let body = &frame[frame.len() - packet.body_bytes()..];
        prop_assert_eq!(Packet::decode(body), Ok(packet));
        prop_assert_eq!(&frame_of_packet(body), &frame);
        let mut appended = vec![9, 9];
        packet.put_frame(&mut appended);
        prop_assert_eq!(&appended[2..], &frame[..]);
        prop_assert_eq!(Vec::from(frame.clone()).capacity(), frame.len());
    }

    #[test]
    fn any_split_of_a_stream_gives_the_same_frames(
        contents in vec(content(), 0..6), cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut stream = Vec::new();
        let mut packets = Vec::new();
        for content in &contents {
            let packet = Packet { command: Command::Send.number(), content, ..Packet::default() };
            packet.put_frame(&mut stream);
            packets.push(packet);
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let (frames, end) = frames_of(cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]), FRAME_BYTES_MAX);
        prop_assert_eq!(end, Ok(0));
        let decoded: Vec<_> = frames.iter().map(|frame| Packet::decode(frame).unwrap()).collect();
        prop_assert_eq!(decoded, packets);
    }

    #[test]
    fn a_decoder_never_allocates_more_than_twice_what_arrived(
        body_bytes in 1..=FRAME_BYTES_MAX, chunk_bytes in 1..5000usize,
    ) {
        let stream = frame_of_packet(&vec![1; body_bytes]);
        let mut decoder = Decoder::new();
        let mut arrived = 0;
        for chunk in stream.chunks(chunk_bytes) {
            arrived += chunk.len();
            let is_whole = arrived == stream.len();
            prop_assert_eq!(decoder.feed(chunk).next_frame(FRAME_BYTES_MAX)?.is_some(), is_whole);
            prop_assert_eq!(decoder.buffered(), if is_whole { 0 } else { arrived });
            prop_assert!(decoder.allocated() <= (2 * decoder.buffered()).min(stream.len()));
        }
        prop_assert_eq!(decoder.allocated(), 0);
    }

    #[test]
    fn a_claimed_length_allocates_nothing(claimed in 1u32.., kept in 0..64usize) {
        let mut stream = Vec::new();
        let mut value = claimed;
        while value >= 0x80 {
            stream.push(value as u8 | 0x80);
            value >>= 7;
        }
        stream.push(value as u8);
        stream.extend(vec![0; kept]);
        let mut decoder = Decoder::new();
        let first = decoder.feed(&stream).next_frame(FRAME_BYTES_MAX).map(|frame| frame.map(<[u8]>::len));
        if claimed as usize > FRAME_BYTES_MAX {
            prop_assert_eq!(first, Err(DecodeError::FrameTooLarge { bytes: claimed, bytes_max: FRAME_BYTES_MAX }));
            prop_assert_eq!(decoder.allocated(), 0);
        } else {
            prop_assert!(decoder.allocated() <= stream.len());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in vec(any::<u8>(), 0..600)) {
        checks::decode(&data);
        checks::split(&data);
        checks::round_trip(&data);
    }

    #[test]
    fn damaged_packets_never_panic(
        content in vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), flip in 1u8..,
    ) {
        let client_message_id = ClientMessageId::new(1);
        let send = Send { client_message_id, to: UserId::new(2), command: 3, content: &content, ..Send::default() };
        let frame = frame(Command::Send, "id", 7, &send);
        let mut packet = frames_of([&frame[..]], FRAME_BYTES_MAX).0.remove(0);
        let at = at.index(packet.len());
        packet[at] ^= flip;
        checks::decode(&packet);
        checks::decode(&packet[..at]);
    }
}
