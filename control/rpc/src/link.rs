//! The link: what a gateway and control say to each other, whether in one process or over gRPC.
//!
//! Order: control sends everything that concerns attached sessions (sign-in results, deliveries, kicks, send results) from
//! one thread, and a [`Downlink`] keeps that order to each shard. Sync pages, room frames and signals come from other
//! threads; a session therefore remembers the highest seq it heard of (`latest`).
//! Bounds: both directions refuse rather than grow; see [`Uplink::submit`] and [`Downlink::deliver`].

mod convert;

use std::sync::Arc;

use bytes::Bytes;
use gimbal_codec::{
    Attach, ClientMessageId, CloseReason, DeviceId, GatewayId, GroupId, MessageId, RoomId, Seq, SessionKey,
    ShardId, UserId,
};

pub use convert::LinkDecodeError;

/// One life of one gateway, as it introduces itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// By configuration; unique among gateways.
    pub gateway: GatewayId,
    /// Rises with every start of that gateway (Unix milliseconds of its start).
    pub epoch: u64,
    /// Number of shards.
    pub shards: u8,
}

/// What the client gave to tell its answers apart; echoed, never read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tag {
    /// `Packet.request_id`.
    pub request_id: Bytes,
    /// `Packet.seq`.
    pub seq: u64,
}

/// An authenticated session as it names itself in every call; control refuses it when `attach` is not the device's newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Its slot in the gateway.
    pub session: SessionKey,
    /// Its attach number.
    pub attach: Attach,
    /// Its user.
    pub user: UserId,
    /// Its device.
    pub device: DeviceId,
}

/// Gateway to control.
#[derive(Clone, PartialEq, Debug)]
pub enum Up {
    /// A connection asks to be attached. Answer: [`Down::SignedIn`] or [`Down::SignInRefused`].
    SignIn {
        /// Its slot.
        session: SessionKey,
        /// Claimed user.
        user: UserId,
        /// Claimed device.
        device: DeviceId,
        /// Token as the client sent it.
        token: Bytes,
        /// Highest seq the client has, if it keeps one.
        cursor: Option<Seq>,
        /// Address of the peer, for operators.
        peer: String,
    },
    /// A session that is already online, after a new link. Answer: [`Down::Announced`] or [`Down::Kick`].
    Announce {
        /// The session; `attach` is its last one.
        caller: Caller,
        /// Highest seq it was given, if it keeps a cursor.
        cursor: Option<Seq>,
        /// Address of the peer, for operators.
        peer: String,
    },
    /// The session is gone. No answer; ignored unless the session is the device's newest. A number older than its own is
    /// the session's too: 0 takes back a sign-in that is not answered yet.
    Detach {
        /// The session.
        caller: Caller,
    },
    /// Answer: [`Down::SendDone`].
    Send {
        /// Who sends.
        caller: Caller,
        /// Echoed.
        tag: Tag,
        /// Rising per device.
        client_message_id: ClientMessageId,
        /// Recipient.
        to: Recipient,
        /// Opaque type code.
        command: i32,
        /// Opaque content.
        content: Bytes,
    },
    /// Answer: [`Down::SyncDone`].
    Sync {
        /// Who asks.
        caller: Caller,
        /// Echoed.
        tag: Tag,
        /// Exclusive lower bound.
        after: Seq,
        /// 0: control's default.
        limit: u32,
    },
    /// Answer: [`Down::AckDone`].
    Ack {
        /// Who acknowledges.
        caller: Caller,
        /// Echoed.
        tag: Tag,
        /// Everything up to here is processed.
        seq: Seq,
    },
    /// By a member of the room. Answer: [`Down::PublishDone`].
    Publish {
        /// Who publishes.
        caller: Caller,
        /// Echoed.
        tag: Tag,
        /// In which the session is.
        room: RoomId,
        /// Opaque type code.
        command: i32,
        /// Opaque content.
        content: Bytes,
    },
    /// How many members a room has on one shard; sent when it becomes or ceases to be zero, and at most once a second between.
    RoomInterest {
        /// The room.
        room: RoomId,
        /// The shard that counts.
        shard: ShardId,
        /// Members there now.
        members: u32,
    },
    /// For the other gateways only: the sending one has already given it to its own sessions.
    Signal(Signal),
}

/// Something never stored: typing and the like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signal {
    /// Sender.
    pub from_user: UserId,
    /// Sending device.
    pub from_device: DeviceId,
    /// Target.
    pub to: SignalTarget,
    /// Opaque type code.
    pub command: i32,
    /// Opaque content.
    pub content: Bytes,
}

/// Whom a signal is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignalTarget {
    /// All sessions of a user.
    User(UserId),
    /// All members of a room but the sender.
    Room(RoomId),
}

/// Why control refuses a call: a reply code of `gimbal_codec::code` and its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Reply code.
    pub code: i32,
    /// Short text.
    pub message: String,
}

/// Whom a stored message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recipient {
    /// A user.
    User(UserId),
    /// The members of a group.
    Group(GroupId),
}

/// A stored message without its place in a mailbox.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Body {
    /// Its id; 0 when not stored.
    pub message_id: MessageId,
    /// Sender; 0: the backend.
    pub from_user: UserId,
    /// Sending device; 0: the backend.
    pub from_device: DeviceId,
    /// Opaque type code.
    pub command: i32,
    /// Opaque content.
    pub content: Bytes,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// The group it was sent to; 0: none.
    pub group: GroupId,
    /// Place in the group's order, from 1; 0 outside groups.
    pub group_seq: Seq,
}

/// One session that a body is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its slot.
    pub session: SessionKey,
    /// Its attach number; another one in the slot means the target is gone.
    pub attach: Attach,
    /// Seq in that user's mailbox; 0 when not stored.
    pub seq: Seq,
}

/// Result of a send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendResult {
    /// Id of the stored message.
    pub message_id: MessageId,
    /// Seq in the recipient's mailbox; to a group: in the group's order.
    pub seq: Seq,
    /// When it was first accepted, Unix milliseconds.
    pub created_at_ms: i64,
    /// It had been stored before; nothing was added.
    pub duplicate: bool,
}

/// Where a message stands in its room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoomPlace {
    /// Life of the room.
    pub epoch: u64,
    /// From 1 within the epoch.
    pub seq: u64,
    /// Unix milliseconds.
    pub created_at_ms: i64,
}

/// One page of a mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Messages in rising seq.
    pub entries: Vec<(Seq, Arc<Body>)>,
    /// Where the reader stands after this page: the last entry, or what it asked from, clamped to the mailbox.
    pub end: Seq,
    /// The mailbox's newest seq when the page was read.
    pub latest: Seq,
    /// `end < latest`.
    pub has_more: bool,
    /// Messages up to here are no longer kept.
    pub trimmed_to: Seq,
}

/// Whose a session is, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grant {
    /// May be another one than the client named, when it named none. None: the client's own word.
    pub user: UserId,
    /// As above.
    pub device: DeviceId,
    /// Unix milliseconds: the session ends then. 0: it does not end by itself.
    pub expires_at_ms: i64,
}

/// Control to gateway. Items for a session whose attach number differs are dropped by the gateway.
#[derive(Clone, PartialEq, Debug)]
pub enum Down {
    /// The session is attached; deliveries follow.
    SignedIn {
        /// Its slot.
        session: SessionKey,
        /// Its attach number from now on.
        attach: Attach,
        /// The mailbox's newest seq at that moment.
        latest: Seq,
        /// Whose it is.
        grant: Grant,
    },
    /// Answered to the client, which is then closed.
    SignInRefused {
        /// Its slot.
        session: SessionKey,
        /// Why.
        refusal: Refusal,
    },
    /// An announced session is attached anew.
    Announced {
        /// Its slot.
        session: SessionKey,
        /// Its new attach number.
        attach: Attach,
        /// The mailbox's newest seq at that moment.
        latest: Seq,
    },
    /// One body for many sessions.
    Deliver {
        /// Shared.
        body: Arc<Body>,
        /// Never empty.
        targets: Vec<Target>,
    },
    /// Answer to [`Up::Send`], after the commit.
    SendDone {
        /// Slot and attach of the caller.
        to: (SessionKey, Attach),
        /// Echoed.
        tag: Tag,
        /// Outcome.
        result: Result<SendResult, Refusal>,
    },
    /// Answer to [`Up::Sync`].
    SyncDone {
        /// Slot and attach of the caller.
        to: (SessionKey, Attach),
        /// Echoed.
        tag: Tag,
        /// Outcome.
        result: Result<Page, Refusal>,
    },
    /// Answer to [`Up::Ack`], after the commit.
    AckDone {
        /// Slot and attach of the caller.
        to: (SessionKey, Attach),
        /// Echoed.
        tag: Tag,
        /// The device's ack now.
        result: Result<Seq, Refusal>,
    },
    /// Answer to [`Up::Publish`], after the message itself.
    PublishDone {
        /// Slot and attach of the caller.
        to: (SessionKey, Attach),
        /// Echoed.
        tag: Tag,
        /// Outcome.
        result: Result<RoomPlace, Refusal>,
    },
    /// To all members of a room: a whole encoded frame.
    Room {
        /// The room.
        room: RoomId,
        /// Length prefix and packet.
        frame: Bytes,
    },
    /// To all online sessions: a whole encoded frame.
    All {
        /// Length prefix and packet.
        frame: Bytes,
        /// Sessions per second; 0: the gateway's own pace.
        per_second: u32,
    },
    /// From another gateway's session.
    Signal(Signal),
    /// Close this session.
    Kick {
        /// Its slot.
        session: SessionKey,
        /// Its attach number.
        attach: Attach,
        /// Told to the client.
        reason: CloseReason,
    },
}

/// The queue to the other side is full or its end is gone; the items are still the caller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("link full or down")]
pub struct LinkFull;

/// Control as a shard sees it. Called on shard threads: never blocks.
pub trait Uplink: Send + Sync {
    /// Hands over all of `items` in order, leaving it empty, or none of them.
    ///
    /// # Errors
    /// [`LinkFull`]: `items` is untouched. The shard refuses the calls in it to their clients, keeps detaches and
    /// interest for its next turn, and drops signals, all counted.
    fn submit(&self, shard: ShardId, items: &mut Vec<Up>) -> Result<(), LinkFull>;
}

/// A gateway as control sees it. Called on control's threads: never blocks.
pub trait Downlink: Send + Sync {
    /// Hands over all of `items` in order, leaving it empty, or none of them. Items of different shards may be split.
    ///
    /// # Errors
    /// [`LinkFull`]: the items are lost to that gateway, which therefore announces its sessions again and so learns
    /// what it missed; control counts them.
    fn deliver(&self, items: &mut Vec<Down>) -> Result<(), LinkFull>;
}

/// What the in-process control plane offers to the gateway of the same process.
pub trait Control: Send + Sync {
    /// Registers a gateway; an older life of the same id is forgotten with its routes, unless they are announced again.
    fn connect(&self, hello: Hello, down: Arc<dyn Downlink>) -> Arc<dyn Uplink>;
}
