//! Where the connections of each shard come from: sockets that listen, and what carries their bytes.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use crate::certificate::Configs;
use crate::config::Config;
use crate::error::{StartError, TlsError};
use crate::quic::{self, Bounds};
use crate::transport::Kind;
use crate::transport::prefix::Prefix;
use crate::transport::tcp::{ListenOptions, listen};

/// Of each kind its address.
pub(super) type Listening = Vec<(Kind, SocketAddr)>;

/// Beds of all shards, with the addresses of each kind of connection: that for QUIC comes last, if there is one.
pub(super) fn beds(
    config: &Config,
    shard_count: u8,
    tls: Option<&Configs>,
) -> Result<(Listening, Vec<Bed>), StartError> {
    let (mut listening, listeners) = listen_all(config, shard_count)?;
    let balancers: Arc<[_]> = config.proxy_protocol_from.clone().into();
    let on_ring = |listeners| Bed {
        carries: Carries::Streams(listeners),
        connections_max: config.connections_max.div_ceil(shard_count.into()),
        balancers: Arc::clone(&balancers),
    };
    let mut beds: Vec<_> = listeners.into_iter().map(on_ring).collect();
    if let (Some(address), Some(tls)) = (config.quic.listen, tls) {
        let bounds = Bounds {
            handshakes_max: config.quic.handshakes_max as usize,
            retry_from: config.quic.retry_from as usize,
            connections_max: config.quic.connections_max as usize,
            handshake: config.sign_in_deadline,
            send_bytes_max: config.socket_send_bytes.as_u64(),
        };
        let setup = quic::Setup::new(&tls.quic, bounds).map_err(TlsError::Quic)?;
        let refused = |source| StartError::Listen { address, source };
        let socket = quic::bind(address).map_err(refused)?;
        listening.push((Kind::Quic, socket.local_addr().map_err(refused)?));
        beds.push(Bed {
            carries: Carries::Quic(Box::new(setup), socket),
            connections_max: config.quic.connections_max,
            balancers: Arc::new([]),
        });
    }
    Ok((listening, beds))
}

/// Where one shard's connections come from.
pub(super) struct Bed {
    pub(super) carries: Carries,
    pub(super) connections_max: u32,
    pub(super) balancers: Arc<[Prefix]>,
}

/// What carries their bytes.
pub(super) enum Carries {
    /// The ring.
    Streams(Listeners),
    /// QUIC, over this socket.
    Quic(Box<quic::Setup>, UdpSocket),
}

/// Of one shard.
pub(super) type Listeners = Vec<(Kind, TcpListener)>;

/// For each shard one listener of each kind that is configured.
fn listen_all(config: &Config, shard_count: u8) -> Result<(Listening, Vec<Listeners>), StartError> {
    let encrypted = |address: Option<SocketAddr>| address.filter(|_| config.tls.certificate.is_some());
    let kinds = [
        (Kind::Tcp, Some(config.listen)),
        (Kind::WebSocket, config.websocket.listen),
        (Kind::Tls, encrypted(config.tls.listen)),
        (Kind::WebSocketTls, encrypted(config.tls.websocket_listen)),
    ];
    let mut listening = Vec::new();
    let mut by_shard: Vec<Listeners> = (0..shard_count).map(|_| Vec::new()).collect();
    for (kind, address) in kinds {
        let Some(address) = address else { continue };
        let options = ListenOptions {
            address,
            count: shard_count,
            backlog: config.backlog,
            socket_send_bytes: config.socket_send_bytes.as_u64() as usize,
        };
        let refused = |source| StartError::Listen { address, source };
        let listeners = listen(&options).map_err(refused)?;
        listening.push((kind, listeners[0].local_addr().map_err(refused)?));
        for (listener, shard) in listeners.into_iter().zip(&mut by_shard) {
            shard.push((kind, listener));
        }
    }
    Ok((listening, by_shard))
}
