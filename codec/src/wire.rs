//! Reading protobuf: one pass over borrowed bytes, field by field.
//!
//! As protobuf says (<https://protobuf.dev/programming-guides/encoding/>): unknown fields are skipped, the last value of
//! a single field wins, `int32` and `uint32` keep the low 32 bits. Stricter than protobuf: groups are an error, and so
//! is a known field with another wire type.

use crate::error::WireError;

/// Reads one varint at the start of `bytes`: its value and its length, 1 to 10.
#[inline]
fn varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    match bytes.first() {
        Some(&byte) if byte < 0x80 => Ok((u64::from(byte), 1)),
        Some(_) => long_varint(bytes),
        None => Err(WireError::Truncated),
    }
}

fn long_varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        if index == 9 && byte > 1 {
            return Err(WireError::BadVarint);
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Ok((value, index + 1));
        }
    }
    Err(WireError::Truncated)
}

/// What stands after a tag.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes; no message of ours has such a field.
    Fixed,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    /// Field number, from 1.
    pub(crate) number: u32,
    value: Value<'a>,
}

impl<'a> Field<'a> {
    const fn wrong_type(self) -> WireError {
        WireError::WrongType { field: self.number }
    }

    /// The error for a value that breaks a limit of this field.
    pub(crate) const fn over_limit(self) -> WireError {
        WireError::OverLimit { field: self.number }
    }

    #[inline]
    pub(crate) fn uint64(self) -> Result<u64, WireError> {
        match self.value {
            Value::Varint(value) => Ok(value),
            _ => Err(self.wrong_type()),
        }
    }

    /// Two's complement, as `int64` travels.
    #[inline]
    pub(crate) fn int64(self) -> Result<i64, WireError> {
        self.uint64().map(|value| value as i64)
    }

    /// Low 32 bits; a negative number travels as ten bytes.
    #[inline]
    pub(crate) fn int32(self) -> Result<i32, WireError> {
        self.uint64().map(|value| value as i32)
    }

    /// Low 32 bits.
    #[inline]
    pub(crate) fn uint32(self) -> Result<u32, WireError> {
        self.uint64().map(|value| value as u32)
    }

    /// Any number but zero is true.
    #[inline]
    pub(crate) fn bool(self) -> Result<bool, WireError> {
        self.uint64().map(|value| value != 0)
    }

    #[inline]
    pub(crate) fn bytes(self) -> Result<&'a [u8], WireError> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong_type()),
        }
    }

    #[inline]
    pub(crate) fn str(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::NotUtf8 { field: self.number })
    }

    /// Gives every element of a repeated `uint64`, packed or not, to `each`.
    pub(crate) fn each_uint64(
        self,
        mut each: impl FnMut(u64) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let mut packed = match self.value {
            Value::Varint(value) => return each(value),
            Value::Bytes(bytes) => bytes,
            Value::Fixed => return Err(self.wrong_type()),
        };
        while !packed.is_empty() {
            let (value, bytes) = varint(packed)?;
            packed = &packed[bytes..];
            each(value)?;
        }
        Ok(())
    }
}

/// The fields of one message, in their order on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) const fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field, or `None` at the end of the message.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = u32::try_from(self.varint()?).map_err(|_| WireError::BadTag)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(WireError::BadTag);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let bytes = self.varint()?;
                Value::Bytes(self.take(bytes)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            wire_type => return Err(WireError::BadWireType { field: number, wire_type: wire_type as u8 }),
        };
        Ok(Some(Field { number, value }))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        let (value, bytes) = varint(self.rest)?;
        self.rest = &self.rest[bytes..];
        Ok(value)
    }

    #[inline]
    fn take(&mut self, bytes: u64) -> Result<&'a [u8], WireError> {
        let bytes = usize::try_from(bytes).map_err(|_| WireError::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<u32>, WireError> {
        let mut fields = Fields::of(bytes);
        let mut numbers = Vec::new();
        while let Some(field) = fields.next()? {
            numbers.push(field.number);
        }
        Ok(numbers)
    }

    #[test]
    fn varints_are_read_up_to_64_bits_and_no_further() {
        assert_eq!(varint(&[0x00]), Ok((0, 1)));
        assert_eq!(varint(&[0x7f, 0xff]), Ok((127, 1)));
        assert_eq!(varint(&[0x80, 0x01]), Ok((128, 2)));
        assert_eq!(varint(&[0x80, 0x00]), Ok((0, 2)), "needless bytes are legal in protobuf");
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(varint(&max), Ok((u64::MAX, 10)));
        let above = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(varint(&above), Err(WireError::BadVarint));
        assert_eq!(varint(&[0x80; 11]), Err(WireError::BadVarint));
        assert_eq!(varint(&[0x80; 9]), Err(WireError::Truncated));
        assert_eq!(varint(&[]), Err(WireError::Truncated));
    }

    #[test]
    fn every_wire_type_but_groups_is_skipped() {
        assert_eq!(
            all(&[0x08, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x1a, 0x01, 9, 0x25, 1, 2, 3, 4]),
            Ok(vec![1, 2, 3, 4])
        );
        for wire_type in [3, 4, 6, 7] {
            assert_eq!(all(&[0x08 | wire_type]), Err(WireError::BadWireType { field: 1, wire_type }));
        }
    }

    #[test]
    fn bad_tags_and_cut_fields_are_errors() {
        assert_eq!(all(&[0x00, 0x01]), Err(WireError::BadTag));
        assert_eq!(all(&[0x80, 0x80, 0x80, 0x80, 0x10, 0x01]), Err(WireError::BadTag));
        for cut in [&[0x08][..], &[0x09, 1, 2, 3], &[0x0a, 0x05, 1, 2], &[0x0d, 1], &[0x0a], &[0x88]] {
            assert_eq!(all(cut), Err(WireError::Truncated), "{cut:02x?}");
        }
        let endless = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(all(&endless), Err(WireError::Truncated));
    }
}
