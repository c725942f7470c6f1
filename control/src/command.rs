//! Everything that can be asked of the writer thread, and its answers.
//!
//! Arguments carry every random value and hash, so that the executor needs none; time comes with the batch.

pub mod group;
mod reply;
pub mod social;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
/// Longest content of a message: with its envelope it fits a frame.
pub use gimbal_codec::limits::CONTENT_BYTES_MAX;
use gimbal_codec::{Attach, ClientMessageId, DeviceId, GroupId, Seq, SessionKey, UserId};
use gimbal_rpc::link::{Downlink, Hello, Recipient};
use sha2::{Digest, Sha256};

use crate::auth::Subject;
use crate::dedup;
use crate::error::RequestError;
use crate::store::key::DedupScope;
use group::GroupAct;
pub use reply::{
    Admitted, Pushed, Registered, Reply, ReplyTo, SessionInfo, SessionPage, Stats, UserPresence,
};
use social::{Actor, Social};

/// Most users of one push: it is executed within one batch.
pub const PUSH_USERS_MAX: usize = 512;
/// Longest phone number: E.164 has 15 digits; the rest is room for private numbering.
pub const PHONE_BYTES_MAX: usize = 32;
/// Longest idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 64;
/// Longest text of each field of [`DeviceInfo`].
pub const DEVICE_TEXT_BYTES_MAX: usize = 256;
/// Most sessions of one page of [`Command::ListSessions`].
pub const SESSIONS_PAGE_MAX: usize = 1000;

/// SHA-256 of a token; the token itself is never stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of a token as the client holds it.
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// As it stands on disk.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As it stands on disk.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// The backend's key for one write: 1 to [`IDEMPOTENCY_KEY_BYTES_MAX`] bytes. All methods share one space of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// `Ok(None)` for the empty text: the caller wants none.
    ///
    /// # Errors
    /// [`RequestError::BadRequest`] when the key is too long.
    pub fn parse(text: &str) -> Result<Option<Self>, RequestError> {
        match text.len() {
            0 => Ok(None),
            1..=IDEMPOTENCY_KEY_BYTES_MAX if text.contains('\0') => {
                Err(RequestError::BadRequest { field: "idempotency_key", rule: "must not contain NUL" })
            }
            1..=IDEMPOTENCY_KEY_BYTES_MAX => Ok(Some(Self(text.into()))),
            _ => Err(RequestError::BadRequest { field: "idempotency_key", rule: "must be at most 64 bytes" }),
        }
    }

    /// A key in the space of one user, which no backend's key can meet.
    #[must_use]
    pub fn of_user(self, user: UserId) -> Self {
        Self(format!("\0{user}\0{}", self.0).into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a device says of itself; each text at most [`DEVICE_TEXT_BYTES_MAX`] bytes (the executor refuses longer ones).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceInfo {
    /// A device made earlier; `None` makes one.
    pub id: Option<DeviceId>,
    /// `gimbal.v1.DeviceKind`.
    pub kind: i32,
    /// Maker.
    pub brand: String,
    /// Model.
    pub model: String,
    /// Version of the operating system.
    pub system_version: String,
    /// Version of the client library.
    pub sdk_version: String,
    /// Address of the device at its push provider.
    pub push_token: String,
}

/// A fresh token of a device: 256 random bits, known only to their owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewToken {
    /// Its hash.
    pub hash: TokenHash,
    /// Unix milliseconds.
    pub expires_at_ms: i64,
}

/// What an issuer or a service that is believed says of a caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vouched {
    /// Who it is.
    pub subject: Subject,
    /// Who the caller says it is; none: it does not say. Must be the same.
    pub claimed: UserId,
    /// Which device; none is refused.
    pub device: DeviceId,
    /// Whether the device was vouched for too, and is not the caller's own word.
    pub is_device_vouched: bool,
    /// When that was said, Unix milliseconds; 0: not known, and older than any revocation.
    pub issued_at_ms: i64,
    /// Until when it counts, Unix milliseconds; `i64::MAX`: for ever.
    pub expires_at_ms: i64,
}

/// One link connection of a gateway, numbered by the link server, never reused within one life of control.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lane(pub u32);

/// A session as the link names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionRef {
    /// The connection it speaks over.
    pub lane: Lane,
    /// Its slot.
    pub session: SessionKey,
    /// Its attach number.
    pub attach: Attach,
}

/// What shows that a caller is who it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// Over the link: the route table knows the session as the device's newest.
    Session(SessionRef),
    /// Over gRPC: hash of the token that was shown; the executor compares it.
    Token(TokenHash),
    /// Over gRPC: [`Command::Admit`] has let it in just before.
    Admitted,
}

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// Of both.
    pub proof: Proof,
}

impl Sender {
    /// The session, if it is one.
    pub const fn session(self) -> Option<SessionRef> {
        match self.proof {
            Proof::Session(session) => Some(session),
            Proof::Token(_) | Proof::Admitted => None,
        }
    }
}

/// Called once on the writer thread, which it must not hold up: with the attach number under which the session's answer
/// goes, or with why there is none.
pub type OnAdmitted = Box<dyn FnOnce(Result<Attach, RequestError>) + Send>;

/// Everything the writer thread does. The answer is named beside each; durable ones are answered after their commit.
pub enum Command {
    /// By a phone number that its owner has proved. -> [`Reply::Registered`].
    SignIn {
        /// 1 to [`PHONE_BYTES_MAX`] bytes: digits with an optional leading plus.
        phone: String,
        /// A named device of another user moves here only when `holds` is its last token, expired or not; else, and after
        /// a revocation always, a new device is made, so that nobody can take a device by guessing its id.
        device: DeviceInfo,
        /// Replaces the device's token.
        token: NewToken,
        /// The device's last token, if the caller showed one.
        holds: Option<TokenHash>,
    },
    /// By the backend, which is trusted: a named device of another user moves. -> [`Reply::Registered`].
    RegisterDevice {
        /// `None` makes a user.
        user: Option<UserId>,
        /// The device.
        device: DeviceInfo,
        /// Replaces the device's token, also when the call is a repeated one.
        token: NewToken,
        /// A repeated call returns the same ids.
        idempotency: Option<IdempotencyKey>,
    },
    /// Ends a device's token and its session. -> [`Reply::Revoked`].
    RevokeToken {
        /// User.
        user: UserId,
        /// Device.
        device: DeviceId,
        /// A repeated call returns the first answer.
        idempotency: Option<IdempotencyKey>,
    },
    /// Ends all tokens of a user that were issued before a time, and the sessions that began with them.
    /// -> [`Reply::RevokedBefore`].
    RevokeTokens {
        /// User.
        user: UserId,
        /// Unix milliseconds, not in the future; 0: now. An earlier time than that of another call changes nothing.
        before_ms: i64,
        /// A repeated call returns the first answer.
        idempotency: Option<IdempotencyKey>,
    },
    /// A caller over gRPC that is vouched for: it and its device are made at first sight. -> [`Reply::Admitted`].
    Admit {
        /// What was said of it.
        vouched: Box<Vouched>,
    },
    /// A user, or a backend for one, changes an account or what it is to others.
    Social {
        /// Who acts.
        by: Actor,
        /// What is done.
        act: Box<Social>,
        /// A repeated call returns the first answer.
        idempotency: Option<IdempotencyKey>,
    },
    /// A user, or a backend, does something to a group.
    Group {
        /// Who acts.
        by: Actor,
        /// Which group; 0 where one is made.
        group: GroupId,
        /// What is done.
        act: Box<GroupAct>,
        /// A repeated call returns the first answer.
        idempotency: Option<IdempotencyKey>,
    },
    /// The next batch of a message that is on its way to a group's members; of the writer itself. No answer.
    FanOut {
        /// Which group.
        group: GroupId,
    },
    /// A user to another, or to a group. -> [`Reply::Sent`], or `Down::SendDone` for a session.
    Send {
        /// Who sends.
        sender: Sender,
        /// Rises per device, from 1. Repeats are recognised per device and home partition of the recipient: the same
        /// id for a recipient elsewhere is a new message.
        client_message_id: ClientMessageId,
        /// Recipient.
        to: Recipient,
        /// Opaque type code.
        command: i32,
        /// At most [`CONTENT_BYTES_MAX`].
        content: Bytes,
    },
    /// The backend to many users; one user's failure is reported and leaves the others alone. -> [`Reply::Pushed`].
    Push {
        /// 1 to [`PUSH_USERS_MAX`]; a user named twice gets it once.
        users: Vec<UserId>,
        /// Opaque type code.
        command: i32,
        /// At most [`CONTENT_BYTES_MAX`].
        content: Bytes,
        /// Only to sessions online now; nothing is stored.
        transient: bool,
        /// A repeated call returns the first answer and delivers nothing. Ignored when transient.
        idempotency: Option<IdempotencyKey>,
    },
    /// What a device has processed; never moves back, nor beyond the newest seq. -> [`Reply::Acked`] or `Down::AckDone`.
    Ack {
        /// Whose.
        sender: Sender,
        /// Everything up to here.
        seq: Seq,
    },
    /// Forgets the oldest remembered ids of a sender, [`dedup::FORGOTTEN_MAX`] at most, that were answered before a time.
    /// They are refused from then on, as those below a full window are. -> [`Reply::Forgot`].
    Forget {
        /// Sender and home partition.
        scope: DedupScope,
        /// Unix milliseconds.
        before_ms: i64,
    },
    /// Removes the oldest events. No answer.
    TrimEvents {
        /// Up to this one.
        through: u64,
    },
    /// Who of these is online. -> [`Reply::Presence`], in their order.
    Presence {
        /// Whom it is about.
        users: Vec<UserId>,
    },
    /// Devices that were online when control ended, and may not have come back: those without a session are offline. No answer.
    PresumeOffline {
        /// Whom it is about.
        devices: Vec<(UserId, DeviceId)>,
    },
    /// A session's read of its own mailbox. Nothing is written; it passes here so that no ended session reads, and so
    /// that the page holds all that was answered before. -> `read`.
    Sync {
        /// Always a session.
        sender: Sender,
        /// What to do then.
        read: OnAdmitted,
    },
    /// A connection asks to come online. -> `Down::SignedIn` or `Down::SignInRefused`; the device's older session is
    /// kicked wherever it is.
    Attach {
        /// The connection it came by.
        lane: Lane,
        /// Its slot.
        session: SessionKey,
        /// Claimed user.
        user: UserId,
        /// Claimed device.
        device: DeviceId,
        /// Hash of what was shown.
        token: TokenHash,
        /// Address, for operators.
        peer: String,
    },
    /// As [`Self::Attach`], for a caller that is vouched for: it and its device are made at first sight.
    AttachVouched {
        /// The connection it came by.
        lane: Lane,
        /// Its slot.
        session: SessionKey,
        /// What was said of it.
        vouched: Box<Vouched>,
        /// Address, for operators.
        peer: String,
    },
    /// A session that is online already, after a new link. -> `Down::Announced` or `Down::Kick`.
    Announce {
        /// Where it is; `attach` is its last one.
        session: SessionRef,
        /// Its user.
        user: UserId,
        /// Its device.
        device: DeviceId,
        /// Address, for operators.
        peer: String,
    },
    /// A session is gone; ignored unless it is the device's newest. No answer.
    Detach {
        /// Where it was.
        session: SessionRef,
        /// Its user.
        user: UserId,
        /// Its device.
        device: DeviceId,
    },
    /// A gateway has linked up. Routes of its earlier connections are forgotten: it announces what lives. No answer.
    GatewayUp {
        /// Number of this connection.
        lane: Lane,
        /// Who it is.
        hello: Hello,
        /// Way down to it.
        down: Arc<dyn Downlink>,
    },
    /// A link connection has ended: its routes are forgotten. No answer.
    GatewayDown {
        /// Number of that connection; a newer one of the same gateway is left alone.
        lane: Lane,
    },
    /// -> [`Reply::Sessions`].
    ListSessions {
        /// `None`: of all users.
        user: Option<UserId>,
        /// From the last page's `next`; 0 to begin.
        from: u64,
        /// 1 to [`SESSIONS_PAGE_MAX`]; out of range is clamped.
        limit: usize,
    },
    /// Ends sessions by an administrator's will. -> [`Reply::Kicked`].
    Kick {
        /// User.
        user: UserId,
        /// `None`: all of the user's devices.
        device: Option<DeviceId>,
    },
    /// -> [`Reply::Stats`].
    Stats,
}

impl Command {
    /// Name for metrics and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SignIn { .. } => "sign_in",
            Self::RegisterDevice { .. } => "register_device",
            Self::RevokeToken { .. } => "revoke_token",
            Self::RevokeTokens { .. } => "revoke_tokens",
            Self::Admit { .. } => "admit",
            Self::Social { act, .. } => act.name(),
            Self::Group { act, .. } => act.name(),
            Self::FanOut { .. } => "fan_out",
            Self::Send { .. } => "send",
            Self::Push { .. } => "push",
            Self::Ack { .. } => "ack",
            Self::Forget { .. } => "forget",
            Self::TrimEvents { .. } => "trim_events",
            Self::Presence { .. } => "presence",
            Self::PresumeOffline { .. } => "presume_offline",
            Self::Sync { .. } => "sync",
            Self::Attach { .. } => "attach",
            Self::AttachVouched { .. } => "attach_vouched",
            Self::Announce { .. } => "announce",
            Self::Detach { .. } => "detach",
            Self::GatewayUp { .. } => "gateway_up",
            Self::GatewayDown { .. } => "gateway_down",
            Self::ListSessions { .. } => "list_sessions",
            Self::Kick { .. } => "kick",
            Self::Stats => "stats",
        }
    }

    /// Mailboxes (or other records) that it may write; a batch is bounded by their sum. What is sent to a group counts when
    /// it is executed: see [`crate::executor::Batch::is_full`].
    pub fn weight(&self) -> usize {
        match self {
            Self::Push { users, .. } => users.len().max(1),
            Self::Forget { .. } => dedup::FORGOTTEN_MAX,
            Self::PresumeOffline { devices } => devices.len().max(1),
            Self::Group { act, .. } => act.users().len().max(1),
            _ => 1,
        }
    }

    /// Bytes that it may write; a batch is bounded by their sum.
    pub fn effect_bytes(&self) -> usize {
        match self {
            Self::Push { content, users, .. } => content.len() * users.len(),
            _ => self.heap_bytes(),
        }
    }

    /// What it holds on the heap, about; the queue is bounded by this.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Send { content, .. } => content.len(),
            Self::Push { content, users, .. } => content.len() + users.len() * size_of::<UserId>(),
            Self::SignIn { device, .. } | Self::RegisterDevice { device, .. } => device.heap_bytes(),
            Self::Attach { peer, .. } | Self::Announce { peer, .. } => peer.len(),
            Self::AttachVouched { peer, .. } => peer.len() + size_of::<Vouched>(),
            Self::Admit { .. } => size_of::<Vouched>(),
            Self::Social { act, .. } => size_of::<Social>() + act.heap_bytes(),
            Self::Group { act, .. } => size_of::<GroupAct>() + act.heap_bytes(),
            Self::Sync { read, .. } => size_of_val(&**read),
            Self::Presence { users } => size_of_val(&**users),
            Self::PresumeOffline { devices } => size_of_val(&**devices),
            _ => 0,
        }
    }
}

impl DeviceInfo {
    fn heap_bytes(&self) -> usize {
        let texts = [&self.brand, &self.model, &self.system_version, &self.sdk_version, &self.push_token];
        texts.iter().map(|text| text.len()).sum()
    }
}
