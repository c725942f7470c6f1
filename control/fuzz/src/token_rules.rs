//! Tokens and key sets of issuers. Included by control's tests, too.

use std::sync::OnceLock;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gimbal_codec::limits::TOKEN_BYTES_MAX;
use ring::hmac;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::auth::Subject;
use crate::auth::jwt::{Identity, Jwt};
use crate::auth::key_set::KeySet;
use crate::config::{Algorithm, JwtConfig};

const JWKS: &str = include_str!("../../src/auth/vectors/jwks.json");
const TOKENS: &str = include_str!("../../src/auth/vectors/tokens.txt");
const SECRET: &str = include_str!("../../src/auth/vectors/hs256.key");
const ALL: [Algorithm; 4] = [Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];
/// A second in the life of the tokens above, Unix milliseconds.
const NOW_MS: i64 = 1_800_000_000_000;
const LEEWAY_MS: i64 = 30_000;

/// With a key of each algorithm.
fn jwt() -> &'static Jwt {
    static JWT: OnceLock<Jwt> = OnceLock::new();
    JWT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder for the keys");
        let path = folder.path().join("keys");
        std::fs::write(&path, JWKS).expect("the keys are written");
        let config = JwtConfig {
            algorithms: ALL.to_vec(),
            jwks_file: Some(path),
            audience: Some("gimbal".into()),
            leeway: Duration::from_millis(LEEWAY_MS as u64),
            ..JwtConfig::default()
        };
        Jwt::open(&config).expect("keys of the vectors")
    })
}

/// The first byte tells what the rest is: a token, the parts of one that is signed, or keys.
pub(super) fn check_token(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => check_forged(rest),
        1 => check_signed(rest),
        2 => check_set(rest),
        _ => check_key(rest),
    }
}

/// Nobody signs without a key.
fn check_forged(token: &[u8]) {
    let checked = jwt().check(token, NOW_MS);
    assert!(token.len() <= TOKEN_BYTES_MAX || checked.is_err());
    let is_known = TOKENS.lines().any(|line| line.split(' ').nth(1).map(str::as_bytes) == Some(token));
    assert_eq!(checked.is_ok(), is_known, "{checked:?}");
}

/// Header and claims are parted by a newline. What is believed of claims they say to any reader of JSON.
fn check_signed(text: &[u8]) {
    let at = text.iter().position(|&byte| byte == b'\n').unwrap_or(0);
    let (header, claims) =
        if at == 0 { (&br#"{"alg":"HS256","kid":"h"}"#[..], text) } else { text.split_at(at) };
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.trim().as_bytes());
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())));
    let Ok(identity) = jwt().check(token.as_bytes(), NOW_MS) else { return };
    if let Some(header) = read(header) {
        assert!(header["alg"] == "HS256" && header["kid"] == "h" && header.get("crit").is_none(), "{header}");
    }
    if let Some(claims) = read(claims) {
        check_identity(&claims, &identity);
    }
}

/// `None`: another reader has no room for a number in it, which we skip.
fn read(text: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(text).expect("what is believed is text");
    serde_json::from_str::<IgnoredAny>(text).expect("what is believed is JSON");
    serde_json::from_str(text).ok()
}

fn check_identity(claims: &Value, identity: &Identity) {
    let decimal = |claim: &Value| claim.as_u64().or_else(|| claim.as_str()?.parse().ok());
    let Subject::Id(user) = identity.user else { panic!("no names are mapped here") };
    assert!(decimal(&claims["sub"]) == Some(user.get()) && user.get() > 0, "{claims}");
    if let Some(device) = identity.device {
        assert!(device.get() > 0);
    }
    let ours = |audience: &Value| audience == "gimbal";
    assert!(
        ours(&claims["aud"]) || claims["aud"].as_array().is_some_and(|all| all.iter().any(ours)),
        "{claims}"
    );
    let ms = |name: &str| claims.get(name).map(|date| (date.as_f64().expect("a date") * 1000.0) as i64);
    assert!(ms("exp").is_some_and(|at| at + LEEWAY_MS > NOW_MS && at + LEEWAY_MS == identity.expires_at_ms));
    assert!(ms("nbf").is_none_or(|at| at <= NOW_MS + LEEWAY_MS));
    assert_eq!(ms("iat").unwrap_or(0), identity.issued_at_ms);
    assert!(identity.issued_at_ms <= NOW_MS + LEEWAY_MS, "a token of the future outlives a revocation");
}

/// A set that is taken has keys, of the algorithms that were asked for, and they refuse what they have not signed.
fn check_set(file: &[u8]) {
    for algorithms in [&ALL[..], &ALL[1..2]] {
        let Ok(set) = KeySet::of_set(file, algorithms) else { continue };
        assert!((1..=64).contains(&set.len()));
        check_keys(&set, algorithms);
    }
}

fn check_key(file: &[u8]) {
    for algorithm in ALL {
        if let Ok(set) = KeySet::of_one(file, algorithm) {
            assert_eq!(set.len(), 1);
            check_keys(&set, &[algorithm]);
        }
    }
}

fn check_keys(set: &KeySet, algorithms: &[Algorithm]) {
    for kid in [None, Some("h"), Some("r"), Some("e"), Some("d"), Some("")] {
        if let Some(key) = set.find(kid) {
            assert!(algorithms.contains(&key.algorithm));
            assert!([0, 32, 64, 256].iter().all(|&length| !key.has_signed(b"message", &vec![1; length])));
        }
    }
}

/// For the fuzz target.
#[cfg(not(test))]
pub fn token(data: &[u8]) {
    check_token(data);
}
