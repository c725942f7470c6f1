//! What commands are answered.

use gimbal_codec::{Attach, DeviceId, GatewayId, GroupId, MessageId, Seq, SessionKey, UserId};
use gimbal_rpc::link::{SendResult, Tag};
use tokio::sync::oneshot;

use super::SessionRef;
use crate::error::RequestError;
use crate::store::value::{Friendship, Verdict};

/// Answer to a [`super::Command`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// To sign-in and registration.
    Registered(Registered),
    /// To a forgetting: how many ids.
    Forgot(usize),
    /// To a revocation; false: there was no token.
    Revoked {
        /// A token was ended.
        revoked: bool,
    },
    /// To a send.
    Sent(SendResult),
    /// To a push.
    Pushed(Pushed),
    /// The device's ack now.
    Acked(Seq),
    /// To a listing.
    Sessions(SessionPage),
    /// Who is online.
    Presence(Vec<UserPresence>),
    /// How many sessions were ended.
    Kicked(u32),
    /// Figures of this life.
    Stats(Stats),
    /// A command without an answer was done.
    Done,
    /// To a revocation by time.
    RevokedBefore {
        /// What counts now, Unix milliseconds.
        before_ms: i64,
        /// Tokens of ours that were ended.
        devices: u32,
    },
    /// What two users are to each other now.
    Friendship(Friendship),
    /// To a change of a group's members.
    Members {
        /// Which group.
        group: GroupId,
        /// What became of each, in the order of the request.
        members: Vec<(UserId, Verdict)>,
    },
    /// To [`Command::Admit`]; else of the executor to the writer only, for an attach or an announcement.
    Admitted(Admitted),
}

/// Ids made or found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registered {
    /// The user was made by this call.
    pub is_new: bool,
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
}

/// Whom a caller was found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// The mailbox's newest seq.
    pub latest: Seq,
    /// Of the token, Unix milliseconds; 0: not known.
    pub issued_at_ms: i64,
    /// Of the token, Unix milliseconds; `i64::MAX`: never, or not known.
    pub expires_at_ms: i64,
}

/// Result of a push.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pushed {
    /// 0 when transient.
    pub message_id: MessageId,
    /// In the order of the request; seq 0 when transient.
    pub users: Vec<(UserId, Result<Seq, RequestError>)>,
}

/// One page of sessions that are online.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionPage {
    /// Each at most once over all pages.
    pub sessions: Vec<SessionInfo>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<u64>,
}

/// A session that is online.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// Gateway.
    pub gateway: GatewayId,
    /// Slot there.
    pub session: SessionKey,
    /// Attach number.
    pub attach: Attach,
    /// Unix milliseconds, of whole seconds.
    pub attached_at_ms: i64,
    /// Address; empty: not known.
    pub peer: String,
}

/// A user and its sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserPresence {
    /// User.
    pub user: UserId,
    /// Devices with a session, and since when it began, Unix milliseconds to the second.
    pub online: Vec<(DeviceId, i64)>,
}

/// Figures of this life of control.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Sessions online.
    pub sessions: u64,
    /// Users with at least one.
    pub users_online: u64,
    /// Gateways linked.
    pub gateways: u64,
    /// Commands executed.
    pub commands: u64,
    /// Commits, each one synced write.
    pub commits: u64,
    /// Syncs of the write-ahead log, as the store counts them.
    pub wal_syncs: u64,
    /// Messages stored (each mailbox counts).
    pub sends: u64,
    /// Durable number of this life.
    pub control_epoch: u32,
}

/// Where an answer goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// A call that waits.
    Call(oneshot::Sender<Result<Reply, RequestError>>),
    /// A session, as a `Down` item on its lane. Only with [`Command::Send`] and [`Command::Ack`].
    Session {
        /// The session.
        session: SessionRef,
        /// Echoed.
        tag: Tag,
    },
    /// Nowhere; items that the command itself causes on a lane are sent all the same.
    Nobody,
}

impl ReplyTo {
    /// A call was to wait for the answer and does not any more: its deadline has passed, or it was cancelled.
    pub fn is_given_up(&self) -> bool {
        matches!(self, Self::Call(answer) if answer.is_closed())
    }
}
