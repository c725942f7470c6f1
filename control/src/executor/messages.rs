//! Sends, pushes and acks.

use std::sync::Arc;

use bytes::Bytes;
use gimbal_codec::{ClientMessageId, DeviceId, MessageId, Seq, UserId};
use gimbal_rpc::link::{Body, SendResult};
use hashbrown::HashMap;

use super::{Batch, Effect, Output};
use crate::command::{CONTENT_BYTES_MAX, IdempotencyKey, PUSH_USERS_MAX, Pushed, Reply, Sender};
use crate::dedup::{self, Fingerprint};
use crate::error::RequestError;
use crate::idempotency;
use crate::mailbox::SHARED_BYTES_MIN;
use crate::partition::Partition;
use crate::store::key::{DedupScope, OfDevice};
use crate::store::value::{AckRecord, DedupEntry, DedupHead, Entry, IdemResult, SharedBody, Value as _};
use crate::store::{StoreError, Table, key};

/// A message to one user.
pub(super) struct ToOne<'a> {
    pub(super) id: ClientMessageId,
    pub(super) to: UserId,
    pub(super) command: i32,
    pub(super) content: &'a Bytes,
}

/// A message to many users.
pub(super) struct ToMany<'a> {
    pub(super) users: &'a [UserId],
    pub(super) command: i32,
    pub(super) content: &'a Bytes,
}

/// Kinds of fingerprints; part of the disk format.
const OF_SEND: u64 = 1;
const OF_PUSH: u64 = 2;

impl ToOne<'_> {
    fn fingerprint(&self) -> u64 {
        Fingerprint::new(OF_SEND)
            .number(self.to.get())
            .number(i64::from(self.command) as u64)
            .bytes(self.content)
            .finish()
    }
}

impl ToMany<'_> {
    fn fingerprint(&self) -> u64 {
        let users = self.users.iter().fold(Fingerprint::new(OF_PUSH), |state, user| state.number(user.get()));
        users.number(i64::from(self.command) as u64).bytes(self.content).finish()
    }

    fn check(&self) -> Result<(), RequestError> {
        if self.users.is_empty() || self.users.len() > PUSH_USERS_MAX {
            return Err(RequestError::BadRequest { field: "user_ids", rule: "must be 1 to 512 users" });
        }
        check_content(self.content)
    }
}

type Verdict = Result<Seq, RequestError>;

impl Batch<'_> {
    pub(super) fn send(&mut self, sender: Sender, message: &ToOne<'_>) -> Result<Output, RequestError> {
        self.check_sender(sender)?;
        if message.id.is_none() {
            return Err(RequestError::BadRequest { field: "client_message_id", rule: "must not be zero" });
        }
        check_content(message.content)?;
        let head = self.head(message.to)?.ok_or(RequestError::UserNotFound)?;
        let home = Partition::of_user(message.to);
        let scope = DedupScope { home, user: sender.user, device: sender.device };
        let window = self.window(scope)?;
        let fingerprint = message.fingerprint();
        if let Some(first) = self.first_answer(scope, window, message.id)? {
            return repeated(first, fingerprint);
        }
        self.check_wanted(sender.user, message.to)?;
        let (next_window, forgotten) = self.admit_id(scope, window, message.id)?;

        let body = Body {
            message_id: self.executor.next_message(),
            from_user: sender.user,
            from_device: sender.device,
            command: message.command,
            content: message.content.clone(),
            created_at_ms: self.now_ms,
            ..Body::default()
        };
        let seq = head.next;
        let answer =
            DedupEntry { fingerprint, message_id: body.message_id, seq, created_at_ms: body.created_at_ms };
        self.append(message.to, seq, &body);
        self.note_message(message.to, seq, &body);
        self.remember(scope, message.id, answer, next_window, &forgotten);
        Ok(Output {
            result: Ok(Reply::Sent(result(answer, false))),
            effect: Effect::Deliver { body: Arc::new(body), user: message.to, seq },
        })
    }

    pub(super) fn push(
        &mut self,
        message: &ToMany<'_>,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Output, RequestError> {
        message.check()?;
        let fingerprint = message.fingerprint();
        let mut plan = None;
        if let Some(wanted) = idempotency {
            if let Some(first) = idempotency::recall(&self.overlay, wanted, fingerprint, self.now_ms)? {
                return recalled(message, first);
            }
            plan = Some((wanted, idempotency::plan(&self.overlay, wanted, self.now_ms)?));
        }
        let verdicts = self.verdicts(message.users)?;
        let mut placed: Vec<(UserId, Seq)> = Vec::with_capacity(verdicts.len());
        placed.extend(verdicts.iter().filter_map(|(user, verdict)| Some((*user, (*verdict).ok()?))));
        placed.sort_unstable_by_key(|(user, _)| (Partition::of_user(*user), *user));
        placed.dedup();
        let body = self.push_body(message, placed.is_empty());
        for shared in placed.chunk_by(|one, other| Partition::of_user(one.0) == Partition::of_user(other.0)) {
            self.append_to_all(shared, &body);
            shared.iter().for_each(|(user, seq)| self.note_message(*user, *seq, &body));
        }
        if let Some((wanted, plan)) = plan {
            let seqs = verdicts.iter().map(|(_, verdict)| verdict.unwrap_or_default()).collect();
            let result = IdemResult::Pushed(body.message_id, seqs);
            idempotency::remember(&mut self.overlay, plan, wanted, fingerprint, result, self.now_ms);
        }
        let reply = Pushed { message_id: body.message_id, users: verdicts };
        let effect = if placed.is_empty() {
            Effect::None
        } else {
            Effect::DeliverMany { body: Arc::new(body), users: placed }
        };
        Ok(Output { result: Ok(Reply::Pushed(reply)), effect })
    }

    pub(super) fn push_transient(&mut self, message: &ToMany<'_>) -> Result<Output, RequestError> {
        message.check()?;
        let mut verdicts = self.verdicts(message.users)?;
        for (_, verdict) in &mut verdicts {
            *verdict = verdict.map(|_| Seq::default());
        }
        let mut users: Vec<(UserId, Seq)> = Vec::with_capacity(verdicts.len());
        users.extend(verdicts.iter().filter_map(|(user, verdict)| Some((*user, (*verdict).ok()?))));
        users.sort_unstable();
        users.dedup();
        let body = Arc::new(self.push_body(message, true));
        let reply = Pushed { message_id: MessageId::default(), users: verdicts };
        Ok(Output { result: Ok(Reply::Pushed(reply)), effect: Effect::DeliverMany { body, users } })
    }

    pub(super) fn ack(&mut self, sender: Sender, seq: Seq) -> Result<Output, RequestError> {
        self.check_sender(sender)?;
        let head = self.head(sender.user)?.ok_or(RequestError::UserNotFound)?;
        let at = OfDevice::Ack.key(sender.user, sender.device);
        let stored =
            self.overlay.value::<AckRecord>(Table::Device, &at)?.map_or(Seq::default(), |ack| ack.seq);
        let seq = seq.min(head.latest());
        if seq <= stored {
            return Ok(Output::plain(Reply::Acked(stored)));
        }
        self.overlay.put(Table::Device, &at, AckRecord { seq }.to_bytes());
        self.note_ack(sender.user, sender.device, seq);
        Ok(Output::plain(Reply::Acked(seq)))
    }

    pub(super) fn forget(&mut self, scope: DedupScope, before_ms: i64) -> Result<Output, RequestError> {
        let window = self.peek_window(scope)?;
        let (next, forgotten) = dedup::age(self.overlay.view(), &self.added, scope, window, before_ms)?;
        if !forgotten.is_empty() {
            self.forget_ids(scope, next, &forgotten);
        }
        Ok(Output::plain(Reply::Forgot(forgotten.len())))
    }

    fn push_body(&mut self, message: &ToMany<'_>, unstored: bool) -> Body {
        Body {
            message_id: if unstored { MessageId::default() } else { self.executor.next_message() },
            from_user: UserId::default(),
            from_device: DeviceId::default(),
            command: message.command,
            content: message.content.clone(),
            created_at_ms: self.now_ms,
            ..Body::default()
        }
    }

    /// The seq that each user would get, or why none; a user named again gets the same.
    ///
    /// # Errors
    /// The engine failed: what a repeat may find must not be remembered as an answer. A mailbox that is not understood
    /// stays so, and is that user's failure alone.
    fn verdicts(&mut self, users: &[UserId]) -> Result<Vec<(UserId, Verdict)>, StoreError> {
        let mut seen: HashMap<UserId, Verdict> = HashMap::with_capacity(users.len());
        let mut verdicts = Vec::with_capacity(users.len());
        for &user in users {
            let verdict = match seen.get(&user) {
                Some(verdict) => *verdict,
                None => match self.head(user) {
                    Ok(head) => head.map(|head| head.next).ok_or(RequestError::UserNotFound),
                    Err(error @ StoreError::Corrupt(_)) => Err(error.into()),
                    Err(error) => return Err(error),
                },
            };
            seen.insert(user, verdict);
            verdicts.push((user, verdict));
        }
        Ok(verdicts)
    }

    /// To mailboxes of one partition.
    fn append_to_all(&mut self, users: &[(UserId, Seq)], body: &Body) {
        if users.len() == 1 || body.content.len() < SHARED_BYTES_MIN {
            users.iter().for_each(|(user, seq)| self.append(*user, *seq, body));
            return;
        }
        let at = key::message(Partition::of_user(users[0].0), body.message_id);
        let shared = SharedBody { references: users.len() as u64, body: body.clone() };
        self.overlay.record(&at).put(Table::Message, &at, &shared.to_bytes());
        let entry = Entry::Shared(body.message_id).to_bytes();
        for (user, seq) in users {
            self.append_entry(*user, *seq, &entry);
        }
    }

    pub(crate) fn append(&mut self, user: UserId, seq: Seq, body: &Body) {
        let mut entry = Vec::with_capacity(body.content.len() + ENVELOPE_BYTES);
        Entry::put_inline(body, &mut entry);
        self.append_entry(user, seq, &entry);
    }

    /// Appends to a mailbox whose head was read before in this batch.
    pub(crate) fn append_next_entry(&mut self, user: UserId, entry: &[u8]) -> Seq {
        let head = self.executor.heads.get(user).expect("the head was read before");
        self.append_entry(user, head.next, entry);
        head.next
    }

    fn append_entry(&mut self, user: UserId, seq: Seq, entry: &[u8]) {
        let head = self.executor.heads.get(user).expect("the head was read before");
        assert_eq!(head.next, seq, "a mailbox of {user} has no gap");
        let at = key::mailbox(user, seq);
        self.overlay.record(&at).put(Table::Mailbox, &at, entry);
        self.set_head(user, crate::store::value::MailboxHead { next: seq.next(), ..head });
    }

    pub(crate) fn window(&mut self, scope: DedupScope) -> Result<DedupHead, StoreError> {
        let window = self.peek_window(scope)?;
        self.executor.windows.insert(scope, window);
        Ok(window)
    }

    /// Without remembering it: who is forgotten need not send again.
    fn peek_window(&mut self, scope: DedupScope) -> Result<DedupHead, StoreError> {
        if let Some(window) = self.executor.windows.get(scope) {
            return Ok(window);
        }
        let stored = self.overlay.view().get(Table::Dedup, &scope.head_key())?;
        Ok(stored.map(|bytes| DedupHead::from_bytes(&bytes)).transpose()?.unwrap_or(DedupHead::EMPTY))
    }

    /// What this id was answered before; an id above the highest is new without a look.
    pub(crate) fn first_answer(
        &self,
        scope: DedupScope,
        window: DedupHead,
        id: ClientMessageId,
    ) -> Result<Option<DedupEntry>, RequestError> {
        if id <= window.floor {
            return Err(RequestError::TooOld);
        }
        if id > window.highest {
            return Ok(None);
        }
        if let Some(entry) = self.added.get(&(scope, id)) {
            return Ok(Some(*entry));
        }
        let stored = self.overlay.view().get(Table::Dedup, &scope.key(id))?;
        let entry =
            stored.map(|bytes| DedupEntry::from_bytes(&bytes)).transpose().map_err(StoreError::from)?;
        Ok(entry)
    }

    /// As [`dedup::admit`].
    pub(crate) fn admit_id(
        &self,
        scope: DedupScope,
        window: DedupHead,
        id: ClientMessageId,
    ) -> Result<(DedupHead, Vec<ClientMessageId>), StoreError> {
        dedup::admit(self.overlay.view(), &self.added, scope, window, id)
    }

    pub(crate) fn remember(
        &mut self,
        scope: DedupScope,
        id: ClientMessageId,
        answer: DedupEntry,
        window: DedupHead,
        forgotten: &[ClientMessageId],
    ) {
        let at = scope.key(id);
        let record = self.overlay.record(&at);
        record.put(Table::Dedup, &at, &answer.to_bytes());
        self.added.insert((scope, id), answer);
        self.forget_ids(scope, window, forgotten);
    }

    fn forget_ids(&mut self, scope: DedupScope, window: DedupHead, forgotten: &[ClientMessageId]) {
        let at = scope.head_key();
        for &id in forgotten {
            self.added.remove(&(scope, id));
            self.overlay.record(&at).delete(Table::Dedup, &scope.key(id));
        }
        self.executor.windows.insert(scope, window);
        self.dirty_windows.push(scope);
    }
}

/// What a stored body needs beside its content, at most about.
const ENVELOPE_BYTES: usize = 48;

fn check_content(content: &Bytes) -> Result<(), RequestError> {
    if content.len() <= CONTENT_BYTES_MAX { Ok(()) } else { Err(RequestError::ContentTooLarge) }
}

pub(crate) fn repeated(first: DedupEntry, fingerprint: u64) -> Result<Output, RequestError> {
    if first.fingerprint == fingerprint {
        Ok(Output::plain(Reply::Sent(result(first, true))))
    } else {
        Err(RequestError::Conflict)
    }
}

fn result(answer: DedupEntry, duplicate: bool) -> SendResult {
    let DedupEntry { message_id, seq, created_at_ms, .. } = answer;
    SendResult { message_id, seq, created_at_ms, duplicate }
}

fn recalled(message: &ToMany<'_>, first: IdemResult) -> Result<Output, RequestError> {
    let IdemResult::Pushed(message_id, seqs) = first else { return Err(RequestError::Conflict) };
    let verdict = |seq: Seq| if seq.is_none() { Err(RequestError::UserNotFound) } else { Ok(seq) };
    let users = message.users.iter().copied().zip(seqs.into_iter().map(verdict)).collect();
    Ok(Output::plain(Reply::Pushed(Pushed { message_id, users })))
}
