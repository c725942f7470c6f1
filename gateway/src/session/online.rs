//! A session that is signed in: its client's calls, and control's answers to them.

use bytes::Bytes;
use gimbal_codec::body::{self, Ack, Behind, Reply, ReplyWith, Rooms, SubscribeRoom};
use gimbal_codec::limits::{CONTENT_BYTES_MAX, SYNC_LIMIT_MAX};
use gimbal_codec::{
    Attach, Body, CloseReason, Command, DecodeError, Packet, RoomId, Seq, code, frame, frame_of_packet,
};
use gimbal_rpc::link::{
    Caller, Page, Recipient, Refusal, RoomPlace, SendResult, Signal, SignalTarget, Tag, Up,
};

use super::cursor::Cursor;
use super::frames::page_body;
use super::link::Known;
use super::pace::{Level, Used, Verdict};
use super::rooms::{RoomSet, TooManyRooms};
use super::{Action, Counter, Moment, Turn};

/// State of a session between sign-in and close.
#[derive(Debug)]
pub(super) struct Online {
    pub(super) caller: Caller,
    pub(super) cursor: Cursor,
    /// The sync under way; there is one at a time.
    pub(super) syncing: Option<Box<Tag>>,
    /// See [`Self::expires`]; seconds.
    expires: u32,
    rooms: RoomSet,
    known: Known,
    signals: Used,
    frames: Level,
    bytes: Level,
    /// Calls under way, up to [`CALLS_MAX`].
    calls: u16,
}

/// Why a call is answered with a code instead of being passed on.
struct Refused(i32, &'static str);

/// SENDs, ACKs and PUBLISHes of one session that control has not answered. More than any client gains from; a flood of tiny calls would
/// else fill control's queue, and their answers this session's.
pub(super) const CALLS_MAX: u16 = 256;

const AWAY: Refused = Refused(code::UNAVAILABLE, "control is away");
const NOT_IN_ROOM: Refused = Refused(code::NOT_IN_ROOM, "not in that room");

impl Online {
    /// Attached on the link with this number.
    pub(super) fn new(caller: Caller, cursor: Cursor, link: u64, now: Moment, expires: Moment) -> Self {
        Self {
            caller,
            cursor,
            syncing: None,
            expires: expires.to_seconds(),
            rooms: RoomSet::default(),
            known: Known::attached(link),
            signals: Used::new(now),
            frames: Level::new(now),
            bytes: Level::new(now),
            calls: 0,
        }
    }

    /// When the token is over that it signed in with.
    pub(super) fn expires(&self) -> Moment {
        Moment::from_seconds(self.expires)
    }

    /// One packet of the client; `body` is the packet as it came.
    pub(super) fn handle_packet(
        &mut self,
        packet: &Packet<'_>,
        body: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        let command = Command::try_from(packet.command).map_err(|_| CloseReason::UnknownCommand)?;
        let of_frames = self.frames.add(1, turn.now, turn.limits.frames);
        let of_bytes = self.bytes.add(body.len(), turn.now, turn.limits.bytes);
        match of_frames.max(of_bytes) {
            Verdict::Fine => {}
            // An echo costs no more than a refusal, and its absence would look like a dead connection.
            Verdict::Throttle if command == Command::Heartbeat => {}
            Verdict::Throttle => {
                turn.count(Counter::FrameThrottled);
                return refuse(packet, Refused(code::BUSY, "too many frames or bytes"), turn);
            }
            Verdict::Shed => {
                turn.count(Counter::FrameShed);
                return Ok(());
            }
            Verdict::End => return Err(CloseReason::OverRate),
        }
        match command {
            Command::Heartbeat => turn.answer(frame_of_packet(body)),
            Command::Message => {
                turn.count(Counter::MessageFromClient);
                Ok(())
            }
            Command::SubscribeRoom => self.subscribe_room(packet, turn),
            Command::Send => self.send(packet, turn),
            Command::Sync => self.sync(packet, turn),
            Command::Ack => self.ack(packet, turn),
            Command::Join => self.join(packet, turn),
            Command::Leave => self.leave_rooms(packet, turn),
            Command::Signal => self.signal(packet, turn),
            Command::Publish => self.publish(packet, turn),
            Command::SignIn | Command::Behind | Command::Close => Err(CloseReason::UnexpectedCommand),
        }
    }

    /// See [`super::Session::handle_other`].
    pub(super) fn handle_other(&mut self, count: usize, turn: &Turn<'_>) -> Result<(), CloseReason> {
        match self.frames.add(count, turn.now, turn.limits.frames) {
            Verdict::End => Err(CloseReason::OverRate),
            Verdict::Fine | Verdict::Throttle | Verdict::Shed => Ok(()),
        }
    }

    fn send(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let send = body::Send::decode(packet.content).map_err(reason)?;
        let to = match (send.to.is_none(), send.group.is_none()) {
            (false, true) => Recipient::User(send.to),
            (true, false) => Recipient::Group(send.group),
            _ => return refuse(packet, Refused(code::BAD_REQUEST, "one of to_user and to_group"), turn),
        };
        let refused = if send.client_message_id.is_none() {
            Some(Refused(code::BAD_REQUEST, "client_message_id is 0"))
        } else {
            refuse_content(send.content).or_else(|| self.refuse_call(turn.link))
        };
        if let Some(refused) = refused {
            return refuse(packet, refused, turn);
        }
        self.calls += 1;
        turn.out.push(Action::Up(Up::Send {
            caller: self.caller,
            tag: tag_of(packet),
            client_message_id: send.client_message_id,
            to,
            command: send.command,
            content: Bytes::copy_from_slice(send.content),
        }));
        Ok(())
    }

    fn sync(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let sync = body::Sync::decode(packet.content).map_err(reason)?;
        if !self.known.is_on(turn.link) || !self.known.is_attached() {
            return refuse(packet, AWAY, turn);
        }
        if self.syncing.is_some() {
            return refuse(packet, Refused(code::SYNC_IN_PROGRESS, "one sync at a time"), turn);
        }
        let tag = tag_of(packet);
        self.syncing = Some(Box::new(tag.clone()));
        let limit = sync.limit.min(SYNC_LIMIT_MAX);
        turn.out.push(Action::Up(Up::Sync { caller: self.caller, tag, after: sync.after, limit }));
        Ok(())
    }

    fn ack(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let ack = Ack::decode(packet.content).map_err(reason)?;
        if let Some(refused) = self.refuse_call(turn.link) {
            return refuse(packet, refused, turn);
        }
        self.calls += 1;
        turn.out.push(Action::Up(Up::Ack { caller: self.caller, tag: tag_of(packet), seq: ack.seq }));
        Ok(())
    }

    /// gim's one room: replaced in one step, 0 leaves; always answered with empty content.
    fn subscribe_room(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let subscribe = SubscribeRoom::decode(packet.content).map_err(reason)?;
        self.rooms.subscribe(subscribe.room, turn.out);
        turn.answer(packet.answer(&()))
    }

    fn join(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let rooms = Rooms::decode(packet.content).map_err(reason)?.rooms;
        if rooms.is_empty() || rooms.contains(&RoomId::default()) {
            return refuse(packet, Refused(code::BAD_REQUEST, "room_id is 0 or absent"), turn);
        }
        match self.rooms.join(&rooms, turn.limits.rooms_max, turn.out) {
            Ok(()) => turn.answer(packet.answer(&Reply::default())),
            Err(TooManyRooms) => refuse(packet, Refused(code::TOO_MANY_ROOMS, "too many rooms"), turn),
        }
    }

    /// Rooms in which the session is not are left as easily; an empty list leaves all that were joined.
    fn leave_rooms(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let rooms = Rooms::decode(packet.content).map_err(reason)?.rooms;
        if rooms.is_empty() {
            self.rooms.leave_all(turn.out);
        } else {
            self.rooms.leave(&rooms, turn.out);
        }
        turn.answer(packet.answer(&Reply::default()))
    }

    /// No answer on success.
    fn signal(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let signal = body::Signal::decode(packet.content).map_err(reason)?;
        let to = match (signal.to_user.is_none(), signal.room.is_none()) {
            (false, true) => SignalTarget::User(signal.to_user),
            (true, false) => SignalTarget::Room(signal.room),
            _ => return refuse(packet, Refused(code::BAD_REQUEST, "one of to_user and room_id"), turn),
        };
        if let SignalTarget::Room(room) = to
            && !self.rooms.contains(room)
        {
            return refuse(packet, NOT_IN_ROOM, turn);
        }
        if let Some(refused) = refuse_content(signal.content) {
            return refuse(packet, refused, turn);
        }
        if !self.signals.take(turn.now, turn.limits.signals) {
            turn.count(Counter::SignalOverRate);
            return refuse(packet, Refused(code::BUSY, "too many signals"), turn);
        }
        turn.out.push(Action::Signal(Signal {
            from_user: self.caller.user,
            from_device: self.caller.device,
            to,
            command: signal.command,
            content: Bytes::copy_from_slice(signal.content),
        }));
        Ok(())
    }

    /// To a room that the session is in; control says whether members may.
    fn publish(&mut self, packet: &Packet<'_>, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let publish = body::Publish::decode(packet.content).map_err(reason)?;
        let refused = if publish.room.is_none() {
            Some(Refused(code::BAD_REQUEST, "room_id is 0"))
        } else if !self.rooms.contains(publish.room) {
            Some(NOT_IN_ROOM)
        } else {
            refuse_content(publish.content).or_else(|| self.refuse_call(turn.link))
        };
        if let Some(refused) = refused {
            return refuse(packet, refused, turn);
        }
        if !self.rooms.take_publish(turn.now, turn.limits.publishes) {
            turn.count(Counter::PublishOverRate);
            return refuse(packet, Refused(code::BUSY, "too many publishes"), turn);
        }
        self.calls += 1;
        turn.out.push(Action::UpToRoom(Up::Publish {
            caller: self.caller,
            tag: tag_of(packet),
            room: publish.room,
            command: publish.command,
            content: Bytes::copy_from_slice(publish.content),
        }));
        Ok(())
    }

    pub(super) fn publish_done(
        &mut self,
        tag: &Tag,
        result: Result<RoomPlace, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        self.calls = self.calls.saturating_sub(1);
        let result = result.map(|RoomPlace { epoch, seq, created_at_ms }| body::Published {
            room_epoch: epoch,
            room_seq: seq,
            created_at_ms,
        });
        answer_call(Command::Publish, tag, result, turn)
    }

    pub(super) fn send_done(
        &mut self,
        tag: &Tag,
        result: Result<SendResult, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        self.calls = self.calls.saturating_sub(1);
        let result = result.map(|result| body::SendResult {
            message_id: result.message_id,
            seq: result.seq,
            created_at_ms: result.created_at_ms,
            duplicate: result.duplicate,
        });
        answer_call(Command::Send, tag, result, turn)
    }

    pub(super) fn ack_done(
        &mut self,
        tag: &Tag,
        result: Result<Seq, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        self.calls = self.calls.saturating_sub(1);
        answer_call(Command::Ack, tag, result.map(|seq| Ack { seq }), turn)
    }

    /// A page moves the cursor to its end, if it finds room; whatever the outcome, a session that is short afterwards
    /// is told so.
    pub(super) fn sync_done(
        &mut self,
        tag: &Tag,
        result: Result<&Page, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        if self.syncing.as_deref() != Some(tag) {
            turn.count(Counter::StaleItem);
            return Ok(());
        }
        self.syncing = None;
        match result {
            Err(refusal) => {
                answer_call::<()>(Command::Sync, tag, Err(refusal), turn)?;
                self.tell_if_short(turn);
                Ok(())
            }
            Ok(page) => self.give_page(tag, page, turn),
        }
    }

    fn give_page(&mut self, tag: &Tag, page: &Page, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let answer = frame(Command::Sync, &tag.request_id, tag.seq, &ReplyWith(&page_body(page)));
        if turn.queue.push(answer, turn.limits.queue_bytes_max).is_ok() {
            self.cursor.page_given(page.end, page.latest);
            self.tell_if_short(turn);
            return Ok(());
        }
        turn.count(Counter::PageDropped);
        self.cursor.page_missed(page.latest);
        if self.cursor.is_short() {
            // Told when the queue is empty: the next page then finds room.
            self.cursor.fall_behind();
        }
        let refusal = Refusal { code: code::BUSY, message: "read what was sent first".to_owned() };
        answer_call::<()>(Command::Sync, tag, Err(&refusal), turn)
    }

    /// Calls under way will not be answered. What was missed meanwhile, the answer to the announcement tells.
    pub(super) fn lose_link(&mut self, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        self.calls = 0;
        self.end_sync(turn)
    }

    pub(super) fn announce(&mut self, link: u64) -> (Caller, Option<Seq>) {
        self.known = Known::announced(link);
        (self.caller, self.cursor.get())
    }

    /// The answer to an announcement. What came before it may be lost, so a sync under way ends here: its page may never
    /// come, and if it does, it finds nobody waiting for it. An answer that an earlier link left behind says nothing.
    pub(super) fn announced(
        &mut self,
        attach: Attach,
        latest: Seq,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        if !self.known.is_on(turn.link) || attach < self.caller.attach {
            turn.count(Counter::StaleItem);
            return Ok(());
        }
        self.caller.attach = attach;
        self.known = Known::attached(turn.link);
        self.calls = 0;
        self.end_sync(turn)?;
        self.cursor.announced(latest).map_err(|_| CloseReason::Stale)?;
        self.tell_if_short(turn);
        Ok(())
    }

    /// Answers a sync without its page.
    fn end_sync(&mut self, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let Some(tag) = self.syncing.take() else { return Ok(()) };
        let refusal = Refusal { code: code::UNAVAILABLE, message: "control is away".to_owned() };
        answer_call::<()>(Command::Sync, &tag, Err(&refusal), turn)
    }

    /// The queue is empty: the word that found no room, or that waited for the room a page needs.
    pub(super) fn handle_drained(&mut self, turn: &mut Turn<'_>) {
        if self.cursor.is_owed() {
            self.tell_behind(turn);
        }
    }

    /// Makes the session behind, and tells it, when messages wait that it was not given.
    pub(super) fn tell_if_short(&mut self, turn: &mut Turn<'_>) {
        if self.cursor.is_short() {
            self.fall_behind(turn);
        }
    }

    pub(super) fn fall_behind(&mut self, turn: &mut Turn<'_>) {
        self.cursor.fall_behind();
        turn.count(Counter::Behind);
        self.tell_behind(turn);
    }

    /// Without room it stays owed until the queue is empty.
    fn tell_behind(&mut self, turn: &mut Turn<'_>) {
        let behind = frame(Command::Behind, "", 0, &Behind { latest: self.cursor.latest() });
        if turn.answer(behind).is_ok() {
            self.cursor.told();
        }
    }

    /// Control takes calls of a session only after it was attached or announced on the link that is up, and so many at a time.
    fn refuse_call(&self, link: u64) -> Option<Refused> {
        if !self.known.is_on(link) {
            Some(AWAY)
        } else if self.calls >= CALLS_MAX {
            Some(Refused(code::BUSY, "too many calls under way"))
        } else {
            None
        }
    }
}

fn refuse_content(content: &[u8]) -> Option<Refused> {
    if content.len() <= CONTENT_BYTES_MAX {
        None
    } else {
        Some(Refused(code::CONTENT_TOO_LARGE, "content too large"))
    }
}

fn refuse(packet: &Packet<'_>, refused: Refused, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
    turn.counts.add_refused(refused.0);
    turn.answer(packet.answer(&Reply { code: refused.0, message: refused.1, data: &[] }))
}

/// Answers a call that went to control.
fn answer_call<B: Body>(
    command: Command,
    tag: &Tag,
    result: Result<B, &Refusal>,
    turn: &mut Turn<'_>,
) -> Result<(), CloseReason> {
    let answer = match result {
        Ok(data) => frame(command, &tag.request_id, tag.seq, &ReplyWith(&data)),
        Err(refusal) => {
            turn.counts.add_refused(refusal.code);
            let reply = Reply { code: refusal.code, message: &refusal.message, data: &[] };
            frame(command, &tag.request_id, tag.seq, &reply)
        }
    };
    turn.answer(answer)
}

fn tag_of(packet: &Packet<'_>) -> Tag {
    Tag { request_id: Bytes::copy_from_slice(packet.request_id.as_bytes()), seq: packet.seq }
}

fn reason(error: DecodeError) -> CloseReason {
    error.close_reason()
}
