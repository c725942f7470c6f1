//! The packet: what one frame carries.

use bytes::Bytes;

use crate::encoder::{Body, Head, frame, put_varint, varint_len};
use crate::error::{DecodeError, WireError};
use crate::limits::REQUEST_ID_BYTES_MAX;
use crate::wire::Fields;

/// One packet, borrowed from the frame it came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packet<'a> {
    /// Chosen by the client, kept in the answer. At most [`REQUEST_ID_BYTES_MAX`] bytes.
    pub request_id: &'a str,
    /// A number of [`crate::Command`], or one nobody defined.
    pub command: i32,
    /// One encoded message; which one, the command says.
    pub content: &'a [u8],
    /// Chosen by the client, kept in the answer.
    pub seq: u64,
}

impl<'a> Packet<'a> {
    /// Reads a packet from a frame without its length prefix.
    ///
    /// # Errors
    /// [`DecodeError::BadPacket`] only.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        Self::parse(body).map_err(DecodeError::BadPacket)
    }

    fn parse(body: &'a [u8]) -> Result<Self, WireError> {
        let mut packet = Self::default();
        let mut fields = Fields::of(body);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => {
                    packet.request_id = field.str()?;
                    if packet.request_id.len() > REQUEST_ID_BYTES_MAX {
                        return Err(field.over_limit());
                    }
                }
                2 => packet.command = field.int32()?,
                3 => packet.content = field.bytes()?,
                4 => packet.seq = field.uint64()?,
                _ => {}
            }
        }
        Ok(packet)
    }

    const fn head(&self) -> Head<'a> {
        Head { command: self.command, request_id: self.request_id.as_bytes(), seq: self.seq }
    }

    /// Length of the packet itself, without a length prefix.
    pub fn body_bytes(&self) -> usize {
        self.head().packet_bytes(self.content.len())
    }

    /// Appends the frame: length prefix and packet.
    pub fn put_frame(&self, out: &mut Vec<u8>) {
        let packet_bytes = self.body_bytes();
        out.reserve(varint_len(packet_bytes as u64) + packet_bytes);
        put_varint(out, packet_bytes as u64);
        self.head().put_packet(out, self.content.len(), self.content);
    }

    /// The frame in one allocation of its exact size.
    pub fn to_frame(&self) -> Bytes {
        frame(self.command, self.request_id, self.seq, self.content)
    }

    /// The frame that answers this packet: its request id, command and seq with another content.
    pub fn answer<B: Body + ?Sized>(&self, content: &B) -> Bytes {
        frame(self.command, self.request_id, self.seq, content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_skipped_and_the_last_value_wins() {
        let bytes = [0x10, 1, 0x10, 2, 0x7a, 3, 9, 9, 9, 0x85, 1, 1, 2, 3, 4, 0x0a, 1, b'a', 0x0a, 1, b'b'];
        let packet = Packet::decode(&bytes).unwrap();
        assert_eq!(packet, Packet { request_id: "b", command: 2, ..Packet::default() });
    }

    #[test]
    fn a_negative_command_is_kept() {
        let frame = Packet { command: -1, ..Packet::default() }.to_frame();
        assert_eq!(frame[..], [11, 0x10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        assert_eq!(Packet::decode(&frame[1..]).unwrap().command, -1);
    }

    #[test]
    fn a_request_id_must_be_short_utf8() {
        assert_eq!(
            Packet::decode(&[0x0a, 1, 0xff]),
            Err(DecodeError::BadPacket(WireError::NotUtf8 { field: 1 }))
        );
        for (bytes, is_good) in [(REQUEST_ID_BYTES_MAX, true), (REQUEST_ID_BYTES_MAX + 1, false)] {
            let id = "x".repeat(bytes);
            let frame = Packet { request_id: &id, ..Packet::default() }.to_frame();
            assert_eq!(Packet::decode(&frame[2..]).is_ok(), is_good);
        }
    }
}
