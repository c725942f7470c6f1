//! Groups, their members, and messages that are on their way to those.

use gimbal_codec::UserId;
use gimbal_rpc::link::Body;

use super::{CorruptValue, FORM_1, Reader, Value, put_body, put_bytes, put_signed, put_varint, read_body};
use crate::error::RequestError;

/// What a group shows, and whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupRecord {
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// Unix milliseconds.
    pub updated_at_ms: i64,
    /// One of its members.
    pub owner: UserId,
    /// Only the owner and admins may send.
    pub muted: bool,
    /// Nobody may do anything in it any more; members go as they are told.
    pub dissolved: bool,
    /// What members see.
    pub name: String,
    /// Where a picture is.
    pub avatar_url: String,
    /// What it is about.
    pub introduction: String,
    /// Opaque.
    pub extra: String,
}

impl Value for GroupRecord {
    const WHAT: &'static str = "group";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_signed(out, self.created_at_ms);
        put_signed(out, self.updated_at_ms);
        put_varint(out, self.owner.get());
        out.extend_from_slice(&[u8::from(self.muted), u8::from(self.dissolved)]);
        for text in [&self.name, &self.avatar_url, &self.introduction, &self.extra] {
            put_bytes(out, text.as_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self {
            created_at_ms: reader.signed()?,
            updated_at_ms: reader.signed()?,
            owner: UserId::new(reader.varint()?),
            muted: reader.flag()?,
            dissolved: reader.flag()?,
            name: reader.text()?,
            avatar_url: reader.text()?,
            introduction: reader.text()?,
            extra: reader.text()?,
        })
    }
}

/// What a member may do; a higher one may do all that a lower one may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Role {
    /// Sends.
    Member = 1,
    /// Adds, removes and mutes members, and changes what the group shows.
    Admin = 2,
    /// Makes admins, hands the group on, dissolves it. There is always one.
    Owner = 3,
}

/// A user in a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberRecord {
    /// What it may do.
    pub role: Role,
    /// Unix milliseconds.
    pub joined_at_ms: i64,
    /// The group's messages from this place in its order on are this member's.
    pub since: gimbal_codec::Seq,
    /// May not send until then, Unix milliseconds; 0: may, `i64::MAX`: until that is taken back.
    pub muted_until_ms: i64,
    /// What the member is called here.
    pub nickname: String,
    /// Opaque.
    pub extra: String,
}

impl Value for MemberRecord {
    const WHAT: &'static str = "group member";

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[FORM_1, self.role as u8]);
        put_signed(out, self.joined_at_ms);
        put_varint(out, self.since.get());
        put_signed(out, self.muted_until_ms);
        put_bytes(out, self.nickname.as_bytes());
        put_bytes(out, self.extra.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        let role = match reader.u8()? {
            1 => Role::Member,
            2 => Role::Admin,
            3 => Role::Owner,
            _ => return Err(reader.corrupt("unknown role")),
        };
        Ok(Self {
            role,
            joined_at_ms: reader.signed()?,
            since: gimbal_codec::Seq::new(reader.varint()?),
            muted_until_ms: reader.signed()?,
            nickname: reader.text()?,
            extra: reader.text()?,
        })
    }
}

/// A message of a group, stored once; its group and its place there are in the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMessage(pub Body);

impl Value for GroupMessage {
    const WHAT: &'static str = "group message";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_body(&self.0, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self(read_body(reader)?))
    }
}

/// What became of one user of a call that names many.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Verdict {
    /// Done.
    Done = 0,
    /// There is no such user.
    NoUser = 1,
    /// Is a member already.
    AlreadyMember = 2,
    /// Is no member.
    NoMember = 3,
    /// Is in as many groups as may be.
    TooManyGroups = 4,
    /// Takes nothing from whoever asks.
    Blocked = 5,
    /// Has a role that is not below the caller's.
    RoleTooHigh = 6,
    /// Owns the group.
    Owner = 7,
    /// Its mailbox is not understood.
    Damaged = 8,
    /// Only friends may write to each other here, and they are none.
    NoFriend = 9,
}

impl Verdict {
    const ALL: [Self; 10] = [
        Self::Done,
        Self::NoUser,
        Self::AlreadyMember,
        Self::NoMember,
        Self::TooManyGroups,
        Self::Blocked,
        Self::RoleTooHigh,
        Self::Owner,
        Self::Damaged,
        Self::NoFriend,
    ];

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        let byte = reader.u8()?;
        let known = Self::ALL.get(usize::from(byte)).copied();
        known.ok_or_else(|| reader.corrupt("unknown verdict"))
    }

    /// Why nothing was done; `None`: it was.
    pub const fn error(self) -> Option<RequestError> {
        Some(match self {
            Self::Done => return None,
            Self::NoUser => RequestError::UserNotFound,
            Self::AlreadyMember => RequestError::AlreadyInGroup,
            Self::NoMember => RequestError::MemberNotFound,
            Self::TooManyGroups => RequestError::TooMany { what: "groups of the user" },
            Self::Blocked => RequestError::Blocked,
            Self::RoleTooHigh => RequestError::RoleTooLow,
            Self::Owner => RequestError::IsOwner,
            Self::Damaged => RequestError::Internal,
            Self::NoFriend => RequestError::FriendNotFound,
        })
    }
}
