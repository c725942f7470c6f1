//! Pages of groups and their members, on a view that stands still.

use gimbal_codec::{GroupId, UserId};

use super::missing;
use crate::error::RequestError;
use crate::social::read::{Paged, Range, value};
use crate::store::key::{self, OfGroup};
use crate::store::value::{GroupHead, GroupRecord, MemberRecord, Value as _};
use crate::store::{StoreError, Table, View};

/// A group as one of its members sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupPage {
    /// Which one.
    pub group: GroupId,
    /// What it shows.
    pub record: GroupRecord,
    /// Where it stands.
    pub head: GroupHead,
    /// Who looks; `None`: a backend for itself.
    pub me: Option<(UserId, MemberRecord)>,
}

/// A group as `user` may see it; 0: as a backend may.
///
/// # Errors
/// [`RequestError::GroupNotFound`], [`RequestError::NotInGroup`], or a store error.
pub fn group(view: &dyn View, group: GroupId, user: UserId) -> Result<GroupPage, RequestError> {
    let record: Option<GroupRecord> = value(view, Table::Social, &OfGroup::Record.key(group))?;
    let record = record.filter(|record| !record.dissolved).ok_or(RequestError::GroupNotFound)?;
    let head: Option<GroupHead> = value(view, Table::Social, &OfGroup::Head.key(group))?;
    let head = head.ok_or_else(|| StoreError::from(missing("group head")))?;
    let me = match user.is_none() {
        true => None,
        false => {
            let member: Option<MemberRecord> = value(view, Table::Social, &key::member(group, user))?;
            Some((user, member.ok_or(RequestError::NotInGroup)?))
        }
    };
    Ok(GroupPage { group, record, head, me })
}

/// The groups of `user`, by rising id, from after the key `from` on (empty: the first), at most `limit`.
///
/// # Errors
/// [`RequestError::BadRequest`] for a foreign `from`; a store error.
pub fn groups(
    view: &dyn View,
    user: UserId,
    from: &[u8],
    limit: usize,
) -> Result<Paged<GroupPage>, RequestError> {
    let prefix = key::joined(user, GroupId::default());
    let range = Range::new(prefix[..prefix.len() - size_of::<u64>()].to_vec(), from)?;
    let mut found = Vec::new();
    let next = range.scan(view, Table::Social, limit, |at, _| {
        found.push(key::group_of(at));
        Ok(true)
    })?;
    let mut items = Vec::with_capacity(found.len());
    for id in found {
        match group(view, id, user) {
            Ok(page) => items.push(page),
            // Dissolved, and its members are still being told.
            Err(RequestError::GroupNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Paged { items, next })
}

/// The members of a group, by rising id, from after the key `from` on (empty: the first), at most `limit`.
///
/// # Errors
/// [`RequestError::BadRequest`] for a foreign `from`; a store error.
pub fn members(
    view: &dyn View,
    group: GroupId,
    from: &[u8],
    limit: usize,
) -> Result<Paged<(UserId, MemberRecord)>, RequestError> {
    let prefix = key::member(group, UserId::default());
    let range = Range::new(prefix[..prefix.len() - size_of::<u64>()].to_vec(), from)?;
    let mut items = Vec::new();
    let next = range.scan(view, Table::Social, limit, |at, value| {
        items.push((key::other_user(at), MemberRecord::from_bytes(value)?));
        Ok(true)
    })?;
    Ok(Paged { items, next })
}
