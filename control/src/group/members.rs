//! Who is in a group, and as what.

use gimbal_codec::{GroupId, Seq, UserId};
use hashbrown::HashMap;

use super::post::Later;
use super::{Acting, Group, Told, missing, notice};
use crate::command::Reply;
use crate::command::group::{GROUP_MEMBERS_MAX, GROUPS_MAX, GroupChange};
use crate::command::social::Actor;
use crate::error::RequestError;
use crate::executor::{Batch, Effect, Output};
use crate::store::key::{self, Meta, OfGroup};
use crate::store::value::{
    GroupCount, GroupHead, GroupRecord, JoinedRecord, MemberRecord, Role, Value as _, Verdict,
};
use crate::store::{StoreError, Table};

/// What becomes of the users of a call, in its order.
type Verdicts = Vec<(UserId, Verdict)>;

impl Batch<'_> {
    pub(super) fn create_group(
        &mut self,
        by: Actor,
        wanted: GroupId,
        shows: &GroupChange,
        owner: UserId,
        users: &[UserId],
    ) -> Result<Output, RequestError> {
        let user = by.user();
        let owner = if owner.is_none() { user } else { owner };
        if owner.is_none() || !user.is_none() && owner != user {
            return Err(RequestError::BadRequest { field: "owner_id", rule: "must be who makes the group" });
        }
        let id = self.new_group_id(by, wanted)?;
        self.head(owner)?.ok_or(RequestError::UserNotFound)?;
        let of_owner = self.group_count(owner)?;
        if of_owner.groups >= GROUPS_MAX {
            return Err(RequestError::TooMany { what: "groups of the owner" });
        }
        let mut record = GroupRecord {
            created_at_ms: self.now_ms,
            updated_at_ms: self.now_ms,
            owner,
            muted: false,
            dissolved: false,
            name: String::new(),
            avatar_url: String::new(),
            introduction: String::new(),
            extra: String::new(),
        };
        shows.apply(&mut record);
        let mut group = Group { id, record, head: GroupHead { next: Seq::new(1), members: 1 } };
        let (mut members, mut joins) = self.joins(user, id, users)?;
        joins.retain(|(user, _)| *user != owner);
        for (_, verdict) in members.iter_mut().filter(|(user, _)| *user == owner) {
            *verdict = Verdict::AlreadyMember;
        }
        group.head.members += joins.len() as u64;
        let told = self.told(&group, group.head.members, 0)?;
        let profile = self.profile(user)?;
        let operator = notice::Operator { group: id, user, name: profile.nickname };

        if wanted.is_none() {
            self.take_id(Meta::NextGroup, id.get());
        }
        self.put_record(&group);
        let everyone: Vec<UserId> = [owner].into_iter().chain(joins.iter().map(|(user, _)| *user)).collect();
        self.join(&group, owner, of_owner, Role::Owner);
        let effect =
            self.admit(&mut group, told, joins, user, notice::added(&operator, &everyone), Some(owner));
        Ok(Output { result: Ok(Reply::Members { group: id, members }), effect })
    }

    /// The next one, or what a backend chose.
    fn new_group_id(&self, by: Actor, wanted: GroupId) -> Result<GroupId, RequestError> {
        if wanted.is_none() {
            return Ok(GroupId::new(self.peek_id(Meta::NextGroup)?));
        }
        if matches!(by, Actor::Device(_)) || i64::try_from(wanted.get()).is_err() {
            return Err(RequestError::BadRequest {
                field: "group_id",
                rule: "must be 0, or a backend's choice",
            });
        }
        match self.overlay.get(Table::Social, &OfGroup::Record.key(wanted))? {
            None => Ok(wanted),
            Some(_) => Err(RequestError::GroupExists),
        }
    }

    pub(super) fn add_members(
        &mut self,
        acting: &Acting,
        mut group: Group,
        users: &[UserId],
    ) -> Result<Output, RequestError> {
        acting.needs(Role::Admin)?;
        let (members, joins) = self.joins(acting.user, group.id, users)?;
        let reply = Reply::Members { group: group.id, members };
        if joins.is_empty() {
            return Ok(Output::plain(reply));
        }
        group.head.members += joins.len() as u64;
        if group.head.members > GROUP_MEMBERS_MAX {
            return Err(RequestError::TooMany { what: "members of the group" });
        }
        let told = self.told(&group, group.head.members, 0)?;
        let operator = self.operator(acting, &group)?;
        let added: Vec<UserId> = joins.iter().map(|(user, _)| *user).collect();
        let content = notice::added(&operator, &added);
        let effect = self.admit(&mut group, told, joins, acting.user, content, None);
        Ok(Output { result: Ok(reply), effect })
    }

    /// Writes new members and tells all of them, and `besides`.
    fn admit(
        &mut self,
        group: &mut Group,
        mut told: Told,
        joins: Vec<(UserId, GroupCount)>,
        by: UserId,
        content: bytes::Bytes,
        besides: Option<UserId>,
    ) -> Effect {
        for (user, count) in &joins {
            self.join(group, *user, *count, Role::Member);
        }
        if told.later == Later::Nobody {
            told.now.extend(joins.iter().map(|(user, _)| *user).chain(besides));
        }
        let body = self.body_of(by, notice::ADDED, content);
        self.post(group, told, body)
    }

    /// What becomes of users who are to be members, and those who can, each once.
    fn joins(
        &mut self,
        by: UserId,
        id: GroupId,
        users: &[UserId],
    ) -> Result<(Verdicts, Vec<(UserId, GroupCount)>), RequestError> {
        let mut seen: HashMap<UserId, Verdict> = HashMap::with_capacity(users.len());
        let (mut verdicts, mut joins) = (Vec::with_capacity(users.len()), Vec::new());
        for &user in users {
            if let Some(verdict) = seen.get(&user) {
                verdicts.push((user, *verdict));
                continue;
            }
            let count = self.group_count(user)?;
            let verdict = self.may_join(by, id, user, count)?;
            if verdict == Verdict::Done {
                joins.push((user, count));
            }
            seen.insert(user, verdict);
            verdicts.push((user, verdict));
        }
        Ok((verdicts, joins))
    }

    fn may_join(
        &mut self,
        by: UserId,
        id: GroupId,
        user: UserId,
        count: GroupCount,
    ) -> Result<Verdict, RequestError> {
        match self.head(user) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Verdict::NoUser),
            Err(StoreError::Corrupt(_)) => return Ok(Verdict::Damaged),
            Err(error) => return Err(error.into()),
        }
        if self.member(id, user)?.is_some() {
            return Ok(Verdict::AlreadyMember);
        }
        if count.groups >= GROUPS_MAX {
            return Ok(Verdict::TooManyGroups);
        }
        if by.is_none() {
            return Ok(Verdict::Done);
        }
        match self.check_wanted(by, user) {
            Ok(()) => Ok(Verdict::Done),
            Err(RequestError::FriendNotFound) => Ok(Verdict::NoFriend),
            Err(RequestError::Blocked) => Ok(Verdict::Blocked),
            Err(error) => Err(error),
        }
    }

    pub(super) fn remove_members(
        &mut self,
        acting: &Acting,
        group: Group,
        users: &[UserId],
    ) -> Result<Output, RequestError> {
        acting.needs(Role::Admin)?;
        let mut members = Verdicts::with_capacity(users.len());
        let mut removed = Vec::new();
        for &user in users {
            let verdict = match self.member(group.id, user)? {
                None => Verdict::NoMember,
                Some(member) if member.role == Role::Owner => Verdict::Owner,
                Some(member) if !acting.is_above(member.role) => Verdict::RoleTooHigh,
                Some(_) => Verdict::Done,
            };
            if verdict == Verdict::Done && !removed.contains(&user) {
                removed.push(user);
            }
            members.push((user, verdict));
        }
        let reply = Reply::Members { group: group.id, members };
        if removed.is_empty() {
            return Ok(Output::plain(reply));
        }
        let effect = self.remove(acting, group, removed)?;
        Ok(Output { result: Ok(reply), effect })
    }

    pub(super) fn leave(&mut self, acting: &Acting, group: Group) -> Result<Output, RequestError> {
        match &acting.member {
            None => Err(RequestError::BadRequest { field: "user_id", rule: "must be named in the metadata" }),
            Some(member) if member.role == Role::Owner => Err(RequestError::IsOwner),
            Some(_) => {
                let effect = self.remove(acting, group, vec![acting.user])?;
                Ok(Output { result: Ok(Reply::Done), effect })
            }
        }
    }

    /// Those who go are told in this commit, whenever the others are.
    fn remove(
        &mut self,
        acting: &Acting,
        mut group: Group,
        removed: Vec<UserId>,
    ) -> Result<Effect, RequestError> {
        let mut told = self.told(&group, group.head.members, 0)?;
        if told.later != Later::Nobody {
            told.now = self.reachable(removed.iter().copied())?;
        }
        let operator = self.operator(acting, &group)?;
        let mut going = Vec::with_capacity(removed.len());
        for user in &removed {
            going.push((*user, self.group_count(*user)?));
        }
        self.forget_members(group.id, &going);
        group.head.members = group.head.members.saturating_sub(removed.len() as u64);
        let body = self.body_of(acting.user, notice::REMOVED, notice::removed(&operator, &removed));
        Ok(self.post(&mut group, told, body))
    }

    pub(super) fn dissolve(&mut self, acting: &Acting, mut group: Group) -> Result<Output, RequestError> {
        acting.needs(Role::Owner)?;
        let told = self.told(&group, group.head.members, 0)?;
        let operator = self.operator(acting, &group)?;
        let going = match told.later {
            Later::Nobody => self.counts_of(&self.all_members(group.id)?)?,
            // They go as they are told.
            Later::Begins | Later::Waits => Vec::new(),
        };
        group.record = GroupRecord { dissolved: true, updated_at_ms: self.now_ms, ..group.record };
        self.put_record(&group);
        self.forget_members(group.id, &going);
        group.head.members = 0;
        let body = self.body_of(acting.user, notice::DISSOLVED, notice::dissolved(&operator));
        let effect = self.post(&mut group, told, body);
        Ok(Output { result: Ok(Reply::Done), effect })
    }

    pub(super) fn set_role(
        &mut self,
        acting: &Acting,
        group: Group,
        user: UserId,
        role: Role,
    ) -> Result<Output, RequestError> {
        acting.needs(Role::Owner)?;
        let member = self.member(group.id, user)?.ok_or(RequestError::MemberNotFound)?;
        if member.role == Role::Owner {
            return Err(RequestError::IsOwner);
        }
        if member.role == role {
            return Ok(Output::plain(Reply::Done));
        }
        let content = notice::role_set(&self.operator(acting, &group)?, user, role);
        let changed = [(user, MemberRecord { role, ..member })];
        self.change_members(acting, group, &changed, notice::ROLE_SET, content)
    }

    pub(super) fn set_member(
        &mut self,
        acting: &Acting,
        group: Group,
        user: UserId,
        nickname: Option<&String>,
        extra: Option<&String>,
    ) -> Result<Output, RequestError> {
        let user = if user.is_none() { acting.user } else { user };
        let member = self.member(group.id, user)?.ok_or(RequestError::MemberNotFound)?;
        if acting.user != user {
            self.check_above(acting, &member)?;
        }
        let mut after = member.clone();
        for (wanted, text) in [(nickname, &mut after.nickname), (extra, &mut after.extra)] {
            if let Some(wanted) = wanted {
                wanted.clone_into(text);
            }
        }
        if after == member {
            return Ok(Output::plain(Reply::Done));
        }
        let operator = self.operator(acting, &group)?;
        let content = notice::member_set(&operator, user, &after.nickname, &after.extra);
        self.change_members(acting, group, &[(user, after)], notice::MEMBER_SET, content)
    }

    pub(super) fn mute(
        &mut self,
        acting: &Acting,
        group: Group,
        user: UserId,
        until_ms: i64,
    ) -> Result<Output, RequestError> {
        acting.needs(Role::Admin)?;
        let member = self.member(group.id, user)?.ok_or(RequestError::MemberNotFound)?;
        self.check_above(acting, &member)?;
        if member.muted_until_ms == until_ms {
            return Ok(Output::plain(Reply::Done));
        }
        let content = notice::muted(&self.operator(acting, &group)?, user, until_ms);
        let changed = [(user, MemberRecord { muted_until_ms: until_ms, ..member })];
        self.change_members(acting, group, &changed, notice::MUTED, content)
    }

    pub(super) fn transfer(
        &mut self,
        acting: &Acting,
        mut group: Group,
        to: UserId,
    ) -> Result<Output, RequestError> {
        acting.needs(Role::Owner)?;
        let next = self.member(group.id, to)?.ok_or(RequestError::MemberNotFound)?;
        let from = group.record.owner;
        if to == from {
            return Ok(Output::plain(Reply::Done));
        }
        let former = self.member(group.id, from)?.ok_or_else(|| StoreError::from(missing("group owner")))?;
        let content = notice::transferred(&self.operator(acting, &group)?, to);
        group.record = GroupRecord { owner: to, updated_at_ms: self.now_ms, ..group.record };
        let changed = [
            (from, MemberRecord { role: Role::Admin, ..former }),
            (to, MemberRecord { role: Role::Owner, muted_until_ms: 0, ..next }),
        ];
        self.change_members(acting, group, &changed, notice::TRANSFERRED, content)
    }

    /// Writes members as they are now and the group's record, and tells all.
    fn change_members(
        &mut self,
        acting: &Acting,
        group: Group,
        changed: &[(UserId, MemberRecord)],
        command: i32,
        content: bytes::Bytes,
    ) -> Result<Output, RequestError> {
        let id = group.id;
        let output = self.change_record(acting, group, command, content)?;
        for (user, member) in changed {
            self.put_member(id, *user, member);
        }
        Ok(output)
    }

    fn check_above(&self, acting: &Acting, member: &MemberRecord) -> Result<(), RequestError> {
        acting.needs(Role::Admin)?;
        if acting.is_above(member.role) { Ok(()) } else { Err(RequestError::RoleTooLow) }
    }

    /// A user becomes a member: the next message of the group is the first that is its.
    fn join(&mut self, group: &Group, user: UserId, count: GroupCount, role: Role) {
        let member = MemberRecord {
            role,
            joined_at_ms: self.now_ms,
            since: group.head.next,
            muted_until_ms: 0,
            nickname: String::new(),
            extra: String::new(),
        };
        self.put_member(group.id, user, &member);
        let joined = JoinedRecord { since_ms: self.now_ms };
        self.overlay.put(Table::Social, &key::joined(user, group.id), joined.to_bytes());
        self.put_group_count(user, GroupCount { groups: count.groups + 1 });
    }

    /// Users are members no more; with the counts as they were.
    pub(super) fn forget_members(&mut self, id: GroupId, going: &[(UserId, GroupCount)]) {
        for (user, count) in going {
            self.overlay.delete(Table::Social, &key::member(id, *user));
            self.overlay.delete(Table::Social, &key::joined(*user, id));
            self.put_group_count(*user, GroupCount { groups: count.groups.saturating_sub(1) });
            self.members_touched.insert((id, *user), None);
        }
    }

    pub(super) fn group_count(&self, user: UserId) -> Result<GroupCount, StoreError> {
        Ok(self.overlay.value(Table::Social, &key::group_count(user))?.unwrap_or(GroupCount { groups: 0 }))
    }

    fn put_group_count(&mut self, user: UserId, count: GroupCount) {
        self.overlay.put(Table::Social, &key::group_count(user), count.to_bytes());
    }
}
