//! The wire between a client and the gateway: bytes to values and back. No I/O, no clock, no `unsafe`.

#![forbid(unsafe_code)]

pub mod close;
pub mod code;
pub mod id;

pub use close::{Advice, CloseReason};
pub use id::{
    Attach, ClientMessageId, DeviceId, GatewayId, MessageId, RoomId, Seq, SessionKey, ShardId, UserId, epoch_number,
};
