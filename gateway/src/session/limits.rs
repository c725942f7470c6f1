//! Bounds and deadlines of a session.

use super::{Flow, Pace};

/// What configuration decides about sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// From the accept to the end of the sign-in.
    pub(crate) sign_in_ms: u64,
    /// Longest silence of a client that is signed in.
    pub(crate) idle_ms: u64,
    /// Longest time in which a socket may take no byte of what waits for it.
    pub(crate) write_ms: u64,
    /// For what waits when the close begins.
    pub(crate) flush_ms: u64,
    /// From the shutdown of the write side to the end of the socket.
    pub(crate) linger_ms: u64,
    /// Bound of a connection's queue; [`crate::send_queue::RESERVE_BYTES`] come on top, and an empty queue takes any one
    /// frame.
    pub(crate) queue_bytes_max: usize,
    /// Rooms of one session, beside gim's one.
    pub(crate) rooms_max: usize,
    /// Signals of one session: each may reach all members of a room.
    pub(crate) signals: Pace,
    /// Messages of one session to rooms.
    pub(crate) publishes: Pace,
    /// Frames of one session.
    pub(crate) frames: Flow,
    /// Their bytes.
    pub(crate) bytes: Flow,
}

impl Limits {
    /// What a session that was closed for its rate has sent too much is made up for after so long.
    pub(crate) fn debt_ms(&self) -> u64 {
        self.frames.debt_ms().max(self.bytes.debt_ms())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sign_in_ms: 10_000,
            idle_ms: 11 * 60_000,
            write_ms: 10_000,
            flush_ms: 5_000,
            linger_ms: 2_000,
            queue_bytes_max: 128 * 1024,
            rooms_max: 64,
            signals: Pace::new(50, 100),
            publishes: Pace::new(10, 20),
            frames: Flow::new(0, 1),
            bytes: Flow::new(0, 1),
        }
    }
}
