//! Command numbers: what a packet is about. Stable for ever; 1 to 4 are gim's, ours start at 16.

use crate::error::UnknownCommand;

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// What a packet is about.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(i32)]
        pub enum Command { $($(#[$doc])* $name = $number,)* }

        impl Command {
            /// Every command, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }

        impl TryFrom<i32> for Command {
            type Error = UnknownCommand;

            fn try_from(number: i32) -> Result<Self, UnknownCommand> {
                match number {
                    $($number => Ok(Self::$name),)*
                    _ => Err(UnknownCommand(number)),
                }
            }
        }
    };
}

commands! {
    /// Client: `SignIn`. Answer: `Reply`, empty on success without a cursor, with `SignInResult` otherwise.
    SignIn = 1;
    /// Client: anything. Answer: the same packet.
    Heartbeat = 2;
    /// Client: `SubscribeRoom`. Answer: empty content.
    SubscribeRoom = 3;
    /// Server: `Message`.
    Message = 4;
    /// Client: `Send`. Answer: `Reply` with `SendResult`.
    Send = 16;
    /// Client: `Sync`. Answer: `Reply` with `SyncPage`.
    Sync = 17;
    /// Client: `Ack`. Answer: `Reply` with `Ack`.
    Ack = 18;
    /// Client: `Rooms`. Answer: `Reply`.
    Join = 19;
    /// Client: `Rooms`; empty leaves all. Answer: `Reply`.
    Leave = 20;
    /// Client: `Signal`; answered only on failure. Server: `Signal` from another session.
    Signal = 21;
    /// Client: `Publish`. Answer: `Reply` with `Published`.
    Publish = 22;
    /// Server: `Behind`.
    Behind = 23;
    /// Server: `Close`, the last frame.
    Close = 24;
}

impl Command {
    /// The number on the wire.
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl From<Command> for i32 {
    fn from(command: Command) -> Self {
        command.number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_and_reversible() {
        assert!(Command::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        for &command in Command::ALL {
            assert_eq!(Command::try_from(command.number()), Ok(command));
        }
        for number in [i32::MIN, -1, 0, 5, 15, 25, 26, i32::MAX] {
            assert_eq!(Command::try_from(number), Err(UnknownCommand(number)));
        }
    }
}
