//! Tables, views and stores: what the rules need, whichever engine it is.

use gimbal_codec::{Seq, UserId};
use gimbal_rpc::link::Page;

use crate::error::RequestError;
use crate::log::Record;
use crate::mailbox;
use crate::partition::Partition;
use crate::store::value::CorruptValue;

/// A column family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Table {
    /// Schema, control epoch, counters.
    Meta = 0,
    /// Users and their phone index.
    Account = 1,
    /// Registrations, tokens, acks, and which user a device belongs to.
    Device = 2,
    /// Results of sends, by device and client message id.
    Dedup = 3,
    /// Results of other writes, by idempotency key.
    Idem = 4,
    /// Mailbox heads and entries.
    Mailbox = 5,
    /// Bodies shared by several mailboxes of one partition.
    Message = 6,
    /// Friends, groups, members.
    Social = 7,
    /// Retained room messages.
    Room = 8,
    /// Ordered stream for the backend.
    Event = 9,
}

impl Table {
    /// All, in order of their number.
    pub const ALL: [Self; 10] = [
        Self::Meta,
        Self::Account,
        Self::Device,
        Self::Dedup,
        Self::Idem,
        Self::Mailbox,
        Self::Message,
        Self::Social,
        Self::Room,
        Self::Event,
    ];

    /// Name of the column family.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Account => "account",
            Self::Device => "device",
            Self::Dedup => "dedup",
            Self::Idem => "idem",
            Self::Mailbox => "mailbox",
            Self::Message => "message",
            Self::Social => "social",
            Self::Room => "room",
            Self::Event => "event",
        }
    }

    /// The table with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The table with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// Why a read failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// An earlier commit failed; nothing is answered until a restart.
    #[error("an earlier commit failed; the store refuses everything until it is restarted")]
    Poisoned,
    /// The engine failed.
    #[error("store engine: {0}")]
    Engine(String),
    /// Bytes on disk are not what this version writes.
    #[error(transparent)]
    Corrupt(#[from] CorruptValue),
}

/// What [`View::scan`] does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scan {
    /// Give me the next one.
    Continue,
    /// Enough.
    Stop,
}

/// Is shown key and value by [`View::scan`].
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Scan, StoreError> + 'a;

/// Something that can be read: the store as it is now, or a snapshot of it.
pub trait View {
    /// The value of one key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Shows `visit` each key from `from` (inclusive) to `to` (exclusive) in rising order, until it says stop.
    ///
    /// # Errors
    /// [`StoreError`], also the one that `visit` gives.
    fn scan(&self, table: Table, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;
}

/// The durable state of control. As a [`View`] it shows the newest committed state; only the writer thread may rely on
/// several reads of it agreeing, all others take a snapshot.
pub trait Store: View + Send + Sync {
    /// A view that stands still.
    fn snapshot(&self) -> Box<dyn View + '_>;

    /// Applies all of `records` in one atomic write and returns when it is synced.
    ///
    /// # Errors
    /// [`StoreError::Engine`]; from then on everything is refused with [`StoreError::Poisoned`].
    fn apply(&self, records: &[(Partition, Record)]) -> Result<(), StoreError>;

    /// False after a failed commit.
    fn is_healthy(&self) -> bool;

    /// Number of this opening of the data directory: durable, one more each time, from 1.
    fn control_epoch(&self) -> u32;

    /// Syncs of the write-ahead log since opening, as the engine counts them.
    fn wal_syncs(&self) -> u64;

    /// One page of a mailbox, from a snapshot: at most `limit` messages (0: the default) and about `bytes_max` of contents, but one
    /// message at least. For reader threads; never blocks the writer.
    ///
    /// # Errors
    /// [`RequestError::UserNotFound`], or a store error.
    fn page(&self, user: UserId, after: Seq, limit: u32, bytes_max: usize) -> Result<Page, RequestError> {
        mailbox::page(&*self.snapshot(), user, after, limit, bytes_max)
    }
}
