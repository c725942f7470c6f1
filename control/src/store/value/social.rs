//! Profiles and who knows whom.

use super::{CorruptValue, FORM_1, Reader, Value, put_bytes, put_signed, put_varint};

/// What a user shows of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProfileRecord {
    /// Unix milliseconds.
    pub updated_at_ms: i64,
    /// What others see.
    pub nickname: String,
    /// The backend's own numbers.
    pub sex: i32,
    /// Where a picture is.
    pub avatar_url: String,
    /// Opaque.
    pub extra: String,
}

impl Value for ProfileRecord {
    const WHAT: &'static str = "profile";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_signed(out, self.updated_at_ms);
        put_bytes(out, self.nickname.as_bytes());
        put_signed(out, self.sex.into());
        put_bytes(out, self.avatar_url.as_bytes());
        put_bytes(out, self.extra.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self {
            updated_at_ms: reader.signed()?,
            nickname: reader.text()?,
            sex: reader.i32()?,
            avatar_url: reader.text()?,
            extra: reader.text()?,
        })
    }
}

/// One place of a nickname in the index: the suffix from there on is in the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameEntry {
    /// Where the suffix begins, in bytes of `name`.
    pub offset: u64,
    /// The whole nickname in lower case.
    pub name: String,
}

impl Value for NameEntry {
    const WHAT: &'static str = "name entry";

    fn put(&self, out: &mut Vec<u8>) {
        out.push(FORM_1);
        put_varint(out, self.offset);
        put_bytes(out, self.name.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self { offset: reader.varint()?, name: reader.text()? })
    }
}

/// What two users are to each other, as one of them sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Friendship {
    /// Both want it.
    Friends = 1,
    /// This one has asked.
    Asked = 2,
    /// The other has asked.
    WasAsked = 3,
}

impl Friendship {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        match reader.u8()? {
            1 => Ok(Self::Friends),
            2 => Ok(Self::Asked),
            3 => Ok(Self::WasAsked),
            _ => Err(reader.corrupt("unknown friendship")),
        }
    }
}

/// One user's side of a friendship; the other side is in the other user's partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FriendRecord {
    /// What they are to each other.
    pub friendship: Friendship,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
    /// What this user calls the other.
    pub remark: String,
    /// Opaque.
    pub extra: String,
    /// What came with the request.
    pub description: String,
}

impl Value for FriendRecord {
    const WHAT: &'static str = "friend";

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[FORM_1, self.friendship as u8]);
        put_signed(out, self.since_ms);
        for text in [&self.remark, &self.extra, &self.description] {
            put_bytes(out, text.as_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CorruptValue> {
        reader.form(FORM_1)?;
        Ok(Self {
            friendship: Friendship::read(reader)?,
            since_ms: reader.signed()?,
            remark: reader.text()?,
            extra: reader.text()?,
            description: reader.text()?,
        })
    }
}
