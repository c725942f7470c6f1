//! What each fuzz target checks, on the gateway's own source: it has no dependency that needs a ring.
//!
//! `cargo +nightly fuzz run websocket` (or `proxy`, `session`) in `gateway/`; what it finds goes to `corpus/`, which ordinary
//! tests replay.

pub mod check;
pub mod proxy;
pub mod session_rules;

/// Compiled from the gateway's source; its `crate::` paths are met by the imports below.
#[path = "../../src"]
#[allow(dead_code, unused_imports, reason = "only what is checked is used")]
mod gateway {
    pub(crate) mod fanout;
    pub(crate) mod send_queue;
    pub(crate) mod session;
    pub(crate) mod transport {
        pub(crate) mod form;
        pub(crate) mod prefix;
        pub(crate) mod proxy;
        pub(crate) mod websocket;
    }
}

use gateway::{fanout, send_queue, session, transport};
use transport::proxy::{NoProxyHeader, ProxyHeader, parse};
use transport::websocket::{Policy, REQUEST_BYTES_MAX, Said, WebSocket};
