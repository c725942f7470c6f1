//! The edge: shards that own sockets, sessions and rooms, and speak to control over the link.

#![deny(unsafe_code)]

mod carrier;
mod certificate;
pub mod config;
pub mod error;
mod fanout;
pub mod link;
mod live;
pub mod metrics;
pub mod probe;
mod quic;
#[cfg(test)]
#[path = "../fuzz/src/replay.rs"]
mod replay;
mod ring;
mod send_queue;
pub mod server;
mod session;
mod shard;
mod transport;

pub use ring::bare;
