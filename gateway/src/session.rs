//! One connection's conversation, as a pure state machine: frames, control's items and time in; frames and actions out.
//!
//! A session never touches a socket, a clock or a table. It writes whole frames into the connection's [`SendQueue`] and
//! everything else it wants done into [`Turn::out`]. After every call the shard
//! - carries out the actions,
//! - on `Err(reason)` calls [`Session::begin_close`],
//! - hands [`Session::deadline`] to the timer wheel,
//! - starts a send when something waits, and calls [`Session::handle_drained`] when the queue has become empty.

mod action;
mod counts;
mod cursor;
mod deliver;
mod frames;
mod limits;
mod link;
mod moment;
mod online;
mod pace;
mod rooms;

#[cfg(test)]
mod model;
#[cfg(test)]
#[path = "../fuzz/src/session_rules.rs"]
mod rules;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use gimbal_codec::body::{Close, Reply, ReplyWith, SignInResult};
use gimbal_codec::{
    Attach, CloseReason, Command, DeviceId, Packet, Seq, SessionKey, UserId, code, frame, limits as wire,
};
use gimbal_rpc::link::{Caller, Grant, Refusal, Tag, Up};

use crate::send_queue::SendQueue;
use cursor::Cursor;
use online::Online;

pub(crate) use action::{Action, SignInRequest};
pub(crate) use counts::{Counter, Counts};
pub(crate) use deliver::{Deliver, signal_frame};
pub(crate) use limits::Limits;
pub(crate) use moment::Moment;
pub(crate) use pace::{Flow, Pace};

/// What a session is lent for one call.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    /// The session's own key.
    pub(crate) key: SessionKey,
    /// Read once per turn of the shard.
    pub(crate) now: Moment,
    /// Wall clock, Unix milliseconds; only told to clients.
    pub(crate) unix_ms: i64,
    /// Number of the link to control; odd while it is up.
    pub(crate) link: u64,
    /// Bounds and deadlines.
    pub(crate) limits: &'a Limits,
    /// Frames for this connection's socket.
    pub(crate) queue: &'a mut SendQueue,
    /// Everything else that is to happen, in order.
    pub(crate) out: &'a mut Vec<Action>,
    /// Of the shard.
    pub(crate) counts: &'a mut Counts,
}

impl Turn<'_> {
    /// Queues the answer to a client's own call, or a control frame.
    ///
    /// # Errors
    /// [`CloseReason::TooSlow`]: the client calls on but does not read.
    fn answer(&mut self, frame: Bytes) -> Result<(), CloseReason> {
        let queue_bytes_max = self.limits.queue_bytes_max;
        self.queue.push_reserved(frame, queue_bytes_max).map_err(|_| CloseReason::TooSlow)
    }

    fn count(&mut self, counter: Counter) {
        self.counts.add(counter);
    }
}

/// The conversation of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    state: State,
    /// Sign-in, idle, flush or linger deadline, by state.
    deadline: Moment,
    /// When the send in flight is given up; [`Moment::NEVER`] when none is.
    write_deadline: Moment,
}

#[derive(Debug)]
enum State {
    /// Not signed in; `frames` came so far.
    Fresh { frames: u32 },
    /// Control is asked.
    Authenticating { frames: u32, claim: Box<Claim> },
    /// Signed in.
    Online(Online),
    /// The close frame is queued; what waits is flushed.
    Flushing,
    /// The write side is shut down; what still comes is discarded.
    Lingering,
}

/// What a client said it is, until control has answered.
#[derive(Debug)]
struct Claim {
    tag: Tag,
    user: UserId,
    device: DeviceId,
    cursor: Option<Seq>,
    /// Number of the link on which control is asked.
    link: u64,
}

// An idle session with its queue, slot and timer has to leave room for what the ring keeps, within 512 B.
const _: () = assert!(std::mem::size_of::<Session>() <= 104);
const _: () = assert!(std::mem::size_of::<Session>() + std::mem::size_of::<SendQueue>() <= 160);

impl Session {
    /// A connection just accepted.
    pub(crate) fn new(now: Moment, limits: &Limits) -> Self {
        Self {
            state: State::Fresh { frames: 0 },
            deadline: now.plus_ms(limits.sign_in_ms),
            write_deadline: Moment::NEVER,
        }
    }

    /// Longest packet the client may send in this state; for the decoder.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        match self.state {
            State::Fresh { .. } | State::Authenticating { .. } => wire::FRAME_BYTES_MAX_FRESH,
            _ => wire::FRAME_BYTES_MAX,
        }
    }

    /// Its name towards control, once signed in and until the close begins.
    pub(crate) fn caller(&self) -> Option<Caller> {
        self.online().map(|online| online.caller)
    }

    /// Signed in and not closing.
    pub(crate) fn is_online(&self) -> bool {
        self.online().is_some()
    }

    /// Messages wait that it was not given, or a sync is under way.
    pub(crate) fn is_catching_up(&self) -> bool {
        self.online().is_some_and(|online| online.syncing.is_some() || online.cursor.is_short())
    }

    /// The close has begun: received bytes are discarded unread.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.state, State::Flushing | State::Lingering)
    }

    /// When [`Self::handle_timeout`] wants to be called at the latest.
    pub(crate) fn deadline(&self) -> Moment {
        self.deadline.min(self.write_deadline)
    }

    /// One packet from the client, without its length prefix.
    ///
    /// # Errors
    /// The reason to close: the frame is not welcome, or its answer found no room.
    pub(crate) fn handle_frame(&mut self, body: &[u8], turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        if self.is_closing() {
            return Ok(());
        }
        let packet = Packet::decode(body).map_err(|error| error.close_reason())?;
        if let State::Online(online) = &mut self.state {
            online.handle_packet(&packet, body, turn)?;
            self.deadline = turn.now.plus_ms(turn.limits.idle_ms).min(online.expires());
            return Ok(());
        }
        self.handle_packet_before_sign_in(&packet, turn)
    }

    /// Something came, `count` times, that is no packet and costs time all the same: a ping, a fragment, a record without bytes.
    /// It proves no life.
    ///
    /// # Errors
    /// The reason to close: far more came than a session may send packets.
    pub(crate) fn handle_other(&mut self, count: usize, turn: &Turn<'_>) -> Result<(), CloseReason> {
        match &mut self.state {
            State::Online(online) => online.handle_other(count, turn),
            _ => Ok(()),
        }
    }

    /// Control attached this session. Deliveries follow.
    ///
    /// # Errors
    /// The reason to close.
    pub(crate) fn handle_signed_in(
        &mut self,
        attach: Attach,
        latest: Seq,
        grant: Grant,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        let State::Authenticating { claim, .. } = &self.state else {
            turn.count(Counter::StaleItem);
            if self.is_closing() && !grant.user.is_none() {
                let Grant { user, device, .. } = grant;
                // Control was told by the client's own word for it, under which it may not know the session.
                let caller = Caller { session: turn.key, attach, user, device };
                turn.out.push(Action::Up(Up::Detach { caller }));
            }
            return Ok(());
        };
        let user = if grant.user.is_none() { claim.user } else { grant.user };
        let device = if grant.device.is_none() { claim.device } else { grant.device };
        let answer = match claim.cursor {
            None => frame(Command::SignIn, &claim.tag.request_id, claim.tag.seq, &()),
            Some(_) => {
                let result = SignInResult {
                    latest,
                    idle_ms: turn.limits.idle_ms,
                    frame_bytes_max: wire::FRAME_BYTES_MAX as u64,
                    server_time_ms: turn.unix_ms,
                    user: if claim.user.is_none() { user } else { UserId::default() },
                    device: if claim.device.is_none() { device } else { DeviceId::default() },
                };
                frame(Command::SignIn, &claim.tag.request_id, claim.tag.seq, &ReplyWith(&result))
            }
        };
        let caller = Caller { session: turn.key, attach, user, device };
        let cursor = Cursor::new(claim.cursor, latest);
        let expires = match grant.expires_at_ms {
            0 => Moment::NEVER,
            at_ms => turn.now.plus_ms(u64::try_from(at_ms.saturating_sub(turn.unix_ms)).unwrap_or(0)),
        };
        let online = Online::new(caller, cursor, claim.link, turn.now, expires);
        self.deadline = turn.now.plus_ms(turn.limits.idle_ms).min(online.expires());
        self.state = State::Online(online);
        turn.out.push(Action::Online { user: caller.user });
        turn.answer(answer)?;
        self.tell_if_short(turn);
        Ok(())
    }

    /// Control refused the sign-in: the client gets the answer, and then the close.
    ///
    /// # Errors
    /// Always, unless nobody waits for it: the reason to close.
    pub(crate) fn handle_sign_in_refused(
        &mut self,
        refusal: &Refusal,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        let State::Authenticating { frames, claim } = &mut self.state else {
            turn.count(Counter::StaleItem);
            return Ok(());
        };
        turn.counts.add_refused(refusal.code);
        let reply = Reply { code: refusal.code, message: &refusal.message, data: &[] };
        let answer = frame(Command::SignIn, &claim.tag.request_id, claim.tag.seq, &reply);
        // Control has answered: nothing of this session is left there.
        self.state = State::Fresh { frames: *frames };
        turn.answer(answer)?;
        Err(match refusal.code {
            code::BUSY => CloseReason::Overloaded,
            code::UNAVAILABLE | code::SERVER_ERROR => CloseReason::Unavailable,
            code::DEVICE_TAKEN | code::TOO_MANY_SESSIONS => CloseReason::DeviceRefused,
            _ => CloseReason::SignInFailed,
        })
    }

    /// Control wants this session closed, if `attach` is still its own.
    ///
    /// # Errors
    /// `reason`, to close with.
    pub(crate) fn handle_kick(
        &mut self,
        attach: Attach,
        reason: CloseReason,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        if self.online().is_some_and(|online| online.caller.attach == attach) {
            return Err(reason);
        }
        turn.count(Counter::StaleItem);
        Ok(())
    }

    /// The shard could not hand `up`, which this session had asked for, to control.
    ///
    /// # Errors
    /// The reason to close: a sign-in cannot wait, or the answer found no room.
    pub(crate) fn handle_not_submitted(&mut self, up: &Up, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let (code, message) = match turn.link.is_multiple_of(2) {
            true => (code::UNAVAILABLE, "control is away"),
            false => (code::BUSY, "busy"),
        };
        let refusal = Refusal { code, message: message.to_owned() };
        match (&mut self.state, up) {
            (State::Authenticating { .. }, Up::SignIn { .. }) => self.handle_sign_in_refused(&refusal, turn),
            (State::Online(online), Up::Send { tag, .. }) => online.send_done(tag, Err(&refusal), turn),
            (State::Online(online), Up::Ack { tag, .. }) => online.ack_done(tag, Err(&refusal), turn),
            (State::Online(online), Up::Publish { tag, .. }) => online.publish_done(tag, Err(&refusal), turn),
            (State::Online(online), Up::Sync { tag, .. }) => online.sync_done(tag, Err(&refusal), turn),
            _ => Ok(()),
        }
    }

    /// The link to control is another one: calls under way on the old one will not be answered.
    ///
    /// # Errors
    /// The reason to close: a sign-in cannot wait, or an answer found no room.
    pub(crate) fn handle_link_lost(&mut self, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        match &mut self.state {
            State::Authenticating { claim, .. } if claim.link == turn.link => Ok(()),
            State::Authenticating { .. } => {
                // Should it have travelled on the new link after all, control is to forget it.
                self.leave(turn);
                let refusal = Refusal { code: code::UNAVAILABLE, message: "control is away".to_owned() };
                self.handle_sign_in_refused(&refusal, turn)
            }
            State::Online(online) => online.lose_link(turn),
            _ => Ok(()),
        }
    }

    /// What to announce to control on `link`, because it is new or items for this shard were lost; `None` when not signed in.
    pub(crate) fn announce(&mut self, link: u64) -> Option<(Caller, Option<Seq>)> {
        let State::Online(online) = &mut self.state else { return None };
        Some(online.announce(link))
    }

    /// The queue has become empty: says what was owed, or goes on with the close.
    pub(crate) fn handle_drained(&mut self, turn: &mut Turn<'_>) {
        self.write_deadline = Moment::NEVER;
        match &mut self.state {
            State::Online(online) => online.handle_drained(turn),
            State::Flushing => {
                self.state = State::Lingering;
                self.deadline = turn.now.plus_ms(turn.limits.linger_ms);
                turn.out.push(Action::ShutdownWrite);
            }
            _ => {}
        }
    }

    /// [`Self::handle_drained`] would change nothing.
    pub(crate) fn wants_no_drained(&self) -> bool {
        self.write_deadline == Moment::NEVER && self.online().is_some_and(|online| !online.cursor.is_owed())
    }

    /// A send was started, or one in flight wrote something: the write deadline starts anew.
    pub(crate) fn handle_write_progress(&mut self, now: Moment, limits: &Limits) {
        self.write_deadline = now.plus_ms(limits.write_ms);
    }

    /// Time has passed; spurious calls are fine.
    ///
    /// # Errors
    /// The deadline that is over, as the reason to close.
    pub(crate) fn handle_timeout(&mut self, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        if turn.now < self.deadline() {
            return Ok(());
        }
        match self.state {
            State::Flushing | State::Lingering => {
                self.deadline = Moment::NEVER;
                self.write_deadline = Moment::NEVER;
                turn.out.push(Action::Abort);
                Ok(())
            }
            _ if turn.now >= self.write_deadline => Err(CloseReason::WriteDeadline),
            State::Online(ref online) if turn.now >= online.expires() => Err(CloseReason::TokenExpired),
            State::Online(_) => Err(CloseReason::Idle),
            State::Fresh { .. } | State::Authenticating { .. } => Err(CloseReason::SignInDeadline),
        }
    }

    /// Starts the close: control and the shard's tables forget the session, the client gets the close frame after what
    /// already waits. `retry_after_ms` is told to the client; 0: no wish.
    pub(crate) fn begin_close(&mut self, reason: CloseReason, retry_after_ms: u64, turn: &mut Turn<'_>) {
        if self.is_closing() {
            return;
        }
        self.leave(turn);
        turn.counts.add_closed(reason);
        if matches!(reason, CloseReason::TooSlow | CloseReason::WriteDeadline) {
            turn.queue.drop_untouched();
        }
        let close = frame(Command::Close, "", 0, &Close::new(reason, retry_after_ms));
        if turn.queue.push_close(close, reason, retry_after_ms, turn.limits.queue_bytes_max).is_err() {
            turn.count(Counter::CloseFrameDropped);
        }
        self.flush(turn);
    }

    /// The conversation has ended without a close of ours, and the peer still reads what waits: control and the shard's tables
    /// forget the session.
    pub(crate) fn handle_goodbye(&mut self, turn: &mut Turn<'_>) {
        self.leave(turn);
        self.flush(turn);
    }

    fn flush(&mut self, turn: &Turn<'_>) {
        self.state = State::Flushing;
        self.deadline = turn.now.plus_ms(turn.limits.flush_ms);
        self.write_deadline = Moment::NEVER;
    }

    /// The connection is gone without a close of ours: control and the shard's tables forget the session.
    pub(crate) fn handle_gone(&mut self, turn: &mut Turn<'_>) {
        self.leave(turn);
        self.state = State::Lingering;
    }

    /// Tells control and the shard that the session is no more.
    fn leave(&mut self, turn: &mut Turn<'_>) {
        match &self.state {
            // Control takes a number older than its own as the session's, so 0 ends what it may be about to attach.
            State::Authenticating { claim, .. } => {
                let Claim { user, device, .. } = **claim;
                let caller = Caller { session: turn.key, attach: Attach::default(), user, device };
                turn.out.push(Action::Up(Up::Detach { caller }));
            }
            State::Online(online) => {
                turn.out.push(Action::Offline { user: online.caller.user });
                turn.out.push(Action::Up(Up::Detach { caller: online.caller }));
            }
            State::Fresh { .. } | State::Flushing | State::Lingering => {}
        }
    }

    fn online(&self) -> Option<&Online> {
        match &self.state {
            State::Online(online) => Some(online),
            _ => None,
        }
    }

    /// Control's items name the attach number they are for; another one means that they are late.
    fn online_as(&mut self, attach: Attach, turn: &mut Turn<'_>) -> Option<&mut Online> {
        match &mut self.state {
            State::Online(online) if online.caller.attach == attach => Some(online),
            _ => {
                turn.count(Counter::StaleItem);
                None
            }
        }
    }

    fn tell_if_short(&mut self, turn: &mut Turn<'_>) {
        if let State::Online(online) = &mut self.state {
            online.tell_if_short(turn);
        }
    }
}
