//! The wire between a client and the gateway: bytes to values and back. No I/O, no clock, no `unsafe`.
//!
//! - **Frame**: the length of one packet as an unsigned LEB128 varint (canonical, at most five bytes), then the packet.
//!   [`Decoder`] cuts a stream into frames; [`frame`] makes one.
//! - **Packet**: request id, command, content, seq; protobuf. [`Packet`] borrows from the frame.
//! - **Content**: the message of the [`Command`], one of [`body`]. The schema is `proto/wire.proto`; the rules of the
//!   conversation are `docs/protocol.md`.
//! - **Versions**: numbers are never used again for something else. A field, command or code that a side does not know
//!   is skipped, refused by its number, or judged by its range ([`CloseReason::advice`]). gim's messages keep their
//!   numbers; our fields in them, and our commands, start at 16.

#![forbid(unsafe_code)]

pub mod body;
pub mod close;
pub mod code;
pub mod command;
pub mod decoder;
pub mod encoder;
pub mod error;
pub mod id;
pub mod limits;
pub mod packet;
mod wire;

pub use close::{Advice, CloseReason};
pub use command::Command;
pub use decoder::{Decoder, Feed};
pub use encoder::{Body, frame, frame_of_packet};
pub use error::{DecodeError, UnknownCommand, WireError};
pub use id::{
    Attach, ClientMessageId, DeviceId, GatewayId, GroupId, MessageId, RoomId, Seq, SessionKey, ShardId,
    UserId, epoch_number,
};
pub use packet::Packet;
