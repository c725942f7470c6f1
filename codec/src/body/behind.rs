//! The word that messages wait in the mailbox.

use crate::encoder::{Body, put_uint64, uint64_len};
use crate::error::DecodeError;
use crate::id::Seq;
use crate::wire::Fields;

/// Messages wait in the mailbox; live delivery has stopped until a sync reaches `latest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Behind {
    /// The mailbox's newest seq, as far as the gateway knows.
    pub latest: Seq,
}

impl Behind {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut behind = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            if field.number == 1 {
                behind.latest = Seq::new(field.uint64()?);
            }
        }
        Ok(behind)
    }
}

impl Body for Behind {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.latest.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.latest.get());
    }
}
