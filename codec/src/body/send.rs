//! Sending to another user or a group, and what came of it.

use crate::encoder::{
    Body, bool_len, bytes_len, int32_len, int64_len, put_bool, put_bytes, put_int32, put_int64, put_uint64,
    uint64_len,
};
use crate::error::DecodeError;
use crate::id::{ClientMessageId, GroupId, MessageId, Seq, UserId};
use crate::wire::Fields;

/// One message to another user's mailbox, or to those of a group's members.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Send<'a> {
    /// Rises with every new message of the device; the same number again is the same message.
    pub client_message_id: ClientMessageId,
    /// Recipient; 0: a group.
    pub to: UserId,
    /// Opaque type code.
    pub command: i32,
    /// Opaque content; above [`crate::limits::CONTENT_BYTES_MAX`] it is refused with a reply, not a close.
    pub content: &'a [u8],
    /// The group in place of a recipient; 0: none.
    pub group: GroupId,
}

impl<'a> Send<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut send = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => send.client_message_id = ClientMessageId::new(field.uint64()?),
                2 => send.to = UserId::new(field.uint64()?),
                3 => send.command = field.int32()?,
                4 => send.content = field.bytes()?,
                5 => send.group = GroupId::new(field.uint64()?),
                _ => {}
            }
        }
        Ok(send)
    }
}

impl Body for Send<'_> {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.client_message_id.get())
            + uint64_len(2, self.to.get())
            + int32_len(3, self.command)
            + bytes_len(4, self.content)
            + uint64_len(5, self.group.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.client_message_id.get());
        put_uint64(out, 2, self.to.get());
        put_int32(out, 3, self.command);
        put_bytes(out, 4, self.content);
        put_uint64(out, 5, self.group.get());
    }
}

/// The message is durable. A repeated send gets the first result again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendResult {
    /// Its id.
    pub message_id: MessageId,
    /// Its place in the recipient's mailbox, or in the group's order.
    pub seq: Seq,
    /// When it was first accepted, Unix milliseconds.
    pub created_at_ms: i64,
    /// It had been stored before; nothing was added.
    pub duplicate: bool,
}

impl SendResult {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut result = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => result.message_id = MessageId::new(field.uint64()?),
                2 => result.seq = Seq::new(field.uint64()?),
                3 => result.created_at_ms = field.int64()?,
                4 => result.duplicate = field.bool()?,
                _ => {}
            }
        }
        Ok(result)
    }
}

impl Body for SendResult {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.message_id.get())
            + uint64_len(2, self.seq.get())
            + int64_len(3, self.created_at_ms)
            + bool_len(4, self.duplicate)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.message_id.get());
        put_uint64(out, 2, self.seq.get());
        put_int64(out, 3, self.created_at_ms);
        put_bool(out, 4, self.duplicate);
    }
}
