//! Load shapes, one a file.

pub mod connect;
pub mod echo;
pub mod group;
pub mod hostile;
pub mod idle;
pub mod mixed;
pub mod reconnect;
pub mod room;
pub mod signal;
pub mod slow;
pub mod social;
pub mod steady;
