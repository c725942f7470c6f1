//! What each fuzz target checks, on the gateway's own source: it has no dependency that needs a ring.
//!
//! `cargo +nightly fuzz run websocket` in `gateway/`; what it finds goes to `corpus/`, which ordinary tests replay.

pub mod check;

#[path = "../../src/transport"]
#[allow(dead_code, reason = "only what parses is checked")]
mod transport {
    pub(crate) mod form;
    pub(crate) mod websocket;
}

use transport::websocket::{Policy, REQUEST_BYTES_MAX, Said, WebSocket};
