//! Why a connection ends. Numbers are stable; the range tells a client what to do, also for numbers it does not know.

/// What a client does after a close, by the hundreds of its code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// 4000..=4099: connect again at once.
    Reconnect,
    /// 4100..=4199: connect again after `retry_after_ms`.
    ReconnectLater,
    /// 4200..=4299: do not reconnect by yourself; sign in anew, with the user's knowledge.
    SignInAgain,
    /// 4300..=4399: this client speaks wrongly; the same bytes will fail again.
    Never,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why the gateway closes a connection. Codes fit WebSocket's private range (RFC 6455, 7.4.2).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u16)]
        pub enum CloseReason { $($(#[$doc])* $name = $code,)* }

        impl CloseReason {
            /// Every reason, in order of its code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable number on the wire.
            pub const fn code(self) -> u16 {
                self as u16
            }

            /// Short stable text: the close frame's reason and the metric's label.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The reason with this number, if it is one of ours.
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// The client reads too slowly and signed in without a cursor, so it must come back and sync.
    TooSlow = 4000, "too_slow";
    /// No welcome frame within the idle limit.
    Idle = 4001, "idle";
    /// Not signed in within the sign-in deadline.
    SignInDeadline = 4002, "sign_in_deadline";
    /// The socket took no byte within the write deadline.
    WriteDeadline = 4003, "write_deadline";
    /// Control no longer knows this session; a new sign-in mends it.
    Stale = 4004, "stale";
    /// The server is going down or being upgraded.
    Draining = 4100, "draining";
    /// Control cannot be reached or refuses work.
    Unavailable = 4101, "unavailable";
    /// A limit of this gateway is reached.
    Overloaded = 4102, "overloaded";
    /// The token is wrong, expired or revoked, or the device is unknown.
    SignInFailed = 4200, "sign_in_failed";
    /// A newer sign-in of the same device replaced this session.
    Takeover = 4201, "takeover";
    /// The token was revoked while the session was online.
    TokenRevoked = 4202, "token_revoked";
    /// An administrator ended the session.
    Kicked = 4203, "kicked";
    /// The token with which the session signed in is over.
    TokenExpired = 4204, "token_expired";
    /// The user signed in on another device, and the server's policy lets only one of the two be online.
    OtherDevice = 4205, "other_device";
    /// The user has as many sessions as may be, and this was the oldest.
    TooManySessions = 4206, "too_many_sessions";
    /// Not signed in: other devices of the user are online, and the server's policy lets them stay.
    DeviceRefused = 4207, "device_refused";
    /// A frame is longer than the limit of the session's state.
    FrameTooLarge = 4300, "frame_too_large";
    /// A length prefix is not a canonical varint of at most five bytes.
    BadLength = 4301, "bad_length";
    /// A frame of length zero.
    EmptyFrame = 4302, "empty_frame";
    /// The frame is not a valid `Packet`.
    BadPacket = 4303, "bad_packet";
    /// The content of a known command does not parse or breaks a rule of its fields.
    BadBody = 4304, "bad_body";
    /// A command that makes no sense in the session's state.
    UnexpectedCommand = 4305, "unexpected_command";
    /// A command number nobody defined.
    UnknownCommand = 4306, "unknown_command";
    /// Too many frames before sign-in.
    TooManyFrames = 4307, "too_many_frames";
    /// Frames that break the WebSocket protocol (RFC 6455).
    BadWebSocket = 4308, "bad_websocket";
    /// A WebSocket text or close reason that is not UTF-8.
    BadText = 4309, "bad_text";
    /// Frames or bytes far above the rate of a session, for all that calls were refused.
    OverRate = 4310, "over_rate";
}

impl CloseReason {
    /// What the client does next.
    pub const fn advice(self) -> Advice {
        match self.code() / 100 {
            40 => Advice::Reconnect,
            41 => Advice::ReconnectLater,
            42 => Advice::SignInAgain,
            _ => Advice::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_ordered_unique_and_reversible() {
        assert!(CloseReason::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
        for &reason in CloseReason::ALL {
            assert_eq!(CloseReason::from_code(reason.code()), Some(reason));
            assert!((4000..4400).contains(&reason.code()));
        }
        assert_eq!(CloseReason::from_code(4099), None);
    }
}
