//! The codec as its users see it: one binary, one module per property.

#![cfg(test)]

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a crate of its own when the fuzz targets use it")]
mod checks;

mod corpus;
mod golden;
mod properties;
mod text;
