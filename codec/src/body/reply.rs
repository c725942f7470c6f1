//! The answer to a command.

use crate::encoder::{Body, bytes_len, int32_len, message_len, put_bytes, put_int32, put_message};
use crate::error::DecodeError;
use crate::wire::Fields;

/// The answer to a command. Success without data encodes to nothing, as gim's clients expect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reply<'a> {
    /// A code of [`crate::code`].
    pub code: i32,
    /// Short text for people; empty on success.
    pub message: &'a str,
    /// The encoded result, when the command has one.
    pub data: &'a [u8],
}

impl<'a> Reply<'a> {
    /// An answer without data.
    pub const fn new(code: i32, message: &'a str) -> Self {
        Self { code, message, data: &[] }
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reply = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => reply.code = field.int32()?,
                2 => reply.message = field.str()?,
                3 => reply.data = field.bytes()?,
                _ => {}
            }
        }
        Ok(reply)
    }
}

impl Body for Reply<'_> {
    fn encoded_len(&self) -> usize {
        int32_len(1, self.code) + bytes_len(2, self.message.as_bytes()) + bytes_len(3, self.data)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_int32(out, 1, self.code);
        put_bytes(out, 2, self.message.as_bytes());
        put_bytes(out, 3, self.data);
    }
}

/// A successful [`Reply`] whose data is encoded in place, without a buffer of its own.
#[derive(Clone, Copy, Debug)]
pub struct ReplyWith<'a, B: ?Sized>(pub &'a B);

impl<B: Body + ?Sized> Body for ReplyWith<'_, B> {
    fn encoded_len(&self) -> usize {
        message_len(3, self.0.encoded_len())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_message(out, 3, self.0.encoded_len(), self.0);
    }
}
