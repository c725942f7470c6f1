//! What a session asks the shard to do.

use std::fmt;

use bytes::Bytes;
use gimbal_codec::{DeviceId, RoomId, Seq, UserId};
use gimbal_rpc::link::{Signal, Up};

/// One thing to do, in the order given.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action {
    /// Ask control to attach the session ([`Up::SignIn`]): the shard adds key and peer address.
    SignIn(SignInRequest),
    /// For control.
    Up(Up),
    /// For control, once it knows of the members of the room that it is about.
    UpToRoom(Up),
    /// The session is online: its user's sessions are found by user from now on.
    Online {
        /// Its user.
        user: UserId,
    },
    /// The session is no longer online: it leaves all its rooms and its user's sessions.
    Offline {
        /// Its user.
        user: UserId,
    },
    /// Enter a room in which the session is not.
    Join(RoomId),
    /// Leave a room in which the session is.
    Leave(RoomId),
    /// To sessions of this gateway and, through control, of others.
    Signal(Signal),
    /// All is flushed: shut the write side down, read on and discard.
    ShutdownWrite,
    /// The time for a tidy end is over: close the socket.
    Abort,
}

/// A client's claim, on its way to control.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SignInRequest {
    /// Claimed user.
    pub(crate) user: UserId,
    /// Claimed device.
    pub(crate) device: DeviceId,
    /// Secret.
    pub(crate) token: Bytes,
    /// Highest seq the client has, if it keeps one.
    pub(crate) cursor: Option<Seq>,
}

impl fmt::Debug for SignInRequest {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignInRequest")
            .field("user", &self.user)
            .field("device", &self.device)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}
