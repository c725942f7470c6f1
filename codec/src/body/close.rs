//! Why a connection ends, told to the client as the last frame.

use crate::close::CloseReason;
use crate::encoder::{Body, bytes_len, put_bytes, put_uint64, uint64_len};
use crate::error::DecodeError;
use crate::wire::Fields;

/// The last frame of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Close<'a> {
    /// A code of [`CloseReason`], or of a newer server: its range tells what to do.
    pub code: u16,
    /// Short text for people.
    pub reason: &'a str,
    /// Milliseconds to wait before the next connection; 0: no wish.
    pub retry_after_ms: u64,
}

impl<'a> Close<'a> {
    /// The frame's content for a reason of ours.
    pub const fn new(reason: CloseReason, retry_after_ms: u64) -> Close<'static> {
        Close { code: reason.code(), reason: reason.text(), retry_after_ms }
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`], also when the code is above 16 bits.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut close = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => close.code = u16::try_from(field.uint32()?).map_err(|_| field.over_limit())?,
                2 => close.reason = field.str()?,
                3 => close.retry_after_ms = field.uint64()?,
                _ => {}
            }
        }
        Ok(close)
    }
}

impl Body for Close<'_> {
    fn encoded_len(&self) -> usize {
        uint64_len(1, u64::from(self.code))
            + bytes_len(2, self.reason.as_bytes())
            + uint64_len(3, self.retry_after_ms)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, u64::from(self.code));
        put_bytes(out, 2, self.reason.as_bytes());
        put_uint64(out, 3, self.retry_after_ms);
    }
}
