//! The event stream: what happened, in one order, written in the same commit as its cause. Sessions that begin and end ride the
//! next commit. Its numbers rise; those of one life of control have no gap.

pub mod read;
pub mod trim;

use gimbal_codec::{Attach, DeviceId, MessageId, Seq, UserId, epoch_number};
use gimbal_rpc::link::Body;
use tokio::sync::{Notify, watch};

use crate::command::Reply;
use crate::error::RequestError;
use crate::executor::{Batch, Output};
use crate::store::key::{self, Meta};
use crate::store::value::{EventKind, EventRecord, LastSeen, MetaNumber, OnlineRecord, Value as _};
use crate::store::{StoreError, Table};

/// Which kinds are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kinds(u16);

impl Kinds {
    /// Every kind.
    pub const ALL: Self = Self(u16::MAX);

    /// These.
    pub fn of(kinds: &[EventKind]) -> Self {
        Self(kinds.iter().fold(0, |set, kind| set | (1 << *kind as u8)))
    }

    /// Whether it is one of them.
    pub const fn holds(self, kind: EventKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    const fn has_presence(self) -> bool {
        self.holds(EventKind::Online) || self.holds(EventKind::Offline)
    }
}

impl Default for Kinds {
    fn default() -> Self {
        Self::ALL
    }
}

/// What was done, in events of friends and accounts. The numbers are on disk and in the API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Act {
    /// A user asked another one for friendship.
    FriendAsked = 1,
    /// A user agreed: they are friends.
    FriendAgreed = 2,
    /// A user turned a request down.
    FriendDeclined = 3,
    /// A user ended a friendship or took a request back.
    FriendRemoved = 4,
    /// A user blocked another one.
    Blocked = 5,
    /// And took it back.
    Unblocked = 6,
    /// A user was made.
    UserMade = 16,
    /// A user changed its profile.
    ProfileChanged = 17,
    /// A device got a token.
    DeviceRegistered = 18,
    /// A device was removed.
    DeviceRemoved = 19,
    /// A device's token was revoked.
    TokenRevoked = 20,
    /// All older tokens of a user were revoked.
    TokensRevoked = 21,
}

/// What others are told after a commit.
#[derive(Debug, Default)]
pub struct News {
    /// The newest event that is committed; 0: none in this life.
    pub newest: watch::Sender<u64>,
    /// Who looks at whose presence.
    pub watched: crate::presence::Watched,
    /// A gateway has gone; its sessions may come back by an announcement.
    pub lost: Notify,
}

impl News {
    /// Events of this life so far; those kept for sessions that came and went unseen count, too.
    pub(crate) fn count(&self) -> u64 {
        *self.newest.borrow() % epoch_number(1, 0)
    }
}

/// A session that began (with its number) or ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// User.
    pub user: UserId,
    /// Device.
    pub device: DeviceId,
    /// Of the session; `None`: it ended.
    pub attach: Option<Attach>,
    /// Unix milliseconds.
    pub at_ms: i64,
}

impl Batch<'_> {
    /// Writes an event, if its kind is written.
    pub(crate) fn note(&mut self, event: EventRecord) {
        if self.kinds().holds(event.kind) {
            let number = self.next_event();
            self.put_event(number, &event);
        }
    }

    /// A message came into a mailbox.
    pub(crate) fn note_message(&mut self, user: UserId, seq: Seq, body: &Body) {
        let event = EventRecord {
            device: body.from_device,
            other: body.from_user,
            message: body.message_id,
            seq,
            command: body.command,
            ..EventRecord::new(EventKind::Message, self.now_ms, user)
        };
        self.note(event);
        if self.kinds().holds(EventKind::OfflineMessage) && !self.is_online(user) {
            self.note(EventRecord { kind: EventKind::OfflineMessage, ..event });
        }
    }

    /// A user did something.
    pub(crate) fn note_act(&mut self, act: Act, user: UserId, device: DeviceId, other: UserId) {
        let kind = if (act as u8) < Act::UserMade as u8 { EventKind::Friend } else { EventKind::Account };
        let event = EventRecord::new(kind, self.now_ms, user);
        self.note(EventRecord { device, other, act: act as u8, ..event });
    }

    /// A device acknowledged.
    pub(crate) fn note_ack(&mut self, user: UserId, device: DeviceId, seq: Seq) {
        self.note(EventRecord { device, seq, ..EventRecord::new(EventKind::Ack, self.now_ms, user) });
    }

    /// Sessions that began or ended before this batch, under the numbers that were kept for them from `first` on.
    pub(crate) fn note_changes(&mut self, changes: &[Change], first: u64) -> Result<(), StoreError> {
        if !self.kinds().has_presence() {
            return Ok(());
        }
        for (change, number) in changes.iter().zip(first..) {
            let Change { user, device, attach, at_ms } = *change;
            let at = key::online(user, device);
            let kind = match attach {
                Some(attach) => {
                    self.overlay.put(Table::Event, &at, OnlineRecord { attach }.to_bytes());
                    EventKind::Online
                }
                // It came and went before anything was written, or was said before.
                None if self.overlay.get(Table::Event, &at)?.is_none() => continue,
                None => {
                    self.overlay.delete(Table::Event, &at);
                    self.overlay.put(Table::Event, &key::last_seen(user), LastSeen { at_ms }.to_bytes());
                    EventKind::Offline
                }
            };
            if self.kinds().holds(kind) {
                self.put_event(number, &EventRecord { device, ..EventRecord::new(kind, at_ms, user) });
            }
        }
        Ok(())
    }

    /// Removes all events up to `through`.
    pub(crate) fn trim_events(&mut self, through: u64) -> Result<Output, RequestError> {
        let floor = self.overlay.value::<MetaNumber>(Table::Meta, &Meta::EventFloor.key())?;
        let floor = floor.map_or(0, |number| number.value);
        if through > floor {
            let (from, to) = (key::event(floor), key::event(through + 1));
            self.overlay.record(&from).delete_range(Table::Event, &from, &to);
            let value = MetaNumber { value: through }.to_bytes();
            self.overlay.put(Table::Meta, &Meta::EventFloor.key(), value);
        }
        Ok(Output::plain(Reply::Done))
    }

    fn put_event(&mut self, number: u64, event: &EventRecord) {
        let (at, mut value) = (key::event(number), std::mem::take(&mut self.scratch));
        value.clear();
        event.put(&mut value);
        self.overlay.record(&at).put(Table::Event, &at, &value);
        self.scratch = value;
    }
}

/// Whether two numbers were given in one life of control.
pub(crate) const fn is_one_life(one: u64, other: u64) -> bool {
    one / epoch_number(1, 0) == other / epoch_number(1, 0)
}

/// An event's message, for a look into its mailbox.
pub(crate) const fn place(event: &EventRecord) -> Option<(UserId, Seq, MessageId)> {
    match event.kind {
        EventKind::Message | EventKind::OfflineMessage => Some((event.user, event.seq, event.message)),
        _ => None,
    }
}
