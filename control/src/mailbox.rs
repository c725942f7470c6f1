//! A user's durable ordered messages: where a mailbox stands, and pages of it.

use std::sync::Arc;

use gimbal_codec::{GroupId, Seq, UserId, limits};
use gimbal_rpc::link::{Body, Page};

use crate::error::RequestError;
use crate::partition::Partition;
use crate::store::value::{CorruptValue, Entry, GroupMessage, MailboxHead, SharedBody, Value as _};
use crate::store::{Scan, StoreError, Table, View, key};

/// Contents above this are stored once for all mailboxes of a partition that share them: below it a second record and
/// a second read cost more than the copies.
pub const SHARED_BYTES_MIN: usize = 257;

/// One page: what [`crate::store::Store::page`] promises, on a view that stands still.
///
/// # Errors
/// [`RequestError::UserNotFound`], or a store error.
pub fn page(
    view: &dyn View,
    user: UserId,
    after: Seq,
    limit: u32,
    bytes_max: usize,
) -> Result<Page, RequestError> {
    let head = head(view, user)?.ok_or(RequestError::UserNotFound)?;
    let limit = match limit {
        0 => limits::SYNC_LIMIT_DEFAULT,
        limit => limit.min(limits::SYNC_LIMIT_MAX),
    };
    let latest = head.latest();
    let after = after.clamp(head.trimmed_to, latest);
    let mut reader =
        PageReader { view, user, bytes_left: bytes_max, limit: limit as usize, entries: Vec::new() };
    let (from, to) = (key::mailbox(user, after.next()), key::mailbox(user, head.next));
    view.scan(Table::Mailbox, &from, &to, &mut |at, value| reader.take(at, value))?;
    let end = reader.entries.last().map_or(after, |(seq, _)| *seq);
    if reader.entries.is_empty() && after < latest {
        return Err(StoreError::from(missing("mailbox entry")).into());
    }
    Ok(Page { entries: reader.entries, end, latest, has_more: end < latest, trimmed_to: head.trimmed_to })
}

/// Where the mailbox stands; `None` when there is no such user.
///
/// # Errors
/// A store error.
pub fn head(view: &dyn View, user: UserId) -> Result<Option<MailboxHead>, StoreError> {
    let stored = view.get(Table::Mailbox, &key::mailbox(user, Seq::new(0)))?;
    let head = stored.map(|bytes| MailboxHead::from_bytes(&bytes)).transpose()?;
    match head {
        Some(head) if head.next <= head.trimmed_to => Err(missing("mailbox head in order").into()),
        head => Ok(head),
    }
}

/// A message of a group; `None` when it is not kept.
///
/// # Errors
/// A store error.
pub fn group_message(view: &dyn View, group: GroupId, seq: Seq) -> Result<Option<Body>, StoreError> {
    let Some(stored) = view.get(Table::Message, &key::group_message(group, seq))? else { return Ok(None) };
    let GroupMessage(body) = GroupMessage::from_bytes(&stored)?;
    Ok(Some(Body { group, group_seq: seq, ..body }))
}

struct PageReader<'a> {
    view: &'a dyn View,
    user: UserId,
    bytes_left: usize,
    limit: usize,
    entries: Vec<(Seq, Arc<Body>)>,
}

impl PageReader<'_> {
    fn take(&mut self, at: &[u8], value: &[u8]) -> Result<Scan, StoreError> {
        let body = self.body(value)?;
        if body.content.len() > self.bytes_left && !self.entries.is_empty() {
            return Ok(Scan::Stop);
        }
        self.bytes_left = self.bytes_left.saturating_sub(body.content.len());
        let seq = Seq::new(u64::from_be_bytes(*at.last_chunk().expect("a mailbox key ends with the seq")));
        if self.entries.last().is_some_and(|(last, _)| last.next() != seq) {
            return Err(missing("mailbox entry").into());
        }
        self.entries.push((seq, Arc::new(body)));
        Ok(if self.entries.len() < self.limit { Scan::Continue } else { Scan::Stop })
    }

    /// A group's message is in the group's partition.
    fn body(&self, value: &[u8]) -> Result<Body, StoreError> {
        match Entry::from_bytes(value)? {
            Entry::Inline(body) => Ok(body),
            Entry::Shared(id) => {
                let at = key::message(Partition::of_user(self.user), id);
                let stored = self.view.get(Table::Message, &at)?.ok_or_else(|| missing("shared body"))?;
                Ok(SharedBody::from_bytes(&stored)?.body)
            }
            Entry::Group(group, seq) => {
                group_message(self.view, group, seq)?.ok_or_else(|| missing("group message").into())
            }
        }
    }
}

fn missing(what: &'static str) -> CorruptValue {
    CorruptValue { what, why: "missing", at: 0 }
}
