//! Tokens that an issuer has signed (RFC 7519 over RFC 7515, compact form): who they are about, or why they are refused.
//!
//! A token's header only chooses among our keys by name; how a key is used is bound to the key. The signature is checked
//! before any claim is looked at, and the length before anything.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gimbal_codec::{DeviceId, limits::TOKEN_BYTES_MAX};
use serde_json::Value;

use super::{
    claims::{Claims, Rules},
    json,
    key_set::{KeyError, KeySet},
};
use crate::config::JwtConfig;

/// A longer key file is some other file.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// What `typ` may be (RFC 7519, 5.1; RFC 9068, 2.1); other kinds of tokens that the same issuer signs open nothing.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// Why a token is refused. The caller is told nothing of it; it is counted and logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JwtError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    TooLong,
    /// Not three parts of base64url, or a part is not the JSON it should be.
    Malformed,
    /// The header asks for what we do not know (`crit`), or the token is of another type.
    Header,
    /// No key goes by its name.
    UnknownKey,
    /// Another algorithm than that of its key; also `none`.
    Algorithm,
    /// Nobody who holds the key has signed this.
    Signature,
    /// A claim is absent or of another type.
    Claim,
    /// Over.
    Expired,
    /// Begins later, or was issued in the future.
    Early,
    /// Of another issuer.
    Issuer,
    /// For somebody else.
    Audience,
    /// The user claim is no user.
    User,
    /// The device claim is no device.
    Device,
}

impl JwtError {
    /// Stable; a label of metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Header => "header",
            Self::UnknownKey => "unknown_key",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Claim => "claim",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::User => "user",
            Self::Device => "device",
        }
    }
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read {path:?}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It holds no keys.
    #[error("{path:?} {cause}")]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: KeyError,
    },
}

/// What came of reading the file again.
#[derive(Debug)]
pub enum Reload {
    /// As it was.
    Same,
    /// Other keys count from now on.
    New,
    /// The old ones count on. Told once for each state of the file.
    Broken(KeyFileError),
}

/// Who a token is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The user claim.
    pub user: super::Subject,
    /// The device claim; `None`: good for any device of the user.
    pub device: Option<DeviceId>,
    /// Unix milliseconds; 0: not told.
    pub issued_at_ms: i64,
    /// Unix milliseconds; the token ends at it, not after it. `i64::MAX`: never.
    pub expires_at_ms: i64,
}

/// Rules and keys of one issuer.
pub struct Jwt {
    config: JwtConfig,
    rules: Rules,
    keys: ArcSwap<KeySet>,
    /// The file as it was last seen.
    seen: Mutex<Seen>,
}

#[derive(PartialEq, Eq)]
enum Seen {
    File(Vec<u8>),
    Absent,
}

impl Jwt {
    /// Reads the keys of a configuration that is on and was checked.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn open(config: &JwtConfig) -> Result<Self, KeyFileError> {
        let path = path(config);
        let file = read(path).map_err(|cause| KeyFileError::Unreadable { path: path.into(), cause })?;
        let keys = parse(config, &file).map_err(|cause| KeyFileError::Keys { path: path.into(), cause })?;
        Ok(Self {
            config: config.clone(),
            rules: Rules::new(config),
            keys: ArcSwap::from_pointee(keys),
            seen: Mutex::new(Seen::File(file)),
        })
    }

    /// Reads the file again; blocks on the disk.
    pub fn reload(&self) -> Reload {
        let path = path(&self.config);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match read(path) {
            Ok(file) => file,
            Err(_) if *seen == Seen::Absent => return Reload::Same,
            Err(cause) => {
                *seen = Seen::Absent;
                return Reload::Broken(KeyFileError::Unreadable { path: path.into(), cause });
            }
        };
        if matches!(&*seen, Seen::File(last) if *last == file) {
            return Reload::Same;
        }
        let parsed = parse(&self.config, &file);
        *seen = Seen::File(file);
        match parsed {
            Ok(keys) => {
                self.keys.store(Arc::new(keys));
                Reload::New
            }
            Err(cause) => Reload::Broken(KeyFileError::Keys { path: path.into(), cause }),
        }
    }

    /// How many keys are in use.
    pub fn keys(&self) -> usize {
        self.keys.load().len()
    }

    /// Who `token` is about.
    ///
    /// # Errors
    /// [`JwtError`].
    pub fn check(&self, token: &[u8], now_ms: i64) -> Result<Identity, JwtError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(JwtError::TooLong);
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtError::Malformed);
        };
        let message = &token[..header.len() + 1 + claims.len()];
        let [alg, kid] = header_of(&decode(header)?)?;
        let keys = self.keys.load();
        let key = keys.find(kid.as_deref()).ok_or(JwtError::UnknownKey)?;
        if alg.as_deref() != Some(key.algorithm.name()) {
            return Err(JwtError::Algorithm);
        }
        if !key.has_signed(message, &decode(signature)?) {
            return Err(JwtError::Signature);
        }
        let claims = Claims::read(&decode(claims)?, &self.rules)?;
        claims.check(&self.rules, now_ms)
    }
}

/// `alg` and `kid`.
fn header_of(text: &[u8]) -> Result<[Option<String>; 2], JwtError> {
    let [alg, kid, typ, crit] =
        json::members(text, ["alg", "kid", "typ", "crit"]).ok_or(JwtError::Malformed)?;
    let string = |value: Option<Value>| match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(JwtError::Malformed),
    };
    let is_ours = string(typ)?.is_none_or(|typ| {
        let typ = typ.to_ascii_lowercase();
        TYPES.contains(&typ.strip_prefix("application/").unwrap_or(&typ))
    });
    // We know no extension, so whatever is critical is refused (RFC 7515, 4.1.11).
    if crit.is_some() || !is_ours {
        return Err(JwtError::Header);
    }
    Ok([string(alg)?, string(kid)?])
}

/// Strictly: no padding, no line ends, no bits left over.
fn decode(part: &[u8]) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed)
}

fn path(config: &JwtConfig) -> &Path {
    config
        .key_file
        .as_deref()
        .or(config.jwks_file.as_deref())
        .expect("a JWT configuration that is on names a file")
}

fn parse(config: &JwtConfig, file: &[u8]) -> Result<KeySet, KeyError> {
    match (&config.key_file, &config.algorithms[..]) {
        (Some(_), [algorithm, ..]) => KeySet::of_one(file, *algorithm),
        (_, algorithms) => KeySet::of_set(file, algorithms),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("longer than 256 KiB: is this the right file?"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests;
