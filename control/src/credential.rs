//! What devices show: their tokens.

use bytes::Bytes;
use gimbal_codec::{DeviceId, UserId, limits};
use tonic::metadata::MetadataMap;

use crate::{command::TokenHash, error::RequestError};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// What a device shows: metadata `user_id`, `device_id` (decimal) and `token`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceCredential {
    /// Claimed user.
    pub user: UserId,
    /// Claimed device.
    pub device: DeviceId,
    /// Hash of the token shown.
    pub token: TokenHash,
}

impl DeviceCredential {
    /// Parses; checks nothing against the store.
    ///
    /// # Errors
    /// [`RequestError::NotSignedIn`] when a part is absent or malformed.
    pub fn parse(metadata: &MetadataMap) -> Result<Self, RequestError> {
        Ok(Self {
            user: UserId::new(number(metadata, "user_id")?),
            device: DeviceId::new(number(metadata, "device_id")?),
            token: shown_token(metadata).ok_or(RequestError::NotSignedIn)?,
        })
    }
}

/// The hash of [`shown_text`].
pub fn shown_token(metadata: &MetadataMap) -> Option<TokenHash> {
    shown_text(metadata).map(|token| TokenHash::of(&token))
}

/// The token in `token` (text), or in `token-bin` (the bytes of that text), if one is shown that is no longer than any is.
pub fn shown_text(metadata: &MetadataMap) -> Option<Bytes> {
    let token = match metadata.get("token") {
        Some(text) => Bytes::copy_from_slice(text.as_bytes()),
        None => metadata.get_bin("token-bin")?.to_bytes().ok()?,
    };
    (1..=limits::TOKEN_BYTES_MAX).contains(&token.len()).then_some(token)
}

/// Who a caller says it is: metadata `user_id`, `device_id`, each of which it may leave out beside a token that tells it.
///
/// # Errors
/// [`RequestError::NotSignedIn`] when one is malformed.
pub fn claimed(metadata: &MetadataMap) -> Result<(UserId, DeviceId), RequestError> {
    let part = |key| if metadata.contains_key(key) { number(metadata, key) } else { Ok(0) };
    Ok((UserId::new(part("user_id")?), DeviceId::new(part("device_id")?)))
}

fn number(metadata: &MetadataMap, key: &str) -> Result<u64, RequestError> {
    let text = metadata.get(key).and_then(|value| value.to_str().ok()).ok_or(RequestError::NotSignedIn)?;
    text.parse().map_err(|_| RequestError::NotSignedIn)
}

/// A fresh token: 64 hexadecimal digits of 256 random bits from the kernel, and its hash.
///
/// # Errors
/// [`RequestError::Internal`] when the kernel gives no randomness.
pub fn new_token() -> Result<(String, TokenHash), RequestError> {
    let mut secret = [0; TOKEN_BYTES];
    getrandom::fill(&mut secret).map_err(|error| {
        tracing::error!(%error, "no randomness");
        RequestError::Internal
    })?;
    let text = hex::encode(secret);
    let hash = TokenHash::of(text.as_bytes());
    Ok((text, hash))
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in pairs {
            map.insert(*key, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_device_credential_is_whole_or_refused() {
        let whole = [("user_id", "7"), ("device_id", "8"), ("token", "secret")];
        let expected = DeviceCredential {
            user: UserId::new(7),
            device: DeviceId::new(8),
            token: TokenHash::of(b"secret"),
        };
        assert_eq!(DeviceCredential::parse(&metadata(&whole)), Ok(expected));
        for absent in 0..3 {
            let mut part = whole.to_vec();
            part.remove(absent);
            assert_eq!(DeviceCredential::parse(&metadata(&part)), Err(RequestError::NotSignedIn));
        }
        let malformed = [("user_id", "-7"), ("device_id", "8"), ("token", "secret")];
        assert_eq!(DeviceCredential::parse(&metadata(&malformed)), Err(RequestError::NotSignedIn));
        let mut binary = metadata(&whole[..2]);
        binary.insert_bin("token-bin", MetadataValue::from_bytes(b"secret"));
        assert_eq!(DeviceCredential::parse(&binary), Ok(expected));
    }

    #[test]
    fn tokens_are_64_hexadecimal_digits_and_differ() {
        let (first, hash) = new_token().unwrap();
        let (second, _) = new_token().unwrap();
        assert_eq!((first.len(), hash), (64, TokenHash::of(first.as_bytes())));
        assert_ne!(first, second);
    }
}
