//! Link values as frames and bodies of the wire; and the conversation before sign-in.

use bytes::Bytes;
use gimbal_codec::body::{self, Message, Reply, SignIn};
use gimbal_codec::limits::FRESH_FRAMES_MAX;
use gimbal_codec::{CloseReason, Command, Packet, Seq, code, frame};
use gimbal_rpc::link::{Body, Page, Signal, SignalTarget, Tag};

use super::{Action, Claim, Session, SignInRequest, State, Turn};

/// A stored message at its place in a mailbox.
fn message(body: &Body, seq: Seq) -> Message<'_> {
    Message {
        command: body.command,
        content: &body.content,
        seq,
        created_at: body.created_at_ms.div_euclid(1000),
        id: body.message_id,
        from_user: body.from_user,
        from_device: body.from_device,
        created_at_ms: body.created_at_ms,
        group: body.group,
        group_seq: body.group_seq,
        ..Message::default()
    }
}

/// The frame that gives one message live.
pub(super) fn message_frame(body: &Body, seq: Seq) -> Bytes {
    frame(Command::Message, "", 0, &message(body, seq))
}

/// The data of the answer to a sync.
pub(super) fn page_body(page: &Page) -> body::Page<impl Iterator<Item = Message<'_>> + Clone> {
    body::Page {
        messages: page.entries.iter().map(|(seq, body)| message(body, *seq)),
        latest: page.latest,
        has_more: page.has_more,
        trimmed_to: page.trimmed_to,
    }
}

/// The frame that gives a signal to its receivers.
pub(crate) fn signal_frame(signal: &Signal) -> Bytes {
    let (to_user, room) = match signal.to {
        SignalTarget::User(user) => (user, Default::default()),
        SignalTarget::Room(room) => (Default::default(), room),
    };
    let content = body::Signal {
        to_user,
        room,
        command: signal.command,
        content: &signal.content,
        from_user: signal.from_user,
        from_device: signal.from_device,
    };
    frame(Command::Signal, "", 0, &content)
}

impl Session {
    /// gim answers any command but a sign-in with 10000; here only so many, and a second sign-in ends the connection.
    pub(super) fn handle_packet_before_sign_in(
        &mut self,
        packet: &Packet<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        let (State::Fresh { frames } | State::Authenticating { frames, .. }) = &mut self.state else {
            return Ok(());
        };
        *frames += 1;
        if *frames > FRESH_FRAMES_MAX {
            return Err(CloseReason::TooManyFrames);
        }
        let frames = *frames;
        if packet.command != Command::SignIn.number() {
            turn.counts.add_refused(code::NOT_SIGNED_IN);
            let reply = Reply { code: code::NOT_SIGNED_IN, message: "not signed in", data: &[] };
            return turn.answer(packet.answer(&reply));
        }
        if matches!(self.state, State::Authenticating { .. }) {
            return Err(CloseReason::UnexpectedCommand);
        }
        let sign_in = SignIn::decode(packet.content).map_err(|error| error.close_reason())?;
        let tag = Tag { request_id: Bytes::copy_from_slice(packet.request_id.as_bytes()), seq: packet.seq };
        let (user, device, cursor) = (sign_in.user, sign_in.device, sign_in.cursor);
        self.state = State::Authenticating {
            frames,
            claim: Box::new(Claim { tag, user, device, cursor, link: turn.link }),
        };
        let token = Bytes::copy_from_slice(sign_in.token.as_bytes());
        turn.out.push(Action::SignIn(SignInRequest { user, device, token, cursor }));
        Ok(())
    }
}
