//! Settings of a gateway, each with its default, bounds and reason. Parsed and checked once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
pub use crate::transport::prefix::Prefix;

/// Settings of a gateway. Unknown keys are refused.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address for clients over TCP. Default 0.0.0.0:8002 (gim's port); port 0 takes any free one.
    pub listen: SocketAddr,
    /// This gateway among all that serve one control plane. Default 1; never 0.
    pub gateway_id: u64,
    /// Shards, each a thread with its own ring. Default 0: one for each allowed core but one, at least 1. At most 63, for that
    /// of QUIC comes on top.
    pub shards: u8,
    /// Pin each shard to one core of the process's own affinity mask. Default true. Without it they float, which suits
    /// machines shared with other work.
    pub pin: bool,
    /// Connections of the whole process. Default 1,000,000; 1 to 16,000,000. Further ones are closed at once.
    pub connections_max: u32,
    /// Connections from one address (IPv6: from one /64, which one host has). Default 4,096; 0 to 16,000,000, 0: unlimited.
    /// Further ones are closed at once. Carriers put many people behind one address.
    pub connections_per_address: u32,
    /// Connections from one range: the /24 of an IPv4 address, the /48 of an IPv6 address. Default 65,536; as above.
    pub connections_per_prefix: u32,
    /// Ranges whose connections count for neither. Default this machine's own.
    pub connections_unlimited_from: Vec<Prefix>,
    /// Balancers that say, by the PROXY protocol (version 1 or 2), for whom they speak: ranges of their addresses. Default
    /// none. Their connections must begin with its header, and the address in there is what counts; those of others must not.
    pub proxy_protocol_from: Vec<Prefix>,
    /// Sign-ins per second of the whole process that are passed on to control, a second's worth at once. Default 10,000; 0 to
    /// 10,000,000, 0: unlimited. Those beyond are closed with 4102 and told when to come back.
    pub sign_ins_per_second: u32,
    /// Frames of one session per second, four seconds' worth at once. Default 1,000; 0 to 20,000, 0: unlimited. Beyond it calls
    /// are refused with 11003; at twice the burst frames are dropped, at three times the session is closed with 4310.
    pub frames_per_second: u32,
    /// Bytes of these frames, likewise. Default 1 MiB; 1 KiB to 1 GiB, 0: unlimited.
    pub bytes_per_second: ByteSize,
    /// What connections may hold in all: what waits for them, what has come of their frames, and 512 B each. Default 0: half of
    /// the memory of the machine or the control group; else 64 MiB to 16 TiB. From 80 % on frames that may be lost are shed
    /// for sessions for which more than 4 KiB would wait, at all of it new connections are closed at once.
    pub memory_max: ByteSize,
    /// Connections that wait in the kernel for each shard to accept them. Default 4,096; the kernel's
    /// `net.core.somaxconn` caps it.
    pub backlog: u32,
    /// A connection that has not signed in by then is closed. Default 10 s; 1 ms to 1 h.
    #[serde(with = "humantime_serde")]
    pub sign_in_deadline: Duration,
    /// A session without a welcome frame for so long is closed. Default 11 min, as in gim; 1 ms to 24 h.
    #[serde(with = "humantime_serde")]
    pub idle_deadline: Duration,
    /// A socket that takes no byte for so long while some wait is closed. Default 10 s; 1 ms to 1 h.
    #[serde(with = "humantime_serde")]
    pub write_deadline: Duration,
    /// After the close frame, how long the peer may take to read it and close its side. Default 2 s; 1 ms to 1 min.
    #[serde(with = "humantime_serde")]
    pub linger_deadline: Duration,
    /// What may wait for one session, in bytes. Default 128 KiB; 4 KiB to 64 MiB. Beyond it a session is behind, or closed
    /// when it keeps no cursor.
    pub queue_bytes_max: ByteSize,
    /// SO_SNDBUF of each connection. Default 16 KiB; 4 KiB to 16 MiB. The kernel doubles it for its bookkeeping and goes beyond it by
    /// one buffer of its own: measured at 62 KiB for a client that does not read. Without a bound it would hold megabytes.
    pub socket_send_bytes: ByteSize,
    /// Rooms of one session. Default 64; 1 to 4,096.
    pub rooms_per_session_max: u16,
    /// SIGNALs of one session per second. Default 50; 0 to 1,000,000, 0: unlimited. Each may go to all members of a room, so
    /// without a bound one client could keep a shard busy. Beyond it they are refused with 11003.
    pub signals_per_second: u32,
    /// SIGNALs of one session at once. Default 100; 1 to 1,000.
    pub signals_burst: u32,
    /// PUBLISHes of one session per second. Default 10; 0 to 1,000,000, 0: unlimited. Each goes to all members of its room.
    /// Beyond it they are refused with 11003.
    pub publishes_per_second: u32,
    /// PUBLISHes of one session at once. Default 20; 1 to 1,000.
    pub publishes_burst: u32,
    /// Items that wait for one shard. Default 65,536; 64 to 16,777,216. When it is full items are dropped and the shard
    /// announces its sessions again.
    pub inbox_items_max: u32,
    /// Bytes that wait for one shard. Default 64 MiB; 1 MiB to 16 GiB.
    pub inbox_bytes_max: ByteSize,
    /// Sessions reached per second by a push to all that names no pace. Default 100,000; at least 1.
    pub push_per_second: u32,
    /// Clients over WebSocket.
    pub websocket: WebSocket,
    /// Clients over TLS.
    pub tls: Tls,
    /// Clients over QUIC.
    pub quic: Quic,
}

/// Clients over WebSocket. Unknown keys are refused.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebSocket {
    /// Address. Default 0.0.0.0:8003 (gim's port); port 0 takes any free one; `""`: no WebSocket.
    #[serde(with = "address_or_empty")]
    pub listen: Option<SocketAddr>,
    /// The only path that is served. Default `/ws`, as gim's; begins with a slash, has no `?` or `#`, at most 256 bytes.
    pub path: String,
    /// Origins of web pages that may connect, as `https://app.example`, beside pages of the very host that they connect to;
    /// `*`: any. Default none. Programs that send no Origin may always connect: what counts is their token.
    pub origins: Vec<String>,
}

/// Clients over TLS 1.2 or 1.3: on ports of their own, once there is a certificate. Unknown keys are refused.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Certificate chain, PEM, the server's own first. Default none: no TLS. It is read again when it changes.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// Address for TCP. Default 0.0.0.0:8005; `""`: none.
    #[serde(with = "address_or_empty")]
    pub listen: Option<SocketAddr>,
    /// Address for WebSocket, with the path and the origins of `websocket`. Default 0.0.0.0:8006; `""`: none.
    #[serde(with = "address_or_empty")]
    pub websocket_listen: Option<SocketAddr>,
    /// Handshakes under way in the whole process. Default 1,024; 1 to 1,000,000. Further connections are closed at once, so that
    /// a flood of them costs bounded memory.
    pub handshakes_max: u32,
}

/// Clients over QUIC, once there is a certificate in `tls`. Unknown keys are refused.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quic {
    /// Address, UDP. Default 0.0.0.0:8004; `""`: none.
    #[serde(with = "address_or_empty")]
    pub listen: Option<SocketAddr>,
    /// Connections, beside `connections_max`, with those whose handshake is under way. Default 100,000; 1 to 16,000,000. One holds
    /// some 20 KiB, and up to two windows more while data is under way. Further clients are refused.
    pub connections_max: u32,
    /// Handshakes under way. Default 1,024; 1 to 1,000,000. Further clients get no answer, and try again.
    pub handshakes_max: u32,
    /// From so many handshakes under way on, a client has to show first that its address is its own (Retry), which costs it a
    /// round trip and us nothing to remember. Default 128; 0 to 1,000,000, 0: always.
    pub retry_from: u32,
}

impl Default for Quic {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 8004))),
            connections_max: 100_000,
            handshakes_max: 1024,
            retry_from: 128,
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: None,
            key: None,
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 8005))),
            websocket_listen: Some(SocketAddr::from(([0, 0, 0, 0], 8006))),
            handshakes_max: 1024,
        }
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 8003))),
            path: "/ws".to_owned(),
            origins: Vec::new(),
        }
    }
}

/// An address, or an empty string for none.
mod address_or_empty {
    use std::net::SocketAddr;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(address) => to.collect_str(address),
            None => to.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8002)),
            gateway_id: 1,
            shards: 0,
            pin: true,
            connections_max: 1_000_000,
            connections_per_address: 4096,
            connections_per_prefix: 65_536,
            connections_unlimited_from: vec![Prefix::LOOPBACK_V4, Prefix::LOOPBACK_V6],
            proxy_protocol_from: Vec::new(),
            sign_ins_per_second: 10_000,
            frames_per_second: 1000,
            bytes_per_second: ByteSize::mib(1),
            memory_max: ByteSize::b(0),
            backlog: 4096,
            sign_in_deadline: Duration::from_secs(10),
            idle_deadline: Duration::from_secs(11 * 60),
            write_deadline: Duration::from_secs(10),
            linger_deadline: Duration::from_secs(2),
            queue_bytes_max: ByteSize::kib(128),
            socket_send_bytes: ByteSize::kib(16),
            rooms_per_session_max: 64,
            signals_per_second: 50,
            signals_burst: 100,
            publishes_per_second: 10,
            publishes_burst: 20,
            inbox_items_max: 65_536,
            inbox_bytes_max: ByteSize::mib(64),
            push_per_second: 100_000,
            websocket: WebSocket::default(),
            tls: Tls::default(),
            quic: Quic::default(),
        }
    }
}

/// Most shards of one gateway; more than any machine this was meant for has cores to give.
pub const SHARDS_MAX: u8 = 63;

impl Config {
    /// Whether `newer` differs in what [`crate::server::Server::reload`] does not take over.
    pub fn needs_start_for(&self, newer: &Self) -> bool {
        let kept = Self {
            listen: self.listen,
            gateway_id: self.gateway_id,
            shards: self.shards,
            pin: self.pin,
            connections_max: self.connections_max,
            proxy_protocol_from: self.proxy_protocol_from.clone(),
            backlog: self.backlog,
            socket_send_bytes: self.socket_send_bytes,
            inbox_items_max: self.inbox_items_max,
            inbox_bytes_max: self.inbox_bytes_max,
            quic: self.quic.clone(),
            ..newer.clone()
        };
        kept != *newer
    }

    /// Whether every setting is within its bounds.
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that is not, and its bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        const MS: Duration = Duration::from_millis(1);
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        number("gateway_id", self.gateway_id, 1, u64::MAX)?;
        number("shards", self.shards.into(), 0, SHARDS_MAX.into())?;
        number("connections_max", self.connections_max.into(), 1, 16_000_000)?;
        number("connections_per_address", self.connections_per_address.into(), 0, 16_000_000)?;
        number("connections_per_prefix", self.connections_per_prefix.into(), 0, 16_000_000)?;
        number("sign_ins_per_second", self.sign_ins_per_second.into(), 0, 10_000_000)?;
        number("frames_per_second", self.frames_per_second.into(), 0, 20_000)?;
        if self.bytes_per_second.as_u64() > 0 {
            bytes("bytes_per_second", self.bytes_per_second, ByteSize::kib(1), ByteSize::gib(1))?;
        }
        if self.memory_max.as_u64() > 0 {
            bytes("memory_max", self.memory_max, ByteSize::mib(64), ByteSize::tib(16))?;
        }
        number("backlog", self.backlog.into(), 1, 1 << 20)?;
        number("rooms_per_session_max", self.rooms_per_session_max.into(), 1, 4096)?;
        number("signals_per_second", self.signals_per_second.into(), 0, 1_000_000)?;
        number("signals_burst", self.signals_burst.into(), 1, 1000)?;
        number("publishes_per_second", self.publishes_per_second.into(), 0, 1_000_000)?;
        number("publishes_burst", self.publishes_burst.into(), 1, 1000)?;
        number("inbox_items_max", self.inbox_items_max.into(), 64, 1 << 24)?;
        number("push_per_second", self.push_per_second.into(), 1, u32::MAX.into())?;
        duration("sign_in_deadline", self.sign_in_deadline, MS, HOUR)?;
        duration("idle_deadline", self.idle_deadline, MS, 24 * HOUR)?;
        duration("write_deadline", self.write_deadline, MS, HOUR)?;
        duration("linger_deadline", self.linger_deadline, MS, MINUTE)?;
        bytes("queue_bytes_max", self.queue_bytes_max, ByteSize::kib(4), ByteSize::mib(64))?;
        bytes("socket_send_bytes", self.socket_send_bytes, ByteSize::kib(4), ByteSize::mib(16))?;
        bytes("inbox_bytes_max", self.inbox_bytes_max, ByteSize::mib(1), ByteSize::gib(16))?;
        number("tls.handshakes_max", self.tls.handshakes_max.into(), 1, 1_000_000)?;
        number("quic.connections_max", self.quic.connections_max.into(), 1, 16_000_000)?;
        number("quic.handshakes_max", self.quic.handshakes_max.into(), 1, 1_000_000)?;
        number("quic.retry_from", self.quic.retry_from.into(), 0, 1_000_000)?;
        self.tls.check()?;
        self.websocket.check()
    }
}

impl Tls {
    fn check(&self) -> Result<(), ConfigError> {
        if self.certificate.is_some() == self.key.is_some() {
            return Ok(());
        }
        let name = if self.key.is_none() { "tls.key" } else { "tls.certificate" };
        Err(ConfigError::text(name, "", "a file", "a file, as there is the other one"))
    }
}

impl WebSocket {
    fn check(&self) -> Result<(), ConfigError> {
        let is_path = self.path.starts_with('/')
            && self.path.len() <= PATH_BYTES_MAX
            && self.path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#');
        if !is_path {
            return Err(ConfigError::text("websocket.path", &self.path, "/", "/ and printable ASCII"));
        }
        let is_origin = |origin: &String| {
            let host = origin.split_once("://").map(|(_, host)| host);
            origin == "*"
                || origin == "null"
                || host.is_some_and(|host| !host.is_empty() && !host.contains('/'))
        };
        match self.origins.iter().find(|origin| !is_origin(origin)) {
            Some(bad) => Err(ConfigError::text("websocket.origins", bad, "*", "scheme://host:port")),
            None => Ok(()),
        }
    }
}

/// Longest path of the WebSocket.
const PATH_BYTES_MAX: usize = 256;

fn number(name: &'static str, value: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    within(name, value, min, max)
}

fn bytes(name: &'static str, value: ByteSize, min: ByteSize, max: ByteSize) -> Result<(), ConfigError> {
    within(name, value, min, max)
}

fn duration(name: &'static str, value: Duration, min: Duration, max: Duration) -> Result<(), ConfigError> {
    if value < min || value > max {
        let show = |duration: Duration| format!("{duration:?}");
        return Err(ConfigError { name, value: show(value), min: show(min), max: show(max) });
    }
    Ok(())
}

fn within<T: Ord + ToString>(name: &'static str, value: T, min: T, max: T) -> Result<(), ConfigError> {
    if value < min || value > max {
        return Err(ConfigError {
            name,
            value: value.to_string(),
            min: min.to_string(),
            max: max.to_string(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_within_its_bounds() {
        Config::default().check().unwrap();
    }

    #[test]
    fn paths_and_origins_are_checked() {
        let with = |path: &str, origins: &[&str]| {
            let origins = origins.iter().map(|&origin| origin.to_owned()).collect();
            let websocket = WebSocket { path: path.to_owned(), origins, ..WebSocket::default() };
            Config { websocket, ..Config::default() }.check()
        };
        with("/a/b", &["*", "null", "https://app.example", "http://localhost:8030"]).unwrap();
        for (path, origin) in
            [("ws", "*"), ("/ws?x", "*"), ("/w s", "*"), ("/", "app.example"), ("/", "https://a/")]
        {
            assert!(
                with(path, &[origin]).unwrap_err().to_string().starts_with("websocket."),
                "{path} {origin}"
            );
        }
    }

    #[test]
    fn a_value_out_of_bounds_is_named_with_its_bounds() {
        let config = Config { sign_in_deadline: Duration::from_secs(4000), ..Config::default() };
        assert_eq!(
            config.check().unwrap_err().to_string(),
            "sign_in_deadline is 4000s; it must be 1ms to 3600s"
        );
        let config = Config { queue_bytes_max: ByteSize::b(1), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().starts_with("queue_bytes_max is 1 B"));
    }
}
