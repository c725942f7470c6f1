//! What happened, as the event stream keeps it.

use gimbal_codec::{Attach, DeviceId, MessageId, Seq, UserId};

use super::{CorruptValue, FORM_1, Reader, Value, put_signed, put_varint};

/// What kind of thing happened. The numbers are on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum EventKind {
    /// A device has a session now.
    Online = 1,
    /// It has none any more.
    Offline = 2,
    /// A message is in a mailbox.
    Message = 3,
    /// The same, and its user had no session.
    OfflineMessage = 4,
    /// A device has processed its mailbox up to a seq.
    Ack = 5,
    /// A user did something about another one.
    Friend = 6,
    /// Something about a user's account, tokens or devices.
    Account = 7,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Online,
        Self::Offline,
        Self::Message,
        Self::OfflineMessage,
        Self::Ack,
        Self::Friend,
        Self::Account,
    ];
}

/// One event. What does not apply is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventRecord {
    /// What kind of thing.
    pub kind: EventKind,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Whose: the mailbox's, or who acted.
    pub user: UserId,
    /// Which device of that user.
    pub device: DeviceId,
    /// The sender, or whom the act was about.
    pub other: UserId,
    /// Which message.
    pub message: MessageId,
    /// Its place in the mailbox, or what was acknowledged.
    pub seq: Seq,
    /// Of the message.
    pub command: i32,
    /// Of [`EventKind::Friend`] and [`EventKind::Account`]: what was done; [`crate::event::Act`].
    pub act: u8,
}

impl EventRecord {
    /// An event of a user, without more.
    pub const fn new(kind: EventKind, at_ms: i64, user: UserId) -> Self {
        Self {
            kind,
            at_ms,
            user,
            device: DeviceId::new(0),
            other: UserId::new(0),
            message: MessageId::new(0),
            seq: Seq::new(0),
            command: 0,
            act: 0,
        }
    }
}

impl Value for EventRecord {
    const WHAT: &'static str = "event";

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[FORM_1, self.kind as u8]);
        put_signed(out, self.at_ms);
        let ids = [self.user.get(), self.device.get(), self.other.get(), self.message.get(), self.seq.get()];
        ids.into_iter().for_each(|id| put_varint(out, id));
        put_signed(out, self.command.into());
        out.push(self.act);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        let kind = reader.u8()?;
        let kind = EventKind::ALL.into_iter().find(|known| *known as u8 == kind);
        Ok(Self {
            kind: kind.ok_or_else(|| reader.corrupt("unknown kind"))?,
            at_ms: reader.signed()?,
            user: UserId::new(reader.varint()?),
            device: DeviceId::new(reader.varint()?),
            other: UserId::new(reader.varint()?),
            message: MessageId::new(reader.varint()?),
            seq: Seq::new(reader.varint()?),
            command: reader.i32()?,
            act: reader.u8()?,
        })
    }
}

/// A device that is online as the stream has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnlineRecord {
    /// Of its session.
    pub attach: Attach,
}

impl Value for OnlineRecord {
    const WHAT: &'static str = "online";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_varint(out, self.attach.get());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self { attach: Attach::new(reader.varint()?) })
    }
}

/// When the last session of a user ended that the stream has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastSeen {
    /// Unix milliseconds.
    pub at_ms: i64,
}

impl Value for LastSeen {
    const WHAT: &'static str = "last seen";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_signed(out, self.at_ms);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self { at_ms: reader.signed()? })
    }
}
