//! The head of a frame (RFC 6455, 5.2), as a client sends it.

use super::reader::Violation;

/// Longest head: two bytes, 64 bits of length, the mask.
pub(super) const BYTES_MAX: usize = 14;

/// Longest payload of a control frame (RFC 6455, 5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    const fn parse(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    pub(super) const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A whole head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) is_final: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: [u8; 4],
    /// Payload, in bytes; at most 125 for a control frame.
    pub(super) payload: u64,
    /// Of the head itself.
    pub(super) bytes: usize,
}

impl Head {
    /// Reads the head at the start of `bytes`; `None` when it is not complete. What can be refused is refused as early as
    /// its byte is there.
    ///
    /// # Errors
    /// What no client may send.
    #[inline]
    pub(super) fn peek(bytes: &[u8]) -> Result<Option<Self>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Violation::ReservedBit);
        }
        let opcode = Opcode::parse(first & 0x0f).ok_or(Violation::ReservedOpcode)?;
        let is_final = first & 0x80 != 0;
        if opcode.is_control() && !is_final {
            return Err(Violation::SplitControl);
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(Violation::NotMasked);
        }
        let short = second & 0x7f;
        if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(Violation::LongControl);
        }
        let Some((payload, length_end)) = payload_length(short, bytes)? else { return Ok(None) };
        let Some(mask) = bytes.get(length_end..length_end + 4) else { return Ok(None) };
        let mask = mask.try_into().expect("a slice of four");
        Ok(Some(Self { is_final, opcode, mask, payload, bytes: length_end + 4 }))
    }
}

/// The length and where it ends; `None` when it is not complete.
fn payload_length(short: u8, bytes: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    let (length, end, least) = match short {
        126 => {
            let Some(length) = bytes.get(2..4) else { return Ok(None) };
            (u64::from(u16::from_be_bytes(length.try_into().expect("two bytes"))), 4, 126)
        }
        127 => {
            let Some(length) = bytes.get(2..10) else { return Ok(None) };
            (u64::from_be_bytes(length.try_into().expect("eight bytes")), 10, 0x1_0000)
        }
        short => (u64::from(short), 2, 0),
    };
    if length < least || length >> 63 != 0 {
        return Err(Violation::BadLength);
    }
    Ok(Some((length, end)))
}

/// Takes the mask off `payload`, whose first byte is number `position` of its frame (RFC 6455, 5.3).
#[inline]
pub(super) fn unmask(payload: &mut [u8], mask: [u8; 4], position: usize) {
    let mut mask = mask;
    mask.rotate_left(position % 4);
    let mask = u32::from_be_bytes(mask);
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_be_bytes(*word) ^ mask).to_be_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.to_be_bytes()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_comes_off_at_any_split() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let masked = [0x7f, 0x9f, 0x4d, 0x51, 0x58]; // RFC 6455, 5.7: "Hello"
        for split in 0..=masked.len() {
            let mut bytes = masked;
            let (front, back) = bytes.split_at_mut(split);
            unmask(front, mask, 0);
            unmask(back, mask, split);
            assert_eq!(&bytes, b"Hello", "split at {split}");
        }
    }

    #[test]
    fn a_head_is_refused_as_soon_as_its_bad_byte_is_there() {
        assert_eq!(Head::peek(&[0xc2]), Err(Violation::ReservedBit));
        assert_eq!(Head::peek(&[0x83]), Err(Violation::ReservedOpcode));
        assert_eq!(Head::peek(&[0x09]), Err(Violation::SplitControl));
        assert_eq!(Head::peek(&[0x82, 0x05]), Err(Violation::NotMasked));
        assert_eq!(Head::peek(&[0x89, 0xfe]), Err(Violation::LongControl));
        assert_eq!(Head::peek(&[0x82, 0xfe, 0, 125]), Err(Violation::BadLength));
        assert_eq!(Head::peek(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]), Err(Violation::BadLength));
        assert_eq!(Head::peek(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), Err(Violation::BadLength));
    }

    #[test]
    fn a_head_is_complete_with_its_last_byte() {
        for head in [
            vec![0x82, 0x85, 1, 2, 3, 4],
            vec![0x01, 0xfe, 0, 126, 1, 2, 3, 4],
            vec![0x80, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4],
        ] {
            for end in 0..head.len() {
                assert_eq!(Head::peek(&head[..end]), Ok(None), "{head:?} to {end}");
            }
            let read = Head::peek(&head).unwrap().unwrap();
            assert_eq!((read.bytes, read.mask), (head.len(), [1, 2, 3, 4]));
        }
    }
}
