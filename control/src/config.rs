//! Configuration of the control plane: parsed once, checked once.

mod auth;
pub mod devices;
mod events;
mod keys;
pub mod rooms;
mod trace;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use gimbal_codec::limits;
use serde::{Deserialize, Serialize};

use tonic::{codegen::http::HeaderValue, transport::Endpoint};

pub use crate::front::tls::{TlsError, TlsFiles};
use crate::{
    api_key::{Keys, Role},
    auth::jwt::{Jwt, KeyFileError},
    front,
    layer::Web,
};
pub use auth::{Algorithm, Auth, ExternalConfig, ExternalKind, JwtConfig, SubjectKind};
use devices::Devices;
pub use events::Events;
pub use keys::{Api, ApiKey, Secret};
pub use trace::TraceConfig;

/// The key that stands for every missing one with `--dev`, and that nothing else starts with.
pub const DEV_KEY: &str = "dev";
/// Shortest key outside of `--dev`: 16 hexadecimal digits are 64 random bits.
pub const KEY_CHARS_MIN: usize = 16;

/// The `[control]` table. Durations and sizes carry units ("90days", "64MiB"); unknown keys are refused.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// gRPC listener: API, health, reflection and the link of remote gateways. Default 127.0.0.1:8010, since the
    /// transport is plain text: put it behind a private network.
    pub grpc_listen: SocketAddr,
    /// HTTP listener of /healthz, /readyz and /metrics. Default 127.0.0.1:8030; it asks for no credential.
    pub http_listen: SocketAddr,
    /// Where the store lives; made when absent. Default `data`. One process at a time.
    pub data_dir: PathBuf,
    /// Life of a device token from its sign-in or registration. Default 90 days, as in gim; 1 minute to 10 years.
    #[serde(with = "humantime_serde")]
    pub token_lifetime: Duration,
    /// File whose first line is the key of backends (Accounts, pushes, Rooms). Needed outside of `--dev`, unless a key of
    /// `api` has one of its scopes.
    pub backend_key_file: Option<PathBuf>,
    /// File whose first line is the key of administrators (Admin). Needed outside of `--dev`, unless a key of `api` has one
    /// of its scopes.
    pub admin_key_file: Option<PathBuf>,
    /// File whose first line is the key of remote gateways. Absent outside of `--dev`: no remote gateway may link.
    pub link_key_file: Option<PathBuf>,
    /// Who tells a person their verification code: `"log"`, or `{ file = "path" }` to which lines of phone and code are
    /// appended. Absent outside of `--dev`: nobody signs in by phone.
    pub code_issuer: Option<CodeIssuer>,
    /// Origins of pages that may call the clients' services by gRPC-Web: scheme, host and port, as `https://app.example`.
    /// Default none; then only HTTP/2 is spoken.
    pub cors_origins: Vec<String>,
    /// TLS of both listeners.
    pub tls: Tls,
    /// Keys by name, each with its scopes.
    #[serde(skip_serializing_if = "Api::is_empty")]
    pub api: Api,
    /// Tokens that others issue.
    pub auth: Auth,
    /// The event stream.
    pub events: Events,
    /// Whether users take messages of friends only; those of backends are taken in any case. Default false.
    pub friends_only: bool,
    /// A user's devices beside each other.
    pub devices: Devices,
    /// What may be done in rooms.
    pub rooms: rooms::Rooms,
    /// What happened to messages lately.
    pub trace: TraceConfig,
    /// Bounds.
    pub limits: Limits,
    /// The store's memory.
    pub store: StoreConfig,
}

/// Where verification codes go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeIssuer {
    /// The process's own log.
    Log,
    /// A file, made with mode 0600.
    File(PathBuf),
}

/// TLS of control's listeners. The files are read again when they change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM: the certificate, and those between it and its authority. Absent: plain text.
    pub certificate: Option<PathBuf>,
    /// PEM: its private key.
    pub key: Option<PathBuf>,
    /// PEM: authorities whose client certificates are taken. Absent: none are asked for.
    pub client_ca: Option<PathBuf>,
    /// What a client certificate stands for in place of a key, by a DNS name of its subject alternative names: `backend`,
    /// `admin` or `gateway`.
    pub clients: BTreeMap<String, Role>,
    /// Whether the HTTP listener speaks TLS, too. Default true.
    pub http: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self { certificate: None, key: None, client_ca: None, clients: BTreeMap::new(), http: true }
    }
}

impl Tls {
    /// The files, if there is to be TLS.
    fn files(&self) -> Result<Option<TlsFiles>, ConfigError> {
        let absent = |key, rule| Err(ConfigError::Bounds { key, rule });
        match (self.certificate.clone(), self.key.clone()) {
            (Some(certificate), Some(key)) => {
                if !self.clients.is_empty() && self.client_ca.is_none() {
                    return absent("tls.clients", "need a tls.client_ca that vouches for them");
                }
                let (client_ca, clients) = (self.client_ca.clone(), self.clients.clone());
                Ok(Some(TlsFiles { certificate, key, client_ca, clients }))
            }
            (Some(_), None) => absent("tls.key", "must be set with tls.certificate"),
            (None, Some(_)) => absent("tls.certificate", "must be set with tls.key"),
            (None, None) if self.client_ca.is_some() => {
                absent("tls.client_ca", "needs tls.certificate and tls.key")
            }
            (None, None) => Ok(None),
        }
    }
}

/// Bounds of the control plane.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest content of a message, push or room publish. Default and most 60 KiB: with its envelope it fits a frame.
    pub content_bytes_max: ByteSize,
    /// gRPC calls under way, on all connections. Default 4,096, at most 72 KiB each; 16 to 1,000,000. Full: busy.
    pub calls_max: usize,
    /// gRPC calls under way on one connection. Default 128; 1 to 10,000.
    pub calls_per_connection_max: u32,
    /// Longest time to a call's answer; a caller may ask for less. Default 10 s; 10 ms to 10 minutes.
    #[serde(with = "humantime_serde")]
    pub call_deadline: Duration,
    /// gRPC connections, those of gateways included. Default 1,024; 16 to 1,000,000. Full: a new one is closed, counted.
    pub connections_max: usize,
    /// Of these, from one address. Default 256; 1 to 1,000,000.
    pub connections_per_address: usize,
    /// To the first bytes of a connection's first request. Default 5 s; 10 ms to 1 minute.
    #[serde(with = "humantime_serde")]
    pub handshake_deadline: Duration,
    /// How often a gRPC client is asked whether it is there; one that does not answer within the same time is gone.
    /// Default 5 s; 1 s to 1 hour.
    #[serde(with = "humantime_serde")]
    pub keepalive: Duration,
    /// Connections of the HTTP listener, a quarter of them from one address. Default 256; 4 to 100,000.
    pub http_connections_max: usize,
    /// Verification codes asked for from one address within an hour. Default 200; 0 to 1,000,000, 0: unlimited, as behind a
    /// proxy that hides addresses.
    pub codes_per_address: u32,
    /// Reads (sync, token checks) that wait for a reader thread. Default 4,096; 16 to 1,000,000. Full: busy.
    pub reads_max: usize,
    /// Rooms with members. Default 1,000,000, about 150 B each; 1 to 100,000,000. Full: a new room gets no publishes, counted.
    pub rooms_max: usize,
    /// Items queued for one remote gateway. Default 65,536; 8,192 to 10,000,000: half is for what is not stored and no
    /// more of it taken then. Full: its stream is closed; it connects again and announces.
    pub link_items_max: usize,
    /// Bytes queued for one remote gateway. Default 64 MiB; 8 MiB to 4 GiB: half holds a batch of the writer. Full: as
    /// above.
    pub link_bytes_max: ByteSize,
    /// How long the routes of a gateway whose link broke are kept. Default 10 s; 0 to 10 minutes.
    #[serde(with = "humantime_serde")]
    pub gateway_lease: Duration,
    /// How long a repeated send gets its first answer, at most: a client that was away for longer is refused. Default 30
    /// days; 1 hour to 10 years.
    #[serde(with = "humantime_serde")]
    pub repeats_kept: Duration,
}

/// Memory and files of the embedded store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Cache of blocks read from disk, with their indexes and filters. Default 256 MiB; 1 MiB to 1 TiB.
    pub block_cache: ByteSize,
    /// One write buffer; about two are held in all tables together. Default 64 MiB; 1 MiB to 16 GiB.
    pub write_buffer: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            grpc_listen: local(8010),
            http_listen: local(8030),
            data_dir: "data".into(),
            token_lifetime: Duration::from_secs(90 * 24 * 3600),
            backend_key_file: None,
            admin_key_file: None,
            link_key_file: None,
            code_issuer: None,
            cors_origins: Vec::new(),
            tls: Tls::default(),
            api: Api::default(),
            auth: Auth::default(),
            events: Events::default(),
            friends_only: false,
            devices: Devices::default(),
            rooms: rooms::Rooms::default(),
            trace: TraceConfig::default(),
            limits: Limits::default(),
            store: StoreConfig::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            content_bytes_max: ByteSize(limits::CONTENT_BYTES_MAX as u64),
            calls_max: 4096,
            calls_per_connection_max: 128,
            call_deadline: Duration::from_secs(10),
            connections_max: 1024,
            connections_per_address: 256,
            handshake_deadline: Duration::from_secs(5),
            keepalive: Duration::from_secs(5),
            http_connections_max: 256,
            codes_per_address: 200,
            reads_max: 4096,
            rooms_max: 1_000_000,
            link_items_max: 65_536,
            link_bytes_max: ByteSize::mib(64),
            gateway_lease: Duration::from_secs(10),
            repeats_kept: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { block_cache: ByteSize::mib(256), write_buffer: ByteSize::mib(64) }
    }
}

/// A configuration that nothing can be started with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is out of its bounds.
    #[error("control.{key} {rule}")]
    Bounds {
        /// The key below `[control]`.
        key: &'static str,
        /// The rule, as a predicate.
        rule: &'static str,
    },
    /// A key file is not named.
    #[error(
        "control.{key} is not set: outside of --dev a key is needed (head -c 32 /dev/urandom | base64 > file)"
    )]
    KeyMissing {
        /// The key below `[control]`.
        key: &'static str,
    },
    /// A key file cannot be read.
    #[error("control.{key}: cannot read {path:?}: {cause}")]
    KeyUnreadable {
        /// The key below `[control]`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The files of TLS are of no use.
    #[error("control.tls: {cause}")]
    Tls {
        /// Why.
        #[source]
        cause: TlsError,
    },
    /// A key that anybody could guess.
    #[error("control.{key}: the key in {path:?} is {why}")]
    KeyWeak {
        /// The key below `[control]`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A key of `api.keys` that could not be used, or not told from another.
    #[error("control.api.keys: {name} {why}")]
    ApiKey {
        /// Its name, or those of two.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The authority of the external service.
    #[error("control.auth.external.ca: {path:?} holds no certificate in PEM form")]
    ExternalCa {
        /// The file.
        path: PathBuf,
    },
    /// The keys of the tokens' issuer.
    #[error("control.auth.jwt: {0}")]
    JwtKeys(#[from] KeyFileError),
}

/// A configuration that was checked, with its secrets read.
#[derive(Clone)]
pub struct Checked {
    /// As given.
    pub config: Config,
    /// Names, hashes and scopes of the keys.
    pub keys: Keys,
    /// The issuer of tokens, if one is configured.
    pub jwt: Option<Arc<Jwt>>,
    /// The way to the service that answers for tokens, if one is configured.
    pub(crate) external: Option<Endpoint>,
    /// `--dev`: any code signs in, missing keys are [`DEV_KEY`].
    pub dev: bool,
    /// TLS of the listeners; `None`: plain text.
    pub(crate) tls: Option<front::tls::Tls>,
    /// Pages that may call.
    pub(crate) web: Web,
    /// What a person who starts this must know, one line each; also warned in the log at start.
    pub warnings: Vec<String>,
}

impl Config {
    /// Checks bounds and reads the key files.
    ///
    /// # Errors
    /// [`ConfigError`] names the key at fault.
    pub fn check(self, dev: bool) -> Result<Checked, ConfigError> {
        self.check_bounds()?;
        let tls =
            self.tls.files()?.map(|files| front::tls::Tls::open(files, self.limits.connections_max / 2));
        let tls = tls.transpose().map_err(|cause| ConfigError::Tls { cause })?;
        let web = self.web()?;
        let mut warnings = Vec::new();
        let keys = keys::read(&self, dev, &mut warnings)?;
        let jwt = self.open_jwt(&mut warnings)?;
        let external = self.auth.external.endpoint()?;
        if dev {
            warnings.insert(0, "--dev: ANY verification code signs in as ANY phone number. Never use it on a reachable host.".into());
            if !self.grpc_listen.ip().is_loopback() {
                warnings.push(format!("--dev listens on {}, which others may reach", self.grpc_listen));
            }
        } else if self.code_issuer.is_none() {
            warnings.push("no code_issuer is set: nobody can sign in by phone".into());
        }
        if self.code_issuer == Some(CodeIssuer::Log) {
            warnings.push("verification codes are written to the log".into());
        }
        Ok(Checked { config: self, keys, jwt, external, dev, tls, web, warnings })
    }

    fn web(&self) -> Result<Web, ConfigError> {
        let origin = |text: &String| {
            let host = text.strip_prefix("https://").or(text.strip_prefix("http://"));
            let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', '@']));
            HeaderValue::from_str(text).ok().filter(|_| is_origin)
        };
        let origins: Option<Vec<_>> = self.cors_origins.iter().map(origin).collect();
        let broken = ConfigError::Bounds {
            key: "cors_origins",
            rule: "must be origins as https://app.example, without path or wildcard",
        };
        Ok(Web::new(origins.ok_or(broken)?))
    }

    fn open_jwt(&self, warnings: &mut Vec<String>) -> Result<Option<Arc<Jwt>>, ConfigError> {
        let jwt = &self.auth.jwt;
        if !jwt.is_on() {
            return Ok(None);
        }
        if let (Some(path), true) = (&jwt.key_file, jwt.algorithms.contains(&Algorithm::Hs256)) {
            keys::warn_if_readable("auth.jwt.key_file", path, warnings);
        }
        Ok(Some(Arc::new(Jwt::open(jwt)?)))
    }

    fn check_bounds(&self) -> Result<(), ConfigError> {
        let Limits { content_bytes_max, calls_max, reads_max, rooms_max, .. } = &self.limits;
        let Limits { link_items_max, link_bytes_max, gateway_lease, repeats_kept, .. } = &self.limits;
        let StoreConfig { block_cache, write_buffer } = &self.store;
        let minute = Duration::from_secs(60);
        self.limits.check_connections()?;
        let rules = [
            (
                (minute..=minute * 60 * 24 * 3660).contains(&self.token_lifetime),
                "token_lifetime",
                "must be 1 minute to 10 years",
            ),
            (
                (1..=limits::CONTENT_BYTES_MAX as u64).contains(&content_bytes_max.as_u64()),
                "limits.content_bytes_max",
                "must be 1 B to 60 KiB",
            ),
            ((16..=1_000_000).contains(calls_max), "limits.calls_max", "must be 16 to 1,000,000"),
            ((16..=1_000_000).contains(reads_max), "limits.reads_max", "must be 16 to 1,000,000"),
            ((1..=100_000_000).contains(rooms_max), "limits.rooms_max", "must be 1 to 100,000,000"),
            (
                (8192..=10_000_000).contains(link_items_max),
                "limits.link_items_max",
                "must be 8,192 to 10,000,000",
            ),
            (within(*link_bytes_max, 8, 4 << 10), "limits.link_bytes_max", "must be 8 MiB to 4 GiB"),
            (*gateway_lease <= minute * 10, "limits.gateway_lease", "must be at most 10 minutes"),
            (
                (minute * 60..=minute * 60 * 24 * 3660).contains(repeats_kept),
                "limits.repeats_kept",
                "must be 1 hour to 10 years",
            ),
            (within(*block_cache, 1, 1 << 20), "store.block_cache", "must be 1 MiB to 1 TiB"),
            (within(*write_buffer, 1, 16 << 10), "store.write_buffer", "must be 1 MiB to 16 GiB"),
        ];
        first_broken(&rules)?;
        self.events.check()?;
        self.devices.check()?;
        self.rooms.check()?;
        self.trace.check()?;
        self.auth.check()
    }
}

impl Limits {
    fn check_connections(&self) -> Result<(), ConfigError> {
        let ms = Duration::from_millis;
        let rules = [
            (
                (1..=10_000).contains(&self.calls_per_connection_max),
                "limits.calls_per_connection_max",
                "must be 1 to 10,000",
            ),
            (
                (ms(10)..=ms(600_000)).contains(&self.call_deadline),
                "limits.call_deadline",
                "must be 10 ms to 10 minutes",
            ),
            (
                (16..=1_000_000).contains(&self.connections_max),
                "limits.connections_max",
                "must be 16 to 1,000,000",
            ),
            (
                (1..=1_000_000).contains(&self.connections_per_address),
                "limits.connections_per_address",
                "must be 1 to 1,000,000",
            ),
            (
                (ms(10)..=ms(60_000)).contains(&self.handshake_deadline),
                "limits.handshake_deadline",
                "must be 10 ms to 1 minute",
            ),
            (
                (ms(1000)..=ms(3_600_000)).contains(&self.keepalive),
                "limits.keepalive",
                "must be 1 s to 1 hour",
            ),
            (
                (4..=100_000).contains(&self.http_connections_max),
                "limits.http_connections_max",
                "must be 4 to 100,000",
            ),
            (self.codes_per_address <= 1_000_000, "limits.codes_per_address", "must be at most 1,000,000"),
        ];
        first_broken(&rules)
    }
}

/// Whether it holds, the key, the rule as a predicate.
type Rule = (bool, &'static str, &'static str);

fn first_broken(rules: &[Rule]) -> Result<(), ConfigError> {
    match rules.iter().find(|(holds, ..)| !holds) {
        Some(&(_, key, rule)) => Err(ConfigError::Bounds { key, rule }),
        None => Ok(()),
    }
}

fn within(size: ByteSize, min_mib: u64, max_mib: u64) -> bool {
    (ByteSize::mib(min_mib)..=ByteSize::mib(max_mib)).contains(&size)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::api_key::Scope;

    /// Backends' key, and another one for administrators.
    fn with_key(text: &str) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let [backend, admin] = [("backend", text), ("admin", "an-administrators-key")].map(|(name, text)| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        });
        let config = Config { backend_key_file: backend, admin_key_file: admin, ..Config::default() };
        (dir, config)
    }

    #[test]
    fn nothing_starts_without_keys_unless_in_dev() {
        let refused = Config::default().check(false).err().unwrap();
        assert!(refused.to_string().starts_with("control.backend_key_file is not set"), "{refused}");
        let checked = Config::default().check(true).unwrap();
        assert!(checked.warnings[0].contains("ANY verification code"));
        assert_eq!(checked.warnings.len(), 4, "each assumed key is told: {:?}", checked.warnings);
    }

    #[test]
    fn weak_keys_are_refused_outside_of_dev() {
        for (text, why) in [
            ("dev\n", "is the development key"),
            ("0123456789abcde\n", "is shorter than 16 characters"),
            ("\n0123456789abcdef\n", "is empty"),
            ("0123456789 abcdef\n", "is not made of visible ASCII"),
            (&"x".repeat(5000), "is longer than 4,096 bytes"),
        ] {
            let (_dir, config) = with_key(text);
            let refused = config.check(false).err().unwrap().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        let (_dir, config) = with_key("0123456789abcdef\n");
        let checked = config.check(false).unwrap();
        assert!(!checked.keys.serve(Scope::Link), "no link key: no remote gateway");
        let (_dir, config) = with_key("dev\n");
        assert!(config.check(true).is_ok());
        let (_dir, config) = with_key("an-administrators-key");
        let refused = config.check(false).err().unwrap().to_string();
        assert!(refused.contains("backend and admin are the same key"), "{refused}");
    }

    #[test]
    fn a_key_file_that_is_absent_is_named() {
        let config = Config { backend_key_file: Some("/nonexistent/key".into()), ..Config::default() };
        let refused = config.check(true).err().unwrap().to_string();
        assert!(refused.contains("backend_key_file") && refused.contains("/nonexistent/key"), "{refused}");
    }

    #[test]
    fn values_out_of_bounds_are_named() {
        let mut config = Config::default();
        config.limits.content_bytes_max = ByteSize::mib(1);
        let refused = config.check(true).err().unwrap().to_string();
        assert_eq!(refused, "control.limits.content_bytes_max must be 1 B to 60 KiB");
        let config = Config { token_lifetime: Duration::from_secs(1), ..Config::default() };
        assert!(config.check(true).is_err());
    }
}
