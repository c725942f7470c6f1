//! The core of control against its promises: one binary, one module for each property, memory and rocks alike.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "control/accounts.rs"]
mod accounts;
#[path = "control/durability.rs"]
mod durability;
#[path = "control/events.rs"]
mod events;
#[path = "control/fan_out.rs"]
mod fan_out;
#[path = "control/groups.rs"]
mod groups;
#[path = "control/groups_model.rs"]
mod groups_model;
#[path = "control/messages.rs"]
mod messages;
#[path = "control/policy.rs"]
mod policy;
#[path = "control/properties.rs"]
mod properties;
mod service;
#[path = "control/sessions.rs"]
mod sessions;
mod sim;
#[path = "control/social.rs"]
mod social;
#[path = "control/society.rs"]
mod society;
#[path = "control/support.rs"]
mod support;
#[path = "control/threads.rs"]
mod threads;
#[path = "control/trace.rs"]
mod trace;
#[path = "control/vouched.rs"]
mod vouched;
