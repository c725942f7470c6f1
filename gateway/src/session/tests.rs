//! The conversation step by step: gim's manners, refusals, closes, deadlines.

mod announce;
mod grant;
mod other;
mod rooms;

use super::online::CALLS_MAX;
use super::{Action, Counter, Counts, Deliver, Flow, Limits, Moment, Pace, Session, Turn};
use crate::fanout::{Offered, offer};
use crate::send_queue::SendQueue;
use crate::transport::form::Shared;
use bytes::Bytes;
use gimbal_codec::body::{Behind, Close, Message, Reply, Rooms, Send, SignIn, Signal, SubscribeRoom, Sync};
use gimbal_codec::limits::{CONTENT_BYTES_MAX, FRAME_BYTES_MAX, FRAME_BYTES_MAX_FRESH, FRESH_FRAMES_MAX};
use gimbal_codec::{
    Attach, Body, ClientMessageId, CloseReason, Command, Decoder, DeviceId, GroupId, MessageId, Packet,
    RoomId, Seq, SessionKey, ShardId, UserId, code,
};
use gimbal_rpc::link::{self, Grant, Page, Recipient, Refusal, SendResult, SignalTarget, Tag, Up};

const ATTACH: Attach = Attach::new(9);

/// A packet that came out: request id, command, seq, content.
type Out = (String, i32, u64, Vec<u8>);

struct Fixture {
    session: Session,
    queue: SendQueue,
    counts: Counts,
    limits: Limits,
    now: Moment,
    link: u64,
    actions: Vec<Action>,
}

impl Fixture {
    fn fresh() -> Self {
        let limits = Limits { queue_bytes_max: 1000, rooms_max: 3, ..Limits::default() };
        Self {
            session: Session::new(Moment::default(), &limits),
            queue: SendQueue::default(),
            counts: Counts::default(),
            limits,
            now: Moment::default(),
            link: 1,
            actions: Vec::new(),
        }
    }

    /// Signed in with a mailbox of 5 messages.
    fn online(cursor: Option<u64>) -> Self {
        let mut fixture = Self::fresh();
        fixture.sign_in(cursor).unwrap();
        fixture
            .call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), Grant::default(), turn))
            .unwrap();
        fixture.received();
        fixture.actions.clear();
        fixture
    }

    fn call<R>(&mut self, work: impl FnOnce(&mut Session, &mut Turn<'_>) -> R) -> R {
        let mut turn = Turn {
            key: SessionKey::new(ShardId(1), 2, 3),
            now: self.now,
            unix_ms: 77,
            link: self.link,
            limits: &self.limits,
            queue: &mut self.queue,
            out: &mut self.actions,
            counts: &mut self.counts,
        };
        work(&mut self.session, &mut turn)
    }

    fn send<B: Body + ?Sized>(&mut self, command: i32, content: &B) -> Result<(), CloseReason> {
        let mut bytes = Vec::new();
        content.encode(&mut bytes);
        let packet = Packet { request_id: "id", command, content: &bytes, seq: 8 };
        let frame = packet.to_frame();
        let body = &frame[frame.len() - packet.body_bytes()..];
        self.call(|session, turn| session.handle_frame(body, turn))
    }

    fn sign_in(&mut self, cursor: Option<u64>) -> Result<(), CloseReason> {
        let (user, device) = (UserId::new(10), DeviceId::new(20));
        self.send(1, &SignIn { user, device, token: "secret", cursor: cursor.map(Seq::new) })
    }

    fn deliver(&mut self, seq: u64) -> Result<(), CloseReason> {
        let body = body(100);
        self.call(|session, turn| {
            session.handle_deliver(ATTACH, Seq::new(seq), &mut Deliver::new(&body, 1), turn)
        })
    }

    fn drain(&mut self) -> Vec<Out> {
        let out = self.received();
        self.call(|session, turn| session.handle_drained(turn));
        out
    }

    /// Takes what waits, without telling the session.
    fn received(&mut self) -> Vec<Out> {
        let (mut out, mut decoder) = (Vec::new(), Decoder::new());
        while let Some(bytes) = self.queue.start_send(0) {
            self.queue.finish_send(bytes.len());
            let mut feed = decoder.feed(&bytes);
            while let Some(body) = feed.next_frame(1 << 20).unwrap() {
                let packet = Packet::decode(body).unwrap();
                out.push((packet.request_id.to_owned(), packet.command, packet.seq, packet.content.to_vec()));
            }
        }
        out
    }

    /// The code of the only reply that waits.
    fn replied(&mut self) -> i32 {
        let out = self.received();
        assert_eq!(out.len(), 1, "{out:?}");
        assert_eq!((out[0].0.as_str(), out[0].2), ("id", 8));
        Reply::decode(&out[0].3).unwrap().code
    }
}

fn body(content_bytes: usize) -> link::Body {
    link::Body {
        message_id: MessageId::new(1),
        from_user: UserId::new(11),
        from_device: DeviceId::new(21),
        command: 100,
        content: Bytes::from(vec![1; content_bytes]),
        created_at_ms: 1_700_000_000_999,
        ..link::Body::default()
    }
}

fn page(after: u64, end: u64, latest: u64, content_bytes: usize) -> Page {
    Page {
        entries: (after + 1..=end).map(|seq| (Seq::new(seq), body(content_bytes).into())).collect(),
        end: Seq::new(end),
        latest: Seq::new(latest),
        has_more: end < latest,
        trimmed_to: Seq::default(),
    }
}

fn tag() -> Tag {
    Tag { request_id: Bytes::from_static(b"id"), seq: 8 }
}

fn behind(out: &Out) -> u64 {
    assert_eq!(out.1, Command::Behind.number());
    Behind::decode(&out.3).unwrap().latest.get()
}

#[test]
fn before_sign_in_any_command_is_answered_as_gim_does_but_not_for_ever() {
    let mut fixture = Fixture::fresh();
    assert_eq!(fixture.session.frame_bytes_max(), FRAME_BYTES_MAX_FRESH);
    for command in (0..FRESH_FRAMES_MAX as i32).map(|n| [2, 3, 16, 999, -5][n as usize % 5]) {
        fixture.send(command, &[1u8, 2][..]).unwrap();
        let out = fixture.received();
        assert_eq!((out[0].0.as_str(), out[0].1, out[0].2), ("id", command, 8));
        assert_eq!(Reply::decode(&out[0].3).unwrap().code, code::NOT_SIGNED_IN);
    }
    assert_eq!(fixture.send(2, &()), Err(CloseReason::TooManyFrames));
    assert!(fixture.actions.is_empty());
}

#[test]
fn a_gim_client_gets_an_empty_answer_and_ours_a_result() {
    for (cursor, is_empty) in [(None, true), (Some(5), false)] {
        let mut fixture = Fixture::fresh();
        fixture.sign_in(cursor).unwrap();
        let Action::SignIn(request) = &fixture.actions[0] else { panic!("{:?}", fixture.actions) };
        assert_eq!((request.user.get(), request.device.get(), &request.token[..]), (10, 20, &b"secret"[..]));
        assert!(!format!("{request:?}").contains("secret"));
        fixture
            .call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), Grant::default(), turn))
            .unwrap();
        assert_eq!(fixture.actions[1], Action::Online { user: UserId::new(10) });
        let out = fixture.received();
        assert_eq!((out.len(), out[0].1, out[0].3.is_empty()), (1, 1, is_empty));
        assert_eq!(fixture.session.frame_bytes_max(), FRAME_BYTES_MAX);
        assert_eq!(fixture.session.caller().unwrap().attach, ATTACH);
    }
}

#[test]
fn a_refused_sign_in_is_answered_and_then_closed() {
    for (code, reason) in [
        (code::NOT_SIGNED_IN, CloseReason::SignInFailed),
        (code::DEVICE_NOT_FOUND, CloseReason::SignInFailed),
        (code::BUSY, CloseReason::Overloaded),
        (code::UNAVAILABLE, CloseReason::Unavailable),
        (code::DEVICE_TAKEN, CloseReason::DeviceRefused),
        (code::TOO_MANY_SESSIONS, CloseReason::DeviceRefused),
    ] {
        let mut fixture = Fixture::fresh();
        fixture.sign_in(None).unwrap();
        fixture.actions.clear();
        let refusal = Refusal { code, message: "no".to_owned() };
        let outcome = fixture.call(|session, turn| session.handle_sign_in_refused(&refusal, turn));
        assert_eq!(outcome, Err(reason));
        assert_eq!(fixture.counts.refused().collect::<Vec<_>>(), [(code, 1)]);
        fixture.call(|session, turn| session.begin_close(reason, 1500, turn));
        let out = fixture.received();
        assert_eq!(Reply::decode(&out[0].3).unwrap(), Reply { code, message: "no", data: &[] });
        let close = Close::decode(&out[1].3).unwrap();
        assert_eq!((out[1].1, close.code, close.retry_after_ms), (24, reason.code(), 1500));
        assert!(fixture.actions.is_empty(), "control knows nothing of it");
    }
}

#[test]
fn a_second_sign_in_and_commands_of_servers_end_the_connection() {
    let mut fixture = Fixture::fresh();
    fixture.sign_in(None).unwrap();
    assert_eq!(fixture.sign_in(None), Err(CloseReason::UnexpectedCommand));
    for (command, reason) in [
        (1, CloseReason::UnexpectedCommand),
        (23, CloseReason::UnexpectedCommand),
        (24, CloseReason::UnexpectedCommand),
        (26, CloseReason::UnknownCommand),
        (-1, CloseReason::UnknownCommand),
    ] {
        assert_eq!(Fixture::online(None).send(command, &()), Err(reason));
    }
    assert_eq!(Fixture::online(None).send(16, &[0xffu8][..]), Err(CloseReason::BadBody));
    let mut fixture = Fixture::online(None);
    assert_eq!(
        fixture.call(|session, turn| session.handle_frame(&[0xff], turn)),
        Err(CloseReason::BadPacket)
    );
}

#[test]
fn heartbeats_come_back_verbatim_and_message_frames_are_ignored() {
    let mut fixture = Fixture::online(None);
    // A field nobody knows stays where it was.
    let body = [0x10, 2, 0x78, 1, 0x1a, 1, 7];
    fixture.call(|session, turn| session.handle_frame(&body, turn)).unwrap();
    assert_eq!(fixture.queue.start_send(0).unwrap()[1..], body);
    fixture.queue.finish_send(1 + body.len());
    fixture.send(4, &()).unwrap();
    assert!(fixture.queue.is_empty());
    assert_eq!(fixture.counts.get(Counter::MessageFromClient), 1);
}

#[test]
fn a_send_goes_up_or_is_refused_with_its_reason() {
    let mut fixture = Fixture::online(None);
    let long = vec![0; CONTENT_BYTES_MAX + 1];
    let send = |id, to, content| Send {
        client_message_id: ClientMessageId::new(id),
        to: UserId::new(to),
        command: 3,
        content,
        ..Send::default()
    };
    for (send, refused) in [
        (send(0, 5, &[][..]), code::BAD_REQUEST),
        (send(5, 0, &[][..]), code::BAD_REQUEST),
        (Send { group: GroupId::new(6), ..send(5, 5, &[]) }, code::BAD_REQUEST),
        (send(5, 5, &long[..]), code::CONTENT_TOO_LARGE),
    ] {
        fixture.send(16, &send).unwrap();
        assert_eq!(fixture.replied(), refused);
    }
    assert!(fixture.actions.is_empty());
    fixture.send(16, &Send { group: GroupId::new(6), ..send(5, 0, &[]) }).unwrap();
    assert!(matches!(fixture.actions.pop(), Some(Action::Up(Up::Send { to: Recipient::Group(_), .. }))));
    fixture.send(16, &send(5, u64::MAX, &long[..CONTENT_BYTES_MAX])).unwrap();
    let Action::Up(up @ Up::Send { tag: sent, .. }) = &fixture.actions[0].clone() else { panic!("no send") };
    assert_eq!(*sent, tag());
    let result =
        SendResult { message_id: MessageId::new(3), seq: Seq::new(1), created_at_ms: 4, duplicate: true };
    fixture.call(|session, turn| session.handle_send_done(ATTACH, sent, Ok(result), turn)).unwrap();
    assert_eq!(fixture.replied(), code::OK);
    fixture.call(|session, turn| session.handle_not_submitted(up, turn)).unwrap();
    assert_eq!(fixture.replied(), code::BUSY);
    fixture.call(|session, turn| session.handle_send_done(Attach::new(8), sent, Ok(result), turn)).unwrap();
    assert!(fixture.queue.is_empty(), "an answer for an older attachment is dropped");
}

#[test]
fn only_so_many_calls_are_under_way_until_control_answers_or_is_lost() {
    let mut fixture = Fixture::online(None);
    let flood = |fixture: &mut Fixture| {
        while fixture.queue.is_empty() {
            fixture.send(18, &()).unwrap();
        }
        assert_eq!(fixture.replied(), code::BUSY);
        std::mem::take(&mut fixture.actions).len()
    };
    assert_eq!(flood(&mut fixture), usize::from(CALLS_MAX));
    fixture.call(|session, turn| session.handle_ack_done(ATTACH, &tag(), Ok(Seq::new(1)), turn)).unwrap();
    let up = Up::Ack { caller: fixture.session.caller().unwrap(), tag: tag(), seq: Seq::new(1) };
    fixture.call(|session, turn| session.handle_not_submitted(&up, turn)).unwrap();
    assert_eq!(fixture.received().len(), 2);
    assert_eq!(flood(&mut fixture), 2);
    fixture.call(|session, turn| session.handle_link_lost(turn)).unwrap();
    assert_eq!(flood(&mut fixture), usize::from(CALLS_MAX));
}

#[test]
fn rooms_are_bounded_and_gims_room_is_replaced_in_one_step() {
    let mut fixture = Fixture::online(None);
    let rooms = |ids: &[u64]| Rooms { rooms: ids.iter().copied().map(RoomId::new).collect() };
    for (ids, code) in [
        (&[][..], code::BAD_REQUEST),
        (&[1, 0], code::BAD_REQUEST),
        (&[1, 2, 3, 4], code::TOO_MANY_ROOMS),
        (&[1, 2], code::OK),
    ] {
        fixture.send(19, &rooms(ids)).unwrap();
        assert_eq!(fixture.replied(), code, "{ids:?}");
    }
    for room in [7, 8, 0] {
        fixture.send(3, &SubscribeRoom { room: RoomId::new(room) }).unwrap();
        let out = fixture.received();
        assert_eq!((out[0].1, out[0].3.as_slice()), (3, &[][..]));
    }
    fixture.send(20, &rooms(&[])).unwrap();
    let (join, leave) = (|n| Action::Join(RoomId::new(n)), |n| Action::Leave(RoomId::new(n)));
    assert_eq!(fixture.actions, [join(1), join(2), join(7), join(8), leave(7), leave(8), leave(1), leave(2)]);
}

#[test]
fn a_signal_needs_one_target_and_membership_and_gets_no_answer() {
    let mut fixture = Fixture::online(None);
    let signal = |to_user, room| Signal {
        to_user: UserId::new(to_user),
        room: RoomId::new(room),
        command: 1,
        from_user: UserId::new(666),
        ..Signal::default()
    };
    for (signal, code) in [
        (signal(0, 0), code::BAD_REQUEST),
        (signal(1, 1), code::BAD_REQUEST),
        (signal(0, 5), code::NOT_IN_ROOM),
    ] {
        fixture.send(21, &signal).unwrap();
        assert_eq!(fixture.replied(), code);
    }
    fixture.send(3, &SubscribeRoom { room: RoomId::new(5) }).unwrap();
    fixture.received();
    fixture.send(21, &signal(0, 5)).unwrap();
    fixture.send(21, &signal(4, 0)).unwrap();
    assert!(fixture.queue.is_empty());
    let [_, Action::Signal(to_room), Action::Signal(to_user)] = &fixture.actions[..] else {
        panic!("no signals")
    };
    assert_eq!(
        (to_room.to, to_user.to),
        (SignalTarget::Room(RoomId::new(5)), SignalTarget::User(UserId::new(4)))
    );
    assert_eq!((to_room.from_user.get(), to_room.from_device.get()), (10, 20), "a sender cannot be made up");
}

#[test]
fn signals_beyond_the_rate_are_refused_and_counted() {
    let mut fixture = Fixture::online(None);
    fixture.limits.signals = Pace::new(50, 3);
    let signal = Signal { to_user: UserId::new(4), ..Signal::default() };
    for _ in 0..3 {
        fixture.send(21, &signal).unwrap();
    }
    assert!(fixture.queue.is_empty());
    fixture.send(21, &signal).unwrap();
    assert_eq!((fixture.replied(), fixture.counts.get(Counter::SignalOverRate)), (code::BUSY, 1));
    fixture.now = Moment::from_ms(20);
    fixture.send(21, &signal).unwrap();
    assert_eq!((fixture.actions.len(), fixture.queue.is_empty()), (4, true));
}

#[test]
fn live_messages_come_in_order_and_a_gap_is_told_once() {
    let mut fixture = Fixture::online(Some(5));
    for seq in [6, 6, 7] {
        fixture.deliver(seq).unwrap();
    }
    let out = fixture.drain();
    let messages: Vec<_> = out.iter().map(|out| Message::decode(&out.3).unwrap()).collect();
    assert_eq!(messages.iter().map(|message| message.seq.get()).collect::<Vec<_>>(), [6, 7]);
    assert_eq!((messages[0].created_at, messages[0].created_at_ms), (1_700_000_000, 1_700_000_000_999));
    assert_eq!((out[0].0.as_str(), out[0].2), ("", 0));
    for seq in [9, 10, 11] {
        fixture.deliver(seq).unwrap();
    }
    let out = fixture.drain();
    assert_eq!((out.len(), behind(&out[0])), (1, 9));
}

#[test]
fn a_sign_in_with_an_old_cursor_is_told_what_waits() {
    let mut fixture = Fixture::fresh();
    fixture.sign_in(Some(2)).unwrap();
    fixture
        .call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), Grant::default(), turn))
        .unwrap();
    let out = fixture.received();
    assert_eq!((out.len(), out[0].1, behind(&out[1])), (2, 1, 5));
    fixture.deliver(3).unwrap();
    assert!(fixture.queue.is_empty(), "live delivery waits for the sync");
}

#[test]
fn pages_move_the_cursor_and_live_delivery_resumes_at_latest() {
    let mut fixture = Fixture::online(Some(2));
    for (end, told) in [(4, Some(6)), (6, None)] {
        fixture.send(17, &Sync { after: Seq::new(end - 2), limit: 100_000 }).unwrap();
        assert!(matches!(fixture.actions.pop(), Some(Action::Up(Up::Sync { limit: 500, .. }))));
        fixture.send(17, &Sync::default()).unwrap();
        assert_eq!(fixture.replied(), code::SYNC_IN_PROGRESS);
        fixture.deliver(6).unwrap();
        let page = page(end - 2, end, 5.max(end), 10);
        fixture.call(|session, turn| session.handle_sync_done(ATTACH, &tag(), Ok(&page), turn)).unwrap();
        let out = fixture.drain();
        assert_eq!((out[0].1, out.get(1).map(behind)), (17, told));
    }
    fixture.deliver(7).unwrap();
    assert_eq!(fixture.drain().len(), 1);
}

#[test]
fn a_page_without_room_is_refused_and_told_again_when_the_queue_is_empty() {
    let mut fixture = Fixture::online(Some(2));
    fixture.send(17, &Sync::default()).unwrap();
    fixture.send(2, &[0u8; 500][..]).unwrap();
    let page = page(2, 4, 5, 300);
    fixture.call(|session, turn| session.handle_sync_done(ATTACH, &tag(), Ok(&page), turn)).unwrap();
    let out = fixture.drain();
    assert_eq!(out.len(), 2);
    assert_eq!(Reply::decode(&out[1].3).unwrap().code, code::BUSY);
    let out = fixture.drain();
    assert_eq!((out.len(), behind(&out[0])), (1, 5));
    assert!(fixture.drain().is_empty());
}

#[test]
fn a_full_queue_makes_a_session_behind_but_ends_one_without_a_cursor() {
    let mut fixture = Fixture::online(Some(5));
    let mut seq = 6;
    while fixture.counts.get(Counter::Behind) == 0 {
        fixture.deliver(seq).unwrap();
        seq += 1;
    }
    fixture.deliver(seq).unwrap();
    assert_eq!((behind(fixture.drain().last().unwrap()), fixture.counts.get(Counter::Behind)), (seq - 1, 1));

    let mut fixture = Fixture::online(None);
    let reason = (6..).find_map(|seq| fixture.deliver(seq).err());
    assert_eq!(reason, Some(CloseReason::TooSlow));
    fixture.call(|session, turn| session.begin_close(CloseReason::TooSlow, 0, turn));
    assert_eq!(fixture.received().len(), 1, "what nobody will read is dropped");
}

#[test]
fn rooms_do_without_a_session_that_catches_up_unless_nothing_waits() {
    let mut fixture = Fixture::online(Some(2));
    let frame = Shared::new(Bytes::from_static(b"room"));
    let give = |fixture: &mut Fixture| offer(&fixture.session, &mut fixture.queue, &frame, 1000);
    assert_eq!([give(&mut fixture), give(&mut fixture)], [Offered::Queued, Offered::Shed]);
    fixture.queue.start_send(0);
    fixture.queue.finish_send(4);
    fixture.send(17, &Sync::default()).unwrap();
    let page = page(2, 5, 5, 10);
    fixture.call(|session, turn| session.handle_sync_done(ATTACH, &tag(), Ok(&page), turn)).unwrap();
    assert_eq!(give(&mut fixture), Offered::Queued, "it has caught up");
}

#[test]
fn an_announcement_that_finds_nothing_missed_resumes_live_delivery() {
    let mut fixture = Fixture::online(Some(5));
    fixture.deliver(7).unwrap();
    assert_eq!(behind(&fixture.drain()[0]), 7);
    fixture.call(|session, turn| session.handle_announced(ATTACH, Seq::new(5), turn)).unwrap();
    fixture.deliver(6).unwrap();
    assert_eq!(fixture.counts.get(Counter::Delivered), 1);
}

#[test]
fn unstored_pushes_are_shed_first() {
    let mut fixture = Fixture::online(Some(5));
    fixture.deliver(0).unwrap();
    while !fixture.queue.is_above_half(1000) {
        fixture.send(2, &()).unwrap();
    }
    fixture.deliver(0).unwrap();
    fixture.deliver(6).unwrap();
    let counts = &fixture.counts;
    assert_eq!((counts.get(Counter::PushShed), counts.get(Counter::Delivered)), (1, 1));
}

#[test]
fn a_client_that_calls_and_does_not_read_is_closed() {
    let mut fixture = Fixture::online(Some(5));
    let reason = (0..10_000).find_map(|_| fixture.send(2, &[0u8; 64][..]).err());
    assert_eq!(reason, Some(CloseReason::TooSlow));
}

#[test]
fn deadlines_close_with_their_own_reason() {
    let mut fixture = Fixture::fresh();
    let timeout = |session: &mut Session, turn: &mut Turn<'_>| session.handle_timeout(turn);
    fixture.now = Moment::from_ms(fixture.limits.sign_in_ms - 1);
    assert_eq!(fixture.call(timeout), Ok(()));
    fixture.now = Moment::from_ms(fixture.limits.sign_in_ms);
    assert_eq!(fixture.call(timeout), Err(CloseReason::SignInDeadline));

    let mut fixture = Fixture::online(None);
    fixture.now = Moment::from_ms(1000);
    fixture.send(2, &()).unwrap();
    fixture.now = Moment::from_ms(fixture.limits.idle_ms + 999);
    assert_eq!(fixture.call(timeout), Ok(()), "a welcome frame proves life");
    let (limits, now) = (fixture.limits, Moment::from_ms(2000));
    fixture.session.handle_write_progress(now, &limits);
    assert_eq!(fixture.session.deadline(), now.plus_ms(limits.write_ms));
    assert_eq!(fixture.call(timeout), Err(CloseReason::WriteDeadline));
    fixture.drain();
    assert_eq!(fixture.session.deadline(), Moment::from_ms(limits.idle_ms + 1000));
}

#[test]
fn a_close_says_goodbye_flushes_lingers_and_ends() {
    let mut fixture = Fixture::online(None);
    fixture.call(|session, turn| session.begin_close(CloseReason::Draining, 3000, turn));
    fixture.call(|session, turn| session.begin_close(CloseReason::Idle, 0, turn));
    let [Action::Offline { .. }, Action::Up(Up::Detach { caller })] = &fixture.actions[..] else {
        panic!("{:?}", fixture.actions)
    };
    assert_eq!(caller.attach, ATTACH);
    assert!(fixture.session.is_closing() && !fixture.session.is_online());
    fixture.send(99, &()).unwrap();
    fixture.deliver(6).unwrap();
    fixture.actions.clear();
    let out = fixture.drain();
    assert_eq!((out.len(), Close::decode(&out[0].3).unwrap().code), (1, CloseReason::Draining.code()));
    assert_eq!(fixture.actions, [Action::ShutdownWrite]);
    fixture.now = fixture.session.deadline();
    fixture.call(|session, turn| session.handle_timeout(turn)).unwrap();
    assert_eq!(fixture.actions, [Action::ShutdownWrite, Action::Abort]);
    assert_eq!(fixture.session.deadline(), Moment::NEVER);
    assert_eq!(fixture.counts.closed().map(|(_, count)| count).sum::<u64>(), 1);
}

#[test]
fn a_connection_that_ends_while_control_is_asked_takes_the_question_back() {
    let mut fixture = Fixture::fresh();
    fixture.sign_in(None).unwrap();
    fixture.call(|session, turn| session.handle_gone(turn));
    let Some(Action::Up(Up::Detach { caller })) = fixture.actions.pop() else { panic!("no detach") };
    assert_eq!((caller.user.get(), caller.device.get(), caller.attach), (10, 20, Attach::default()));
    fixture
        .call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), Grant::default(), turn))
        .unwrap();
    assert!(fixture.queue.is_empty() && fixture.counts.get(Counter::StaleItem) == 1);
}

#[test]
fn one_frame_serves_all_devices_of_a_user() {
    let body = body(10);
    let mut deliver = Deliver::new(&body, 3);
    let pointers: Vec<_> = [6, 6, 7].map(|seq| deliver.frame(Seq::new(seq)).as_ptr()).into();
    assert_eq!(pointers[0], pointers[1]);
    assert_ne!(pointers[1], pointers[2]);
    assert!(Deliver::new(&body, 1).frame(Seq::new(6)).is_unique(), "a single one is not shared");
}

#[test]
fn a_session_that_floods_is_refused_then_not_answered_then_closed_and_its_heartbeats_go_on_at_first() {
    let mut fixture = Fixture::online(None);
    fixture.limits.frames = Flow::new(10, 1);
    let join = Rooms { rooms: vec![RoomId::new(1)] };
    for expected in [code::OK, code::BUSY] {
        for n in 0..9 {
            fixture.send(19, &join).unwrap();
            let answers = fixture.received();
            assert_eq!(Reply::decode(&answers[0].3).unwrap().code, expected, "{n}");
        }
        fixture.send(2, &()).unwrap();
        assert_eq!(fixture.received()[0].1, 2, "an echo");
    }
    for _ in 0..10 {
        fixture.send(2, &()).unwrap();
        assert!(fixture.received().is_empty());
    }
    assert_eq!(fixture.counts.get(Counter::FrameThrottled), 9);
    assert_eq!(fixture.counts.get(Counter::FrameShed), 10);
    assert_eq!(fixture.send(2, &()), Err(CloseReason::OverRate));
}

#[test]
fn the_corpus_of_the_fuzz_target_passes() {
    crate::replay::replay("fuzz/corpus/session", super::rules::check_session);
}
