//! What the ring reports, and how an operation is named while it is in flight.

use std::os::fd::{FromRawFd, OwnedFd};

use super::Chunk;
use crate::carrier::{self, AcceptEnd, ReceiveEnd};

/// What an operation is; the top 8 bits of its `user_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Close = 4,
    Doorbell = 5,
    Tick = 6,
    Cancel = 7,
}

/// `user_data`: 8 bits kind, 56 bits value (a session key without its shard, or an index of a send).
pub(super) fn user_data(kind: Kind, value: u64) -> u64 {
    debug_assert!(value < 1 << 56);
    ((kind as u64) << 56) | value
}

/// # Panics
/// On a kind that [`user_data`] never made.
pub(super) fn parse(user_data: u64) -> (Kind, u64) {
    let kind = match user_data >> 56 {
        1 => Kind::Accept,
        2 => Kind::Receive,
        3 => Kind::Send,
        4 => Kind::Close,
        5 => Kind::Doorbell,
        6 => Kind::Tick,
        7 => Kind::Cancel,
        other => panic!("completion of an unknown operation {other}"),
    };
    (kind, user_data & ((1 << 56) - 1))
}

/// Something the kernel finished.
pub(crate) type Completion = carrier::Completion<OwnedFd, Chunk>;

impl ReceiveEnd {
    pub(super) fn from_result(result: i32) -> Self {
        match -result {
            0 => Self::Eof,
            libc::ENOBUFS => Self::NoBuffer,
            libc::EAGAIN | libc::EINTR => Self::Again,
            errno => Self::Broken(errno),
        }
    }
}

/// An accept completion; `None` when nothing is to be done.
pub(super) fn accepted(listener: u8, result: i32, more: bool) -> Option<Completion> {
    if result >= 0 {
        // SAFETY: the kernel has just made this descriptor for us, and this completion is its only mention.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        return Some(Completion::Accepted { listener, socket, more });
    }
    if more {
        return None;
    }
    let end = match -result {
        libc::ECANCELED | libc::EBADF | libc::EINVAL => AcceptEnd::Cancelled,
        errno @ (libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => AcceptEnd::Exhausted(errno),
        _ => AcceptEnd::Again,
    };
    Some(Completion::AcceptEnded { listener, end })
}
