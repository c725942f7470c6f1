//! A member's message to its room, and where it stands there.

use crate::encoder::{
    Body, bytes_len, int32_len, int64_len, put_bytes, put_int32, put_int64, put_uint64, uint64_len,
};
use crate::error::DecodeError;
use crate::id::RoomId;
use crate::wire::Fields;

/// One message to all members of a room that are online now, the sender among them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Publish<'a> {
    /// In which the sender is.
    pub room: RoomId,
    /// Opaque type code.
    pub command: i32,
    /// Opaque content; above [`crate::limits::CONTENT_BYTES_MAX`] it is refused with a reply, not a close.
    pub content: &'a [u8],
}

impl<'a> Publish<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut publish = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => publish.room = RoomId::new(field.uint64()?),
                2 => publish.command = field.int32()?,
                3 => publish.content = field.bytes()?,
                _ => {}
            }
        }
        Ok(publish)
    }
}

impl Body for Publish<'_> {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.room.get()) + int32_len(2, self.command) + bytes_len(3, self.content)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.room.get());
        put_int32(out, 2, self.command);
        put_bytes(out, 3, self.content);
    }
}

/// A message has its place in the room's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// Life of the room.
    pub room_epoch: u64,
    /// From 1 within the epoch.
    pub room_seq: u64,
    /// Unix milliseconds.
    pub created_at_ms: i64,
}

impl Published {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut published = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => published.room_epoch = field.uint64()?,
                2 => published.room_seq = field.uint64()?,
                3 => published.created_at_ms = field.int64()?,
                _ => {}
            }
        }
        Ok(published)
    }
}

impl Body for Published {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.room_epoch) + uint64_len(2, self.room_seq) + int64_len(3, self.created_at_ms)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.room_epoch);
        put_uint64(out, 2, self.room_seq);
        put_int64(out, 3, self.created_at_ms);
    }
}
