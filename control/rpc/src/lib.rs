//! The contract: what backends call (`v1`), what gateways and control say to each other (`link`).
//! gateway and control both depend on this crate and never on one another.

#![forbid(unsafe_code)]

/// The public API, generated from `proto/gimbal.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("gimbal.v1");
}

/// The link on the wire, generated from `proto/link.proto`; [`link`] holds the types that code works with.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod link_v1 {
    tonic::include_proto!("gimbal.link.v1");
}

/// What is called of gim, generated from `proto/gim.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod gim {
    tonic::include_proto!("business");
}

pub mod link;

/// Encoded `FileDescriptorSet` of all protos, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
