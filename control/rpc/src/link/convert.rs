//! Between the link's types and its protobuf form.
//!
//! Encoding never fails. Decoding checks what the types promise: required parts, ranges, known close codes.

mod rooms;

use std::sync::Arc;

use bytes::Bytes;
use gimbal_codec::{
    Attach, ClientMessageId, CloseReason, DeviceId, GatewayId, GroupId, MessageId, RoomId, Seq, SessionKey,
    ShardId, UserId,
};

use super::{
    Body, Caller, Down, Grant, Hello, Page, Recipient, Refusal, SendResult, Signal, SignalTarget, Tag,
    Target, Up,
};
use crate::link_v1 as pb;

/// A link item that this side does not understand: the stream is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkDecodeError {
    /// A required part is absent.
    #[error("link item lacks {0}")]
    Missing(&'static str),
    /// A number is outside of its type's range.
    #[error("link item has {field} = {value}, out of range")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// What came.
        value: u64,
    },
}

impl From<Hello> for pb::Hello {
    fn from(hello: Hello) -> Self {
        Self { gateway_id: hello.gateway.get(), epoch: hello.epoch, shards: u32::from(hello.shards) }
    }
}

impl TryFrom<pb::Hello> for Hello {
    type Error = LinkDecodeError;

    fn try_from(hello: pb::Hello) -> Result<Self, LinkDecodeError> {
        let gateway = GatewayId::new(hello.gateway_id);
        if gateway.is_none() {
            return Err(LinkDecodeError::Missing("gateway_id"));
        }
        Ok(Self { gateway, epoch: hello.epoch, shards: byte("shards", hello.shards)? })
    }
}

impl From<Up> for pb::Up {
    fn from(up: Up) -> Self {
        use pb::up::Kind;
        let kind = match up {
            Up::SignIn { session, user, device, token, cursor, peer } => Kind::SignIn(pb::SignIn {
                session: session.to_u64(),
                user: user.get(),
                device: device.get(),
                token,
                cursor: cursor.map(Seq::get),
                peer,
            }),
            Up::Announce { caller, cursor, peer } => Kind::Announce(announce(caller, cursor, peer)),
            Up::Detach { caller } => Kind::Detach(detach(caller)),
            Up::Send { caller, tag, client_message_id, to, command, content } => Kind::Send(pb::Send {
                session: caller.session.to_u64(),
                attach: caller.attach.get(),
                user: caller.user.get(),
                device: caller.device.get(),
                tag: Some(tag.into()),
                client_message_id: client_message_id.get(),
                to: if let Recipient::User(user) = to { user.get() } else { 0 },
                to_group: if let Recipient::Group(group) = to { group.get() } else { 0 },
                command,
                content,
            }),
            Up::Sync { caller, tag, after, limit } => Kind::Sync(pb::Sync {
                session: caller.session.to_u64(),
                attach: caller.attach.get(),
                user: caller.user.get(),
                device: caller.device.get(),
                tag: Some(tag.into()),
                after: after.get(),
                limit,
            }),
            Up::Ack { caller, tag, seq } => Kind::Ack(pb::Ack {
                session: caller.session.to_u64(),
                attach: caller.attach.get(),
                user: caller.user.get(),
                device: caller.device.get(),
                tag: Some(tag.into()),
                seq: seq.get(),
            }),
            Up::Publish { caller, tag, room, command, content } => Kind::Publish(pb::Publish {
                session: caller.session.to_u64(),
                attach: caller.attach.get(),
                user: caller.user.get(),
                device: caller.device.get(),
                tag: Some(tag.into()),
                room: room.get(),
                command,
                content,
            }),
            Up::RoomInterest { room, shard, members } => {
                Kind::RoomInterest(pb::RoomInterest { room: room.get(), shard: u32::from(shard.0), members })
            }
            Up::Signal(signal) => Kind::Signal(signal.into()),
        };
        Self { kind: Some(kind) }
    }
}

fn announce(caller: Caller, cursor: Option<Seq>, peer: String) -> pb::Announce {
    pb::Announce {
        session: caller.session.to_u64(),
        user: caller.user.get(),
        device: caller.device.get(),
        attach: caller.attach.get(),
        cursor: cursor.map(Seq::get),
        peer,
    }
}

fn detach(caller: Caller) -> pb::Detach {
    pb::Detach {
        session: caller.session.to_u64(),
        attach: caller.attach.get(),
        user: caller.user.get(),
        device: caller.device.get(),
    }
}

fn caller(session: u64, attach: u64, user: u64, device: u64) -> Caller {
    Caller {
        session: SessionKey::from_u64(session),
        attach: Attach::new(attach),
        user: UserId::new(user),
        device: DeviceId::new(device),
    }
}

fn recipient(user: u64, group: u64) -> Result<Recipient, LinkDecodeError> {
    match (user, group) {
        (user, 0) => Ok(Recipient::User(UserId::new(user))),
        (0, group) => Ok(Recipient::Group(GroupId::new(group))),
        (_, group) => Err(LinkDecodeError::OutOfRange { field: "to_group beside to", value: group }),
    }
}

impl TryFrom<pb::Up> for Up {
    type Error = LinkDecodeError;

    fn try_from(up: pb::Up) -> Result<Self, LinkDecodeError> {
        use pb::up::Kind;
        Ok(match up.kind.ok_or(LinkDecodeError::Missing("kind"))? {
            Kind::SignIn(item) => Up::SignIn {
                session: SessionKey::from_u64(item.session),
                user: UserId::new(item.user),
                device: DeviceId::new(item.device),
                token: item.token,
                cursor: item.cursor.map(Seq::new),
                peer: item.peer,
            },
            Kind::Announce(item) => Up::Announce {
                caller: caller(item.session, item.attach, item.user, item.device),
                cursor: item.cursor.map(Seq::new),
                peer: item.peer,
            },
            Kind::Detach(item) => {
                Up::Detach { caller: caller(item.session, item.attach, item.user, item.device) }
            }
            Kind::Send(item) => Up::Send {
                caller: caller(item.session, item.attach, item.user, item.device),
                tag: required_tag(item.tag)?,
                client_message_id: ClientMessageId::new(item.client_message_id),
                to: recipient(item.to, item.to_group)?,
                command: item.command,
                content: item.content,
            },
            Kind::Sync(item) => Up::Sync {
                caller: caller(item.session, item.attach, item.user, item.device),
                tag: required_tag(item.tag)?,
                after: Seq::new(item.after),
                limit: item.limit,
            },
            Kind::Ack(item) => Up::Ack {
                caller: caller(item.session, item.attach, item.user, item.device),
                tag: required_tag(item.tag)?,
                seq: Seq::new(item.seq),
            },
            Kind::Publish(item) => Up::Publish {
                caller: caller(item.session, item.attach, item.user, item.device),
                tag: required_tag(item.tag)?,
                room: RoomId::new(item.room),
                command: item.command,
                content: item.content,
            },
            Kind::RoomInterest(item) => Up::RoomInterest {
                room: RoomId::new(item.room),
                shard: ShardId(byte("shard", item.shard)?),
                members: item.members,
            },
            Kind::Signal(item) => Up::Signal(item.try_into()?),
        })
    }
}

impl From<Down> for pb::Down {
    fn from(down: Down) -> Self {
        use pb::down::Kind;
        let kind = match down {
            Down::SignedIn { session, attach, latest, grant } => Kind::SignedIn(pb::SignedIn {
                session: session.to_u64(),
                attach: attach.get(),
                latest: latest.get(),
                user: grant.user.get(),
                device: grant.device.get(),
                expires_at_ms: grant.expires_at_ms,
            }),
            Down::SignInRefused { session, refusal } => Kind::SignInRefused(pb::SignInRefused {
                session: session.to_u64(),
                refusal: Some(refusal.into()),
            }),
            Down::Announced { session, attach, latest } => Kind::Announced(pb::Announced {
                session: session.to_u64(),
                attach: attach.get(),
                latest: latest.get(),
            }),
            Down::Deliver { body, targets } => Kind::Deliver(pb::Deliver {
                body: Some(body.as_ref().clone().into()),
                targets: targets.into_iter().map(Into::into).collect(),
            }),
            Down::SendDone { to, tag, result } => Kind::SendDone(send_done(to, tag, result)),
            Down::SyncDone { to, tag, result } => Kind::SyncDone(sync_done(to, tag, result)),
            Down::AckDone { to, tag, result } => Kind::AckDone(ack_done(to, tag, result)),
            Down::PublishDone { to, tag, result } => Kind::PublishDone(rooms::publish_done(to, tag, result)),
            Down::Room { room, frame } => Kind::Room(pb::Room { room: room.get(), frame }),
            Down::All { frame, per_second } => Kind::All(pb::All { frame, per_second }),
            Down::Signal(signal) => Kind::Signal(signal.into()),
            Down::Kick { session, attach, reason } => Kind::Kick(pb::Kick {
                session: session.to_u64(),
                attach: attach.get(),
                reason: u32::from(reason.code()),
            }),
        };
        Self { kind: Some(kind) }
    }
}

fn send_done(to: (SessionKey, Attach), tag: Tag, result: Result<SendResult, Refusal>) -> pb::SendDone {
    let mut item = pb::SendDone {
        session: to.0.to_u64(),
        attach: to.1.get(),
        tag: Some(tag.into()),
        ..pb::SendDone::default()
    };
    match result {
        Ok(sent) => {
            item.message_id = sent.message_id.get();
            item.seq = sent.seq.get();
            item.created_at_ms = sent.created_at_ms;
            item.duplicate = sent.duplicate;
        }
        Err(refusal) => item.refusal = Some(refusal.into()),
    }
    item
}

fn sync_done(to: (SessionKey, Attach), tag: Tag, result: Result<Page, Refusal>) -> pb::SyncDone {
    let mut item = pb::SyncDone {
        session: to.0.to_u64(),
        attach: to.1.get(),
        tag: Some(tag.into()),
        ..pb::SyncDone::default()
    };
    match result {
        Ok(page) => {
            let entry = |(seq, body): (Seq, Arc<Body>)| pb::Entry {
                seq: seq.get(),
                body: Some(body.as_ref().clone().into()),
            };
            item.entries = page.entries.into_iter().map(entry).collect();
            item.latest = page.latest.get();
            item.has_more = page.has_more;
            item.trimmed_to = page.trimmed_to.get();
            item.end = page.end.get();
        }
        Err(refusal) => item.refusal = Some(refusal.into()),
    }
    item
}

fn ack_done(to: (SessionKey, Attach), tag: Tag, result: Result<Seq, Refusal>) -> pb::AckDone {
    let (seq, refusal) = match result {
        Ok(seq) => (seq.get(), None),
        Err(refusal) => (0, Some(refusal.into())),
    };
    pb::AckDone { session: to.0.to_u64(), attach: to.1.get(), tag: Some(tag.into()), refusal, seq }
}

impl TryFrom<pb::Down> for Down {
    type Error = LinkDecodeError;

    fn try_from(down: pb::Down) -> Result<Self, LinkDecodeError> {
        use pb::down::Kind;
        Ok(match down.kind.ok_or(LinkDecodeError::Missing("kind"))? {
            Kind::SignedIn(item) => Down::SignedIn {
                session: SessionKey::from_u64(item.session),
                attach: Attach::new(item.attach),
                latest: Seq::new(item.latest),
                grant: Grant {
                    user: UserId::new(item.user),
                    device: DeviceId::new(item.device),
                    expires_at_ms: item.expires_at_ms,
                },
            },
            Kind::SignInRefused(item) => Down::SignInRefused {
                session: SessionKey::from_u64(item.session),
                refusal: item.refusal.ok_or(LinkDecodeError::Missing("refusal"))?.into(),
            },
            Kind::Announced(item) => Down::Announced {
                session: SessionKey::from_u64(item.session),
                attach: Attach::new(item.attach),
                latest: Seq::new(item.latest),
            },
            Kind::Deliver(item) => {
                if item.targets.is_empty() {
                    return Err(LinkDecodeError::Missing("targets"));
                }
                Down::Deliver {
                    body: required_body(item.body)?,
                    targets: item.targets.into_iter().map(Into::into).collect(),
                }
            }
            Kind::SendDone(item) => send_done_from(item)?,
            Kind::SyncDone(item) => sync_done_from(item)?,
            Kind::AckDone(item) => Down::AckDone {
                to: (SessionKey::from_u64(item.session), Attach::new(item.attach)),
                tag: required_tag(item.tag)?,
                result: item.refusal.map_or(Ok(Seq::new(item.seq)), |refusal| Err(refusal.into())),
            },
            Kind::PublishDone(item) => rooms::publish_done_from(item)?,
            Kind::Room(item) => Down::Room { room: RoomId::new(item.room), frame: detached(&item.frame) },
            Kind::All(item) => Down::All { frame: detached(&item.frame), per_second: item.per_second },
            Kind::Signal(item) => Down::Signal(item.try_into()?),
            Kind::Kick(item) => Down::Kick {
                session: SessionKey::from_u64(item.session),
                attach: Attach::new(item.attach),
                reason: close_reason(item.reason)?,
            },
        })
    }
}

/// Frames wait in the queues of sessions: one that slow readers hold is not to keep the whole received message alive.
fn detached(frame: &Bytes) -> Bytes {
    Bytes::copy_from_slice(frame)
}

fn send_done_from(item: pb::SendDone) -> Result<Down, LinkDecodeError> {
    let result = match item.refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(SendResult {
            message_id: MessageId::new(item.message_id),
            seq: Seq::new(item.seq),
            created_at_ms: item.created_at_ms,
            duplicate: item.duplicate,
        }),
    };
    let to = (SessionKey::from_u64(item.session), Attach::new(item.attach));
    Ok(Down::SendDone { to, tag: required_tag(item.tag)?, result })
}

fn sync_done_from(item: pb::SyncDone) -> Result<Down, LinkDecodeError> {
    let result = match item.refusal {
        Some(refusal) => Err(refusal.into()),
        None => {
            let entries = item
                .entries
                .into_iter()
                .map(|entry| Ok((Seq::new(entry.seq), required_body(entry.body)?)))
                .collect::<Result<Vec<_>, LinkDecodeError>>()?;
            Ok(Page {
                entries,
                end: Seq::new(item.end),
                latest: Seq::new(item.latest),
                has_more: item.has_more,
                trimmed_to: Seq::new(item.trimmed_to),
            })
        }
    };
    let to = (SessionKey::from_u64(item.session), Attach::new(item.attach));
    Ok(Down::SyncDone { to, tag: required_tag(item.tag)?, result })
}

impl From<Tag> for pb::Tag {
    fn from(tag: Tag) -> Self {
        Self { request_id: tag.request_id, seq: tag.seq }
    }
}

impl From<pb::Tag> for Tag {
    fn from(tag: pb::Tag) -> Self {
        Self { request_id: tag.request_id, seq: tag.seq }
    }
}

impl From<Refusal> for pb::Refusal {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code, message: refusal.message }
    }
}

impl From<pb::Refusal> for Refusal {
    fn from(refusal: pb::Refusal) -> Self {
        Self { code: refusal.code, message: refusal.message }
    }
}

impl From<Target> for pb::Target {
    fn from(target: Target) -> Self {
        Self { session: target.session.to_u64(), attach: target.attach.get(), seq: target.seq.get() }
    }
}

impl From<pb::Target> for Target {
    fn from(target: pb::Target) -> Self {
        Self {
            session: SessionKey::from_u64(target.session),
            attach: Attach::new(target.attach),
            seq: Seq::new(target.seq),
        }
    }
}

impl From<Body> for pb::Body {
    fn from(body: Body) -> Self {
        Self {
            message_id: body.message_id.get(),
            from_user: body.from_user.get(),
            from_device: body.from_device.get(),
            command: body.command,
            content: body.content,
            created_at_ms: body.created_at_ms,
            group: body.group.get(),
            group_seq: body.group_seq.get(),
        }
    }
}

impl From<pb::Body> for Body {
    fn from(body: pb::Body) -> Self {
        Self {
            message_id: MessageId::new(body.message_id),
            from_user: UserId::new(body.from_user),
            from_device: DeviceId::new(body.from_device),
            command: body.command,
            content: body.content,
            created_at_ms: body.created_at_ms,
            group: GroupId::new(body.group),
            group_seq: Seq::new(body.group_seq),
        }
    }
}

impl From<Signal> for pb::Signal {
    fn from(signal: Signal) -> Self {
        let (to_user, room) = match signal.to {
            SignalTarget::User(user) => (user.get(), 0),
            SignalTarget::Room(room) => (0, room.get()),
        };
        Self {
            from_user: signal.from_user.get(),
            from_device: signal.from_device.get(),
            to_user,
            room,
            command: signal.command,
            content: signal.content,
        }
    }
}

impl TryFrom<pb::Signal> for Signal {
    type Error = LinkDecodeError;

    fn try_from(signal: pb::Signal) -> Result<Self, LinkDecodeError> {
        let to = match (signal.to_user, signal.room) {
            (0, 0) => return Err(LinkDecodeError::Missing("to")),
            (user, 0) => SignalTarget::User(UserId::new(user)),
            (0, room) => SignalTarget::Room(RoomId::new(room)),
            (_, room) => {
                return Err(LinkDecodeError::OutOfRange { field: "room beside to_user", value: room });
            }
        };
        Ok(Self {
            from_user: UserId::new(signal.from_user),
            from_device: DeviceId::new(signal.from_device),
            to,
            command: signal.command,
            content: signal.content,
        })
    }
}

fn required_tag(tag: Option<pb::Tag>) -> Result<Tag, LinkDecodeError> {
    Ok(tag.ok_or(LinkDecodeError::Missing("tag"))?.into())
}

fn required_body(body: Option<pb::Body>) -> Result<Arc<Body>, LinkDecodeError> {
    Ok(Arc::new(body.ok_or(LinkDecodeError::Missing("body"))?.into()))
}

fn byte(field: &'static str, value: u32) -> Result<u8, LinkDecodeError> {
    u8::try_from(value).map_err(|_| LinkDecodeError::OutOfRange { field, value: u64::from(value) })
}

fn close_reason(code: u32) -> Result<CloseReason, LinkDecodeError> {
    u16::try_from(code)
        .ok()
        .and_then(CloseReason::from_code)
        .ok_or(LinkDecodeError::OutOfRange { field: "reason", value: u64::from(code) })
}

#[cfg(test)]
mod tests;
