//! Acknowledgement: what a device has processed.

use crate::encoder::{Body, put_uint64, uint64_len};
use crate::error::DecodeError;
use crate::id::Seq;
use crate::wire::Fields;

/// Request: everything up to `seq` is processed. Answer: the device's ack now, which never moves backwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// Highest seq processed.
    pub seq: Seq,
}

impl Ack {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut ack = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                ack.seq = Seq::new(field.uint64()?);
            }
        }
        Ok(ack)
    }
}

impl Body for Ack {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.seq.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.seq.get());
    }
}
