//! Sign-in, the first command of a connection.

use std::fmt;

use crate::encoder::{
    Body, bytes_len, int64_len, optional_uint64_len, put_bytes, put_int64, put_optional_uint64, put_uint64,
    uint64_len,
};
use crate::error::DecodeError;
use crate::id::{DeviceId, Seq, UserId};
use crate::limits::TOKEN_BYTES_MAX;
use crate::wire::Fields;

/// Who connects, and the proof.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SignIn<'a> {
    /// Claimed user.
    pub user: UserId,
    /// Claimed device.
    pub device: DeviceId,
    /// Secret of the device, at most [`TOKEN_BYTES_MAX`] bytes.
    pub token: &'a str,
    /// Highest seq the device has. Present: no hole between sync and live. Absent: a client of gim.
    pub cursor: Option<Seq>,
}

/// Without the token: it is a secret.
impl fmt::Debug for SignIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignIn")
            .field("user", &self.user)
            .field("device", &self.device)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl<'a> SignIn<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`], also for a token above [`TOKEN_BYTES_MAX`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut sign_in = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => sign_in.user = UserId::new(field.uint64()?),
                2 => sign_in.device = DeviceId::new(field.uint64()?),
                3 => {
                    sign_in.token = field.str()?;
                    if sign_in.token.len() > TOKEN_BYTES_MAX {
                        return Err(field.over_limit().into());
                    }
                }
                16 => sign_in.cursor = Some(Seq::new(field.uint64()?)),
                _ => {}
            }
        }
        Ok(sign_in)
    }
}

impl Body for SignIn<'_> {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.user.get())
            + uint64_len(2, self.device.get())
            + bytes_len(3, self.token.as_bytes())
            + optional_uint64_len(16, self.cursor.map(Seq::get))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.user.get());
        put_uint64(out, 2, self.device.get());
        put_bytes(out, 3, self.token.as_bytes());
        put_optional_uint64(out, 16, self.cursor.map(Seq::get));
    }
}

/// The data of the answer to a sign-in that carried a cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SignInResult {
    /// The mailbox's newest seq.
    pub latest: Seq,
    /// The server closes a connection it hears nothing from for this long, in milliseconds.
    pub idle_ms: u64,
    /// Longest packet the server accepts.
    pub frame_bytes_max: u64,
    /// The server's clock, Unix milliseconds.
    pub server_time_ms: i64,
    /// Who this is; none unless the client did not say.
    pub user: UserId,
    /// Which device this is; none unless the client did not say.
    pub device: DeviceId,
}

impl SignInResult {
    /// Reads the message.
    ///
    /// # Errors
    /// [`DecodeError::BadBody`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut result = Self::default();
        let mut fields = Fields::of(bytes);
        while let Some(field) = fields.next()? {
            match field.number {
                1 => result.latest = Seq::new(field.uint64()?),
                2 => result.idle_ms = field.uint64()?,
                3 => result.frame_bytes_max = field.uint64()?,
                4 => result.server_time_ms = field.int64()?,
                5 => result.user = UserId::new(field.uint64()?),
                6 => result.device = DeviceId::new(field.uint64()?),
                _ => {}
            }
        }
        Ok(result)
    }
}

impl Body for SignInResult {
    fn encoded_len(&self) -> usize {
        uint64_len(1, self.latest.get())
            + uint64_len(2, self.idle_ms)
            + uint64_len(3, self.frame_bytes_max)
            + int64_len(4, self.server_time_ms)
            + uint64_len(5, self.user.get())
            + uint64_len(6, self.device.get())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_uint64(out, 1, self.latest.get());
        put_uint64(out, 2, self.idle_ms);
        put_uint64(out, 3, self.frame_bytes_max);
        put_int64(out, 4, self.server_time_ms);
        put_uint64(out, 5, self.user.get());
        put_uint64(out, 6, self.device.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_zero_is_not_an_absent_one() {
        let mut bytes = Vec::new();
        SignIn { cursor: Some(Seq::new(0)), ..SignIn::default() }.encode(&mut bytes);
        assert_eq!(bytes, [0x80, 0x01, 0x00]);
        assert_eq!(SignIn::decode(&bytes).unwrap().cursor, Some(Seq::new(0)));
        assert_eq!(SignIn::decode(&[]).unwrap().cursor, None);
    }

    #[test]
    fn a_token_is_bounded_and_never_printed() {
        for (bytes, is_good) in [(TOKEN_BYTES_MAX, true), (TOKEN_BYTES_MAX + 1, false)] {
            let token = "t".repeat(bytes);
            let mut body = Vec::new();
            SignIn { token: &token, ..SignIn::default() }.encode(&mut body);
            assert_eq!(SignIn::decode(&body).is_ok(), is_good);
        }
        let sign_in = SignIn { token: "secret", ..SignIn::default() };
        assert!(!format!("{sign_in:?}").contains("secret"));
    }
}
