//! What can be wrong with bytes from the other side.

use crate::CloseReason;

/// Why bytes are not one of the wire's messages. Never "too few bytes so far": that is `Ok(None)` of the decoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The length prefix announces more than the session's state allows; nothing of the frame is kept.
    #[error("frame of {bytes} bytes, at most {bytes_max} allowed")]
    FrameTooLarge {
        /// Announced length of the packet.
        bytes: u32,
        /// Limit at that moment.
        bytes_max: usize,
    },
    /// The length prefix is longer than five bytes, above 32 bits, or has needless zero bytes at its end.
    #[error("bad length prefix")]
    BadLength,
    /// A length prefix of zero.
    #[error("empty frame")]
    EmptyFrame,
    /// The frame is not a `Packet`.
    #[error("bad packet: {0}")]
    BadPacket(#[source] WireError),
    /// The content of a packet is not the message its command says.
    #[error("bad body: {0}")]
    BadBody(#[from] WireError),
}

impl DecodeError {
    /// The reason to close the connection with.
    pub const fn close_reason(&self) -> CloseReason {
        match self {
            Self::FrameTooLarge { .. } => CloseReason::FrameTooLarge,
            Self::BadLength => CloseReason::BadLength,
            Self::EmptyFrame => CloseReason::EmptyFrame,
            Self::BadPacket(_) => CloseReason::BadPacket,
            Self::BadBody(_) => CloseReason::BadBody,
        }
    }
}

/// Why bytes are not the protobuf message they should be. `field` is the number of the field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("cut off")]
    Truncated,
    /// A varint of more than ten bytes or above 64 bits.
    #[error("bad varint")]
    BadVarint,
    /// A tag above 32 bits or with field number 0.
    #[error("bad tag")]
    BadTag,
    /// A group (wire types 3 and 4) or a wire type that does not exist (6 and 7).
    #[error("field {field} has wire type {wire_type}")]
    BadWireType {
        /// Field number.
        field: u32,
        /// Wire type, 3, 4, 6 or 7.
        wire_type: u8,
    },
    /// A field we know with a wire type that is not its own.
    #[error("field {field} has another type")]
    WrongType {
        /// Field number.
        field: u32,
    },
    /// A string that is not UTF-8.
    #[error("field {field} is not UTF-8")]
    NotUtf8 {
        /// Field number.
        field: u32,
    },
    /// More bytes or items than `crate::limits` allows, or a number out of its range.
    #[error("field {field} is over its limit")]
    OverLimit {
        /// Field number.
        field: u32,
    },
}

/// A command number nobody defined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown command {0}")]
pub struct UnknownCommand(pub i32);
