//! What sessions count: everything dropped, refused or out of the ordinary. Plain numbers of one shard.

use gimbal_codec::CloseReason;

/// Reply codes told apart; further ones are counted as [`OTHER_CODE`].
const CODES_MAX: usize = 32;

/// No reply has this code.
const OTHER_CODE: i32 = -1;

/// One thing worth counting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Counter {
    /// A stored message was queued live.
    Delivered,
    /// A stored message that the session already has.
    DeliverRepeated,
    /// A stored message that waits for a sync.
    DeliverHeld,
    /// An unstored push found a slow reader.
    PushShed,
    /// The session was found short of its mailbox, and was or will be told.
    Behind,
    /// A sync page found no room.
    PageDropped,
    /// An item of control for an older attach number, or for nobody.
    StaleItem,
    /// A client sent a message frame, which only servers send (gim ignores it).
    MessageFromClient,
    /// A close frame found no room even in the reserve.
    CloseFrameDropped,
    /// A client signals more often than it may.
    SignalOverRate,
    /// A client publishes to rooms more often than it may.
    PublishOverRate,
    /// A call of a client that sends more than it may, refused.
    FrameThrottled,
    /// A frame of a client that sends far more than it may, not even answered.
    FrameShed,
}

impl Counter {
    const ALL: [(Self, &'static str); 13] = [
        (Self::Delivered, "delivered"),
        (Self::DeliverRepeated, "deliver_repeated"),
        (Self::DeliverHeld, "deliver_held"),
        (Self::PushShed, "push_shed"),
        (Self::Behind, "behind"),
        (Self::PageDropped, "page_dropped"),
        (Self::StaleItem, "stale_item"),
        (Self::MessageFromClient, "message_from_client"),
        (Self::CloseFrameDropped, "close_frame_dropped"),
        (Self::SignalOverRate, "signal_over_rate"),
        (Self::PublishOverRate, "publish_over_rate"),
        (Self::FrameThrottled, "frame_throttled"),
        (Self::FrameShed, "frame_shed"),
    ];
}

/// The counts of all sessions of one shard since its start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    events: [u64; Counter::ALL.len()],
    closed: [u64; CloseReason::ALL.len()],
    /// By reply code, in the order in which they came up.
    refused: Vec<(i32, u64)>,
}

impl Counts {
    /// Counts one event.
    pub(crate) fn add(&mut self, counter: Counter) {
        self.events[counter as usize] += 1;
    }

    /// A close began.
    pub(crate) fn add_closed(&mut self, reason: CloseReason) {
        if let Some(index) = CloseReason::ALL.iter().position(|&known| known == reason) {
            self.closed[index] += 1;
        }
    }

    /// A call was answered with `code`, which is not success.
    pub(crate) fn add_refused(&mut self, code: i32) {
        let is_full = self.refused.len() >= CODES_MAX;
        match self.refused.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None if is_full && code != OTHER_CODE => self.add_refused(OTHER_CODE),
            None => self.refused.push((code, 1)),
        }
    }

    /// How often `counter` was counted.
    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.events[counter as usize]
    }

    /// Every event with its name for metrics.
    pub(crate) fn events(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().map(|&(counter, name)| (name, self.get(counter)))
    }

    /// Closes begun, by reason.
    pub(crate) fn closed(&self) -> impl Iterator<Item = (CloseReason, u64)> {
        CloseReason::ALL.iter().copied().zip(self.closed)
    }

    /// Calls refused, by reply code.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (i32, u64)> {
        self.refused.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place() {
        for (index, (counter, _)) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }

    #[test]
    fn unknown_codes_do_not_grow_the_table() {
        let mut counts = Counts::default();
        (0..1000).for_each(|code| counts.add_refused(code));
        assert!(counts.refused().count() <= CODES_MAX + 1);
        assert_eq!(counts.refused().map(|(_, count)| count).sum::<u64>(), 1000);
    }
}
