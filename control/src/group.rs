//! Groups: who may do what in them. Rules only.
//!
//! A group's records, its messages and its order are in the group's partition, which decides; each member's partition holds
//! that it is a member, for its own list. Whatever changes is told to the members as a message of the group, under a command
//! of [`notice`], in the same commit.

mod members;
mod notice;
mod post;
pub mod read;

pub(crate) use notice::role_number;
pub(crate) use post::Told;
pub use post::{NOW_MAX, open};

use bytes::Bytes;
use gimbal_codec::{ClientMessageId, DeviceId, GroupId, UserId};
use gimbal_rpc::link::{Body, SendResult};

use crate::command::group::{GroupAct, GroupChange};
use crate::command::social::Actor;
use crate::command::{CONTENT_BYTES_MAX, IdempotencyKey, Reply, Sender};
use crate::dedup::Fingerprint;
use crate::error::RequestError;
use crate::executor::{Batch, Output, repeated};
use crate::idempotency;
use crate::partition::Partition;
use crate::store::key::{self, DedupScope, OfGroup};
use crate::store::value::{
    CorruptValue, DedupEntry, GroupHead, GroupRecord, IdemResult, MemberRecord, Role, Value as _,
};
use crate::store::{StoreError, Table};

/// Kind of fingerprints of sends to groups; part of the disk format.
const OF_SEND: u64 = 44;

/// A group as a command finds and changes it.
pub(crate) struct Group {
    id: GroupId,
    record: GroupRecord,
    head: GroupHead,
}

/// Who acts in a group.
pub(crate) struct Acting {
    /// 0: a backend for itself.
    user: UserId,
    /// `None`: a backend for itself, which may do everything.
    member: Option<MemberRecord>,
}

impl Acting {
    fn needs(&self, role: Role) -> Result<(), RequestError> {
        if self.member.as_ref().is_none_or(|member| member.role >= role) {
            Ok(())
        } else {
            Err(RequestError::RoleTooLow)
        }
    }

    /// Whether it may act upon a member with this role.
    fn is_above(&self, role: Role) -> bool {
        self.member.as_ref().is_none_or(|member| member.role > role)
    }

    fn may_send(&self, group: &Group, now_ms: i64) -> Result<(), RequestError> {
        let is_muted = |member: &MemberRecord| {
            now_ms < member.muted_until_ms || group.record.muted && member.role == Role::Member
        };
        if self.member.as_ref().is_some_and(is_muted) { Err(RequestError::Muted) } else { Ok(()) }
    }
}

/// A message to a group.
pub(crate) struct ToGroup<'a> {
    pub(crate) id: ClientMessageId,
    pub(crate) group: GroupId,
    pub(crate) command: i32,
    pub(crate) content: &'a Bytes,
}

impl ToGroup<'_> {
    fn fingerprint(&self) -> u64 {
        let command = i64::from(self.command).cast_unsigned();
        Fingerprint::new(OF_SEND).number(self.group.get()).number(command).bytes(self.content).finish()
    }
}

impl Batch<'_> {
    /// Does `act` to a group, or gives the first answer to the same key.
    pub(crate) fn group(
        &mut self,
        by: Actor,
        group: GroupId,
        act: &GroupAct,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Output, RequestError> {
        if by != Actor::Backend(UserId::default()) {
            self.check_actor(by)?;
        }
        act.check()?;
        let fingerprint = act.fingerprint(group, by.user());
        let mut plan = None;
        if let Some(wanted) = idempotency {
            if let Some(first) = idempotency::recall(&self.overlay, wanted, fingerprint, self.now_ms)? {
                return recalled(act, first);
            }
            plan = Some((wanted, idempotency::plan(&self.overlay, wanted, self.now_ms)?));
        }
        let output = match act {
            GroupAct::Create { shows, owner, users } => self.create_group(by, group, shows, *owner, users),
            _ => self.act_in_group(by.user(), group, act),
        }?;
        if let Some((wanted, plan)) = plan {
            let result = result_of(&output);
            idempotency::remember(&mut self.overlay, plan, wanted, fingerprint, result, self.now_ms);
        }
        Ok(output)
    }

    /// Reads all that can fail before it writes.
    fn act_in_group(&mut self, user: UserId, id: GroupId, act: &GroupAct) -> Result<Output, RequestError> {
        let (acting, group) = self.enter(user, id)?;
        match act {
            GroupAct::Create { .. } => unreachable!("it is made elsewhere"),
            GroupAct::Update(change) => self.update_group(&acting, group, change),
            GroupAct::Dissolve => self.dissolve(&acting, group),
            GroupAct::AddMembers(users) => self.add_members(&acting, group, users),
            GroupAct::RemoveMembers(users) => self.remove_members(&acting, group, users),
            GroupAct::Leave => self.leave(&acting, group),
            GroupAct::SetRole { user, role } => self.set_role(&acting, group, *user, *role),
            GroupAct::SetMember { user, nickname, extra } => {
                self.set_member(&acting, group, *user, nickname.as_ref(), extra.as_ref())
            }
            GroupAct::Mute { user, until_ms } => self.mute(&acting, group, *user, *until_ms),
            GroupAct::MuteAll(muted) => self.mute_all(&acting, group, *muted),
            GroupAct::Transfer(to) => self.transfer(&acting, group, *to),
            GroupAct::Push { command, content } => self.push_to_group(&acting, group, *command, content),
        }
    }

    /// A message of a device, as a send to a user.
    pub(crate) fn send_to_group(
        &mut self,
        sender: Sender,
        message: &ToGroup<'_>,
    ) -> Result<Output, RequestError> {
        self.check_sender(sender)?;
        if message.id.is_none() {
            return Err(RequestError::BadRequest { field: "client_message_id", rule: "must not be zero" });
        }
        if message.content.len() > CONTENT_BYTES_MAX {
            return Err(RequestError::ContentTooLarge);
        }
        let home = Partition::of_group(message.group);
        let scope = DedupScope { home, user: sender.user, device: sender.device };
        let window = self.window(scope)?;
        let fingerprint = message.fingerprint();
        // Whoever has left since still gets the answer of before.
        if let Some(first) = self.first_answer(scope, window, message.id)? {
            return repeated(first, fingerprint);
        }
        let (acting, mut group) = self.enter(sender.user, message.group)?;
        acting.may_send(&group, self.now_ms)?;
        let (next_window, forgotten) = self.admit_id(scope, window, message.id)?;
        let told = self.told(&group, group.head.members, 0)?;

        let body = self.body_of(sender.user, message.command, message.content.clone());
        let body = Body { from_device: sender.device, ..body };
        let (message_id, created_at_ms, seq) = (body.message_id, body.created_at_ms, group.head.next);
        let effect = self.post(&mut group, told, body);
        let answer = DedupEntry { fingerprint, message_id, seq, created_at_ms };
        self.remember(scope, message.id, answer, next_window, &forgotten);
        let sent = SendResult { message_id, seq, created_at_ms, duplicate: false };
        Ok(Output { result: Ok(Reply::Sent(sent)), effect })
    }

    fn push_to_group(
        &mut self,
        acting: &Acting,
        mut group: Group,
        command: i32,
        content: &Bytes,
    ) -> Result<Output, RequestError> {
        acting.may_send(&group, self.now_ms)?;
        let told = self.told(&group, group.head.members, 0)?;
        let body = self.body_of(acting.user, command, content.clone());
        let (message_id, created_at_ms, seq) = (body.message_id, body.created_at_ms, group.head.next);
        let effect = self.post(&mut group, told, body);
        let sent = SendResult { message_id, seq, created_at_ms, duplicate: false };
        Ok(Output { result: Ok(Reply::Sent(sent)), effect })
    }

    fn update_group(
        &mut self,
        acting: &Acting,
        mut group: Group,
        change: &GroupChange,
    ) -> Result<Output, RequestError> {
        acting.needs(Role::Admin)?;
        let mut after = group.record.clone();
        change.apply(&mut after);
        if after == group.record {
            return Ok(Output::plain(Reply::Done));
        }
        group.record = GroupRecord { updated_at_ms: self.now_ms, ..after };
        let content = notice::updated(&self.operator(acting, &group)?, &group.record);
        self.change_record(acting, group, notice::UPDATED, content)
    }

    fn mute_all(&mut self, acting: &Acting, mut group: Group, muted: bool) -> Result<Output, RequestError> {
        acting.needs(Role::Admin)?;
        if group.record.muted == muted {
            return Ok(Output::plain(Reply::Done));
        }
        group.record = GroupRecord { muted, updated_at_ms: self.now_ms, ..group.record };
        let until_ms = if muted { i64::MAX } else { 0 };
        let content = notice::muted(&self.operator(acting, &group)?, UserId::default(), until_ms);
        self.change_record(acting, group, notice::MUTED, content)
    }

    /// Writes what the group shows, and tells its members.
    fn change_record(
        &mut self,
        acting: &Acting,
        mut group: Group,
        command: i32,
        content: Bytes,
    ) -> Result<Output, RequestError> {
        let told = self.told(&group, group.head.members, 0)?;
        self.put_record(&group);
        let body = self.body_of(acting.user, command, content);
        let effect = self.post(&mut group, told, body);
        Ok(Output { result: Ok(Reply::Done), effect })
    }

    /// The group, and who acts in it.
    ///
    /// # Errors
    /// [`RequestError::GroupNotFound`], also when it was dissolved; [`RequestError::NotInGroup`]; a store error.
    fn enter(&self, user: UserId, id: GroupId) -> Result<(Acting, Group), RequestError> {
        let record: Option<GroupRecord> = self.overlay.value(Table::Social, &OfGroup::Record.key(id))?;
        let record = record.filter(|record| !record.dissolved).ok_or(RequestError::GroupNotFound)?;
        let head: Option<GroupHead> = self.overlay.value(Table::Social, &OfGroup::Head.key(id))?;
        let head = head.ok_or_else(|| StoreError::from(missing("group head")))?;
        let member = match user.is_none() {
            true => None,
            false => Some(self.member(id, user)?.ok_or(RequestError::NotInGroup)?),
        };
        Ok((Acting { user, member }, Group { id, record, head }))
    }

    fn member(&self, group: GroupId, user: UserId) -> Result<Option<MemberRecord>, StoreError> {
        self.overlay.value(Table::Social, &key::member(group, user))
    }

    fn put_member(&mut self, group: GroupId, user: UserId, member: &MemberRecord) {
        self.overlay.put(Table::Social, &key::member(group, user), member.to_bytes());
        self.members_touched.insert((group, user), Some(member.since));
    }

    fn put_record(&mut self, group: &Group) {
        self.overlay.put(Table::Social, &OfGroup::Record.key(group.id), group.record.to_bytes());
    }

    /// A new message that no device has sent.
    fn body_of(&mut self, from_user: UserId, command: i32, content: Bytes) -> Body {
        Body {
            message_id: self.next_message(),
            from_user,
            from_device: DeviceId::default(),
            command,
            content,
            created_at_ms: self.now_ms,
            ..Body::default()
        }
    }

    /// Whom a notice names as its cause.
    fn operator(&self, acting: &Acting, group: &Group) -> Result<notice::Operator, StoreError> {
        let name = match &acting.member {
            None => String::new(),
            Some(member) if !member.nickname.is_empty() => member.nickname.clone(),
            Some(_) => self.profile(acting.user)?.nickname,
        };
        Ok(notice::Operator { group: group.id, user: acting.user, name })
    }
}

impl GroupChange {
    fn apply(&self, record: &mut GroupRecord) {
        let Self { name, avatar_url, introduction, extra } = self;
        let texts = [
            (name, &mut record.name),
            (avatar_url, &mut record.avatar_url),
            (introduction, &mut record.introduction),
            (extra, &mut record.extra),
        ];
        for (wanted, text) in texts {
            if let Some(wanted) = wanted {
                wanted.clone_into(text);
            }
        }
    }
}

fn result_of(output: &Output) -> IdemResult {
    match &output.result {
        Ok(Reply::Members { group, members }) => {
            IdemResult::Members(*group, members.iter().map(|(_, verdict)| *verdict).collect())
        }
        Ok(Reply::Sent(sent)) => {
            IdemResult::Sent { message_id: sent.message_id, seq: sent.seq, created_at_ms: sent.created_at_ms }
        }
        _ => IdemResult::Done,
    }
}

fn recalled(act: &GroupAct, first: IdemResult) -> Result<Output, RequestError> {
    Ok(Output::plain(match first {
        IdemResult::Done => Reply::Done,
        IdemResult::Members(group, verdicts) => {
            Reply::Members { group, members: act.users().iter().copied().zip(verdicts).collect() }
        }
        IdemResult::Sent { message_id, seq, created_at_ms } => {
            Reply::Sent(SendResult { message_id, seq, created_at_ms, duplicate: true })
        }
        _ => return Err(RequestError::Conflict),
    }))
}

const fn missing(what: &'static str) -> CorruptValue {
    CorruptValue { what, why: "missing", at: 0 }
}
