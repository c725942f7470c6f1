//! What quinn is told: windows, streams, addresses.

use std::sync::Arc;

use gimbal_codec::limits::FRAME_BYTES_MAX;
use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn_proto::{Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt};

use super::Bounds;
use super::udp::BATCH_DATAGRAMS_MAX;

/// What a peer may send ahead of what we have read, in bytes: one frame of the largest size. We read at once, so more would only be
/// memory for those who leave gaps.
const RECEIVE_WINDOW_BYTES: u32 = FRAME_BYTES_MAX as u32;

/// What may wait of a peer whose handshake is not begun yet, in bytes, and of all such peers.
const INCOMING_BYTES: u64 = 8 * 1024;
const INCOMING_BYTES_ALL: u64 = 4 << 20;

/// A handshake whose packets come out of order keeps so much, in bytes.
const CRYPTO_BUFFER_BYTES: usize = 8 * 1024;

/// Settings of one endpoint.
pub(crate) struct Setup {
    server: ServerConfig,
    pub(super) bounds: Bounds,
}

impl Setup {
    /// With the certificate of `tls`.
    ///
    /// # Errors
    /// When `tls` lacks what every QUIC handshake begins with.
    pub(crate) fn new(tls: &Arc<rustls::ServerConfig>, bounds: Bounds) -> Result<Self, NoInitialCipherSuite> {
        let crypto = QuicServerConfig::try_from(Arc::clone(tls))?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::new(transport(bounds.send_bytes_max)))
            .migration(true)
            .max_incoming(bounds.handshakes_max + BATCH_DATAGRAMS_MAX)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES_ALL);
        Ok(Self { server, bounds })
    }

    pub(super) fn endpoint(&self, allows_mtu_discovery: bool) -> Endpoint {
        let config = Arc::new(EndpointConfig::default());
        Endpoint::new(config, Some(Arc::new(self.server.clone())), allows_mtu_discovery, None)
    }
}

/// One stream of the client's, small windows, no datagrams, and no idle timeout: how long a session may be silent is the session's
/// own rule, and a peer that wants QUIC to end earlier says so itself (RFC 9000, 10.1).
fn transport(send_bytes_max: u64) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(send_bytes_max)
        .datagram_receive_buffer_size(None)
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .max_idle_timeout(None);
    transport
}
