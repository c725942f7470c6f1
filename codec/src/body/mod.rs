//! What a packet's content can be: one file for each message of `proto/wire.proto`.
//!
//! Strings and contents are borrowed from the frame. `decode` fails with [`crate::DecodeError::BadBody`] only.

mod ack;
mod behind;
mod close;
mod message;
mod publish;
mod reply;
mod room;
mod send;
mod sign_in;
mod signal;
mod sync;

pub use ack::Ack;
pub use behind::Behind;
pub use close::Close;
pub use message::Message;
pub use publish::{Publish, Published};
pub use reply::{Reply, ReplyWith};
pub use room::{Rooms, SubscribeRoom};
pub use send::{Send, SendResult};
pub use sign_in::{SignIn, SignInResult};
pub use signal::Signal;
pub use sync::{Page, Sync, SyncPage};
