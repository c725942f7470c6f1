//! One buffer to many sessions: what goes to a room within one turn is joined once and shared by all members.

use bytes::{Bytes, BytesMut};
use gimbal_codec::RoomId;
use hashbrown::HashMap;

use crate::send_queue::SendQueue;
use crate::session::Session;
use crate::transport::form::Shared;

/// Longest buffer that frames are joined into. A longer one would be shed as a whole by sessions that have room for part.
const BURST_BYTES_MAX: usize = 16 * 1024;

/// What goes to the members of rooms in this turn, in the order in which it came.
#[derive(Debug, Default)]
pub(crate) struct Bursts {
    bursts: Vec<Burst>,
    /// The newest burst of each room.
    newest: HashMap<RoomId, usize>,
}

/// Whole frames for one room.
#[derive(Debug)]
pub(crate) struct Burst {
    /// Whose members get them.
    pub(crate) room: RoomId,
    frames: Vec<Bytes>,
    bytes: usize,
}

impl Bursts {
    /// Adds one whole frame; `true` when it begins a new burst, which is offered to all members once more.
    pub(crate) fn add(&mut self, room: RoomId, frame: Bytes) -> bool {
        let newest = self.newest.get(&room).map(|&index| &mut self.bursts[index]);
        match newest {
            Some(burst) if burst.bytes + frame.len() <= BURST_BYTES_MAX => {
                burst.bytes += frame.len();
                burst.frames.push(frame);
                false
            }
            _ => {
                self.newest.insert(room, self.bursts.len());
                self.bursts.push(Burst { room, bytes: frame.len(), frames: vec![frame] });
                true
            }
        }
    }

    /// Nothing to give.
    pub(crate) fn is_empty(&self) -> bool {
        self.bursts.is_empty()
    }

    /// Takes all bursts.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Burst> {
        self.newest.clear();
        self.bursts.drain(..)
    }
}

impl Burst {
    /// Frames in it.
    pub(crate) fn frame_count(&self) -> u32 {
        u32::try_from(self.frames.len()).expect("a burst is bounded in bytes")
    }

    /// The frames as one shared buffer; a single frame is not copied.
    pub(crate) fn join(self) -> Shared {
        let joined = match <[Bytes; 1]>::try_from(self.frames) {
            Ok([frame]) => frame,
            Err(frames) => {
                let mut joined = BytesMut::with_capacity(self.bytes);
                frames.iter().for_each(|frame| joined.extend_from_slice(frame));
                joined.freeze()
            }
        };
        Shared::new(joined)
    }
}

/// What became of an offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Offered {
    /// Queued.
    Queued,
    /// More than half of the session's bound waits already, or anything while it catches up with its mailbox: dropped, for
    /// the caller to count by class and frames.
    Shed,
    /// The session is not online.
    Absent,
}

/// Gives frames that sync cannot bring back (of a room, to all, a signal) to one session. They are the first that a slow
/// session does without.
pub(crate) fn offer(
    session: &Session,
    queue: &mut SendQueue,
    frames: &Shared,
    queue_bytes_max: usize,
) -> Offered {
    if !session.is_online() {
        return Offered::Absent;
    }
    // What a mailbox has stored comes first: a busy room would else take the room that each page needs.
    if session.is_catching_up() && !queue.is_empty() {
        return Offered::Shed;
    }
    if queue.is_above_half(queue_bytes_max) || queue.push_shared(frames, queue_bytes_max).is_err() {
        return Offered::Shed;
    }
    Offered::Queued
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::form::Form;

    fn stream(burst: Burst) -> Bytes {
        burst.join().get(Form::Stream)
    }

    #[test]
    fn frames_of_a_room_are_joined_in_order_and_bounded() {
        let mut bursts = Bursts::default();
        let big = Bytes::from(vec![7; BURST_BYTES_MAX - 1]);
        for (room, frame, is_new) in [(1, "a", true), (2, "x", true), (1, "b", false)] {
            assert_eq!(bursts.add(RoomId::new(room), Bytes::from_static(frame.as_bytes())), is_new);
        }
        assert!(bursts.add(RoomId::new(1), big.clone()));
        assert!(!bursts.add(RoomId::new(1), Bytes::from_static(b"c")));
        assert!(!bursts.is_empty());
        let given: Vec<_> =
            bursts.drain().map(|burst| (burst.room.get(), burst.frame_count(), stream(burst))).collect();
        let last = [&big[..], b"c"].concat();
        let expected = [(1, 2, b"ab".to_vec()), (2, 1, b"x".to_vec()), (1, 2, last)];
        assert_eq!(given, expected.map(|(room, count, bytes)| (room, count, Bytes::from(bytes))));
        assert!(bursts.is_empty());
    }

    #[test]
    fn a_single_frame_is_shared_and_not_copied() {
        let mut bursts = Bursts::default();
        let frame = Bytes::from(vec![1, 2, 3]);
        bursts.add(RoomId::new(1), frame.clone());
        let burst = bursts.drain().next().unwrap();
        assert_eq!(stream(burst).as_ptr(), frame.as_ptr());
    }
}
