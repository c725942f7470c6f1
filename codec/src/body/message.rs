//! A delivered message: live, in a sync page, or of a room.

use crate::encoder::{
    Body, bytes_len, int32_len, int64_len, put_bytes, put_int32, put_int64, put_uint64, uint64_len,
};
use crate::error::DecodeError;
use crate::id::{DeviceId, GroupId, MessageId, RoomId, Seq, UserId};
use crate::wire::Fields;

/// One message for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Message<'a> {
    /// Opaque type code.
    pub command: i32,
    /// Opaque content, at most [`crate::limits::CONTENT_BYTES_MAX`] bytes.
    pub content: &'a [u8],
    /// Place in the mailbox; 0 when not stored (room, push to all).
    pub seq: Seq,
    /// Unix seconds, for gim's clients.
    pub created_at: i64,
    /// The room it was published in; 0: none.
    pub room: RoomId,
    /// Its id; 0 when not stored.
    pub id: MessageId,
    /// Sender; 0: the backend.
    pub from_user: UserId,
    /// Sending device; 0: the backend.
    pub from_device: DeviceId,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// One life of the room's order; 0 outside rooms.
    pub room_epoch: u64,
    /// Place in the room's order, from 1 in each epoch; 0 outside rooms.
    pub room_seq: u64,
    /// The group it was sent to; 0: none.
    pub group: GroupId,
    /// Place in the group's order, gapless from 1; 0 outside groups.
    pub group_seq: Seq,
}

impl<'a> Message<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut message = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                2 => message.command = field.int32()?,
                3 => message.content = field.bytes()?,
                4 => message.seq = Seq::new(field.uint64()?),
                5 => message.created_at = field.int64()?,
                6 => message.room = RoomId::new(field.uint64()?),
                16 => message.id = MessageId::new(field.uint64()?),
                17 => message.from_user = UserId::new(field.uint64()?),
                18 => message.from_device = DeviceId::new(field.uint64()?),
                19 => message.created_at_ms = field.int64()?,
                20 => message.room_epoch = field.uint64()?,
                21 => message.room_seq = field.uint64()?,
                22 => message.group = GroupId::new(field.uint64()?),
                23 => message.group_seq = Seq::new(field.uint64()?),
                _ => {}
            }
        }
        Ok(message)
    }
}

impl Body for Message<'_> {
    fn encoded_len(&self) -> usize {
        int32_len(2, self.command)
            + bytes_len(3, self.content)
            + uint64_len(4, self.seq.get())
            + int64_len(5, self.created_at)
            + uint64_len(6, self.room.get())
            + uint64_len(16, self.id.get())
            + uint64_len(17, self.from_user.get())
            + uint64_len(18, self.from_device.get())
            + int64_len(19, self.created_at_ms)
            + uint64_len(20, self.room_epoch)
            + uint64_len(21, self.room_seq)
            + uint64_len(22, self.group.get())
            + uint64_len(23, self.group_seq.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_int32(out, 2, self.command);
        put_bytes(out, 3, self.content);
        put_uint64(out, 4, self.seq.get());
        put_int64(out, 5, self.created_at);
        put_uint64(out, 6, self.room.get());
        put_uint64(out, 16, self.id.get());
        put_uint64(out, 17, self.from_user.get());
        put_uint64(out, 18, self.from_device.get());
        put_int64(out, 19, self.created_at_ms);
        put_uint64(out, 20, self.room_epoch);
        put_uint64(out, 21, self.room_seq);
        put_uint64(out, 22, self.group.get());
        put_uint64(out, 23, self.group_seq.get());
    }
}
