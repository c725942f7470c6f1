//! Pure: a batch of commands over a view that includes the batch so far gives effects, answers and deliveries.
//!
//! No I/O but reads of the view, no clock, no randomness: time comes with the batch, message ids are the control epoch
//! and a counter, user and device ids are durable counters. What it keeps between batches is a cache of what is
//! committed, so a failed commit must end it (the writer executes nothing after one).
//!
//! Each command reads all that can fail before it writes anything: a refused command has no effect.

pub(crate) mod cache;
mod messages;
pub(crate) mod overlay;

pub(crate) use messages::repeated;

use std::collections::BTreeMap;
use std::sync::Arc;

use gimbal_codec::{Attach, CloseReason, DeviceId, GroupId, MessageId, Seq, UserId, epoch_number};
use gimbal_rpc::link::{Body, Recipient};

use crate::command::{Admitted, Command, Proof, Reply, Sender, TokenHash};
use crate::dedup;
use crate::error::RequestError;
use crate::event::{Change, Kinds};
use crate::group::ToGroup;
use crate::log::Record;
use crate::partition::Partition;
use crate::store::key::{DedupScope, Meta, OfDevice, OfGroup};
use crate::store::value::{DedupHead, MailboxHead, MetaNumber, TokenRecord, Value as _};
use crate::store::{StoreError, Table, View, key};
use crate::{mailbox, sign_in};
use cache::Cache;
use overlay::Overlay;

/// The first user id and the first device id: gim's clients know no smaller ones.
pub const ID_MIN: u64 = 10_000;

/// Mailboxes and sending devices remembered in each of two generations: about 10 MB when full.
const CACHED_MAX: usize = 64 * 1024;

/// Mailboxes that messages to groups write in one batch, about: what a full queue of pushes may write too.
const MAILBOXES_MAX: usize = 1024;

/// What one command came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Output {
    /// Its answer, to be given after the commit.
    pub result: Result<Reply, RequestError>,
    /// What else is to be done after the commit.
    pub effect: Effect,
}

/// What a command wants of the gateways.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// Give `body` to all sessions of one user.
    Deliver {
        /// The message.
        body: Arc<Body>,
        /// Whose.
        user: UserId,
        /// Its place in that user's mailbox.
        seq: Seq,
    },
    /// Give `body` to all sessions of many users.
    DeliverMany {
        /// The message.
        body: Arc<Body>,
        /// Whose, and its place in each mailbox; 0 when not stored.
        users: Vec<(UserId, Seq)>,
    },
    /// End the user's sessions that began with a token issued before a time.
    KickOlder {
        /// User.
        user: UserId,
        /// Unix milliseconds.
        before_ms: i64,
        /// Told to the clients.
        reason: CloseReason,
    },
    /// End the device's session.
    Kick {
        /// User.
        user: UserId,
        /// Device.
        device: DeviceId,
        /// Told to the client.
        reason: CloseReason,
    },
}

/// What a batch came to.
#[derive(Debug)]
pub struct Outcome {
    /// Effects, to be committed together; empty when nothing changed.
    pub records: Vec<(Partition, Record)>,
    /// One for each command, in order.
    pub outputs: Vec<Output>,
}

impl Output {
    /// A refusal.
    pub const fn refused(error: RequestError) -> Self {
        Self { result: Err(error), effect: Effect::None }
    }

    pub(crate) const fn plain(reply: Reply) -> Self {
        Self { result: Ok(reply), effect: Effect::None }
    }
}

/// Executes batches for one life of control.
pub struct Executor {
    epoch: u32,
    messages: u64,
    heads: Cache<UserId, MailboxHead>,
    windows: Cache<DedupScope, DedupHead>,
    /// Whether a user blocks anyone.
    blockers: Cache<UserId, bool>,
    /// Events of this life so far.
    events: u64,
    kinds: Kinds,
    friends_only: bool,
}

/// What a batch may know of the sessions that there are before it.
#[derive(Clone, Copy)]
pub struct Sessions<'a> {
    /// No session has this number yet, or one above it.
    pub next_attach: Attach,
    /// Those that began or ended since the last batch that wrote anything.
    pub changes: &'a [Change],
    /// Whether a user has a session.
    pub is_online: &'a dyn Fn(UserId) -> bool,
}

impl Sessions<'_> {
    /// There are none.
    pub const NONE: Self = Self { next_attach: Attach::new(0), changes: &[], is_online: &|_| false };
}

impl Executor {
    /// For the life with this durable number.
    pub fn new(control_epoch: u32) -> Self {
        Self {
            epoch: control_epoch,
            messages: 0,
            heads: Cache::new(CACHED_MAX),
            windows: Cache::new(CACHED_MAX),
            blockers: Cache::new(CACHED_MAX),
            events: 0,
            kinds: Kinds::default(),
            friends_only: false,
        }
    }

    /// Which kinds of events are written from now on.
    pub fn set_kinds(&mut self, kinds: Kinds) {
        self.kinds = kinds;
    }

    /// Whether users take messages of friends only from now on; those of backends are taken in any case.
    pub fn set_friends_only(&mut self, friends_only: bool) {
        self.friends_only = friends_only;
    }

    /// The newest event; 0: none in this life.
    pub fn newest_event(&self) -> u64 {
        if self.events == 0 { 0 } else { epoch_number(self.epoch, self.events) }
    }

    /// Begins a batch. `view` is what is committed; `now_ms` is Unix milliseconds and may be before an earlier one.
    pub fn begin<'a>(&'a mut self, view: &'a dyn View, now_ms: i64, sessions: Sessions<'a>) -> Batch<'a> {
        self.heads.rotate();
        self.windows.rotate();
        self.blockers.rotate();
        let first_change = self.events + 1;
        self.events += sessions.changes.len() as u64;
        Batch {
            overlay: Overlay::new(view),
            executor: self,
            now_ms,
            next_attach: sessions.next_attach,
            sessions,
            first_change,
            scratch: Vec::new(),
            dirty_heads: Vec::new(),
            dirty_windows: Vec::new(),
            added: dedup::Added::new(),
            members_touched: BTreeMap::new(),
            mailboxes: 0,
            opened: Vec::new(),
        }
    }

    /// A whole batch at once, without sessions.
    pub fn execute(&mut self, view: &dyn View, commands: &[Command], now_ms: i64) -> Outcome {
        let mut batch = self.begin(view, now_ms, Sessions::NONE);
        let outputs = commands.iter().map(|command| batch.run(command)).collect();
        Outcome { records: batch.finish(false), outputs }
    }

    fn next_message(&mut self) -> MessageId {
        self.messages += 1;
        MessageId::new(epoch_number(self.epoch, self.messages))
    }
}

/// A batch in the making.
pub struct Batch<'a> {
    pub(crate) overlay: Overlay<'a>,
    pub(crate) now_ms: i64,
    pub(crate) next_attach: Attach,
    sessions: Sessions<'a>,
    /// The events kept for `sessions.changes` begin here.
    first_change: u64,
    /// An event's bytes, to be used again.
    pub(crate) scratch: Vec<u8>,
    executor: &'a mut Executor,
    dirty_heads: Vec<UserId>,
    dirty_windows: Vec<DedupScope>,
    pub(crate) added: dedup::Added,
    /// Members of groups that this batch has made (with the first place that is theirs) or forgotten.
    pub(crate) members_touched: BTreeMap<(GroupId, UserId), Option<Seq>>,
    /// Mailboxes that messages to groups were written to.
    pub(crate) mailboxes: usize,
    /// Groups whose messages are on their way and have a next batch.
    pub(crate) opened: Vec<GroupId>,
}

impl Batch<'_> {
    /// Executes one command over all before it. Commands about routes only come back as [`Reply::Done`]: the writer
    /// does them.
    pub fn run(&mut self, command: &Command) -> Output {
        self.dispatch(command).unwrap_or_else(Output::refused)
    }

    /// It has written as many mailboxes as one commit should: the next command is for the next batch.
    pub fn is_full(&self) -> bool {
        self.mailboxes >= MAILBOXES_MAX
    }

    /// Groups that [`Command::FanOut`] is to follow for, once this batch is committed.
    pub fn take_opened(&mut self) -> Vec<GroupId> {
        std::mem::take(&mut self.opened)
    }

    /// The effects of all commands, and with them (or alone, when `is_forced`) what became of sessions.
    pub fn finish(mut self, is_forced: bool) -> Vec<(Partition, Record)> {
        if self.overlay.is_empty() && !is_forced {
            self.executor.events = self.first_change - 1;
            return Vec::new();
        }
        let first = epoch_number(self.executor.epoch, self.first_change);
        if let Err(error) = self.note_changes(self.sessions.changes, first) {
            tracing::error!(%error, "sessions are missing in the event stream");
        }
        self.dirty_heads.sort_unstable();
        self.dirty_heads.dedup();
        let mut value = Vec::new();
        for user in self.dirty_heads {
            let head = self.executor.heads.get(user).expect("a changed head stays cached within the batch");
            let at = key::mailbox(user, Seq::new(0));
            value.clear();
            head.put(&mut value);
            self.overlay.record(&at).put(Table::Mailbox, &at, &value);
        }
        self.dirty_windows.sort_unstable();
        self.dirty_windows.dedup();
        for scope in self.dirty_windows {
            let head =
                self.executor.windows.get(scope).expect("a changed window stays cached within the batch");
            let at = scope.head_key();
            value.clear();
            head.put(&mut value);
            self.overlay.record(&at).put(Table::Dedup, &at, &value);
        }
        self.overlay.finish()
    }

    fn dispatch(&mut self, command: &Command) -> Result<Output, RequestError> {
        match command {
            Command::SignIn { phone, device, token, holds } => self.sign_in(phone, device, *token, *holds),
            Command::RegisterDevice { user, device, token, idempotency } => {
                self.register_device(*user, device, *token, idempotency.as_ref())
            }
            Command::RevokeToken { user, device, idempotency } => {
                self.revoke_token(*user, *device, idempotency.as_ref())
            }
            Command::Social { by, act, idempotency } => self.social(*by, act, idempotency.as_ref()),
            Command::Group { by, group, act, idempotency } => {
                self.group(*by, *group, act, idempotency.as_ref())
            }
            Command::FanOut { group } => self.fan_out(*group),
            Command::Send { sender, client_message_id: id, to, command, content } => {
                let (id, command) = (*id, *command);
                match *to {
                    Recipient::User(to) => self.send(*sender, &messages::ToOne { id, to, command, content }),
                    Recipient::Group(group) => {
                        self.send_to_group(*sender, &ToGroup { id, group, command, content })
                    }
                }
            }
            Command::Push { users, command, content, transient, idempotency } => {
                let message = messages::ToMany { users, command: *command, content };
                if *transient {
                    self.push_transient(&message)
                } else {
                    self.push(&message, idempotency.as_ref())
                }
            }
            Command::Ack { sender, seq } => self.ack(*sender, *seq),
            Command::Forget { scope, before_ms } => self.forget(*scope, *before_ms),
            Command::TrimEvents { through } => self.trim_events(*through),
            Command::RevokeTokens { user, before_ms, idempotency } => {
                self.revoke_tokens(*user, *before_ms, idempotency.as_ref())
            }
            Command::Admit { vouched } | Command::AttachVouched { vouched, .. } => {
                self.admit_vouched(vouched)
            }
            Command::Attach { user, device, token, .. } => self.attach(*user, *device, token),
            Command::Announce { session, user, device, .. } => self.announce(session.attach, *user, *device),
            Command::Sync { .. }
            | Command::Detach { .. }
            | Command::GatewayUp { .. }
            | Command::GatewayDown { .. }
            | Command::ListSessions { .. }
            | Command::Presence { .. }
            | Command::PresumeOffline { .. }
            | Command::Kick { .. }
            | Command::Stats => Ok(Output::plain(Reply::Done)),
        }
    }

    fn attach(&mut self, user: UserId, device: DeviceId, shown: &TokenHash) -> Result<Output, RequestError> {
        let record = self.token(user, device)?;
        sign_in::check(record, shown, self.now_ms)?;
        let record = record.unwrap_or(TokenRecord::NONE);
        let latest = self.peek_head(user)?.ok_or(RequestError::NotSignedIn)?.latest();
        let expires_at_ms = record.token.map_or(i64::MAX, |token| token.expires_at_ms);
        let issued_at_ms = record.issued_at_ms;
        Ok(Output::plain(Reply::Admitted(Admitted { user, device, latest, issued_at_ms, expires_at_ms })))
    }

    /// When the session's token was issued and when it ends is not known here any more; its gateway knows the latter.
    fn announce(&mut self, was: Attach, user: UserId, device: DeviceId) -> Result<Output, RequestError> {
        let record = self.token(user, device)?.ok_or(RequestError::NotSignedIn)?;
        let since = if record.vouched { self.not_before(user)?.since } else { Attach::default() };
        if !sign_in::may_stay(record, was, since, self.now_ms) {
            return Err(RequestError::NotSignedIn);
        }
        let latest = self.peek_head(user)?.ok_or(RequestError::NotSignedIn)?.latest();
        let (issued_at_ms, expires_at_ms) = (0, i64::MAX);
        Ok(Output::plain(Reply::Admitted(Admitted { user, device, latest, issued_at_ms, expires_at_ms })))
    }

    /// The head is not remembered: who comes online need not be written to, and a storm would push out those who are.
    pub(crate) fn peek_head(&mut self, user: UserId) -> Result<Option<MailboxHead>, StoreError> {
        match self.executor.heads.get(user) {
            Some(head) => Ok(Some(head)),
            None => mailbox::head(self.overlay.view(), user),
        }
    }

    /// A session was proved by its route before it came here.
    pub(crate) fn check_sender(&self, Sender { user, device, proof }: Sender) -> Result<(), RequestError> {
        match proof {
            Proof::Session(_) | Proof::Admitted => Ok(()),
            Proof::Token(shown) => sign_in::check(self.token(user, device)?, &shown, self.now_ms),
        }
    }

    pub(crate) fn token(&self, user: UserId, device: DeviceId) -> Result<Option<TokenRecord>, StoreError> {
        self.overlay.value(Table::Device, &OfDevice::Token.key(user, device))
    }

    /// Where a mailbox stands; `None` when there is no such user.
    pub(crate) fn head(&mut self, user: UserId) -> Result<Option<MailboxHead>, StoreError> {
        if let Some(head) = self.executor.heads.get(user) {
            return Ok(Some(head));
        }
        let head = mailbox::head(self.overlay.view(), user)?;
        if let Some(head) = head {
            self.executor.heads.insert(user, head);
        }
        Ok(head)
    }

    /// Appends to a mailbox whose head was read before in this batch.
    pub(crate) fn append_next(&mut self, user: UserId, body: &Body) -> Seq {
        let head = self.executor.heads.get(user).expect("the head was read before");
        self.append(user, head.next, body);
        head.next
    }

    pub(crate) fn next_message(&mut self) -> MessageId {
        self.executor.next_message()
    }

    pub(crate) fn next_event(&mut self) -> u64 {
        self.executor.events += 1;
        epoch_number(self.executor.epoch, self.executor.events)
    }

    pub(crate) const fn kinds(&self) -> Kinds {
        self.executor.kinds
    }

    pub(crate) const fn is_among_friends(&self) -> bool {
        self.executor.friends_only
    }

    pub(crate) fn is_online(&self, user: UserId) -> bool {
        (self.sessions.is_online)(user)
    }

    /// Whether a user blocks anyone, if that was asked lately.
    pub(crate) fn known_to_block(&mut self, user: UserId) -> Option<bool> {
        self.executor.blockers.get(user)
    }

    pub(crate) fn note_blocks(&mut self, user: UserId, blocks: bool) {
        self.executor.blockers.insert(user, blocks);
    }

    pub(crate) fn set_head(&mut self, user: UserId, head: MailboxHead) {
        self.executor.heads.insert(user, head);
        self.dirty_heads.push(user);
    }

    /// The next number of a durable counter that nobody has. Others may have given numbers too: past a run of those it
    /// leaps ever further.
    pub(crate) fn peek_id(&self, counter: Meta) -> Result<u64, StoreError> {
        let stored = self.overlay.value::<MetaNumber>(Table::Meta, &counter.key())?;
        let mut id = stored.map_or(ID_MIN, |number| number.value);
        let mut leap = 1;
        while self.is_taken(counter, id)? {
            id += leap;
            leap *= 2;
        }
        Ok(id)
    }

    fn is_taken(&self, counter: Meta, id: u64) -> Result<bool, StoreError> {
        let (table, at) = match counter {
            Meta::NextUser => (Table::Account, key::user(UserId::new(id))),
            Meta::NextDevice => (Table::Device, key::device_owner(DeviceId::new(id))),
            Meta::NextGroup => (Table::Social, OfGroup::Record.key(GroupId::new(id))),
            Meta::Schema | Meta::ControlEpoch | Meta::EventFloor => return Ok(false),
        };
        Ok(self.overlay.get(table, &at)?.is_some())
    }

    /// Marks what [`Self::peek_id`] gave as used.
    pub(crate) fn take_id(&mut self, counter: Meta, id: u64) {
        self.overlay.put(Table::Meta, &counter.key(), MetaNumber { value: id + 1 }.to_bytes());
    }
}
