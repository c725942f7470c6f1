//! What a token says, and whether that is meant for us and now.

use std::time::Duration;

use gimbal_codec::{DeviceId, UserId};
use serde_json::Value;

use super::{
    Subject, json,
    jwt::{Identity, JwtError},
};
use crate::config::{JwtConfig, SubjectKind};

/// Longest issuer and longest mapped name: OpenID Connect's bound of `sub`.
const NAME_BYTES_MAX: usize = 255;
/// The year 9999; later times are mistakes of units.
const SECONDS_MAX: f64 = 253_402_300_799.0;

/// A configuration's rules about claims.
pub(super) struct Rules {
    audience: String,
    issuer: Option<String>,
    leeway_ms: i64,
    expiry_required: bool,
    user_claim: String,
    user_is: SubjectKind,
    device_claim: String,
}

impl Rules {
    pub(super) fn new(config: &JwtConfig) -> Self {
        Self {
            audience: config.audience.clone().unwrap_or_default(),
            issuer: config.issuer.clone(),
            leeway_ms: ms(config.leeway),
            expiry_required: config.expiry_required,
            user_claim: config.user_claim.clone(),
            user_is: config.user_claim_is,
            device_claim: config.device_claim.clone(),
        }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The claims that we look at.
pub(super) struct Claims {
    user: Value,
    device: Option<Value>,
    issuer: Option<String>,
    audience: Option<Value>,
    /// Unix milliseconds.
    expires_at_ms: Option<i64>,
    not_before_ms: Option<i64>,
    issued_at_ms: Option<i64>,
}

impl Claims {
    /// Reads them, each of its type.
    pub(super) fn read(text: &[u8], rules: &Rules) -> Result<Self, JwtError> {
        let names = [&rules.user_claim[..], &rules.device_claim, "iss", "aud", "exp", "nbf", "iat"];
        let [user, device, iss, aud, exp, nbf, iat] =
            json::members(text, names).ok_or(JwtError::Malformed)?;
        let issuer = match iss {
            None => None,
            Some(Value::String(issuer)) if issuer.len() <= NAME_BYTES_MAX => Some(issuer),
            Some(_) => return Err(JwtError::Claim),
        };
        Ok(Self {
            user: user.ok_or(JwtError::User)?,
            device,
            issuer,
            audience: aud,
            expires_at_ms: exp.map(date_ms).transpose()?,
            not_before_ms: nbf.map(date_ms).transpose()?,
            issued_at_ms: iat.map(date_ms).transpose()?,
        })
    }

    pub(super) fn check(self, rules: &Rules, now_ms: i64) -> Result<Identity, JwtError> {
        if rules.issuer.is_some() && self.issuer != rules.issuer {
            return Err(JwtError::Issuer);
        }
        if !self.audience.as_ref().is_some_and(|audience| names(audience, &rules.audience)) {
            return Err(JwtError::Audience);
        }
        let latest_ms = now_ms.saturating_add(rules.leeway_ms);
        let expires_at_ms = match self.expires_at_ms {
            None if rules.expiry_required => return Err(JwtError::Claim),
            None => i64::MAX,
            Some(at_ms) => at_ms.saturating_add(rules.leeway_ms),
        };
        if now_ms >= expires_at_ms {
            return Err(JwtError::Expired);
        }
        // A token of the future would outlive a revocation.
        if self.not_before_ms.is_some_and(|at_ms| at_ms > latest_ms)
            || self.issued_at_ms.is_some_and(|at_ms| at_ms > latest_ms)
        {
            return Err(JwtError::Early);
        }
        let device = self.device.as_ref().map(|claim| decimal(claim).ok_or(JwtError::Device)).transpose()?;
        Ok(Identity {
            user: subject(&self.user, self.issuer.as_deref(), rules.user_is)?,
            device: device.map(DeviceId::new),
            issued_at_ms: self.issued_at_ms.unwrap_or(0),
            expires_at_ms,
        })
    }
}

fn subject(claim: &Value, issuer: Option<&str>, kind: SubjectKind) -> Result<Subject, JwtError> {
    match (kind, claim) {
        (SubjectKind::Decimal, claim) => {
            decimal(claim).map(|id| Subject::Id(UserId::new(id))).ok_or(JwtError::User)
        }
        // Names are the issuer's: the same one of another issuer is somebody else.
        (SubjectKind::Mapped, Value::String(name)) if (1..=NAME_BYTES_MAX).contains(&name.len()) => {
            Ok(Subject::Name { issuer: issuer.unwrap_or_default().into(), name: name.as_str().into() })
        }
        (SubjectKind::Mapped, _) => Err(JwtError::User),
    }
}

/// 1 to 2^63 - 1, written in one way only.
fn decimal(claim: &Value) -> Option<u64> {
    let number = match claim {
        Value::Number(number) => number.as_u64()?,
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0') => {
            text.parse().ok()?
        }
        _ => return None,
    };
    (1..=i64::MAX as u64).contains(&number).then_some(number)
}

/// Whether `aud` is `wanted` or a list with it (RFC 7519, 4.1.3).
fn names(audience: &Value, wanted: &str) -> bool {
    match audience {
        Value::String(one) => one == wanted,
        Value::Array(all) => all.iter().all(Value::is_string) && all.iter().any(|one| one == wanted),
        _ => false,
    }
}

/// Seconds since 1970, with or without a fraction (RFC 7519, 2).
fn date_ms(date: Value) -> Result<i64, JwtError> {
    let seconds = date.as_f64().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    seconds.map(|seconds| (seconds * 1000.0) as i64).ok_or(JwtError::Claim)
}
