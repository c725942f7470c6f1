//! A started control server, called over real sockets as backends, devices, administrators and gateways call it.

#![expect(clippy::unwrap_used, reason = "a failed expectation is what a test is for")]

mod calls;
mod events;
mod groups;
mod hostile;
mod keys;
mod link;
mod pages;
mod people;
mod raw;
mod refusals;
mod rig;
mod tls;
mod tokens;
mod trace;
mod web;
