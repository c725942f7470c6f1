//! What the tests share: servers as child processes, a client on std sockets, the gRPC calls.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod http;
pub(crate) mod rng;
pub(crate) mod server;

pub(crate) use api::{Api, Device};
pub(crate) use client::{Client, Event};
pub(crate) use rng::Rng;
pub(crate) use server::{Server, Settings};

use std::time::Duration;

/// How long anything is waited for. Generous: it only ends a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
