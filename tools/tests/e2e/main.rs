//! End to end: the release binary, driven from outside over its sockets. One file for each property.

mod bad_input;
mod crash;
mod disk;
mod gim;
mod harness;
mod messages;
mod ops;
mod restart;
mod rooms;
mod slow;
mod start;
mod storm;
mod takeover;
