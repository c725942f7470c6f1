//! Values to bytes. Lengths are computed first, so a frame is one allocation of its exact size.

use bytes::Bytes;

/// A message that can be the content of a packet or the data of a reply.
pub trait Body {
    /// Bytes that [`Self::encode`] appends.
    fn encoded_len(&self) -> usize;

    /// Appends the message to `out`; fields with their default value are left out, as proto3 does.
    fn encode(&self, out: &mut Vec<u8>);
}

/// The empty body.
impl Body for () {
    fn encoded_len(&self) -> usize {
        0
    }

    fn encode(&self, _: &mut Vec<u8>) {}
}

/// Bytes that are a message already.
impl Body for [u8] {
    fn encoded_len(&self) -> usize {
        self.len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

/// One whole frame, length prefix and packet, in one allocation. `request_id` is UTF-8, as that of a decoded packet is.
pub fn frame<B: Body + ?Sized>(
    command: impl Into<i32>,
    request_id: &(impl AsRef<[u8]> + ?Sized),
    seq: u64,
    content: &B,
) -> Bytes {
    let head = Head { command: command.into(), request_id: request_id.as_ref(), seq };
    let content_bytes = content.encoded_len();
    let packet_bytes = head.packet_bytes(content_bytes);
    let mut out = Vec::with_capacity(varint_len(packet_bytes as u64) + packet_bytes);
    put_varint(&mut out, packet_bytes as u64);
    head.put_packet(&mut out, content_bytes, content);
    debug_assert_eq!(out.len(), out.capacity());
    Bytes::from(out)
}

/// A frame around a packet that is bytes already, as the answer to a heartbeat.
pub fn frame_of_packet(packet: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(varint_len(packet.len() as u64) + packet.len());
    put_varint(&mut out, packet.len() as u64);
    out.extend_from_slice(packet);
    Bytes::from(out)
}

/// A packet without its content.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) command: i32,
    pub(crate) request_id: &'a [u8],
    pub(crate) seq: u64,
}

impl Head<'_> {
    /// Length of the whole packet with a content of `content_bytes`.
    pub(crate) fn packet_bytes(self, content_bytes: usize) -> usize {
        bytes_len(1, self.request_id)
            + int32_len(2, self.command)
            + message_len(3, content_bytes)
            + uint64_len(4, self.seq)
    }

    /// Appends the packet; `content_bytes` is the content's `encoded_len`.
    pub(crate) fn put_packet<B: Body + ?Sized>(self, out: &mut Vec<u8>, content_bytes: usize, content: &B) {
        put_bytes(out, 1, self.request_id);
        put_int32(out, 2, self.command);
        put_message(out, 3, content_bytes, content);
        put_uint64(out, 4, self.seq);
    }
}

/// Bytes of a varint: one for each started group of seven bits.
#[inline]
pub(crate) const fn varint_len(value: u64) -> usize {
    // 9/64 is a little under 1/7, and right for every width up to 64.
    ((64 - (value | 1).leading_zeros() as usize) * 9 + 64) / 64
}

#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

const VARINT: u32 = 0;
const BYTES: u32 = 2;

#[inline]
const fn tag_len(field: u32) -> usize {
    varint_len((field << 3) as u64)
}

#[inline]
fn put_tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    put_varint(out, u64::from(field << 3 | wire_type));
}

#[inline]
pub(crate) fn uint64_len(field: u32, value: u64) -> usize {
    if value == 0 { 0 } else { tag_len(field) + varint_len(value) }
}

#[inline]
pub(crate) fn put_uint64(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        put_tag(out, field, VARINT);
        put_varint(out, value);
    }
}

/// A field with presence: written also when zero.
#[inline]
pub(crate) fn optional_uint64_len(field: u32, value: Option<u64>) -> usize {
    value.map_or(0, |value| tag_len(field) + varint_len(value))
}

#[inline]
pub(crate) fn put_optional_uint64(out: &mut Vec<u8>, field: u32, value: Option<u64>) {
    if let Some(value) = value {
        put_tag(out, field, VARINT);
        put_varint(out, value);
    }
}

#[inline]
pub(crate) fn int64_len(field: u32, value: i64) -> usize {
    uint64_len(field, value as u64)
}

#[inline]
pub(crate) fn put_int64(out: &mut Vec<u8>, field: u32, value: i64) {
    put_uint64(out, field, value as u64);
}

/// A negative `int32` is sign-extended to ten bytes.
#[inline]
pub(crate) fn int32_len(field: u32, value: i32) -> usize {
    int64_len(field, i64::from(value))
}

#[inline]
pub(crate) fn put_int32(out: &mut Vec<u8>, field: u32, value: i32) {
    put_int64(out, field, i64::from(value));
}

#[inline]
pub(crate) fn bool_len(field: u32, value: bool) -> usize {
    uint64_len(field, u64::from(value))
}

#[inline]
pub(crate) fn put_bool(out: &mut Vec<u8>, field: u32, value: bool) {
    put_uint64(out, field, u64::from(value));
}

#[inline]
pub(crate) fn bytes_len(field: u32, value: &[u8]) -> usize {
    message_len(field, value.len())
}

#[inline]
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_message(out, field, value.len(), value);
}

/// A single message or bytes field; an empty one is left out.
#[inline]
pub(crate) fn message_len(field: u32, bytes: usize) -> usize {
    if bytes == 0 { 0 } else { element_len(field, bytes) }
}

#[inline]
pub(crate) fn put_message<B: Body + ?Sized>(out: &mut Vec<u8>, field: u32, bytes: usize, value: &B) {
    if bytes != 0 {
        put_element(out, field, bytes, value);
    }
}

/// An element of a repeated message field: present also when empty.
#[inline]
pub(crate) fn element_len(field: u32, bytes: usize) -> usize {
    tag_len(field) + varint_len(bytes as u64) + bytes
}

#[inline]
pub(crate) fn put_element<B: Body + ?Sized>(out: &mut Vec<u8>, field: u32, bytes: usize, value: &B) {
    put_tag(out, field, BYTES);
    put_varint(out, bytes as u64);
    value.encode(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_len_agrees_with_what_is_written() {
        let mut values = vec![0, u64::MAX];
        values.extend((0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]));
        for value in values {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(varint_len(value), out.len(), "{value:#x}");
        }
    }

    #[test]
    fn a_frame_is_one_allocation_of_its_exact_size() {
        let frame = frame(16, "id", 7, &[1u8, 2, 3][..]);
        assert_eq!(frame[..], [13, 0x0a, 2, b'i', b'd', 0x10, 16, 0x1a, 3, 1, 2, 3, 0x20, 7]);
        let vec = Vec::from(frame);
        assert_eq!(vec.len(), vec.capacity());
    }

    #[test]
    fn a_packet_of_defaults_still_makes_a_frame() {
        assert_eq!(frame(0, "", 0, &())[..], [0]);
        assert_eq!(frame_of_packet(&[0x10, 2])[..], [2, 0x10, 2]);
    }
}
