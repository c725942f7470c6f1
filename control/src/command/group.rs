//! What is done to groups.

use bytes::Bytes;
use gimbal_codec::{GroupId, UserId};

use super::social::{AVATAR_BYTES_MAX, EXTRA_BYTES_MAX, NICKNAME_BYTES_MAX, within};
use super::{CONTENT_BYTES_MAX, PUSH_USERS_MAX};
use crate::dedup::Fingerprint;
use crate::error::RequestError;
use crate::store::value::Role;

/// Most members of a group: a message to all of them is twenty batches, and some MiB in their mailboxes.
pub const GROUP_MEMBERS_MAX: u64 = 10_000;
/// Most groups of a user.
pub const GROUPS_MAX: u64 = 1_000;
/// Most users of one call: what it does is done within one batch.
pub const MEMBERS_PER_CALL_MAX: usize = PUSH_USERS_MAX;
/// Longest name of a group.
pub const GROUP_NAME_BYTES_MAX: usize = 128;
/// Longest introduction of a group.
pub const INTRODUCTION_BYTES_MAX: usize = 1024;

/// Kinds of fingerprints; part of the disk format.
const OF_CREATE: u64 = 32;
const OF_UPDATE: u64 = 33;
const OF_DISSOLVE: u64 = 34;
const OF_ADD: u64 = 35;
const OF_REMOVE: u64 = 36;
const OF_LEAVE: u64 = 37;
const OF_SET_ROLE: u64 = 38;
const OF_SET_MEMBER: u64 = 39;
const OF_MUTE: u64 = 40;
const OF_MUTE_ALL: u64 = 41;
const OF_TRANSFER: u64 = 42;
const OF_PUSH: u64 = 43;

/// What changes of what a group shows; what is absent stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupChange {
    /// At most [`GROUP_NAME_BYTES_MAX`].
    pub name: Option<String>,
    /// At most [`AVATAR_BYTES_MAX`].
    pub avatar_url: Option<String>,
    /// At most [`INTRODUCTION_BYTES_MAX`].
    pub introduction: Option<String>,
    /// At most [`EXTRA_BYTES_MAX`].
    pub extra: Option<String>,
}

/// What is done to a group, which [`super::Command::Group`] names. The answer is [`super::Reply::Done`] where no other is
/// named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupAct {
    /// Makes a group; the id of the command is 0, or a backend's choice. -> [`super::Reply::Members`].
    Create {
        /// What it shows; what is absent is empty.
        shows: GroupChange,
        /// Whose it is; 0: the user's who makes it.
        owner: UserId,
        /// At most [`MEMBERS_PER_CALL_MAX`]; the owner need not be among them.
        users: Vec<UserId>,
    },
    /// Changes what it shows.
    Update(GroupChange),
    /// Ends it: nobody can do anything in it any more.
    Dissolve,
    /// -> [`super::Reply::Members`].
    AddMembers(Vec<UserId>),
    /// -> [`super::Reply::Members`].
    RemoveMembers(Vec<UserId>),
    /// The user goes.
    Leave,
    /// Makes a member an admin, or no admin any more.
    SetRole {
        /// Who.
        user: UserId,
        /// Not the owner's.
        role: Role,
    },
    /// Changes what a member is called here; what is absent stays.
    SetMember {
        /// Who; 0: who does it.
        user: UserId,
        /// At most [`NICKNAME_BYTES_MAX`].
        nickname: Option<String>,
        /// At most [`EXTRA_BYTES_MAX`].
        extra: Option<String>,
    },
    /// A member may not send.
    Mute {
        /// Who.
        user: UserId,
        /// Unix milliseconds; 0: may send again.
        until_ms: i64,
    },
    /// Only the owner and admins may send, or all again.
    MuteAll(bool),
    /// Makes another member the owner; the former one becomes an admin.
    Transfer(UserId),
    /// Sends to its members, by a backend. -> [`super::Reply::Sent`].
    Push {
        /// Opaque type code.
        command: i32,
        /// At most [`CONTENT_BYTES_MAX`].
        content: Bytes,
    },
}

impl GroupAct {
    /// Name for metrics and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create_group",
            Self::Update(_) => "update_group",
            Self::Dissolve => "dissolve_group",
            Self::AddMembers(_) => "add_members",
            Self::RemoveMembers(_) => "remove_members",
            Self::Leave => "leave_group",
            Self::SetRole { .. } => "set_role",
            Self::SetMember { .. } => "set_member",
            Self::Mute { .. } => "mute_member",
            Self::MuteAll(_) => "mute_group",
            Self::Transfer(_) => "transfer_group",
            Self::Push { .. } => "push_to_group",
        }
    }

    /// The users that it names in a list.
    pub fn users(&self) -> &[UserId] {
        match self {
            Self::Create { users, .. } | Self::AddMembers(users) | Self::RemoveMembers(users) => users,
            _ => &[],
        }
    }

    /// Whether its texts and lists are within their bounds.
    ///
    /// # Errors
    /// [`RequestError::BadRequest`] with the field; [`RequestError::ContentTooLarge`].
    pub fn check(&self) -> Result<(), RequestError> {
        if self.users().len() > MEMBERS_PER_CALL_MAX {
            return Err(RequestError::BadRequest { field: "user_ids", rule: "must be at most 512 users" });
        }
        match self {
            Self::AddMembers(users) | Self::RemoveMembers(users) if users.is_empty() => {
                Err(RequestError::BadRequest { field: "user_ids", rule: "must not be empty" })
            }
            Self::Create { shows, .. } | Self::Update(shows) => shows.check(),
            Self::SetRole { role: Role::Owner, .. } => {
                Err(RequestError::BadRequest { field: "role", rule: "must be member or admin" })
            }
            Self::SetMember { nickname, extra, .. } => {
                let rule = "must be at most 128 bytes";
                within("nickname", nickname.as_deref(), NICKNAME_BYTES_MAX, rule)?;
                within("extra", extra.as_deref(), EXTRA_BYTES_MAX, "must be at most 4,096 bytes")
            }
            Self::Mute { until_ms, .. } if *until_ms < 0 => {
                Err(RequestError::BadRequest { field: "until_ms", rule: "must not be negative" })
            }
            Self::Push { content, .. } if content.len() > CONTENT_BYTES_MAX => {
                Err(RequestError::ContentTooLarge)
            }
            _ => Ok(()),
        }
    }

    /// Of the act, its group and its actor, for repeats by the same key.
    pub fn fingerprint(&self, group: GroupId, actor: UserId) -> u64 {
        let of = |kind| Fingerprint::new(kind).number(actor.get()).number(group.get());
        let all = |state: Fingerprint, users: &[UserId]| {
            users.iter().fold(state.number(users.len() as u64), |state, user| state.number(user.get()))
        };
        let state = match self {
            Self::Create { shows, owner, users } => shows.join(all(of(OF_CREATE).number(owner.get()), users)),
            Self::Update(shows) => shows.join(of(OF_UPDATE)),
            Self::Dissolve => of(OF_DISSOLVE),
            Self::AddMembers(users) => all(of(OF_ADD), users),
            Self::RemoveMembers(users) => all(of(OF_REMOVE), users),
            Self::Leave => of(OF_LEAVE),
            Self::SetRole { user, role } => of(OF_SET_ROLE).number(user.get()).number(*role as u64),
            Self::SetMember { user, nickname, extra } => {
                text(text(of(OF_SET_MEMBER).number(user.get()), nickname), extra)
            }
            Self::Mute { user, until_ms } => of(OF_MUTE).number(user.get()).number(until_ms.cast_unsigned()),
            Self::MuteAll(muted) => of(OF_MUTE_ALL).number(u64::from(*muted)),
            Self::Transfer(user) => of(OF_TRANSFER).number(user.get()),
            Self::Push { command, content } => {
                of(OF_PUSH).number(i64::from(*command).cast_unsigned()).bytes(content)
            }
        };
        state.finish()
    }

    /// Bytes of its texts and lists.
    pub fn heap_bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts = match self {
            Self::Create { shows, .. } | Self::Update(shows) => {
                [&shows.name, &shows.avatar_url, &shows.introduction, &shows.extra].map(length).iter().sum()
            }
            Self::SetMember { nickname, extra, .. } => length(nickname) + length(extra),
            Self::Push { content, .. } => content.len(),
            _ => 0,
        };
        texts + size_of_val(self.users())
    }
}

impl GroupChange {
    fn check(&self) -> Result<(), RequestError> {
        let Self { name, avatar_url, introduction, extra } = self;
        let introduction = introduction.as_deref();
        within("name", name.as_deref(), GROUP_NAME_BYTES_MAX, "must be at most 128 bytes")?;
        within("avatar_url", avatar_url.as_deref(), AVATAR_BYTES_MAX, "must be at most 1,024 bytes")?;
        within("introduction", introduction, INTRODUCTION_BYTES_MAX, "must be at most 1,024 bytes")?;
        within("extra", extra.as_deref(), EXTRA_BYTES_MAX, "must be at most 4,096 bytes")
    }

    fn join(&self, state: Fingerprint) -> Fingerprint {
        [&self.name, &self.avatar_url, &self.introduction, &self.extra].into_iter().fold(state, text)
    }
}

fn text(state: Fingerprint, text: &Option<String>) -> Fingerprint {
    match text {
        Some(text) => state.number(1).bytes(text.as_bytes()),
        None => state.number(0),
    }
}
