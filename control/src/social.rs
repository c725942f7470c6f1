//! What users do to their account and to one another: rules only.

mod friends;
mod profile;
pub mod read;

use gimbal_codec::{DeviceId, UserId};

use crate::command::social::{Actor, BLOCKED_MAX, Social};
use crate::command::{IdempotencyKey, Reply};
use crate::error::RequestError;
use crate::event::Act;
use crate::executor::{Batch, Output};
use crate::idempotency;
use crate::store::key::OfPair;
use crate::store::value::{BlockRecord, IdemResult, SocialCounts, Value as _};
use crate::store::{StoreError, Table};

impl Batch<'_> {
    /// Does `act` for the actor's user, or gives the first answer to the same key.
    pub(crate) fn social(
        &mut self,
        by: Actor,
        act: &Social,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Output, RequestError> {
        let user = self.check_actor(by)?;
        act.check()?;
        let fingerprint = act.fingerprint(user);
        let mut plan = None;
        if let Some(wanted) = idempotency {
            if let Some(first) = idempotency::recall(&self.overlay, wanted, fingerprint, self.now_ms)? {
                return repeated(first);
            }
            plan = Some((wanted, idempotency::plan(&self.overlay, wanted, self.now_ms)?));
        }
        let output = self.act(user, act)?;
        if let Some((wanted, plan)) = plan {
            let result = match output.result {
                Ok(Reply::Friendship(friendship)) => IdemResult::Friendship(friendship),
                _ => IdemResult::Done,
            };
            idempotency::remember(&mut self.overlay, plan, wanted, fingerprint, result, self.now_ms);
        }
        Ok(output)
    }

    /// Reads all that can fail before it writes.
    fn act(&mut self, user: UserId, act: &Social) -> Result<Output, RequestError> {
        match act {
            Social::UpdateUser(change) => self.update_user(user, change),
            Social::RemoveDevice(device) => self.remove_device(user, *device),
            Social::AddFriend { friend, remark, description } => {
                self.add_friend(user, *friend, remark, description)
            }
            Social::AgreeFriend { friend, remark } => self.agree_friend(user, *friend, remark),
            Social::DeclineFriend(friend) => self.decline_friend(user, *friend),
            Social::SetFriend { friend, remark, extra } => {
                self.set_friend(user, *friend, remark.as_deref(), extra.as_deref())
            }
            Social::RemoveFriend(friend) => self.remove_friend(user, *friend),
            Social::Block(other) => self.block(user, *other),
            Social::Unblock(other) => self.unblock(user, *other),
        }
    }

    pub(crate) fn check_actor(&mut self, by: Actor) -> Result<UserId, RequestError> {
        match by {
            Actor::Device(sender) => self.check_sender(sender)?,
            Actor::Backend(user) => drop(self.head(user)?.ok_or(RequestError::UserNotFound)?),
        }
        Ok(by.user())
    }

    /// Whether `to` takes messages of `from`: unless it blocks it, or, where only friends may write, is no friend.
    ///
    /// # Errors
    /// [`RequestError::Blocked`], [`RequestError::FriendNotFound`]; a store error.
    pub(crate) fn check_wanted(&mut self, from: UserId, to: UserId) -> Result<(), RequestError> {
        if self.blocks_anyone(to)? && self.blocks(to, from)? {
            return Err(RequestError::Blocked);
        }
        if self.is_among_friends() && from != to && !self.are_friends(to, from)? {
            return Err(RequestError::FriendNotFound);
        }
        Ok(())
    }

    fn blocks(&self, user: UserId, other: UserId) -> Result<bool, StoreError> {
        Ok(self.overlay.get(Table::Social, &OfPair::Block.key(user, other))?.is_some())
    }

    /// Most users block nobody, which is remembered: their messages cost no look at the store.
    fn blocks_anyone(&mut self, user: UserId) -> Result<bool, StoreError> {
        if let Some(blocks) = self.known_to_block(user) {
            return Ok(blocks);
        }
        let blocks = self.counts(user)?.blocked > 0;
        self.note_blocks(user, blocks);
        Ok(blocks)
    }

    fn counts(&self, user: UserId) -> Result<SocialCounts, StoreError> {
        let at = OfPair::Counts.key(user, UserId::default());
        Ok(self.overlay.value(Table::Social, &at)?.unwrap_or(SocialCounts { friends: 0, blocked: 0 }))
    }

    fn put_counts(&mut self, user: UserId, counts: SocialCounts) {
        let at = OfPair::Counts.key(user, UserId::default());
        self.overlay.put(Table::Social, &at, counts.to_bytes());
        self.note_blocks(user, counts.blocked > 0);
    }

    fn block(&mut self, user: UserId, other: UserId) -> Result<Output, RequestError> {
        self.check_other(user, other)?;
        let (counts, is_blocked) = (self.counts(user)?, self.blocks(user, other)?);
        if is_blocked {
            return Ok(Output::plain(Reply::Done));
        }
        if counts.blocked >= BLOCKED_MAX {
            return Err(RequestError::TooMany { what: "blocked users" });
        }
        let since_ms = self.now_ms;
        let at = OfPair::Block.key(user, other);
        self.overlay.put(Table::Social, &at, BlockRecord { since_ms }.to_bytes());
        self.put_counts(user, SocialCounts { blocked: counts.blocked + 1, ..counts });
        self.note_act(Act::Blocked, user, DeviceId::default(), other);
        Ok(Output::plain(Reply::Done))
    }

    fn unblock(&mut self, user: UserId, other: UserId) -> Result<Output, RequestError> {
        let (counts, is_blocked) = (self.counts(user)?, self.blocks(user, other)?);
        if is_blocked {
            self.overlay.delete(Table::Social, &OfPair::Block.key(user, other));
            self.put_counts(user, SocialCounts { blocked: counts.blocked.saturating_sub(1), ..counts });
            self.note_act(Act::Unblocked, user, DeviceId::default(), other);
        }
        Ok(Output::plain(Reply::Done))
    }

    /// Another user that exists.
    fn check_other(&mut self, user: UserId, other: UserId) -> Result<(), RequestError> {
        if user == other {
            return Err(RequestError::BadRequest { field: "user_id", rule: "must be another user" });
        }
        self.head(other)?.map(drop).ok_or(RequestError::UserNotFound)
    }
}

fn repeated(first: IdemResult) -> Result<Output, RequestError> {
    match first {
        IdemResult::Done => Ok(Output::plain(Reply::Done)),
        IdemResult::Friendship(friendship) => Ok(Output::plain(Reply::Friendship(friendship))),
        _ => Err(RequestError::Conflict),
    }
}
