//! Tokens of an implementation that shares nothing with ours, of the RFCs, and of an attacker.
//!
//! `vectors` were made by PyJWT 2.15 over cryptography 50: one token by each key of `jwks.json`, all with the same claims.

use std::{path::PathBuf, time::Duration};

use proptest::prelude::*;
use ring::hmac;
use serde_json::json;

use super::*;
use crate::{
    auth::Subject,
    config::{Algorithm, SubjectKind},
};

const JWKS: &str = include_str!("../vectors/jwks.json");
const TOKENS: &str = include_str!("../vectors/tokens.txt");
const FORGED: &str = include_str!("../vectors/forged.txt");
const SECRET: &str = include_str!("../vectors/hs256.key");
/// A second in the life of the tokens of `vectors`, Unix milliseconds.
const NOW_MS: i64 = 1_800_000_000_000;
const ALL: [Algorithm; 4] = [Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];

/// An issuer with its file of keys, which the test may change.
struct Issuer {
    _dir: tempfile::TempDir,
    path: PathBuf,
    config: JwtConfig,
}

impl Issuer {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, file).unwrap();
        let config = JwtConfig {
            algorithms: ALL.to_vec(),
            audience: Some("gimbal".into()),
            issuer: Some("https://accounts.example".into()),
            leeway: Duration::from_secs(30),
            ..JwtConfig::default()
        };
        Self { _dir: dir, path, config }
    }

    fn of_set(&self) -> Jwt {
        Jwt::open(&JwtConfig { jwks_file: Some(self.path.clone()), ..self.config.clone() }).unwrap()
    }

    fn of_one(&self, algorithm: Algorithm) -> Result<Jwt, KeyFileError> {
        let (key_file, algorithms) = (Some(self.path.clone()), vec![algorithm]);
        Jwt::open(&JwtConfig { key_file, algorithms, ..self.config.clone() })
    }
}

fn tokens() -> impl Iterator<Item = (&'static str, &'static str)> {
    TOKENS.lines().map(|line| line.split_once(' ').unwrap())
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// By the secret of `vectors`.
fn signed(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.trim().as_bytes());
    format!("{message}.{}", encode(hmac::sign(&key, message.as_bytes()).as_ref()))
}

fn with_claims(claims: &Value) -> String {
    signed(r#"{"alg":"HS256","kid":"h"}"#, &claims.to_string())
}

/// Claims that are good at [`NOW_MS`], changed by `change`.
fn claims(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Value {
    let mut claims = json!({
        "sub": "10001", "aud": "gimbal", "iss": "https://accounts.example", "iat": 1_799_999_000, "exp": 1_800_000_100,
    });
    change(claims.as_object_mut().unwrap());
    claims
}

#[test]
fn tokens_of_another_implementation_are_read_alike_by_every_algorithm() {
    let issuer = Issuer::new(JWKS);
    let jwt = issuer.of_set();
    assert_eq!(jwt.keys(), 4, "keys for other uses are left out");
    let expected = Identity {
        user: Subject::Id(gimbal_codec::UserId::new(10_001)),
        device: Some(DeviceId::new(4_294_967_301)),
        issued_at_ms: 1_700_000_000_000,
        expires_at_ms: 4_000_000_030_000,
    };
    for (name, token) in tokens() {
        assert_eq!(jwt.check(token.as_bytes(), NOW_MS), Ok(expected.clone()), "{name}");
    }
    assert_eq!(tokens().count(), ALL.len());
}

#[test]
fn a_key_file_opens_for_its_own_algorithm_and_no_other() {
    let files = [
        (Algorithm::Hs256, SECRET),
        (Algorithm::Rs256, include_str!("../vectors/rs256.pem")),
        (Algorithm::Es256, include_str!("../vectors/es256.pem")),
        (Algorithm::EdDsa, include_str!("../vectors/eddsa.pem")),
    ];
    for (of_file, file) in files {
        let issuer = Issuer::new(file);
        for algorithm in ALL {
            let jwt = issuer.of_one(algorithm);
            assert_eq!(jwt.is_ok(), algorithm == of_file, "{of_file:?} as {algorithm:?}");
            let Ok(jwt) = jwt else { continue };
            for (name, token) in tokens() {
                let checked = jwt.check(token.as_bytes(), NOW_MS);
                if name == algorithm.name() {
                    assert!(checked.is_ok(), "{checked:?}");
                } else {
                    assert_eq!(checked, Err(JwtError::Algorithm), "{name} by {algorithm:?}");
                }
            }
        }
    }
}

#[test]
fn forged_tokens_are_refused() {
    let issuer = Issuer::new(JWKS);
    let jwt = issuer.of_set();
    // The public keys' own text as a secret of HS256, three times; none; another key; a kid of nobody.
    let expected = [
        JwtError::Algorithm,
        JwtError::Algorithm,
        JwtError::Algorithm,
        JwtError::Algorithm,
        JwtError::Signature,
        JwtError::UnknownKey,
    ];
    let checked: Vec<_> =
        FORGED.lines().map(|token| jwt.check(token.as_bytes(), NOW_MS).unwrap_err()).collect();
    assert_eq!(checked, expected);
    for file in ["rs256.pem", "es256.pem", "eddsa.pem"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/auth/vectors").join(file);
        let issuer = Issuer::new(&fs::read_to_string(path).unwrap());
        let refused = issuer.of_one(Algorithm::Hs256).err().unwrap().to_string();
        assert!(refused.contains("PEM block"), "a public key is no secret: {refused}");
    }
    for alg in ["none", "None", "NONE", "hs256", "HS512", ""] {
        for signature in ["", "AAAA"] {
            let header = encode(json!({"alg": alg, "kid": "h"}).to_string().as_bytes());
            let body = encode(claims(|_| {}).to_string().as_bytes());
            let token = format!("{header}.{body}.{signature}");
            assert_eq!(jwt.check(token.as_bytes(), NOW_MS), Err(JwtError::Algorithm), "{alg:?}");
        }
    }
}

/// RFC 7515, A.1 to A.3, and RFC 8037, A.4: the signatures are good, and what they sign is no token for us.
#[test]
fn signatures_of_the_rfcs_are_good_and_one_bit_less_is_not() {
    let payload =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let hs = json!({"kty": "oct", "k":
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"});
    let es = json!({"kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let cases = [
        (
            hs,
            format!(
                "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{payload}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
            ),
            JwtError::User,
        ),
        (
            es,
            format!(
                "eyJhbGciOiJFUzI1NiJ9.{payload}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSA\
                 pmWQxfKTUJqPP3-Kg6NU1Q"
            ),
            JwtError::User,
        ),
        (
            ed,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbh\
             ijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
                .to_owned(),
            JwtError::Malformed,
        ),
    ];
    for (key, token, after_the_signature) in cases {
        let issuer = Issuer::new(&json!({"keys": [key]}).to_string());
        let jwt = issuer.of_set();
        assert_eq!(jwt.check(token.as_bytes(), NOW_MS), Err(after_the_signature), "{token}");
        let (message, signature) = token.rsplit_once('.').unwrap();
        let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        signature[7] ^= 1;
        let changed = format!("{message}.{}", encode(&signature));
        assert_eq!(jwt.check(changed.as_bytes(), NOW_MS), Err(JwtError::Signature));
    }
}

#[test]
fn times_count_within_the_leeway_and_not_beyond() {
    let issuer = Issuer::new(JWKS);
    let jwt = issuer.of_set();
    let now = NOW_MS / 1000;
    let check = |name: &str, value: Value| {
        let token = with_claims(&claims(|claims| drop(claims.insert(name.into(), value))));
        jwt.check(token.as_bytes(), NOW_MS).map(drop)
    };
    for (name, value, expected) in [
        ("exp", json!(now - 29), Ok(())),
        ("exp", json!(now - 30), Err(JwtError::Expired)),
        ("exp", json!(0), Err(JwtError::Expired)),
        ("exp", json!(now as f64 - 29.5), Ok(())),
        ("nbf", json!(now + 30), Ok(())),
        ("nbf", json!(now + 31), Err(JwtError::Early)),
        ("iat", json!(now + 30), Ok(())),
        ("iat", json!(now + 31), Err(JwtError::Early)),
        ("exp", json!("4000000000"), Err(JwtError::Claim)),
        ("exp", json!(-1), Err(JwtError::Claim)),
        ("exp", json!(1e300), Err(JwtError::Claim)),
        ("exp", Value::Null, Err(JwtError::Claim)),
        ("nbf", json!([]), Err(JwtError::Claim)),
        ("iat", json!(true), Err(JwtError::Claim)),
    ] {
        assert_eq!(check(name, value.clone()), expected, "{name} {value}");
    }
    let endless = with_claims(&claims(|claims| drop(claims.remove("exp"))));
    assert_eq!(jwt.check(endless.as_bytes(), NOW_MS), Err(JwtError::Claim));
    let mut lax = Issuer::new(JWKS);
    lax.config.expiry_required = false;
    assert_eq!(lax.of_set().check(endless.as_bytes(), NOW_MS).unwrap().expires_at_ms, i64::MAX);
}

#[test]
fn a_token_for_somebody_else_or_about_nobody_is_refused() {
    let issuer = Issuer::new(JWKS);
    let jwt = issuer.of_set();
    let check = |name: &str, value: Value| {
        let token = with_claims(&claims(|claims| drop(claims.insert(name.into(), value))));
        jwt.check(token.as_bytes(), NOW_MS).map(|identity| identity.device.map(DeviceId::get))
    };
    for (name, value, expected) in [
        ("aud", json!(["other", "gimbal"]), Ok(None)),
        ("aud", json!("other"), Err(JwtError::Audience)),
        ("aud", json!(["other"]), Err(JwtError::Audience)),
        ("aud", json!([["gimbal"]]), Err(JwtError::Audience)),
        ("aud", json!([1, "gimbal"]), Err(JwtError::Audience)),
        ("aud", json!("gimbal2"), Err(JwtError::Audience)),
        ("aud", json!({"gimbal": 1}), Err(JwtError::Audience)),
        ("iss", json!("https://accounts.example/"), Err(JwtError::Issuer)),
        ("iss", json!(7), Err(JwtError::Claim)),
        ("sub", json!(10_001), Ok(None)),
        ("sub", json!("0"), Err(JwtError::User)),
        ("sub", json!("010001"), Err(JwtError::User)),
        ("sub", json!("+10001"), Err(JwtError::User)),
        ("sub", json!("10001 "), Err(JwtError::User)),
        ("sub", json!(-1), Err(JwtError::User)),
        ("sub", json!(1.5), Err(JwtError::User)),
        ("sub", json!("9223372036854775808"), Err(JwtError::User)),
        ("sub", json!("anna"), Err(JwtError::User)),
        ("sub", json!(""), Err(JwtError::User)),
        ("device", json!("9223372036854775807"), Ok(Some(i64::MAX as u64))),
        ("device", json!(7), Ok(Some(7))),
        ("device", json!("x"), Err(JwtError::Device)),
        ("device", json!(0), Err(JwtError::Device)),
        ("device", Value::Null, Err(JwtError::Device)),
    ] {
        assert_eq!(check(name, value.clone()), expected, "{name} {value}");
    }
    for absent in ["aud", "iss", "sub"] {
        let token = with_claims(&claims(|claims| drop(claims.remove(absent))));
        assert!(jwt.check(token.as_bytes(), NOW_MS).is_err(), "without {absent}");
    }
    let twice = r#"{"sub":"1","aud":"gimbal","iss":"https://accounts.example","exp":1800000100,"sub":"2"}"#;
    let twice = signed(r#"{"alg":"HS256","kid":"h"}"#, twice);
    assert_eq!(jwt.check(twice.as_bytes(), NOW_MS), Err(JwtError::Malformed));
}

#[test]
fn a_mapped_name_goes_with_its_issuer() {
    let mut issuer = Issuer::new(JWKS);
    issuer.config.user_claim_is = SubjectKind::Mapped;
    issuer.config.user_claim = "email".into();
    issuer.config.issuer = None;
    let jwt = issuer.of_set();
    let check = |value: Value, iss: Option<&str>| {
        let token = with_claims(&claims(|claims| {
            claims.insert("email".into(), value);
            match iss {
                Some(iss) => drop(claims.insert("iss".into(), json!(iss))),
                None => drop(claims.remove("iss")),
            }
        }));
        jwt.check(token.as_bytes(), NOW_MS).map(|identity| identity.user)
    };
    let named = |issuer: &str, name: &str| Ok(Subject::Name { issuer: issuer.into(), name: name.into() });
    assert_eq!(check(json!("a@b"), Some("one")), named("one", "a@b"));
    assert_eq!(check(json!("10001"), None), named("", "10001"), "digits are a name like any other");
    assert_eq!(check(json!(""), None), Err(JwtError::User));
    assert_eq!(check(json!("x".repeat(256)), None), Err(JwtError::User));
    assert_eq!(check(json!(1), None), Err(JwtError::User));
    assert_eq!(check(json!("a"), Some(&"x".repeat(256))), Err(JwtError::Claim));
}

#[test]
fn headers_that_ask_for_more_than_we_know_are_refused() {
    let issuer = Issuer::new(JWKS);
    let jwt = issuer.of_set();
    let claims = claims(|_| {}).to_string();
    let check = |header: &str| jwt.check(signed(header, &claims).as_bytes(), NOW_MS).map(drop);
    for (header, expected) in [
        (r#"{"alg":"HS256","kid":"h","typ":"JWT"}"#, Ok(())),
        (r#"{"alg":"HS256","kid":"h","typ":"application/at+jwt"}"#, Ok(())),
        (r#"{"alg":"HS256","kid":"h","typ":"logout+jwt"}"#, Err(JwtError::Header)),
        (r#"{"alg":"HS256","kid":"h","crit":["exp"]}"#, Err(JwtError::Header)),
        (r#"{"alg":"HS256","kid":"h","crit":[]}"#, Err(JwtError::Header)),
        (r#"{"alg":"HS256"}"#, Err(JwtError::UnknownKey)),
        (r#"{"alg":"HS256","kid":7}"#, Err(JwtError::Malformed)),
        (r#"{"kid":"h"}"#, Err(JwtError::Algorithm)),
        (r#"{"alg":"HS256","alg":"HS256","kid":"h"}"#, Err(JwtError::Malformed)),
        (r#"{"alg":"HS256","kid":"enc"}"#, Err(JwtError::UnknownKey)),
        (r#"{"alg":"HS256","kid":"h","jwk":{"kty":"oct","k":"AAAA"},"jku":"http://evil"}"#, Ok(())),
        ("[]", Err(JwtError::Malformed)),
    ] {
        assert_eq!(check(header), expected, "{header}");
    }
}

#[test]
fn shapes_that_are_no_token_are_refused_by_their_length_first() {
    let issuer = Issuer::new(JWKS);
    let jwt = issuer.of_set();
    let (_, good) = tokens().next().unwrap();
    for (token, expected) in [
        (String::new(), JwtError::Malformed),
        ("..".into(), JwtError::Malformed),
        ("a.b".into(), JwtError::Malformed),
        (format!("{good}."), JwtError::Malformed),
        (format!("{good}=="), JwtError::Malformed),
        (format!("{good}\n"), JwtError::Malformed),
        (format!(" {good}"), JwtError::Malformed),
        (".".repeat(TOKEN_BYTES_MAX + 1), JwtError::TooLong),
        (format!("{good}{}", "A".repeat(TOKEN_BYTES_MAX)), JwtError::TooLong),
    ] {
        assert_eq!(jwt.check(token.as_bytes(), NOW_MS), Err(expected), "{token}");
    }
    for cut in 0..good.len() {
        assert!(jwt.check(&good.as_bytes()[..cut], NOW_MS).is_err(), "cut at {cut}");
    }
}

#[test]
fn sets_that_are_broken_or_weak_are_refused() {
    let refusal = |file: &str| {
        let issuer = Issuer::new(file);
        let jwks_file = Some(issuer.path.clone());
        let opened = Jwt::open(&JwtConfig { jwks_file, ..issuer.config.clone() });
        opened.err().expect("refused").to_string()
    };
    let secret = |bytes: usize| json!({"kty": "oct", "k": encode(&vec![7; bytes]), "kid": "s"});
    let rsa = |bytes: usize| json!({"kty": "RSA", "n": encode(&vec![0x81; bytes]), "e": "AQAB"});
    for (file, why) in [
        (String::new(), "not a JSON Web Key Set"),
        ("{}".into(), "not a JSON Web Key Set"),
        (json!({"keys": []}).to_string(), "no key for"),
        (json!({"keys": [secret(31)]}).to_string(), "not well formed (number 0)"),
        (json!({"keys": [secret(32), rsa(128)]}).to_string(), "not well formed (number 1)"),
        (json!({"keys": [secret(32), secret(33)]}).to_string(), "two keys with one kid"),
        (json!({"keys": [{"kty": "oct", "k": "a b"}]}).to_string(), "not well formed"),
        (json!({"keys": vec![secret(32); 65]}).to_string(), "more than 64"),
        ("x".repeat(300 << 10), "longer than 256 KiB"),
    ] {
        let refused = refusal(&file);
        assert!(refused.contains(why), "{why}: {refused}");
    }
    let short = Issuer::new("too-short\n").of_one(Algorithm::Hs256).err().unwrap().to_string();
    assert!(short.contains("shorter than 32 bytes") && !short.contains("too-short"), "{short}");
}

#[test]
fn a_changed_file_counts_and_a_broken_one_leaves_the_old_keys() {
    let issuer = Issuer::new(JWKS);
    let jwt = issuer.of_set();
    let check = |jwt: &Jwt| jwt.check(tokens().next().unwrap().1.as_bytes(), NOW_MS).map(drop);
    assert!(matches!(jwt.reload(), Reload::Same));
    for broken in ["{\"keys\":", ""] {
        fs::write(&issuer.path, broken).unwrap();
        assert!(matches!(jwt.reload(), Reload::Broken(_)));
        assert!(matches!(jwt.reload(), Reload::Same), "told once");
        assert_eq!(check(&jwt), Ok(()));
    }
    fs::remove_file(&issuer.path).unwrap();
    assert!(matches!(jwt.reload(), Reload::Broken(_)) && matches!(jwt.reload(), Reload::Same));
    assert_eq!(check(&jwt), Ok(()));
    let other = json!({"keys": [{"kty": "oct", "k": encode(&[7; 32]), "kid": "h"}]}).to_string();
    fs::write(&issuer.path, other).unwrap();
    assert!(matches!(jwt.reload(), Reload::New));
    assert_eq!(check(&jwt), Err(JwtError::Signature), "the old key is gone");
    fs::write(&issuer.path, JWKS).unwrap();
    assert!(matches!(jwt.reload(), Reload::New));
    assert_eq!(check(&jwt), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_other_bytes_than_the_issuers_are_accepted(which in 0..4_usize, at: prop::sample::Index, byte: u8, cut in 0..3_u8) {
        let issuer = Issuer::new(JWKS);
        let jwt = issuer.of_set();
        let (_, good) = tokens().nth(which).unwrap();
        let mut token = good.as_bytes().to_vec();
        let at = at.index(token.len());
        match cut {
            0 => token[at] = byte,
            1 => drop(token.remove(at)),
            _ => token.insert(at, byte),
        }
        prop_assume!(token != good.as_bytes());
        prop_assert!(jwt.check(&token, NOW_MS).is_err(), "{}", String::from_utf8_lossy(&token));
    }

    #[test]
    fn no_bytes_make_a_check_panic(parts in prop::collection::vec("[ -~]{0,80}", 3)) {
        let issuer = Issuer::new(JWKS);
        let jwt = issuer.of_set();
        let coded: Vec<String> = parts.iter().map(|part| encode(part.as_bytes())).collect();
        prop_assert!(jwt.check(coded.join(".").as_bytes(), NOW_MS).is_err());
        prop_assert!(jwt.check(parts.join(".").as_bytes(), NOW_MS).is_err());
        // Behind a good signature the claims are as free.
        let _ = jwt.check(signed(r#"{"alg":"HS256","kid":"h"}"#, &parts[0]).as_bytes(), NOW_MS);
    }
}
