//! Joining and leaving rooms.

use crate::encoder::{Body, message_len, put_message, put_uint64, put_varint, uint64_len, varint_len};
use crate::error::DecodeError;
use crate::id::RoomId;
use crate::limits::ROOMS_PER_FRAME_MAX;
use crate::wire::Fields;

/// gim's subscription: a session is in at most one room by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SubscribeRoom {
    /// The room to be in from now on; 0 leaves.
    pub room: RoomId,
}

impl SubscribeRoom {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut subscribe = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                subscribe.room = RoomId::new(field.uint64()?);
            }
        }
        Ok(subscribe)
    }
}

impl Body for SubscribeRoom {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.room.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.room.get());
    }
}

/// The rooms of a join or leave, at most [`ROOMS_PER_FRAME_MAX`]. An empty leave leaves all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rooms {
    /// In the client's order; may repeat.
    pub rooms: Vec<RoomId>,
}

impl Rooms {
    /// Reads the message; the list may be packed or not.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`], also for more rooms than [`ROOMS_PER_FRAME_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rooms = Vec::new();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                field.each_uint64(|room| {
                    if rooms.len() == ROOMS_PER_FRAME_MAX {
                        return Err(field.over_limit());
                    }
                    rooms.push(RoomId::new(room));
                    Ok(())
                })?;
            }
        }
        Ok(Self { rooms })
    }
}

/// The elements without tag and length.
struct Packed<'a>(&'a [RoomId]);

impl Body for Packed<'_> {
    fn encoded_len(&self) -> usize {
        self.0.iter().map(|room| varint_len(room.get())).sum()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for room in self.0 {
            put_varint(out, room.get());
        }
    }
}

impl Body for Rooms {
    fn encoded_len(&self) -> usize {
        message_len(1, Packed(&self.rooms).encoded_len())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let packed = Packed(&self.rooms);
        put_message(out, 1, packed.encoded_len(), &packed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_and_unpacked_lists_may_be_mixed() {
        let rooms = Rooms::decode(&[0x0a, 3, 1, 0x80, 1, 0x08, 7, 0x0a, 0, 0x0a, 1, 9]).unwrap();
        assert_eq!(rooms.rooms.iter().map(|room| room.get()).collect::<Vec<_>>(), [1, 128, 7, 9]);
    }

    #[test]
    fn the_list_is_bounded() {
        let full = [0x08, 1].repeat(ROOMS_PER_FRAME_MAX);
        assert_eq!(Rooms::decode(&full).unwrap().rooms.len(), ROOMS_PER_FRAME_MAX);
        assert!(Rooms::decode(&[0x08, 1].repeat(ROOMS_PER_FRAME_MAX + 1)).is_err());
    }
}
