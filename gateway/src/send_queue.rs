//! Bytes that wait for one socket, bounded in bytes. A frame is whole or absent.
//!
//! The shard sends the front buffer only: [`SendQueue::start_send`] joins what waits into it, so that everything a socket
//! waits for goes out in one submission. A buffer stays counted until all of it is written.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use gimbal_codec::CloseReason;

use crate::transport::form::{Form, Shared};

/// Counted for each waiting buffer beside its bytes: the handle and its allocation. Without it tiny frames would cost
/// a hostile client nothing against its bound.
pub(crate) const BUFFER_COST_BYTES: usize = 64;

/// What replies and control frames may use beyond the bound, so that `behind`, `close` and the answers to a client's own
/// calls still fit when deliveries do not. Some hundred small answers.
pub(crate) const RESERVE_BYTES: usize = 16 * 1024;

/// The frame does not fit; the queue is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Full;

/// What waits for one socket. Empty it owns no memory beyond itself.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    front: Option<Bytes>,
    #[expect(
        clippy::box_collection,
        reason = "8 bytes instead of 32 in every connection that waits for nothing"
    )]
    rest: Option<Box<VecDeque<Waiting>>>,
    /// Lengths and [`BUFFER_COST_BYTES`] of all waiting buffers.
    cost_bytes: u32,
    /// Of that, the lengths of those that others hold too.
    shared_bytes: u32,
    /// Bytes of `front` that are written already.
    written_bytes: u32,
    in_flight: bool,
    front_is_shared: bool,
    /// What the peer reads.
    form: Form,
}

/// One buffer behind the front.
#[derive(Debug)]
struct Waiting {
    bytes: Bytes,
    is_shared: bool,
}

impl SendQueue {
    /// A queue for a peer that reads `form`.
    pub(crate) fn new(form: Form) -> Self {
        Self { form, ..Self::default() }
    }

    /// From here on the peer reads `form`.
    pub(crate) fn set_form(&mut self, form: Form) {
        self.form = form;
    }

    /// Queues whole frames in the form that the peer reads. An empty queue takes any one buffer, so that a sync page fits
    /// a small bound.
    ///
    /// # Errors
    /// [`Full`] when the queue would cost more than `bytes_max`.
    pub(crate) fn push(&mut self, frame: Bytes, bytes_max: usize) -> Result<(), Full> {
        self.push_as_is(self.form.of(frame), false, bytes_max)
    }

    /// Queues whole frames that others get too.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(crate) fn push_shared(&mut self, frames: &Shared, bytes_max: usize) -> Result<(), Full> {
        self.push_as_is(frames.get(self.form), true, bytes_max)
    }

    /// Queues the close frame, which is the last; with [`RESERVE_BYTES`] beyond the bound. `retry_after_ms`: what it says.
    ///
    /// # Errors
    /// [`Full`] when the reserve is used up as well.
    pub(crate) fn push_close(
        &mut self,
        frame: Bytes,
        reason: CloseReason,
        retry_after_ms: u64,
        bytes_max: usize,
    ) -> Result<(), Full> {
        let told = self.form.of_close(frame, reason, retry_after_ms);
        self.push_as_is(told, false, bytes_max + RESERVE_BYTES)
    }

    /// Queues what the transport itself has to say, with [`RESERVE_BYTES`] beyond the bound.
    ///
    /// # Errors
    /// [`Full`] when the reserve is used up as well.
    pub(crate) fn push_answer(&mut self, bytes: Bytes, bytes_max: usize) -> Result<(), Full> {
        self.push_as_is(bytes, false, bytes_max + RESERVE_BYTES)
    }

    /// Queues a reply or control frame, for which there is [`RESERVE_BYTES`] beyond the bound.
    ///
    /// # Errors
    /// [`Full`] when the reserve is used up as well.
    pub(crate) fn push_reserved(&mut self, frame: Bytes, bytes_max: usize) -> Result<(), Full> {
        self.push(frame, bytes_max + RESERVE_BYTES)
    }

    /// More than half of the bound waits: what sync cannot bring back is no longer taken.
    pub(crate) fn is_above_half(&self, bytes_max: usize) -> bool {
        self.cost_bytes() > bytes_max / 2
    }

    /// Nothing waits and nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.front.is_none()
    }

    /// Nothing waits behind the front buffer.
    pub(crate) fn is_last(&self) -> bool {
        self.rest.is_none()
    }

    /// What the waiting buffers cost, in bytes.
    pub(crate) fn cost_bytes(&self) -> usize {
        self.cost_bytes as usize
    }

    /// Of [`Self::cost_bytes`], what nobody else holds: without the lengths of frames that were made for several sessions.
    pub(crate) fn own_bytes(&self) -> usize {
        (self.cost_bytes - self.shared_bytes) as usize
    }

    /// A send was started and is not finished.
    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// The bytes to hand to the kernel now: the front buffer, joined with the buffers behind it as long as they stay within
    /// `join_bytes_max` together; or what is left of it once a part is written, so that no byte is copied again and again. `None` when nothing waits or a send is in flight.
    pub(crate) fn start_send(&mut self, join_bytes_max: usize) -> Option<Bytes> {
        if self.in_flight {
            return None;
        }
        self.join(join_bytes_max);
        let front = self.front.as_ref()?;
        self.in_flight = true;
        Some(front.slice(self.written_bytes as usize..))
    }

    /// The send in flight is finished and wrote `bytes`, which may be fewer than were handed over (or none).
    ///
    /// # Panics
    /// When no send is in flight, or more bytes were written than handed over.
    pub(crate) fn finish_send(&mut self, bytes: usize) {
        assert!(self.in_flight, "a completion without a send");
        self.in_flight = false;
        let front_bytes = self.front.as_ref().map_or(0, Bytes::len);
        let written_bytes = self.written_bytes as usize + bytes;
        assert!(written_bytes <= front_bytes, "{written_bytes} of {front_bytes} bytes written");
        if written_bytes < front_bytes {
            self.written_bytes = to_u32(written_bytes);
        } else {
            self.pop_front();
        }
    }

    /// Drops every buffer of which no byte was handed to the kernel; what is begun is finished.
    pub(crate) fn drop_untouched(&mut self) {
        self.rest = None;
        if !self.in_flight && self.written_bytes == 0 {
            self.front = None;
        }
        let front_bytes = self.front.as_ref().map_or(0, Bytes::len);
        self.cost_bytes = self.front.as_ref().map_or(0, |_| to_u32(front_bytes + BUFFER_COST_BYTES));
        self.shared_bytes = if self.front_is_shared { to_u32(front_bytes) } else { 0 };
    }

    fn push_as_is(&mut self, bytes: Bytes, is_shared: bool, bytes_max: usize) -> Result<(), Full> {
        let cost = bytes.len() + BUFFER_COST_BYTES;
        if !self.is_empty() && self.cost_bytes() + cost > bytes_max {
            return Err(Full);
        }
        self.append(Waiting { bytes, is_shared });
        Ok(())
    }

    fn append(&mut self, waiting: Waiting) {
        self.cost_bytes += to_u32(waiting.bytes.len() + BUFFER_COST_BYTES);
        if waiting.is_shared {
            self.shared_bytes += to_u32(waiting.bytes.len());
        }
        if self.front.is_none() {
            self.set_front(Some(waiting));
        } else {
            self.rest.get_or_insert_default().push_back(waiting);
        }
    }

    fn set_front(&mut self, waiting: Option<Waiting>) {
        self.front_is_shared = waiting.as_ref().is_some_and(|waiting| waiting.is_shared);
        self.front = waiting.map(|waiting| waiting.bytes);
    }

    fn pop_front(&mut self) {
        let Some(front) = self.front.take() else { return };
        self.cost_bytes -= to_u32(front.len() + BUFFER_COST_BYTES);
        if self.front_is_shared {
            self.shared_bytes -= to_u32(front.len());
        }
        self.written_bytes = 0;
        let next = self.rest.as_mut().and_then(|rest| rest.pop_front());
        self.set_front(next);
        self.release_rest();
    }

    /// Joins the front buffer and as many behind it as fit `join_bytes_max` into one.
    fn join(&mut self, join_bytes_max: usize) {
        if self.written_bytes > 0 {
            return;
        }
        let (Some(front), Some(rest)) = (self.front.as_ref(), self.rest.as_mut()) else { return };
        let mut joined_bytes = front.len();
        let mut count = 0;
        for Waiting { bytes, .. } in rest.iter() {
            if joined_bytes + bytes.len() > join_bytes_max {
                break;
            }
            joined_bytes += bytes.len();
            count += 1;
        }
        if count == 0 {
            return;
        }
        let mut joined = BytesMut::with_capacity(joined_bytes);
        joined.extend_from_slice(front);
        let mut shared_bytes = if self.front_is_shared { front.len() } else { 0 };
        for Waiting { bytes, is_shared } in rest.drain(..count) {
            joined.extend_from_slice(&bytes);
            shared_bytes += if is_shared { bytes.len() } else { 0 };
        }
        // The handles of the joined buffers are no longer held, and the copy is our own.
        self.cost_bytes -= to_u32(count * BUFFER_COST_BYTES);
        self.shared_bytes -= to_u32(shared_bytes);
        self.set_front(Some(Waiting { bytes: joined.freeze(), is_shared: false }));
        self.release_rest();
    }

    fn release_rest(&mut self) {
        if self.rest.as_ref().is_some_and(|rest| rest.is_empty()) {
            self.rest = None;
        }
    }
}

/// Queue bounds and frames stay far below 4 GiB; configuration checks it.
fn to_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a send queue is bounded far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn frame(bytes: usize, fill: u8) -> Bytes {
        Bytes::from(vec![fill; bytes])
    }

    #[test]
    fn an_empty_queue_owns_nothing_and_takes_any_one_frame() {
        let mut queue = SendQueue::default();
        assert_eq!(queue.push(frame(1000, 1), 10), Ok(()));
        assert_eq!(queue.push(frame(1, 1), 10), Err(Full));
        assert_eq!(queue.start_send(0).map(|bytes| bytes.len()), Some(1000));
        queue.finish_send(1000);
        assert!(queue.is_empty() && queue.rest.is_none() && queue.cost_bytes() == 0);
    }

    #[test]
    fn control_frames_fit_when_deliveries_do_not_and_tiny_frames_count() {
        let mut queue = SendQueue::default();
        let pushed = (0..).take_while(|_| queue.push(frame(1, 0), 6500).is_ok()).count();
        assert_eq!(pushed, 6500 / (1 + BUFFER_COST_BYTES));
        assert!(queue.is_above_half(6500));
        assert_eq!(queue.push_reserved(frame(20, 0), 6500), Ok(()));
        assert_eq!(queue.push_reserved(frame(RESERVE_BYTES, 0), 6500), Err(Full));
    }

    #[test]
    fn a_single_frame_goes_out_uncopied_and_many_go_out_as_one() {
        let mut queue = SendQueue::default();
        let shared = frame(5, 1);
        queue.push(shared.clone(), 1000).unwrap();
        let sent = queue.start_send(100).unwrap();
        assert_eq!(sent.as_ptr(), shared.as_ptr());
        assert_eq!(queue.start_send(100), None, "one send at a time");
        queue.push(frame(2, 2), 1000).unwrap();
        queue.push(frame(3, 3), 1000).unwrap();
        queue.push(frame(96, 4), 1000).unwrap();
        queue.finish_send(3);
        assert_eq!(queue.start_send(100).unwrap()[..], [1, 1], "what is left goes alone");
        queue.finish_send(2);
        assert_eq!(queue.start_send(100).unwrap()[..], [2, 2, 3, 3, 3], "as far as it fits");
        queue.finish_send(5);
        assert_eq!(queue.start_send(100).unwrap().len(), 96);
    }

    #[test]
    fn what_is_begun_is_finished_and_the_rest_is_dropped() {
        for (written, left) in [(0, 0), (2, 3), (5, 0)] {
            let mut queue = SendQueue::default();
            queue.push(frame(5, 1), 1000).unwrap();
            queue.start_send(0).unwrap();
            queue.finish_send(written);
            queue.push(frame(5, 2), 1000).unwrap();
            queue.drop_untouched();
            assert_eq!(queue.start_send(0).map_or(0, |bytes| bytes.len()), left, "{written} written");
        }
        let mut queue = SendQueue::default();
        queue.push(frame(5, 1), 1000).unwrap();
        queue.start_send(0).unwrap();
        queue.drop_untouched();
        assert!(!queue.is_empty(), "the kernel has it");
        queue.finish_send(5);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_others_hold_too_is_not_our_own_until_it_is_copied() {
        let mut queue = SendQueue::default();
        let shared = Shared::new(frame(100, 1));
        queue.push_shared(&shared, 1000).unwrap();
        queue.push_shared(&shared, 1000).unwrap();
        queue.push(frame(50, 2), 1000).unwrap();
        assert_eq!((queue.cost_bytes(), queue.own_bytes()), (250 + 3 * 64, 50 + 3 * 64));
        assert_eq!(queue.start_send(200).map(|bytes| bytes.len()), Some(200));
        assert_eq!((queue.cost_bytes(), queue.own_bytes()), (250 + 2 * 64, 250 + 2 * 64));
        queue.push_shared(&shared, 1000).unwrap();
        queue.drop_untouched();
        assert_eq!((queue.cost_bytes(), queue.own_bytes()), (200 + 64, 200 + 64));
        queue.finish_send(200);
        queue.push_shared(&shared, 1000).unwrap();
        queue.drop_untouched();
        assert_eq!((queue.cost_bytes(), queue.own_bytes()), (0, 0));
    }

    proptest! {
        /// Whatever is pushed and however it is written: the same bytes in the same order, within the bound.
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in prop::collection::vec((0usize..300, 0usize..400, 0u8..4), 1..200),
        ) {
            const BYTES_MAX: usize = 1000;
            let mut queue = SendQueue::default();
            let mut expected = VecDeque::new();
            let mut fill = 0u8;
            for (bytes, more, what) in steps {
                if what < 2 {
                    fill = fill.wrapping_add(1);
                    let frame = frame(bytes + 1, fill);
                    let pushed = match what {
                        0 => queue.push(frame, BYTES_MAX),
                        _ => queue.push_shared(&Shared::new(frame), BYTES_MAX),
                    };
                    if pushed.is_ok() {
                        expected.extend(std::iter::repeat_n(fill, bytes + 1));
                    }
                } else if let Some(sent) = queue.start_send(more) {
                    let written = bytes.min(sent.len());
                    prop_assert!(sent.iter().copied().eq(expected.iter().take(sent.len()).copied()));
                    expected.drain(..written);
                    queue.finish_send(written);
                }
                prop_assert!(queue.cost_bytes() <= BYTES_MAX);
                prop_assert!(queue.cost_bytes() >= expected.len());
                let front = queue.front.iter().filter(|_| queue.front_is_shared).map(Bytes::len);
                let rest = queue.rest.iter().flat_map(|rest| rest.iter());
                let rest = rest.filter(|waiting| waiting.is_shared).map(|waiting| waiting.bytes.len());
                prop_assert_eq!(queue.own_bytes(), queue.cost_bytes() - front.chain(rest).sum::<usize>());
                prop_assert_eq!(queue.is_empty(), expected.is_empty());
            }
        }
    }
}
