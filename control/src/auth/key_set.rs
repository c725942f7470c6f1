//! The keys of a token's issuer. Each is for one algorithm alone, so that a token cannot choose how it is checked.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    signature::{self, RsaPublicKeyComponents, UnparsedPublicKey},
};
use serde_json::Value;
use spki::{
    DecodePublicKey as _, Document, ObjectIdentifier, SubjectPublicKeyInfoRef,
    der::{Decode as _, Reader as _, SliceReader, asn1::UintRef},
};

use super::json;
use crate::config::Algorithm;

/// Keys of one set: some issuers times some rotations.
const KEYS_MAX: usize = 64;
/// A shorter secret is weaker than the hash (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// 2,048 to 8,192 bits: what the library accepts.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
const ED25519_BYTES: usize = 32;
/// An uncompressed point: 4, x, y.
const P256_BYTES: usize = 65;

const OID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const OID_EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const OID_P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const OID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Why a file holds no keys; never a word of what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Neither PEM of a public key nor what the algorithm takes.
    #[error("is not a key for the configured algorithm")]
    NotAKey,
    /// A public key must never be a secret.
    #[error("holds a PEM block, which cannot be the secret of HS256")]
    PublicAsSecret,
    /// See [`SECRET_BYTES_MIN`].
    #[error("holds a secret shorter than 32 bytes")]
    ShortSecret,
    /// See [`MODULUS_BYTES`].
    #[error("holds an RSA key outside of 2,048 to 8,192 bits")]
    RsaSize,
    /// Not `{"keys": [..]}`.
    #[error("is not a JSON Web Key Set")]
    NotASet,
    /// One is not well formed; none is taken.
    #[error("holds a key that is not well formed (number {0})")]
    BadKey(usize),
    /// Two keys with one name.
    #[error("holds two keys with one kid")]
    TwoOfOneKid,
    /// See [`KEYS_MAX`].
    #[error("holds more than 64 keys")]
    TooMany,
    /// All are for something else.
    #[error("holds no key for the configured algorithms")]
    Empty,
}

/// One key.
pub(crate) struct Key {
    pub(crate) algorithm: Algorithm,
    kid: Option<Box<str>>,
    material: Material,
}

enum Material {
    Secret(hmac::Key),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Point(UnparsedPublicKey<Vec<u8>>),
}

impl Key {
    /// Whether `signature` is this key's over `message`; secrets are compared in constant time.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Rsa(key) => {
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            Material::Point(key) => key.verify(message, signature).is_ok(),
        }
    }

    fn secret(kid: Option<Box<str>>, secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError::ShortSecret);
        }
        let material = Material::Secret(hmac::Key::new(hmac::HMAC_SHA256, secret));
        Ok(Self { algorithm: Algorithm::Hs256, kid, material })
    }

    /// Numbers big endian; leading zeros are taken away.
    fn rsa(kid: Option<Box<str>>, n: &[u8], e: &[u8]) -> Result<Self, KeyError> {
        let bare = |number: &[u8]| {
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            number[zeros..].to_vec()
        };
        let (n, e) = (bare(n), bare(e));
        if !MODULUS_BYTES.contains(&n.len()) || e.is_empty() {
            return Err(KeyError::RsaSize);
        }
        let material = Material::Rsa(RsaPublicKeyComponents { n, e });
        Ok(Self { algorithm: Algorithm::Rs256, kid, material })
    }

    fn p256(kid: Option<Box<str>>, point: Vec<u8>) -> Result<Self, KeyError> {
        if point.len() != P256_BYTES || point[0] != 4 {
            return Err(KeyError::NotAKey);
        }
        let material = Material::Point(UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point));
        Ok(Self { algorithm: Algorithm::Es256, kid, material })
    }

    fn ed25519(kid: Option<Box<str>>, point: Vec<u8>) -> Result<Self, KeyError> {
        if point.len() != ED25519_BYTES {
            return Err(KeyError::NotAKey);
        }
        let material = Material::Point(UnparsedPublicKey::new(&signature::ED25519, point));
        Ok(Self { algorithm: Algorithm::EdDsa, kid, material })
    }

    fn from_pem(text: &str) -> Result<Self, KeyError> {
        let document = Document::from_public_key_pem(text).map_err(|_| KeyError::NotAKey)?;
        let info: SubjectPublicKeyInfoRef<'_> = document.decode_msg().map_err(|_| KeyError::NotAKey)?;
        let bits = info.subject_public_key.as_bytes().ok_or(KeyError::NotAKey)?;
        match info.algorithm.oid {
            OID_RSA => {
                let (n, e) = rsa_numbers(bits).ok_or(KeyError::NotAKey)?;
                Self::rsa(None, n, e)
            }
            OID_EC if info.algorithm.parameters_oid() == Ok(OID_P256) => Self::p256(None, bits.to_vec()),
            OID_ED25519 => Self::ed25519(None, bits.to_vec()),
            _ => Err(KeyError::NotAKey),
        }
    }
}

/// Of `RSAPublicKey` (RFC 8017, A.1.1).
fn rsa_numbers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = SliceReader::new(der).ok()?;
    let numbers = reader.sequence(|reader| {
        let (n, e) = (UintRef::decode(reader)?, UintRef::decode(reader)?);
        Ok((n.as_bytes(), e.as_bytes()))
    });
    reader.finish(numbers.ok()?).ok()
}

/// All keys of an issuer.
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// The one key of a key file.
    pub(crate) fn of_one(file: &[u8], algorithm: Algorithm) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(file).map_err(|_| KeyError::NotAKey)?;
        let key = match (algorithm, text.contains("-----BEGIN")) {
            (Algorithm::Hs256, true) => return Err(KeyError::PublicAsSecret),
            (Algorithm::Hs256, false) => {
                Key::secret(None, text.lines().next().unwrap_or_default().trim().as_bytes())?
            }
            (_, true) => Key::from_pem(text)?,
            (_, false) => return Err(KeyError::NotAKey),
        };
        if key.algorithm != algorithm {
            return Err(KeyError::NotAKey);
        }
        Ok(Self { keys: vec![key] })
    }

    /// A JSON Web Key Set (RFC 7517, 5). Keys for another use or algorithm are left out; one that is broken spoils the set.
    pub(crate) fn of_set(file: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeyError> {
        let [keys] = json::members(file, ["keys"]).ok_or(KeyError::NotASet)?;
        let Some(Value::Array(jwks)) = keys else { return Err(KeyError::NotASet) };
        if jwks.len() > KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let mut keys: Vec<Key> = Vec::new();
        for (at, jwk) in jwks.iter().enumerate() {
            let Some(key) = key_of(jwk).map_err(|_| KeyError::BadKey(at))? else { continue };
            if !algorithms.contains(&key.algorithm) {
                continue;
            }
            if key.kid.is_some() && keys.iter().any(|known| known.kid == key.kid) {
                return Err(KeyError::TwoOfOneKid);
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(Self { keys }) }
    }

    /// The key that a token names. Without a name it is the only one, if there is only one; the one key of a file goes by any
    /// name.
    pub(crate) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match (kid, &self.keys[..]) {
            (None, [key]) => Some(key),
            (None, _) => None,
            (Some(_), [key]) if key.kid.is_none() => Some(key),
            (Some(kid), keys) => keys.iter().find(|key| key.kid.as_deref() == Some(kid)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

/// `Ok(None)`: for another use, or of a kind that we do not know.
fn key_of(jwk: &Value) -> Result<Option<Key>, KeyError> {
    let jwk = jwk.as_object().ok_or(KeyError::NotAKey)?;
    let text = |name: &str| match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(KeyError::NotAKey),
    };
    let bytes = |name: &str| {
        let text = text(name)?.ok_or(KeyError::NotAKey)?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::NotAKey)
    };
    let kid = text("kid")?.map(Box::from);
    if text("use")?.is_some_and(|usage| usage != "sig") {
        return Ok(None);
    }
    let verifies = |ops: &Value| ops.as_array().is_some_and(|ops| ops.iter().any(|op| op == "verify"));
    if !jwk.get("key_ops").is_none_or(verifies) {
        return Ok(None);
    }
    let key = match (text("kty")?.ok_or(KeyError::NotAKey)?, text("crv")?) {
        ("oct", _) => Key::secret(kid, &bytes("k")?)?,
        ("RSA", _) => Key::rsa(kid, &bytes("n")?, &bytes("e")?)?,
        ("EC", Some("P-256")) => Key::p256(kid, [&[4], &bytes("x")?[..], &bytes("y")?[..]].concat())?,
        ("OKP", Some("Ed25519")) => Key::ed25519(kid, bytes("x")?)?,
        _ => return Ok(None),
    };
    let is_meant = text("alg")?.is_none_or(|alg| alg == key.algorithm.name());
    Ok(is_meant.then_some(key))
}
