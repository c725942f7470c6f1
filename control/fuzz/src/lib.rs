//! What each fuzz target checks, on control's own source without the engine of its store: nothing here builds RocksDB. The
//! configuration of the binary is checked here, too, for the same reason.
//!
//! `cargo +nightly fuzz run store` (or `token`, `edge`, `config`) in `control/`; what it finds goes to `corpus/`, which ordinary
//! tests replay.

extern crate self as gimbal_control;

pub mod edge_rules;
pub mod store_rules;
pub mod token_rules;

/// Compiled from control's source; its `crate::` paths are met by the imports below.
#[path = "../../src"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "only what is checked is used")]
mod control {
    pub(crate) mod account;
    pub(crate) mod api_key;
    pub(crate) mod auth;
    pub(crate) mod clock;
    pub(crate) mod code;
    pub(crate) mod command;
    pub(crate) mod config;
    pub(crate) mod credential;
    pub(crate) mod dedup;
    pub(crate) mod error;
    pub(crate) mod event;
    pub(crate) mod executor;
    pub(crate) mod front;
    pub(crate) mod group;
    pub(crate) mod idempotency;
    pub(crate) mod layer;
    pub(crate) mod live;
    pub(crate) mod log;
    pub(crate) mod mailbox;
    pub(crate) mod metrics;
    pub(crate) mod partition;
    pub(crate) mod plane;
    pub(crate) mod presence;
    pub(crate) mod reader;
    pub(crate) mod room;
    pub(crate) mod route;
    pub(crate) mod service;
    pub(crate) mod sign_in;
    pub(crate) mod social;
    pub(crate) mod store {
        pub(crate) mod contract;
        pub(crate) mod inspect;
        pub(crate) mod key;
        pub(crate) mod memory;
        pub(crate) mod value;
        pub(crate) mod wal;

        pub(crate) use contract::{Scan, Store, StoreError, Table, View, Visit};
    }
    pub(crate) mod vouched;
    pub(crate) mod writer;
}

#[path = "../../../tools/src"]
#[allow(dead_code, reason = "only what is checked is used")]
mod tools {
    pub(crate) mod config;
}

/// Of the binary, whose configuration has the same name as control's.
#[path = "."]
pub mod binary {
    use crate::tools::config::Config;

    pub mod config_rules;
}

use control::config::Config;
#[allow(unused_imports, reason = "met by `crate::` paths")]
use control::{
    account, api_key, auth, clock, code, command, config, credential, dedup, error, event, executor, front,
    group, idempotency, layer, live, log, mailbox, metrics, partition, plane, presence, reader, room, route, service,
    sign_in, social, store, vouched, writer,
};
