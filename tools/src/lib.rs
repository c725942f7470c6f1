//! The client library and the parts of the one binary `gimbal` that tests and tools share.

#![forbid(unsafe_code)]

pub mod client;
pub mod clock;
pub mod config;
pub mod grpc;
pub mod inspect;
pub mod ledger;
pub mod load;
pub mod node;
pub mod output;
pub mod proc;
pub mod quic;
pub mod report;
pub mod scenario;
pub mod state;
pub mod tls;
pub mod websocket;
