//! What users do to their own account and to one another.

use gimbal_codec::{DeviceId, UserId};

use super::Sender;
use crate::dedup::Fingerprint;
use crate::error::RequestError;

/// Longest nickname.
pub const NICKNAME_BYTES_MAX: usize = 128;
/// Longest address of an avatar.
pub const AVATAR_BYTES_MAX: usize = 1024;
/// Longest opaque text of a profile or a friend.
pub const EXTRA_BYTES_MAX: usize = 4096;
/// Longest remark about a friend.
pub const REMARK_BYTES_MAX: usize = 256;
/// Longest text that comes with a request for friendship.
pub const DESCRIPTION_BYTES_MAX: usize = 512;
/// Most users that one user has asked, was asked by or is a friend of, together.
pub const FRIENDS_MAX: u64 = 10_000;
/// Most users that one user blocks.
pub const BLOCKED_MAX: u64 = 10_000;

/// Kinds of fingerprints; part of the disk format.
const OF_UPDATE: u64 = 6;
const OF_ADD: u64 = 7;
const OF_AGREE: u64 = 8;
const OF_DECLINE: u64 = 9;
const OF_SET: u64 = 10;
const OF_REMOVE: u64 = 11;
const OF_BLOCK: u64 = 12;
const OF_UNBLOCK: u64 = 13;
const OF_REMOVE_DEVICE: u64 = 14;

/// Who acts, and for whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Actor {
    /// A user by one of its devices.
    Device(Sender),
    /// A backend for this user; 0: for itself, which it can in groups alone.
    Backend(UserId),
}

impl Actor {
    /// For whom.
    pub const fn user(self) -> UserId {
        match self {
            Self::Device(sender) => sender.user,
            Self::Backend(user) => user,
        }
    }
}

/// What changes of a profile; what is absent stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProfileChange {
    /// At most [`NICKNAME_BYTES_MAX`].
    pub nickname: Option<String>,
    /// The backend's own numbers.
    pub sex: Option<i32>,
    /// At most [`AVATAR_BYTES_MAX`].
    pub avatar_url: Option<String>,
    /// At most [`EXTRA_BYTES_MAX`].
    pub extra: Option<String>,
}

/// An act of a user. The answer is [`super::Reply::Done`] where no other is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Social {
    /// Changes the own profile.
    UpdateUser(ProfileChange),
    /// Takes a device from its user.
    RemoveDevice(DeviceId),
    /// Asks for friendship, or agrees to whom asked before. -> [`super::Reply::Friendship`].
    AddFriend {
        /// Whom.
        friend: UserId,
        /// At most [`REMARK_BYTES_MAX`].
        remark: String,
        /// At most [`DESCRIPTION_BYTES_MAX`].
        description: String,
    },
    /// Agrees to whom asked.
    AgreeFriend {
        /// To whom.
        friend: UserId,
        /// At most [`REMARK_BYTES_MAX`].
        remark: String,
    },
    /// Turns down whom asked.
    DeclineFriend(UserId),
    /// Changes what is noted of a friend; what is absent stays.
    SetFriend {
        /// Of whom.
        friend: UserId,
        /// At most [`REMARK_BYTES_MAX`].
        remark: Option<String>,
        /// At most [`EXTRA_BYTES_MAX`].
        extra: Option<String>,
    },
    /// Ends a friendship, or takes back what was asked.
    RemoveFriend(UserId),
    /// Refuses messages and requests of a user from now on.
    Block(UserId),
    /// Takes them again.
    Unblock(UserId),
}

impl Social {
    /// Name for metrics and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::UpdateUser(_) => "update_user",
            Self::RemoveDevice(_) => "remove_device",
            Self::AddFriend { .. } => "add_friend",
            Self::AgreeFriend { .. } => "agree_friend",
            Self::DeclineFriend(_) => "decline_friend",
            Self::SetFriend { .. } => "set_friend",
            Self::RemoveFriend(_) => "remove_friend",
            Self::Block(_) => "block",
            Self::Unblock(_) => "unblock",
        }
    }

    /// Whether its texts are within their bounds.
    ///
    /// # Errors
    /// [`RequestError::BadRequest`] with the field.
    pub fn check(&self) -> Result<(), RequestError> {
        match self {
            Self::UpdateUser(change) => {
                within(
                    "nickname",
                    change.nickname.as_deref(),
                    NICKNAME_BYTES_MAX,
                    "must be at most 128 bytes",
                )?;
                within(
                    "avatar_url",
                    change.avatar_url.as_deref(),
                    AVATAR_BYTES_MAX,
                    "must be at most 1,024 bytes",
                )?;
                within("extra", change.extra.as_deref(), EXTRA_BYTES_MAX, "must be at most 4,096 bytes")
            }
            Self::AddFriend { remark, description, .. } => {
                let rule = "must be at most 512 bytes";
                within("description", Some(description), DESCRIPTION_BYTES_MAX, rule)?;
                within_remark(Some(remark))
            }
            Self::AgreeFriend { remark, .. } => within_remark(Some(remark)),
            Self::SetFriend { remark, extra, .. } => {
                within("extra", extra.as_deref(), EXTRA_BYTES_MAX, "must be at most 4,096 bytes")?;
                within_remark(remark.as_deref())
            }
            _ => Ok(()),
        }
    }

    /// Of the act and its actor, for repeats by the same key.
    pub fn fingerprint(&self, user: UserId) -> u64 {
        let of = |kind| Fingerprint::new(kind).number(user.get());
        let text = |state: Fingerprint, text: &Option<String>| match text {
            Some(text) => state.number(1).bytes(text.as_bytes()),
            None => state.number(0),
        };
        let state = match self {
            Self::UpdateUser(change) => {
                let texts = [&change.nickname, &change.avatar_url, &change.extra];
                let sex = change.sex.map_or(0, |sex| 1 + u64::from(sex.cast_unsigned()));
                texts.into_iter().fold(of(OF_UPDATE).number(sex), text)
            }
            Self::RemoveDevice(device) => of(OF_REMOVE_DEVICE).number(device.get()),
            Self::AddFriend { friend, remark, description } => {
                of(OF_ADD).number(friend.get()).bytes(remark.as_bytes()).bytes(description.as_bytes())
            }
            Self::AgreeFriend { friend, remark } => {
                of(OF_AGREE).number(friend.get()).bytes(remark.as_bytes())
            }
            Self::DeclineFriend(friend) => of(OF_DECLINE).number(friend.get()),
            Self::SetFriend { friend, remark, extra } => {
                [remark, extra].into_iter().fold(of(OF_SET).number(friend.get()), text)
            }
            Self::RemoveFriend(friend) => of(OF_REMOVE).number(friend.get()),
            Self::Block(other) => of(OF_BLOCK).number(other.get()),
            Self::Unblock(other) => of(OF_UNBLOCK).number(other.get()),
        };
        state.finish()
    }

    /// Bytes of its texts.
    pub fn heap_bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        match self {
            Self::UpdateUser(change) => {
                length(&change.nickname) + length(&change.avatar_url) + length(&change.extra)
            }
            Self::AddFriend { remark, description, .. } => remark.len() + description.len(),
            Self::AgreeFriend { remark, .. } => remark.len(),
            Self::SetFriend { remark, extra, .. } => length(remark) + length(extra),
            _ => 0,
        }
    }
}

pub(super) fn within(
    field: &'static str,
    text: Option<&str>,
    max: usize,
    rule: &'static str,
) -> Result<(), RequestError> {
    if text.is_none_or(|text| text.len() <= max) {
        Ok(())
    } else {
        Err(RequestError::BadRequest { field, rule })
    }
}

fn within_remark(text: Option<&str>) -> Result<(), RequestError> {
    within("remark", text, REMARK_BYTES_MAX, "must be at most 256 bytes")
}
