//! End to end: the release binary, driven from outside over its sockets. One file for each property.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what is wrong")]

mod bad_input;
mod crash;
mod disk;
mod gim;
mod harness;
mod hostile;
mod load;
mod measure;
mod messages;
mod ops;
mod people;
mod reload;
mod restart;
mod rooms;
mod slow;
mod start;
mod storm;
mod takeover;
mod tls;
mod tokens;
mod websocket;
