//! Whom beside its own tokens the server believes who a device is.

use std::{fs, path::PathBuf, time::Duration};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::ConfigError;

/// The `[control.auth]` table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Tokens of others under check. Default 4,096; 16 to 1,000,000. Full: busy.
    pub checks_max: usize,
    /// Tokens that an issuer has signed.
    pub jwt: JwtConfig,
    /// A service that is asked.
    pub external: ExternalConfig,
}

impl Default for Auth {
    fn default() -> Self {
        Self { checks_max: 4096, jwt: JwtConfig::default(), external: ExternalConfig::default() }
    }
}

/// How a token is signed. A key has one of these and never another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256 (RFC 7518, 3.2).
    #[serde(rename = "HS256")]
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, 3.3).
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256 (RFC 7518, 3.4).
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519 (RFC 8037).
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// As in a token's header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// What the user claim is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectKind {
    /// The user id itself, decimal; the user is made at first sight.
    Decimal,
    /// Any name; a user id is given to it at first sight and never changes.
    Mapped,
}

/// The `[control.auth.jwt]` table; on when a key file is named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtConfig {
    /// What is accepted. With `key_file` exactly one.
    pub algorithms: Vec<Algorithm>,
    /// The one key: a secret of 32 bytes or more for HS256 (one line), else a public key in PEM.
    pub key_file: Option<PathBuf>,
    /// Keys by `kid` (RFC 7517); at most 64, 256 KiB.
    pub jwks_file: Option<PathBuf>,
    /// How often the file is read again. Default 5 s; 100 ms to 1 h.
    #[serde(with = "humantime_serde")]
    pub reload_interval: Duration,
    /// Who we are: must be in a token's `aud`. Needed.
    pub audience: Option<String>,
    /// Who the issuer is: must be a token's `iss`. Absent: not looked at.
    pub issuer: Option<String>,
    /// How far the issuer's clock may be off. Default 30 s; at most 10 min.
    #[serde(with = "humantime_serde")]
    pub leeway: Duration,
    /// A token without `exp` is refused. Default true.
    pub expiry_required: bool,
    /// Claim that names the user. Default `sub`.
    pub user_claim: String,
    /// What it is. Default `decimal`.
    pub user_claim_is: SubjectKind,
    /// Claim that names the device, decimal; a token without it is good for any device of its user. Default `device`.
    pub device_claim: String,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            algorithms: Vec::new(),
            key_file: None,
            jwks_file: None,
            reload_interval: Duration::from_secs(5),
            audience: None,
            issuer: None,
            leeway: Duration::from_secs(30),
            expiry_required: true,
            user_claim: "sub".into(),
            user_claim_is: SubjectKind::Decimal,
            device_claim: "device".into(),
        }
    }
}

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExternalKind {
    /// `gimbal.v1.Authenticator`.
    Gimbal,
    /// gim's `business.UserIntService`.
    Gim,
}

/// The `[control.auth.external]` table; on when a URL is named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExternalConfig {
    /// URL of the service's gRPC listener, `http://host:port` or `https://host:port`.
    pub url: Option<String>,
    /// PEM: the authority of the service's certificate. Needed with https; read at the start.
    pub ca: Option<PathBuf>,
    /// What it speaks. Default `gimbal`.
    pub kind: ExternalKind,
    /// Longest wait for an answer. Default 2 s; 10 ms to 10 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How long a yes is remembered. Default 1 min; 0 to 1 h.
    #[serde(with = "humantime_serde")]
    pub cache_ttl: Duration,
    /// Answers remembered, about 150 B each. Default 100,000; 0 to 10,000,000. Full: the oldest gives way.
    pub cache_entries_max: usize,
    /// Failures in a row after which it is left alone. Default 5; 1 to 1,000.
    pub breaker_failures: u32,
    /// For how long; then one call tries it. Default 5 s; 10 ms to 10 min.
    #[serde(with = "humantime_serde")]
    pub breaker_pause: Duration,
}

impl Default for ExternalConfig {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            kind: ExternalKind::Gimbal,
            timeout: Duration::from_secs(2),
            cache_ttl: Duration::from_secs(60),
            cache_entries_max: 100_000,
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(5),
        }
    }
}

/// Claims with a meaning of their own (RFC 7519, 4.1).
const TAKEN_CLAIMS: [&str; 6] = ["iss", "aud", "exp", "nbf", "iat", "jti"];

impl Auth {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut rules =
            vec![((16..=1_000_000).contains(&self.checks_max), "auth.checks_max", "must be 16 to 1,000,000")];
        rules.extend(self.jwt.rules());
        rules.extend(self.external.rules());
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, key, rule)) => Err(ConfigError::Bounds { key, rule }),
            None => Ok(()),
        }
    }
}

type Rule = (bool, &'static str, &'static str);

impl JwtConfig {
    /// Whether tokens that an issuer has signed are accepted.
    pub const fn is_on(&self) -> bool {
        self.key_file.is_some() || self.jwks_file.is_some()
    }

    fn rules(&self) -> [Rule; 10] {
        let is_on = self.is_on();
        let is_claim = |name: &String| !name.is_empty() && !TAKEN_CLAIMS.contains(&name.as_str());
        let text = |text: &Option<String>| text.as_ref().is_none_or(|text| !text.is_empty());
        let alone = self.key_file.is_none() || self.jwks_file.is_none();
        let times = Duration::from_millis(100)..=Duration::from_secs(3600);
        [
            (alone, "auth.jwt.jwks_file", "must not stand beside key_file"),
            (is_on || self.algorithms.is_empty(), "auth.jwt.key_file", "or jwks_file must be set"),
            (!is_on || !self.algorithms.is_empty(), "auth.jwt.algorithms", "must name what is accepted"),
            (
                self.key_file.is_none() || self.algorithms.len() == 1,
                "auth.jwt.algorithms",
                "must be exactly one with key_file",
            ),
            (
                !is_on || (self.audience.is_some() && text(&self.audience)),
                "auth.jwt.audience",
                "must be set: a token for another service would open this one",
            ),
            (text(&self.issuer), "auth.jwt.issuer", "must not be empty"),
            (times.contains(&self.reload_interval), "auth.jwt.reload_interval", "must be 100 ms to 1 h"),
            (self.leeway <= Duration::from_secs(600), "auth.jwt.leeway", "must be at most 10 min"),
            (is_claim(&self.user_claim), "auth.jwt.user_claim", "must be a claim without another meaning"),
            (
                is_claim(&self.device_claim) && self.device_claim != self.user_claim,
                "auth.jwt.device_claim",
                "must be a claim without another meaning",
            ),
        ]
    }
}

impl ExternalConfig {
    /// The way to the service; connects when it is first asked. `None`: there is none.
    ///
    /// # Errors
    /// When the authority cannot be read, or is none.
    pub(super) fn endpoint(&self) -> Result<Option<Endpoint>, ConfigError> {
        let Some(url) = &self.url else { return Ok(None) };
        let endpoint = Endpoint::from_shared(url.clone()).expect("a checked URL is one");
        let endpoint = endpoint.connect_timeout(self.timeout).timeout(self.timeout);
        let Some(path) = &self.ca else { return Ok(Some(endpoint)) };
        let unusable = ConfigError::ExternalCa { path: path.clone() };
        let pem = fs::read(path).map_err(|cause| ConfigError::KeyUnreadable {
            key: "auth.external.ca",
            path: path.clone(),
            cause,
        })?;
        let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        if !certificates.is_ok_and(|certificates| !certificates.is_empty()) {
            return Err(unusable);
        }
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        Ok(Some(endpoint.tls_config(tls).map_err(|_| unusable)?))
    }

    fn rules(&self) -> [Rule; 7] {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let is_url = |url: &String| {
            (url.starts_with("http://") || url.starts_with("https://"))
                && url.parse::<tonic::codegen::http::Uri>().is_ok_and(|url| url.host().is_some())
        };
        let is_tls = self.url.as_ref().is_some_and(|url| url.starts_with("https://"));
        [
            (
                self.url.as_ref().is_none_or(is_url),
                "auth.external.url",
                "must be http://host:port or https://host:port",
            ),
            (self.ca.is_some() == is_tls, "auth.external.ca", "goes with an https URL, and that with it"),
            ((ms(10)..=s(10)).contains(&self.timeout), "auth.external.timeout", "must be 10 ms to 10 s"),
            (self.cache_ttl <= s(3600), "auth.external.cache_ttl", "must be at most 1 h"),
            (
                self.cache_entries_max <= 10_000_000,
                "auth.external.cache_entries_max",
                "must be at most 10,000,000",
            ),
            (
                (1..=1000).contains(&self.breaker_failures),
                "auth.external.breaker_failures",
                "must be 1 to 1,000",
            ),
            (
                (ms(10)..=s(600)).contains(&self.breaker_pause),
                "auth.external.breaker_pause",
                "must be 10 ms to 10 min",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt() -> JwtConfig {
        JwtConfig {
            algorithms: vec![Algorithm::EdDsa],
            key_file: Some("/k".into()),
            audience: Some("us".into()),
            ..JwtConfig::default()
        }
    }

    fn refused(auth: &Auth) -> String {
        auth.check().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn settings_that_would_let_too_much_in_are_refused_by_name() {
        let with = |jwt| Auth { jwt, ..Auth::default() };
        assert_eq!(refused(&Auth::default()), "");
        assert_eq!(refused(&with(jwt())), "");
        for (jwt, key) in [
            (JwtConfig { audience: None, ..jwt() }, "audience"),
            (JwtConfig { audience: Some(String::new()), ..jwt() }, "audience"),
            (JwtConfig { issuer: Some(String::new()), ..jwt() }, "issuer"),
            (JwtConfig { algorithms: vec![], ..jwt() }, "algorithms"),
            (JwtConfig { algorithms: vec![Algorithm::EdDsa, Algorithm::Hs256], ..jwt() }, "algorithms"),
            (JwtConfig { jwks_file: Some("/j".into()), ..jwt() }, "jwks_file"),
            (JwtConfig { key_file: None, ..jwt() }, "key_file"),
            (JwtConfig { leeway: Duration::from_secs(601), ..jwt() }, "leeway"),
            (JwtConfig { user_claim: "iss".into(), ..jwt() }, "user_claim"),
            (JwtConfig { device_claim: "sub".into(), ..jwt() }, "device_claim"),
            (JwtConfig { device_claim: String::new(), ..jwt() }, "device_claim"),
        ] {
            let refused = refused(&with(jwt));
            assert!(refused.starts_with(&format!("control.auth.jwt.{key} ")), "{key}: {refused}");
        }
        for (url, ca, key) in [
            ("a:1", None, "url"),
            ("http://", None, "url"),
            ("", None, "url"),
            ("unix:/x", None, "url"),
            ("https://a:1", None, "ca"),
            ("http://a:1", Some("/ca".into()), "ca"),
        ] {
            let external = ExternalConfig { url: Some(url.into()), ca, ..ExternalConfig::default() };
            let refused = refused(&Auth { external, ..Auth::default() });
            assert!(refused.starts_with(&format!("control.auth.external.{key} ")), "{url}: {refused}");
        }
    }
}
