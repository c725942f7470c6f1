//! One TOML file for everything: `[gateway]`, `[control]`, `[edge]`, `[process]`, `[log]`. Unknown keys are refused.
//!
//! Flags win over the environment, which wins over the file, which wins over the defaults.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use gimbal_gateway::link::RemoteTls;
use serde::{Deserialize, Serialize};

/// The commented default file, as `gimbal config default` prints it.
pub const DEFAULT_TOML: &str = include_str!("config/default.toml");
/// A longer file is some other file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest time a drain may be spread over.
const DRAIN_OVER_MAX: Duration = Duration::from_secs(3_600);

/// The whole file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The edge.
    pub gateway: gimbal_gateway::config::Config,
    /// The control plane.
    pub control: gimbal_control::Config,
    /// What `gimbal gateway` needs beside `[gateway]`.
    pub edge: Edge,
    /// Life of the process.
    pub process: Process,
    /// Its log.
    pub log: Log,
}

/// A gateway that runs apart from control.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Edge {
    /// URL of control's gRPC listener. Default http://127.0.0.1:8010; https needs [`Self::ca`].
    pub control: String,
    /// File with the authority of control's certificate, in PEM form.
    pub ca: Option<PathBuf>,
    /// Files with a client certificate and its key, in PEM form, if control is to know the gateway by them.
    pub certificate: Option<PathBuf>,
    /// The key.
    pub key: Option<PathBuf>,
    /// File whose first line is control's link key. Needed outside of `--dev`.
    pub link_key_file: Option<PathBuf>,
    /// HTTP listener of /healthz, /readyz and /metrics. Default 127.0.0.1:8031.
    pub http_listen: SocketAddr,
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            control: "http://127.0.0.1:8010".into(),
            ca: None,
            certificate: None,
            key: None,
            link_key_file: None,
            http_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8031)),
        }
    }
}

impl Edge {
    /// Reads the files of the link's TLS, if it is to have any.
    ///
    /// # Errors
    /// When one cannot be read, or a part is missing.
    pub fn tls(&self) -> Result<Option<RemoteTls>> {
        let read = |key: &str, path: &Path| {
            fs::read(path).with_context(|| format!("edge.{key}: cannot read {}", path.display()))
        };
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((read("certificate", certificate)?, read("key", key)?)),
            (None, None) => None,
            _ => bail!("edge.certificate and edge.key go together"),
        };
        match &self.ca {
            Some(ca) => Ok(Some(RemoteTls { ca: read("ca", ca)?, identity })),
            None if identity.is_some() => bail!("edge.certificate needs edge.ca"),
            None => Ok(None),
        }
    }
}

/// Life of the process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// Clients are told to come back later evenly over this time when the process is asked to stop. Default 5 s; at most
    /// 1 h. Without connections nothing is waited for.
    #[serde(with = "humantime_serde")]
    pub drain_over: Duration,
}

impl Default for Process {
    fn default() -> Self {
        Self { drain_over: Duration::from_secs(5) }
    }
}

/// The process's log, on standard error.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged: a level, or levels by module as `info,gimbal_gateway=debug`. Default `info`.
    pub filter: String,
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

/// Form of a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Flags of every server verb.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CommonFlags {
    /// Configuration file
    #[arg(long, env = "GIMBAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// For one's own machine only: any code signs in, missing keys are "dev", client port on loopback
    #[arg(long, env = "GIMBAL_DEV")]
    pub dev: bool,
    /// Port of health and metrics
    #[arg(long, env = "GIMBAL_HTTP_LISTEN", value_name = "IP:PORT")]
    pub http_listen: Option<SocketAddr>,
    /// What is logged, as `info,gimbal_gateway=debug`
    #[arg(long, env = "GIMBAL_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// Flags of a process with a gateway in it.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct GatewayFlags {
    /// Client port
    #[arg(long, env = "GIMBAL_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// WebSocket port; `off`: none
    #[arg(long, env = "GIMBAL_WEBSOCKET_LISTEN", value_name = "IP:PORT|off", value_parser = address_or_off)]
    pub websocket_listen: Option<OptionalAddress>,
    /// Shards; 0: one for each core but one
    #[arg(long, env = "GIMBAL_SHARDS", value_name = "COUNT")]
    pub shards: Option<u8>,
}

/// An address to listen on, or none: the transport is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionalAddress(pub Option<SocketAddr>);

fn address_or_off(text: &str) -> Result<OptionalAddress, String> {
    match text {
        "off" => Ok(OptionalAddress(None)),
        text => text
            .parse()
            .map(|address| OptionalAddress(Some(address)))
            .map_err(|_| format!("{text:?} is neither an address as 127.0.0.1:8003 nor `off`")),
    }
}

/// Flags of a process with the control plane in it.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ControlFlags {
    /// Data directory
    #[arg(long, env = "GIMBAL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// gRPC port
    #[arg(long, env = "GIMBAL_GRPC_LISTEN", value_name = "IP:PORT")]
    pub grpc_listen: Option<SocketAddr>,
}

/// Flags of a gateway that runs apart from control.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct EdgeFlags {
    /// URL of control's gRPC port
    #[arg(long, env = "GIMBAL_CONTROL", value_name = "URL")]
    pub control: Option<String>,
    /// File with the authority of control's certificate, for an https URL
    #[arg(long, env = "GIMBAL_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// File whose first line is control's link key
    #[arg(long, env = "GIMBAL_LINK_KEY_FILE", value_name = "FILE")]
    pub link_key_file: Option<PathBuf>,
    /// Number of this gateway among all of one control plane
    #[arg(long, env = "GIMBAL_GATEWAY_ID", value_name = "NUMBER")]
    pub gateway_id: Option<u64>,
}

/// What a verb was given.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Of every verb.
    pub common: CommonFlags,
    /// Of a gateway.
    pub gateway: GatewayFlags,
    /// Of control.
    pub control: ControlFlags,
    /// Of a gateway apart.
    pub edge: EdgeFlags,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, has an unknown key (which is named, with its line), or a value out of bounds.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let size = fs::metadata(path).with_context(|| format!("cannot read {name}"))?.len();
        if size > FILE_BYTES_MAX {
            bail!("{name} has {size} bytes: is this a configuration?");
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        Self::parse(&text).with_context(|| format!("{name} is not a valid configuration"))
    }

    /// Parses a file's text.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// File, then environment and flags, then bounds. Secrets are not read.
    ///
    /// # Errors
    /// As [`Self::read`], or when a setting is out of its bounds.
    pub fn load(flags: &Flags) -> Result<Self> {
        let mut config = match &flags.common.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        if flags.common.dev {
            config.stay_local();
        }
        config.apply(flags);
        config.check_bounds()?;
        Ok(config)
    }

    /// Client ports that were not set are on loopback.
    fn stay_local(&mut self) {
        let (ours, default) = (&mut self.gateway, gimbal_gateway::config::Config::default());
        if ours.listen == default.listen {
            ours.listen.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        for (ours, default) in [
            (&mut ours.websocket.listen, default.websocket.listen),
            (&mut ours.tls.listen, default.tls.listen),
            (&mut ours.tls.websocket_listen, default.tls.websocket_listen),
            (&mut ours.quic.listen, default.quic.listen),
        ] {
            if *ours == default
                && let Some(address) = ours
            {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            }
        }
    }

    fn apply(&mut self, flags: &Flags) {
        let Flags { common, gateway, control, edge } = flags;
        set(&mut self.control.http_listen, &common.http_listen);
        set(&mut self.edge.http_listen, &common.http_listen);
        set(&mut self.log.filter, &common.log);
        set(&mut self.gateway.listen, &gateway.listen);
        set(&mut self.gateway.websocket.listen, &gateway.websocket_listen.map(|given| given.0));
        set(&mut self.gateway.shards, &gateway.shards);
        set(&mut self.control.data_dir, &control.data);
        set(&mut self.control.grpc_listen, &control.grpc_listen);
        set(&mut self.edge.control, &edge.control);
        set(&mut self.gateway.gateway_id, &edge.gateway_id);
        if edge.ca.is_some() {
            self.edge.ca.clone_from(&edge.ca);
        }
        if edge.link_key_file.is_some() {
            self.edge.link_key_file.clone_from(&edge.link_key_file);
        }
    }

    /// Checks what can be checked without reading a key.
    ///
    /// # Errors
    /// The setting and its bounds.
    pub fn check_bounds(&self) -> Result<()> {
        self.gateway.check().context("[gateway]")?;
        if self.process.drain_over > DRAIN_OVER_MAX {
            bail!("process.drain_over must be at most {DRAIN_OVER_MAX:?}");
        }
        tracing_subscriber::EnvFilter::try_new(&self.log.filter).context("log.filter is not a filter")?;
        Ok(())
    }

    /// The key a gateway of its own links with.
    ///
    /// # Errors
    /// When no file is named outside of `--dev`, or it cannot be read or is empty.
    pub fn link_key(&self, dev: bool) -> Result<String> {
        let Some(path) = &self.edge.link_key_file else {
            if dev {
                return Ok(gimbal_control::config::DEV_KEY.to_owned());
            }
            bail!("edge.link_key_file is not set: outside of --dev a gateway needs control's link key");
        };
        let text = fs::read_to_string(path)
            .with_context(|| format!("edge.link_key_file: cannot read {}", path.display()))?;
        match text.lines().next().map(str::trim) {
            Some(key) if !key.is_empty() => Ok(key.to_owned()),
            _ => bail!("edge.link_key_file: {} is empty", path.display()),
        }
    }
}

fn set<T: Clone>(setting: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        setting.clone_from(value);
    }
}

#[cfg(test)]
#[path = "../../control/fuzz/src/config_rules.rs"]
mod config_rules;
#[cfg(test)]
#[path = "../../gateway/fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzz_target_passes() {
        replay::replay("../control/fuzz/corpus/config", config_rules::check_config);
    }

    fn with_file(path: PathBuf) -> Flags {
        let common = CommonFlags { config: Some(path), ..CommonFlags::default() };
        Flags { common, ..Flags::default() }
    }

    #[test]
    fn the_default_file_holds_the_defaults() {
        assert_eq!(Config::parse(DEFAULT_TOML).unwrap(), Config::default());
    }

    #[test]
    fn the_default_file_names_every_key() {
        let keys = |table: &toml::Table| {
            let mut keys = Vec::new();
            collect(table, "", &mut keys);
            keys.sort();
            keys
        };
        let shown: toml::Table = toml::from_str(DEFAULT_TOML).unwrap();
        let all = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(keys(&shown), keys(&all));
    }

    fn collect(table: &toml::Table, path: &str, keys: &mut Vec<String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(table) => collect(table, &format!("{path}{key}."), keys),
                _ => keys.push(format!("{path}{key}")),
            }
        }
    }

    #[test]
    fn commented_examples_are_valid_too() {
        let uncommented: String = DEFAULT_TOML
            .lines()
            .map(|line| match line.strip_prefix("#= ") {
                Some(example) => format!("{example}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let config = Config::parse(&uncommented).unwrap();
        assert!(config.control.backend_key_file.is_some() && config.edge.link_key_file.is_some());
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        for text in [
            "nonsense = 1",
            "[gateway]\nnonsense = 1",
            "[control.limits]\nnonsense = 1",
            "[nonsense]",
            "[log]\nnonsense = 2",
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains("unknown field `nonsense`"), "{text}: {error}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let file = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("gimbal.toml");
            fs::write(&path, text).unwrap();
            let flags = with_file(path);
            format!("{:#}", Config::load(&flags).unwrap_err())
        };
        assert!(file("[gateway]\nsign_in_deadline = \"2h\"").contains("sign_in_deadline"));
        assert!(file("[process]\ndrain_over = \"2h\"").contains("drain_over"));
        assert!(file("[log]\nfilter = \"a=b=c\"").contains("log.filter"));
        assert!(file("[gateway]\nqueue_bytes_max = \"many\"").contains("queue_bytes_max"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gimbal.toml");
        fs::write(&path, "[gateway]\nlisten = \"127.0.0.1:1\"\nshards = 3\n").unwrap();
        let mut flags = with_file(path);
        flags.gateway.listen = Some("127.0.0.1:2".parse().unwrap());
        let config = Config::load(&flags).unwrap();
        assert_eq!((config.gateway.listen, config.gateway.shards), ("127.0.0.1:2".parse().unwrap(), 3));
    }

    #[test]
    fn dev_listens_on_loopback_unless_told_otherwise() {
        let mut flags = Flags::default();
        flags.common.dev = true;
        let gateway = Config::load(&flags).unwrap().gateway;
        assert!(gateway.listen.ip().is_loopback() && gateway.websocket.listen.unwrap().ip().is_loopback());
        flags.gateway.listen = Some("0.0.0.0:8002".parse().unwrap());
        flags.gateway.websocket_listen = Some(address_or_off("off").unwrap());
        let gateway = Config::load(&flags).unwrap().gateway;
        assert!(!gateway.listen.ip().is_loopback() && gateway.websocket.listen.is_none());
        assert!(address_or_off("8003").unwrap_err().contains("nor `off`"));
    }

    #[test]
    fn a_gateway_needs_a_link_key_outside_of_dev() {
        let config = Config::default();
        assert!(config.link_key(true).is_ok());
        assert!(config.link_key(false).unwrap_err().to_string().contains("edge.link_key_file"));
    }
}
