//! A message on its way to the members of a group.
//!
//! It is stored once, at its place in the group's order, in the commit that acknowledges it. Each member's mailbox gets an
//! entry that points there: in the same commit when all are few and nothing waits, else by a **fan-out**, which gives out the
//! group's waiting messages one after the other, each to its members by rising user id, [`NOW_MAX`] mailboxes in a commit,
//! and notes in the same commit how far it came. So a message is in each mailbox once, in the group's order, whenever the
//! process dies.
//!
//! A message is for whoever was a member when it was acknowledged, and still is when its batch runs.

use std::sync::Arc;

use gimbal_codec::{GroupId, Seq, UserId};
use gimbal_rpc::link::Body;

use super::{Group, missing};
use crate::command::Reply;
use crate::error::RequestError;
use crate::executor::{Batch, Effect, Output};
use crate::mailbox;
use crate::partition::Partition;
use crate::store::key::{self, OfGroup};
use crate::store::value::{
    CorruptValue, Entry, FanOutRecord, GroupCount, GroupHead, GroupMessage, GroupRecord, MemberRecord,
    Value as _,
};
use crate::store::{Scan, StoreError, Table, View};

/// Most mailboxes that one command writes for a message to a group.
pub const NOW_MAX: usize = 512;

/// Who is told of something, and when.
pub(crate) struct Told {
    /// In this commit.
    pub(super) now: Vec<UserId>,
    pub(super) later: Later,
}

/// What becomes of those who are not told in this commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Later {
    /// There are none.
    Nobody,
    /// A fan-out begins with this message.
    Begins,
    /// It waits for the fan-out of those before it.
    Waits,
}

/// Members from some user on.
struct Members {
    /// With the first place that is theirs, by rising user id.
    members: Vec<(UserId, Seq)>,
    /// There are more.
    is_more: bool,
}

/// Groups whose messages are on their way, for the beginning of a life of control.
///
/// # Errors
/// A store error.
pub fn open(view: &dyn View) -> Result<Vec<GroupId>, StoreError> {
    let mut found = Vec::new();
    for home in (0..Partition::COUNT).filter_map(Partition::from_u16) {
        let [from, to] = key::fan_outs(home);
        view.scan(Table::Social, &from, &to, &mut |at, _| {
            found.push(key::group_of(at));
            Ok(Scan::Continue)
        })?;
    }
    Ok(found)
}

impl Batch<'_> {
    /// How the next message of a group reaches its members, of whom there are `members` then; `others` are told beside them.
    /// Those who are members now are read.
    pub(super) fn told(&mut self, group: &Group, members: u64, others: usize) -> Result<Told, RequestError> {
        let now = Vec::new();
        if self.overlay.get(Table::Social, &OfGroup::FanOut.key(group.id))?.is_some() {
            return Ok(Told { now, later: Later::Waits });
        }
        if members + others as u64 > NOW_MAX as u64 {
            return Ok(Told { now, later: Later::Begins });
        }
        let all = self.members_after(group.id, UserId::default(), NOW_MAX)?;
        let now = self.reachable(all.members.into_iter().map(|(user, _)| user))?;
        Ok(Told { now, later: Later::Nobody })
    }

    /// Those whose mailboxes can be written.
    ///
    /// # Errors
    /// The engine failed. A mailbox that is not understood is its user's failure alone.
    pub(super) fn reachable(
        &mut self,
        users: impl Iterator<Item = UserId>,
    ) -> Result<Vec<UserId>, StoreError> {
        let mut reachable = Vec::with_capacity(users.size_hint().0);
        for user in users {
            match self.head(user) {
                Ok(Some(_)) => reachable.push(user),
                Ok(None) => {}
                Err(StoreError::Corrupt(cause)) => {
                    tracing::error!(%cause, %user, "a member's mailbox is not understood");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(reachable)
    }

    /// Gives a message its place in the group's order and writes it, the group's head, and what is written now of mailboxes.
    /// [`Told`] is what [`Self::told`] found before.
    pub(super) fn post(&mut self, group: &mut Group, told: Told, body: Body) -> Effect {
        let seq = group.head.next;
        group.head.next = seq.next();
        let body = Body { group: group.id, group_seq: seq, ..body };
        let at = key::group_message(group.id, seq);
        self.overlay.put(Table::Message, &at, GroupMessage(body.clone()).to_bytes());
        self.overlay.put(Table::Social, &OfGroup::Head.key(group.id), group.head.to_bytes());
        if told.later == Later::Begins {
            self.put_fan_out(group.id, FanOutRecord { seq, after: UserId::default() });
        }
        self.give(body, told.now)
    }

    /// The next batch of a group's fan-out, if there is one.
    pub(crate) fn fan_out(&mut self, id: GroupId) -> Result<Output, RequestError> {
        let at = OfGroup::FanOut.key(id);
        let Some(FanOutRecord { seq, after }) = self.overlay.value(Table::Social, &at)? else {
            return Ok(Output::plain(Reply::Done));
        };
        let head: Option<GroupHead> = self.overlay.value(Table::Social, &OfGroup::Head.key(id))?;
        let head = head.ok_or_else(|| StoreError::from(missing("group head")))?;
        let record: Option<GroupRecord> = self.overlay.value(Table::Social, &OfGroup::Record.key(id))?;
        let is_dissolved = record.ok_or_else(|| StoreError::from(missing("group")))?.dissolved;
        let body = mailbox::group_message(self.overlay.view(), id, seq)?;
        let body = body.ok_or_else(|| StoreError::from(missing("group message")))?;
        let Members { members, is_more } = self.members_after(id, after, NOW_MAX)?;
        let theirs = members.iter().filter(|(_, since)| *since <= seq).map(|(user, _)| *user);
        let now = self.reachable(theirs)?;
        let is_last = seq.next() == head.next;
        let going = if is_dissolved && is_last { self.counts_of(&members)? } else { Vec::new() };

        let effect = self.give(body, now);
        self.forget_members(id, &going);
        match members.last() {
            Some((after, _)) if is_more => self.put_fan_out(id, FanOutRecord { seq, after: *after }),
            _ if is_last => self.overlay.delete(Table::Social, &at),
            _ => self.put_fan_out(id, FanOutRecord { seq: seq.next(), after: UserId::default() }),
        }
        Ok(Output { result: Ok(Reply::Done), effect })
    }

    fn put_fan_out(&mut self, id: GroupId, record: FanOutRecord) {
        self.overlay.put(Table::Social, &OfGroup::FanOut.key(id), record.to_bytes());
        self.opened.push(id);
    }

    /// Appends a message of a group to the mailboxes of `users`, whose heads were read before.
    fn give(&mut self, body: Body, mut users: Vec<UserId>) -> Effect {
        users.sort_unstable_by_key(|user| (Partition::of_user(*user), *user));
        users.dedup();
        let entry = Entry::Group(body.group, body.group_seq).to_bytes();
        let users: Vec<(UserId, Seq)> =
            users.into_iter().map(|user| (user, self.append_next_entry(user, &entry))).collect();
        self.mailboxes += users.len();
        users.iter().for_each(|(user, seq)| self.note_message(*user, *seq, &body));
        if users.is_empty() { Effect::None } else { Effect::DeliverMany { body: Arc::new(body), users } }
    }

    /// Members with a greater id than `after`, as this batch has made them so far; at most `limit`.
    fn members_after(&self, id: GroupId, after: UserId, limit: usize) -> Result<Members, StoreError> {
        let mut members = Vec::new();
        let (mut is_more, mut end) = (false, UserId::new(u64::MAX));
        let Some(from) = after.get().checked_add(1) else { return Ok(Members { members, is_more }) };
        let touched = |user| self.members_touched.contains_key(&(id, user));
        let range = [from, u64::MAX].map(|user| key::member(id, UserId::new(user)));
        self.overlay.view().scan(Table::Social, &range[0], &range[1], &mut |at, value| {
            let user = key::other_user(at);
            if touched(user) {
                return Ok(Scan::Continue);
            }
            if members.len() == limit {
                is_more = true;
                return Ok(Scan::Stop);
            }
            members.push((user, MemberRecord::from_bytes(value)?.since));
            end = user;
            Ok(Scan::Continue)
        })?;
        if !is_more {
            end = UserId::new(u64::MAX);
        }
        for ((_, user), since) in self.members_touched.range((id, UserId::new(from))..=(id, end)) {
            members.extend(since.map(|since| (*user, since)));
        }
        members.sort_unstable();
        is_more |= members.len() > limit;
        members.truncate(limit);
        Ok(Members { members, is_more })
    }

    /// Members, with how many groups each is in.
    pub(super) fn counts_of(
        &self,
        members: &[(UserId, Seq)],
    ) -> Result<Vec<(UserId, GroupCount)>, StoreError> {
        members.iter().map(|(user, _)| Ok((*user, self.group_count(*user)?))).collect()
    }

    /// All members of a group, which are no more than [`NOW_MAX`].
    pub(super) fn all_members(&self, id: GroupId) -> Result<Vec<(UserId, Seq)>, StoreError> {
        let all = self.members_after(id, UserId::default(), NOW_MAX)?;
        if all.is_more {
            return Err(
                CorruptValue { what: "group head", why: "fewer members than there are", at: 0 }.into()
            );
        }
        Ok(all.members)
    }
}
