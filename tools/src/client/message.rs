//! What a mailbox gives, owned.

use bytes::Bytes;
use gimbal_codec::{DecodeError, DeviceId, GroupId, MessageId, RoomId, Seq, UserId, body};

/// One message, owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Position in the mailbox; 0 when it is not stored.
    pub seq: Seq,
    /// Its id; 0 when it is not stored.
    pub id: MessageId,
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
    /// The room it was published to, or 0.
    pub room: RoomId,
    /// Epoch and number in that room's order.
    pub room_order: (u64, u64),
    /// The group it was sent to, or 0.
    pub group: GroupId,
    /// Place in that group's order.
    pub group_seq: Seq,
}

impl From<&body::Message<'_>> for Message {
    fn from(message: &body::Message<'_>) -> Self {
        Self {
            seq: message.seq,
            id: message.id,
            from_user: message.from_user,
            from_device: message.from_device,
            command: message.command,
            content: Bytes::copy_from_slice(message.content),
            created_at_ms: message.created_at_ms,
            room: message.room,
            room_order: (message.room_epoch, message.room_seq),
            group: message.group,
            group_seq: message.group_seq,
        }
    }
}

/// One page of the mailbox, owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// In rising seq.
    pub messages: Vec<Message>,
    /// The mailbox's newest seq.
    pub latest: Seq,
    /// More follow.
    pub has_more: bool,
    /// Messages up to here are no longer kept.
    pub trimmed_to: Seq,
}

impl Page {
    pub(super) fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let page = body::SyncPage::decode(data)?;
        Ok(Self {
            messages: page.messages.iter().map(Message::from).collect(),
            latest: page.latest,
            has_more: page.has_more,
            trimmed_to: page.trimmed_to,
        })
    }
}
