//! The gateway over real loopback sockets, with a control plane that lives in the test. One property a module.

#![cfg(test)]

mod accept;
mod bad_input;
mod deadlines;
mod drain;
mod limits;
mod link;
mod quic;
mod quic_client;
mod quic_hostile;
mod quic_memory;
mod rooms;
mod sign_in;
mod slow_reader;
mod support;
