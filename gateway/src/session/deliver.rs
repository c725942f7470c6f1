//! What comes from control for a session: deliveries, answers, and the news that it is attached again.

use bytes::Bytes;
use gimbal_codec::{Attach, CloseReason, Seq};
use gimbal_rpc::link::{Body, Page, Refusal, RoomPlace, SendResult, Tag};

use super::cursor::Offer;
use super::frames::message_frame;
use super::{Counter, Session, Turn};

pub(crate) use super::frames::signal_frame;

/// One stored message on its way to several sessions: a frame is encoded once as long as the seq stays the same, as it
/// does for the devices of one user and for what is not stored.
#[derive(Debug)]
pub(crate) struct Deliver<'a> {
    body: &'a Body,
    /// A frame is kept for the next target. A single one needs no second handle, whose making allocates.
    is_shared: bool,
    encoded: Option<(Seq, Bytes)>,
}

impl<'a> Deliver<'a> {
    /// For so many sessions; nothing is encoded yet.
    pub(crate) fn new(body: &'a Body, target_count: usize) -> Self {
        Self { body, is_shared: target_count > 1, encoded: None }
    }

    /// The whole frame for one place in a mailbox.
    pub(super) fn frame(&mut self, seq: Seq) -> Bytes {
        match &self.encoded {
            Some((encoded_seq, frame)) if *encoded_seq == seq => frame.clone(),
            _ => {
                let frame = message_frame(self.body, seq);
                if self.is_shared {
                    self.encoded = Some((seq, frame.clone()));
                }
                frame
            }
        }
    }
}

impl Session {
    /// A message for this session: stored (`seq` from 1) or not (`seq` 0).
    ///
    /// # Errors
    /// [`CloseReason::TooSlow`] for want of room, [`CloseReason::Stale`] when something before it is missing; both only
    /// when there is no cursor by which the client could catch up.
    pub(crate) fn handle_deliver(
        &mut self,
        attach: Attach,
        seq: Seq,
        deliver: &mut Deliver<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        let Some(online) = self.online_as(attach, turn) else { return Ok(()) };
        let queue_bytes_max = turn.limits.queue_bytes_max;
        if seq.is_none() {
            let is_slow = turn.queue.is_above_half(queue_bytes_max);
            if is_slow || turn.queue.push(deliver.frame(seq), queue_bytes_max).is_err() {
                turn.count(Counter::PushShed);
            }
            return Ok(());
        }
        match online.cursor.offer(seq, online.syncing.is_some()) {
            Offer::Next if turn.queue.push(deliver.frame(seq), queue_bytes_max).is_ok() => {
                online.cursor.given(seq);
                turn.count(Counter::Delivered);
            }
            Offer::Next if online.cursor.is_kept() => online.fall_behind(turn),
            Offer::Next => return Err(CloseReason::TooSlow),
            Offer::Gap if online.cursor.is_kept() => online.fall_behind(turn),
            Offer::Gap => return Err(CloseReason::Stale),
            Offer::Repeated => turn.count(Counter::DeliverRepeated),
            Offer::Held => turn.count(Counter::DeliverHeld),
        }
        Ok(())
    }

    /// Control knows the announced session again, from now on as `attach`.
    ///
    /// # Errors
    /// [`CloseReason::Stale`]: only a new sign-in can tell the client what it missed.
    pub(crate) fn handle_announced(
        &mut self,
        attach: Attach,
        latest: Seq,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        match &mut self.state {
            super::State::Online(online) => online.announced(attach, latest, turn),
            _ => {
                turn.count(Counter::StaleItem);
                Ok(())
            }
        }
    }

    /// A send was committed or refused.
    ///
    /// # Errors
    /// [`CloseReason::TooSlow`]: the answer found no room.
    pub(crate) fn handle_send_done(
        &mut self,
        attach: Attach,
        tag: &Tag,
        result: Result<SendResult, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        match self.online_as(attach, turn) {
            Some(online) => online.send_done(tag, result, turn),
            None => Ok(()),
        }
    }

    /// An ack was committed or refused.
    ///
    /// # Errors
    /// [`CloseReason::TooSlow`]: the answer found no room.
    pub(crate) fn handle_ack_done(
        &mut self,
        attach: Attach,
        tag: &Tag,
        result: Result<Seq, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        match self.online_as(attach, turn) {
            Some(online) => online.ack_done(tag, result, turn),
            None => Ok(()),
        }
    }

    /// A publish has its place or was refused.
    ///
    /// # Errors
    /// [`CloseReason::TooSlow`]: the answer found no room.
    pub(crate) fn handle_publish_done(
        &mut self,
        attach: Attach,
        tag: &Tag,
        result: Result<RoomPlace, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        match self.online_as(attach, turn) {
            Some(online) => online.publish_done(tag, result, turn),
            None => Ok(()),
        }
    }

    /// A page was read, or not.
    ///
    /// # Errors
    /// [`CloseReason::TooSlow`]: the answer found no room.
    pub(crate) fn handle_sync_done(
        &mut self,
        attach: Attach,
        tag: &Tag,
        result: Result<&Page, &Refusal>,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        match self.online_as(attach, turn) {
            Some(online) => online.sync_done(tag, result, turn),
            None => Ok(()),
        }
    }
}
