//! What callers show: keys of backends, administrators and gateways; tokens of devices.

use std::fmt;

use gimbal_codec::{DeviceId, UserId, limits};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::metadata::MetadataMap;

use crate::{command::TokenHash, error::RequestError};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// SHA-256 of a configured key; the key itself is not kept.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Of a key as its file holds it.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// In constant time.
    fn matches(&self, shown: &str) -> bool {
        self.0.ct_eq(&Self::of(shown).0).into()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

/// The keys that open methods.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// Backends.
    pub backend: KeyHash,
    /// Administrators.
    pub admin: KeyHash,
    /// Remote gateways; `None`: none may link.
    pub link: Option<KeyHash>,
}

/// Metadata that says what the certificate of a caller's connection stands for. Callers cannot set it: whatever comes under
/// this name is removed before a handler sees it.
pub(crate) const CERTIFIED: &str = "gimbal-certified-role";

/// Which key a method asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accounts' registrations, pushes, rooms.
    Backend,
    /// Sessions, kicks, stats.
    Admin,
    /// The link.
    Gateway,
}

impl Role {
    /// As configuration and [`CERTIFIED`] name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Admin => "admin",
            Self::Gateway => "gateway",
        }
    }
}

impl Keys {
    /// Checks the certificate of the connection, if it stands for something, or else `authorization: Bearer <key>`.
    ///
    /// # Errors
    /// [`RequestError::NotSignedIn`] without a key or with one that is nobody's;
    /// [`RequestError::PermissionDenied`] with a key of another role.
    pub fn check(&self, role: Role, metadata: &MetadataMap) -> Result<(), RequestError> {
        let certified = metadata.get(CERTIFIED);
        if certified.is_some_and(|certified| certified == role.name()) {
            return Ok(());
        }
        let Some(shown) = bearer(metadata) else {
            let is_other = certified.is_some();
            return Err(if is_other { RequestError::PermissionDenied } else { RequestError::NotSignedIn });
        };
        // All three are compared, so that time tells nothing about which one came close.
        let backend = self.backend.matches(shown);
        let admin = self.admin.matches(shown);
        let link = self.link.is_some_and(|link| link.matches(shown));
        let (wanted, any) = match role {
            Role::Backend => (backend, admin | link),
            Role::Admin => (admin, backend | link),
            Role::Gateway => (link, backend | admin),
        };
        match (wanted, any) {
            (true, _) => Ok(()),
            (false, true) => Err(RequestError::PermissionDenied),
            (false, false) => Err(RequestError::NotSignedIn),
        }
    }
}

/// Whether a bearer key is shown at all, or a certificate that stands for something.
pub fn has_bearer(metadata: &MetadataMap) -> bool {
    metadata.contains_key("authorization") || metadata.contains_key(CERTIFIED)
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

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

/// The hash of the token in `token` (text), or in `token-bin` (the bytes of that text), if one is shown.
pub fn shown_token(metadata: &MetadataMap) -> Option<TokenHash> {
    if let Some(text) = metadata.get("token") {
        return bounded(text.as_bytes());
    }
    bounded(&metadata.get_bin("token-bin")?.to_bytes().ok()?)
}

fn bounded(token: &[u8]) -> Option<TokenHash> {
    (1..=limits::TOKEN_BYTES_MAX).contains(&token.len()).then(|| TokenHash::of(token))
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
    fn each_role_has_its_own_key() {
        let keys = Keys { backend: KeyHash::of("b"), admin: KeyHash::of("a"), link: None };
        let check = |role, value| keys.check(role, &metadata(&[("authorization", value)]));
        assert_eq!(check(Role::Backend, "Bearer b"), Ok(()));
        assert_eq!(check(Role::Admin, "bearer a"), Ok(()));
        assert_eq!(check(Role::Admin, "Bearer b"), Err(RequestError::PermissionDenied));
        assert_eq!(check(Role::Gateway, "Bearer a"), Err(RequestError::PermissionDenied));
        for wrong in ["Bearer c", "Bearer ", "Basic b", "b", ""] {
            assert_eq!(check(Role::Backend, wrong), Err(RequestError::NotSignedIn), "{wrong:?}");
        }
        assert_eq!(keys.check(Role::Backend, &metadata(&[])), Err(RequestError::NotSignedIn));
        assert!(!format!("{keys:?}").contains(&hex::encode(keys.backend.0)));
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
