//! The control plane: accounts, mailboxes, routes, rooms; gRPC in front, one writer thread and RocksDB behind.
//!
//! [`ControlServer`] is the whole of it. The edge (service, link, HTTP) converts and delegates; [`writer`] executes
//! commands in batches, commits their effects through [`log`], and only then answers; [`room`] and signals never wait
//! for a commit.

#![forbid(unsafe_code)]

pub mod account;
pub mod api_key;
pub mod auth;
mod clock;
pub mod code;
pub mod command;
pub mod config;
pub mod credential;
pub mod dedup;
pub mod error;
pub mod event;
pub mod executor;
mod front;
#[cfg(test)]
mod fuzzed;
pub mod group;
pub mod http;
pub mod idempotency;
mod layer;
mod link_server;
mod live;
pub mod log;
pub mod mailbox;
pub mod metrics;
pub mod partition;
pub mod plane;
pub mod presence;
pub mod reader;
pub mod room;
pub mod route;
pub mod server;
mod service;
pub mod sign_in;
pub mod social;
pub mod store;
mod sweep;
pub mod trace;
mod vouched;
pub mod writer;

pub use config::{Checked, Config, ConfigError};
pub use front::Count;
pub use http::ExtraMetrics;
pub use plane::Plane;
pub use server::{ControlServer, StartError};
