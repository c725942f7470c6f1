//! Signals: typing and other things that are never stored.

use crate::encoder::{Body, bytes_len, int32_len, put_bytes, put_int32, put_uint64, uint64_len};
use crate::error::DecodeError;
use crate::id::{DeviceId, RoomId, UserId};
use crate::wire::Fields;

/// Something for the sessions of a user, or the members of a room, that are online now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signal<'a> {
    /// Target user; 0 when a room is the target.
    pub to_user: UserId,
    /// Target room; 0 when a user is the target.
    pub room: RoomId,
    /// Opaque type code.
    pub command: i32,
    /// Opaque content.
    pub content: &'a [u8],
    /// Sender; filled by the server, whatever the client wrote.
    pub from_user: UserId,
    /// Sending device; filled by the server.
    pub from_device: DeviceId,
}

impl<'a> Signal<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut signal = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => signal.to_user = UserId::new(field.uint64()?),
                2 => signal.room = RoomId::new(field.uint64()?),
                3 => signal.command = field.int32()?,
                4 => signal.content = field.bytes()?,
                5 => signal.from_user = UserId::new(field.uint64()?),
                6 => signal.from_device = DeviceId::new(field.uint64()?),
                _ => {}
            }
        }
        Ok(signal)
    }
}

impl Body for Signal<'_> {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.to_user.get())
            + uint64_len(2, self.room.get())
            + int32_len(3, self.command)
            + bytes_len(4, self.content)
            + uint64_len(5, self.from_user.get())
            + uint64_len(6, self.from_device.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.to_user.get());
        put_uint64(out, 2, self.room.get());
        put_int32(out, 3, self.command);
        put_bytes(out, 4, self.content);
        put_uint64(out, 5, self.from_user.get());
        put_uint64(out, 6, self.from_device.get());
    }
}
