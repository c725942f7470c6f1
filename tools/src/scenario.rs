//! Load shapes, one a file.

pub mod echo;
pub mod idle;
pub mod room;
pub mod signal;
pub mod steady;
