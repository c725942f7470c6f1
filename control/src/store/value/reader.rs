//! Takes stored forms apart; whatever does not fit is an error that says where.

/// Bytes on disk that this version did not write, or that were damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("stored {what}: {why} at byte {at}")]
pub struct CorruptValue {
    /// Kind of value.
    pub what: &'static str,
    /// What is wrong.
    pub why: &'static str,
    /// Offset.
    pub at: usize,
}

/// Takes a stored form apart.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Over `bytes`; `what` names them in errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// An error at this place.
    pub fn corrupt(&self, why: &'static str) -> CorruptValue {
        CorruptValue { what: self.what, why, at: self.at }
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self) -> Result<u8, CorruptValue> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.corrupt("cut short"))?;
        self.at += 1;
        Ok(byte)
    }

    /// `length` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, length: u64) -> Result<&'a [u8], CorruptValue> {
        let rest = &self.bytes[self.at..];
        let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
        let length = length.ok_or_else(|| self.corrupt("cut short"))?;
        self.at += length;
        Ok(&rest[..length])
    }

    /// A length and that many bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn bytes(&mut self) -> Result<&'a [u8], CorruptValue> {
        let length = self.varint()?;
        self.take(length)
    }

    /// An unsigned varint.
    ///
    /// # Errors
    /// When it is cut short or above 64 bits.
    pub fn varint(&mut self) -> Result<u64, CorruptValue> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.corrupt("a number above 64 bits"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, CorruptValue> {
        self.varint().map(unzigzag)
    }

    pub(super) fn i32(&mut self) -> Result<i32, CorruptValue> {
        let value = self.signed()?;
        i32::try_from(value).map_err(|_| self.corrupt("a number above 32 bits"))
    }

    pub(super) fn text(&mut self) -> Result<String, CorruptValue> {
        let bytes = self.bytes()?;
        Ok(std::str::from_utf8(bytes).map_err(|_| self.corrupt("not UTF-8"))?.to_owned())
    }

    pub(super) fn flag(&mut self) -> Result<bool, CorruptValue> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt("unknown flag")),
        }
    }

    pub(super) fn form(&mut self, known: u8) -> Result<(), CorruptValue> {
        if self.u8()? == known { Ok(()) } else { Err(self.corrupt("unknown form")) }
    }
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
