//! Who knows whom. Each side of a friendship is a record in its own user's partition; both change together.

use std::sync::Arc;

use bytes::Bytes;
use gimbal_codec::{DeviceId, Seq, UserId};
use gimbal_rpc::link::Body;
use gimbal_rpc::v1::{AddFriendPush, AgreeAddFriendPush, RemoveFriendPush};
use prost::Message as _;

use crate::command::Reply;
use crate::command::social::FRIENDS_MAX;
use crate::error::RequestError;
use crate::event::Act;
use crate::executor::{Batch, Effect, Output};
use crate::store::key::OfPair;
use crate::store::value::{FriendRecord, Friendship, SocialCounts, Value as _};
use crate::store::{StoreError, Table};

/// Commands of stored messages from the server; gim's keep their numbers.
const ASKED: i32 = 110;
const AGREED: i32 = 111;
const REMOVED: i32 = 112;

impl Batch<'_> {
    pub(super) fn add_friend(
        &mut self,
        user: UserId,
        friend: UserId,
        remark: &str,
        description: &str,
    ) -> Result<Output, RequestError> {
        self.check_other(user, friend)?;
        if self.blocks(friend, user)? || self.blocks(user, friend)? {
            return Err(RequestError::Blocked);
        }
        match self.friend(user, friend)? {
            Some(known) => match known.friendship {
                Friendship::Friends => Err(RequestError::AlreadyFriends),
                Friendship::Asked => Ok(Output::plain(Reply::Friendship(Friendship::Asked))),
                Friendship::WasAsked => {
                    let output = self.befriend(user, friend, known, remark)?;
                    Ok(Output { result: Ok(Reply::Friendship(Friendship::Friends)), ..output })
                }
            },
            None => self.ask_friend(user, friend, remark, description),
        }
    }

    fn ask_friend(
        &mut self,
        user: UserId,
        friend: UserId,
        remark: &str,
        description: &str,
    ) -> Result<Output, RequestError> {
        let (mine, theirs) = (self.counts(user)?, self.counts(friend)?);
        if mine.friends >= FRIENDS_MAX {
            return Err(RequestError::TooMany { what: "friends and requests" });
        }
        if theirs.friends >= FRIENDS_MAX {
            return Err(RequestError::TooMany { what: "the other's friends and requests" });
        }
        let profile = self.profile(user)?;
        let record = |friendship, remark: &str| FriendRecord {
            friendship,
            since_ms: self.now_ms,
            remark: remark.to_owned(),
            extra: String::new(),
            description: description.to_owned(),
        };
        let (asked, was_asked) = (record(Friendship::Asked, remark), record(Friendship::WasAsked, ""));
        self.put_friend(user, friend, &asked);
        self.put_friend(friend, user, &was_asked);
        self.put_counts(user, SocialCounts { friends: mine.friends + 1, ..mine });
        self.put_counts(friend, SocialCounts { friends: theirs.friends + 1, ..theirs });
        let told = AddFriendPush {
            friend_id: user.get(),
            nickname: profile.nickname,
            avatar_url: profile.avatar_url,
            description: description.to_owned(),
        };
        self.note_act(Act::FriendAsked, user, DeviceId::default(), friend);
        let effect = self.tell(user, friend, ASKED, told.encode_to_vec());
        Ok(Output { result: Ok(Reply::Friendship(Friendship::Asked)), effect })
    }

    pub(super) fn agree_friend(
        &mut self,
        user: UserId,
        friend: UserId,
        remark: &str,
    ) -> Result<Output, RequestError> {
        let known = self.friend(user, friend)?.ok_or(RequestError::FriendNotFound)?;
        match known.friendship {
            Friendship::Friends => Ok(Output::plain(Reply::Done)),
            Friendship::Asked => Err(RequestError::FriendNotFound),
            Friendship::WasAsked => self.befriend(user, friend, known, remark),
        }
    }

    /// `friend` had asked `user`, who agrees.
    fn befriend(
        &mut self,
        user: UserId,
        friend: UserId,
        mine: FriendRecord,
        remark: &str,
    ) -> Result<Output, RequestError> {
        self.head(friend)?.ok_or(RequestError::UserNotFound)?;
        let theirs = self.friend(friend, user)?.ok_or(RequestError::FriendNotFound)?;
        let profile = self.profile(user)?;
        let (friendship, since_ms) = (Friendship::Friends, self.now_ms);
        let remark = remark.to_owned();
        self.put_friend(user, friend, &FriendRecord { friendship, since_ms, remark, ..mine });
        self.put_friend(friend, user, &FriendRecord { friendship, since_ms, ..theirs });
        let told = AgreeAddFriendPush {
            friend_id: user.get(),
            nickname: profile.nickname,
            avatar_url: profile.avatar_url,
        };
        self.note_act(Act::FriendAgreed, user, DeviceId::default(), friend);
        let effect = self.tell(user, friend, AGREED, told.encode_to_vec());
        Ok(Output { result: Ok(Reply::Done), effect })
    }

    pub(super) fn decline_friend(&mut self, user: UserId, friend: UserId) -> Result<Output, RequestError> {
        let known = self.friend(user, friend)?.ok_or(RequestError::FriendNotFound)?;
        if known.friendship != Friendship::WasAsked {
            return Err(RequestError::FriendNotFound);
        }
        self.part(user, friend)?;
        self.note_act(Act::FriendDeclined, user, DeviceId::default(), friend);
        Ok(Output::plain(Reply::Done))
    }

    pub(super) fn set_friend(
        &mut self,
        user: UserId,
        friend: UserId,
        remark: Option<&str>,
        extra: Option<&str>,
    ) -> Result<Output, RequestError> {
        let mut known = self.friend(user, friend)?.ok_or(RequestError::FriendNotFound)?;
        if known.friendship != Friendship::Friends {
            return Err(RequestError::FriendNotFound);
        }
        if let Some(remark) = remark {
            remark.clone_into(&mut known.remark);
        }
        if let Some(extra) = extra {
            extra.clone_into(&mut known.extra);
        }
        self.put_friend(user, friend, &known);
        Ok(Output::plain(Reply::Done))
    }

    pub(super) fn remove_friend(&mut self, user: UserId, friend: UserId) -> Result<Output, RequestError> {
        let known = self.friend(user, friend)?.ok_or(RequestError::FriendNotFound)?;
        self.head(friend)?.ok_or(RequestError::UserNotFound)?;
        if known.friendship == Friendship::WasAsked {
            return Err(RequestError::FriendNotFound);
        }
        self.part(user, friend)?;
        self.note_act(Act::FriendRemoved, user, DeviceId::default(), friend);
        match known.friendship {
            Friendship::Asked | Friendship::WasAsked => Ok(Output::plain(Reply::Done)),
            Friendship::Friends => {
                let told = RemoveFriendPush { friend_id: user.get() }.encode_to_vec();
                let effect = self.tell(user, friend, REMOVED, told);
                Ok(Output { result: Ok(Reply::Done), effect })
            }
        }
    }

    /// Both sides are gone.
    fn part(&mut self, user: UserId, friend: UserId) -> Result<(), StoreError> {
        let (mine, theirs) = (self.counts(user)?, self.counts(friend)?);
        for (user, friend, counts) in [(user, friend, mine), (friend, user, theirs)] {
            self.overlay.delete(Table::Social, &OfPair::Friend.key(user, friend));
            self.put_counts(user, SocialCounts { friends: counts.friends.saturating_sub(1), ..counts });
        }
        Ok(())
    }

    /// A stored message of `user`, without a device, for `to`, whose head was read before.
    fn tell(&mut self, user: UserId, to: UserId, command: i32, content: Vec<u8>) -> Effect {
        let body = Body {
            message_id: self.next_message(),
            from_user: user,
            from_device: DeviceId::default(),
            command,
            content: Bytes::from(content),
            created_at_ms: self.now_ms,
            ..Body::default()
        };
        let seq: Seq = self.append_next(to, &body);
        self.note_message(to, seq, &body);
        Effect::Deliver { body: Arc::new(body), user: to, seq }
    }

    pub(super) fn are_friends(&self, user: UserId, other: UserId) -> Result<bool, StoreError> {
        Ok(self.friend(user, other)?.is_some_and(|known| known.friendship == Friendship::Friends))
    }

    fn friend(&self, user: UserId, friend: UserId) -> Result<Option<FriendRecord>, StoreError> {
        self.overlay.value(Table::Social, &OfPair::Friend.key(user, friend))
    }

    fn put_friend(&mut self, user: UserId, friend: UserId, record: &FriendRecord) {
        self.overlay.put(Table::Social, &OfPair::Friend.key(user, friend), record.to_bytes());
    }
}
