//! What an attack is: how its connections come in, what each says, and what the server must count.

use std::{net::SocketAddr, time::Duration};

use gimbal_codec::{Body, Command, frame};
use serde::{Deserialize, Serialize};

use crate::load::{fleet::Member, sockets::Sockets};

use super::{flood, identity, reader, silent, streams};

/// How clients reach the gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Frames over TCP.
    Tcp,
    /// Messages over WebSocket.
    WebSocket,
    /// Frames over TLS.
    Tls,
    /// WebSocket over TLS.
    Wss,
    /// Frames over QUIC.
    Quic,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::WebSocket, Self::Tls, Self::Wss, Self::Quic];

    /// As it is given and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::WebSocket => "websocket",
            Self::Tls => "tls",
            Self::Wss => "wss",
            Self::Quic => "quic",
        }
    }

    /// Whether packets travel as WebSocket messages.
    pub const fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::Wss)
    }

    /// Whether it is TLS on TCP.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }
}

/// How far a connection goes by itself before the attack has its say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Door {
    /// TCP alone; over QUIC the first datagram alone.
    Bare,
    /// All that the transport begins with.
    Open,
    /// The sign-in of this one of the attack's devices, and its answer.
    SignedIn(usize),
}

/// What follows a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Another one, so much later.
    Again(Duration),
    /// Nothing, until the server ends the connection.
    Wait,
    /// The connection is reset, and another one takes its place.
    Reset,
}

/// One attack; its connections are kept up as long as it lasts.
pub(super) trait Attack: Send {
    /// How connection `number` comes in. Modulo the connections that are kept up it is its place, which no other has at that time.
    fn door(&self, number: u64) -> Door;

    /// Says something on a connection that is in: at once, and then as it has asked for itself.
    fn step(&mut self, hand: &mut Hand<'_>) -> Next;
}

/// One connection in the hands of its attack.
pub(super) struct Hand<'a> {
    pub(super) sockets: &'a mut Sockets,
    pub(super) index: usize,
    /// Its own, among all connections.
    pub(super) number: u64,
    /// Steps before this one.
    pub(super) step: u64,
}

impl Hand<'_> {
    /// Says a packet as the transport carries it.
    pub(super) fn say<B: Body>(&mut self, command: Command, content: &B) {
        let frame = frame(command, "", self.step, content);
        self.sockets.write(self.index, |out| out.extend_from_slice(&frame));
    }

    /// Says bytes within TLS, where there is TLS.
    pub(super) fn say_raw(&mut self, bytes: &[u8]) {
        self.sockets.write_raw(self.index, bytes);
    }

    /// Says bytes as they are.
    pub(super) fn say_bare(&mut self, bytes: &[u8]) {
        self.sockets.write_wire(self.index, bytes);
    }

    /// So much is on its way that more would only grow our own memory.
    pub(super) fn is_full(&self) -> bool {
        self.sockets.unsent(self.index) > UNSENT_MAX
    }
}

/// What an attack keeps unsent on one connection, in bytes.
const UNSENT_MAX: usize = 128 * 1024;

/// What an attack may know of the world.
pub(super) struct Ground {
    pub(super) transport: Transport,
    /// Where clients connect.
    pub(super) address: SocketAddr,
    /// Control's gRPC port.
    pub(super) grpc: SocketAddr,
    /// Devices of the attack.
    pub(super) members: Vec<Member>,
    /// Devices whose tokens were revoked.
    pub(super) revoked: Vec<Member>,
    /// Honest devices.
    pub(super) victims: Vec<Member>,
    /// A ClientHello of a client that goes no further; empty without TLS.
    pub(super) hello: Vec<u8>,
}

/// An attack as it stands in the list.
pub(super) struct Plan {
    pub(super) name: &'static str,
    /// In words.
    pub(super) about: &'static str,
    pub(super) is_for: fn(Transport) -> bool,
    /// It is about their number, not about what one can do: as many as there may be.
    pub(super) is_crowd: bool,
    /// Its connections sign in as devices of their own.
    pub(super) signs_in: bool,
    /// What the server must count, without `gimbal_`.
    pub(super) counters: fn(Transport) -> Vec<&'static str>,
    pub(super) make: fn(Ground) -> Box<dyn Attack>,
}

const SIGN_IN_DEADLINE: &str = "gateway_closed_total{reason=\"sign_in_deadline\"}";
const SIGN_IN_FAILED: &str = "gateway_closed_total{reason=\"sign_in_failed\"}";
const OVER_RATE: &str = "gateway_closed_total{reason=\"over_rate\"}";
const FRAME_TOO_LARGE: &str = "gateway_closed_total{reason=\"frame_too_large\"}";
const WRITE_DEADLINE: &str = "gateway_closed_total{reason=\"write_deadline\"}";
const TOO_SLOW: &str = "gateway_closed_total{reason=\"too_slow\"}";
const TAKEOVER: &str = "gateway_closed_total{reason=\"takeover\"}";
const BAD_BODY: &str = "gateway_closed_total{reason=\"bad_body\"}";
const NOT_SIGNED_IN: &str = "gateway_refused_total{code=\"10000\"}";
const THROTTLED: &str = "gateway_dropped_total{what=\"frame_throttled\"}";
const SHED: &str = "gateway_dropped_total{what=\"frame_shed\"}";
const SIGNAL_SHED: &str = "gateway_dropped_total{what=\"signal_shed\"}";
const PEER_GONE: &str = "gateway_dropped_total{what=\"peer_gone\"}";
const TLS_FAILED: &str = "gateway_dropped_total{what=\"tls_failed\"}";
const TLS_OVER_LIMIT: &str = "gateway_dropped_total{what=\"tls_handshake_over_limit\"}";
const PINGS: &str = "gateway_websocket_pings_received_total";
const QUIC_DEADLINE: &str = "gateway_dropped_total{what=\"quic_handshake_deadline\"}";
const QUIC_RESET: &str = "gateway_dropped_total{what=\"quic_stream_reset\"}";
const QUIC_IGNORED: &str = "gateway_dropped_total{what=\"quic_datagram_ignored\"}";
const QUIC_RETRIES: &str = "gateway_quic_retries_total";
const PROTOCOL_ERROR: &str = "control_dropped_total{reason=\"protocol_error\"}";

const fn everywhere(_: Transport) -> bool {
    true
}

/// All attacks, in the order in which they are made.
pub(super) static PLANS: [Plan; 15] = [
    Plan {
        name: "half-open",
        about: "connect and say nothing",
        is_for: everywhere,
        is_crowd: true,
        signs_in: false,
        counters: |transport| {
            if transport == Transport::Quic { vec![QUIC_DEADLINE] } else { vec![SIGN_IN_DEADLINE] }
        },
        make: |ground| Box::new(silent::HalfOpen { transport: ground.transport }),
    },
    Plan {
        name: "slow-writers",
        about: "begin as clients do, one byte a second",
        is_for: everywhere,
        is_crowd: true,
        signs_in: false,
        counters: |_| vec![SIGN_IN_DEADLINE],
        make: |ground| Box::new(silent::SlowWriters::new(&ground)),
    },
    Plan {
        name: "largest-frames",
        about: "claim the largest frame, before the sign-in and after it, and never end it",
        is_for: everywhere,
        is_crowd: true,
        signs_in: true,
        counters: |_| vec![FRAME_TOO_LARGE],
        make: |ground| Box::new(silent::LargestFrames::new(ground.transport)),
    },
    Plan {
        name: "resets",
        about: "connect and reset, as fast as it goes",
        is_for: everywhere,
        is_crowd: false,
        signs_in: false,
        counters: |transport| vec![if transport == Transport::Quic { QUIC_RESET } else { PEER_GONE }],
        make: |ground| Box::new(silent::Resets { transport: ground.transport }),
    },
    Plan {
        name: "handshakes",
        about: "begin handshakes that end nowhere, or send what is none",
        is_for: |transport| transport.is_tls() || transport == Transport::Quic,
        is_crowd: true,
        signs_in: false,
        counters: |transport| {
            let of_quic = vec![QUIC_RETRIES, QUIC_DEADLINE, QUIC_IGNORED];
            if transport == Transport::Quic { of_quic } else { vec![TLS_FAILED, TLS_OVER_LIMIT] }
        },
        make: |ground| Box::new(silent::Handshakes::new(ground.hello)),
    },
    Plan {
        name: "slow-readers",
        about: "members of a room who stop reading while it is busy",
        is_for: everywhere,
        is_crowd: true,
        signs_in: true,
        counters: |_| vec![SIGNAL_SHED, WRITE_DEADLINE],
        make: |_| Box::new(reader::Room),
    },
    Plan {
        name: "unread-answers",
        about: "ask and ask without reading an answer",
        is_for: everywhere,
        is_crowd: false,
        signs_in: true,
        counters: |_| vec![TOO_SLOW],
        make: |ground| Box::new(reader::Answers::new(ground.members)),
    },
    Plan {
        name: "pings",
        about: "heartbeats, or WebSocket pings, as fast as they are taken",
        is_for: everywhere,
        is_crowd: false,
        signs_in: true,
        counters: |transport| {
            if transport.is_websocket() { vec![PINGS, OVER_RATE] } else { vec![SHED, OVER_RATE] }
        },
        make: |ground| Box::new(flood::Pings { transport: ground.transport }),
    },
    Plan {
        name: "frames",
        about: "durable sends beyond what a session may send",
        is_for: everywhere,
        is_crowd: false,
        signs_in: true,
        counters: |_| vec![THROTTLED, SHED, OVER_RATE],
        make: |ground| Box::new(flood::Frames { members: ground.members }),
    },
    Plan {
        name: "fragments",
        about: "WebSocket messages in fragments without end, empty ones and others",
        is_for: Transport::is_websocket,
        is_crowd: false,
        signs_in: true,
        counters: |_| vec![FRAME_TOO_LARGE, OVER_RATE],
        make: |_| Box::new(flood::Fragments),
    },
    Plan {
        name: "key-updates",
        about: "new TLS keys without end, alone and between bytes of a frame",
        is_for: Transport::is_tls,
        is_crowd: false,
        signs_in: true,
        counters: |_| vec![TLS_FAILED, OVER_RATE],
        make: |ground| Box::new(flood::KeyUpdates { transport: ground.transport }),
    },
    Plan {
        name: "tokens",
        about: "sign in with tokens that are revoked, cut, long or made up",
        is_for: everywhere,
        is_crowd: false,
        signs_in: true,
        counters: |_| vec![SIGN_IN_FAILED, NOT_SIGNED_IN, BAD_BODY],
        make: |ground| Box::new(identity::Tokens::new(ground)),
    },
    Plan {
        name: "impostors",
        about: "sign in as others with a valid token of one's own",
        is_for: everywhere,
        is_crowd: false,
        signs_in: true,
        counters: |_| vec![SIGN_IN_FAILED, NOT_SIGNED_IN],
        make: |ground| Box::new(identity::Impostors::new(ground)),
    },
    Plan {
        name: "takeovers",
        about: "one device signs in over and over from many connections",
        is_for: everywhere,
        is_crowd: false,
        signs_in: true,
        counters: |_| vec![TAKEOVER],
        make: |_| Box::new(identity::Takeovers),
    },
    Plan {
        name: "rapid-resets",
        about: "open and reset streams at control's gRPC port",
        is_for: |transport| matches!(transport, Transport::Tcp),
        is_crowd: false,
        signs_in: false,
        counters: |_| vec![PROTOCOL_ERROR],
        make: |_| Box::new(streams::RapidResets::default()),
    },
];

impl Plan {
    /// Where its connections go.
    pub(super) fn address(&self, ground: &Ground) -> SocketAddr {
        if self.name == "rapid-resets" { ground.grpc } else { ground.address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_has_its_name_a_transport_and_something_to_count() {
        for (index, plan) in PLANS.iter().enumerate() {
            assert!(PLANS[..index].iter().all(|other| other.name != plan.name), "{}", plan.name);
            let transports: Vec<_> = Transport::ALL.into_iter().filter(|of| (plan.is_for)(*of)).collect();
            assert!(!transports.is_empty(), "{}", plan.name);
            for transport in transports {
                assert!(!(plan.counters)(transport).is_empty(), "{}", plan.name);
            }
        }
    }
}
