//! What members are told of: contents of messages of a group that come from the server.

use bytes::Bytes;
use gimbal_codec::{GroupId, UserId};
use gimbal_rpc::v1;
use prost::Message as _;

use crate::store::value::{GroupRecord, Role};

/// Commands of those messages; gim's keep their numbers.
pub(super) const UPDATED: i32 = 120;
pub(super) const ADDED: i32 = 121;
pub(super) const REMOVED: i32 = 122;
pub(super) const DISSOLVED: i32 = 123;
pub(super) const TRANSFERRED: i32 = 124;
pub(super) const ROLE_SET: i32 = 125;
pub(super) const MUTED: i32 = 126;
pub(super) const MEMBER_SET: i32 = 127;

/// Who has done it, where.
pub(super) struct Operator {
    pub(super) group: GroupId,
    /// 0: a backend.
    pub(super) user: UserId,
    pub(super) name: String,
}

impl Operator {
    /// The fields that all contents begin with.
    fn fields(&self) -> (u64, u64, String) {
        (self.group.get(), self.user.get(), self.name.clone())
    }
}

pub(super) fn updated(by: &Operator, record: &GroupRecord) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    let GroupRecord { name, avatar_url, introduction, extra, .. } = record.clone();
    v1::UpdateGroupPush { group_id, opt_id, opt_name, name, avatar_url, introduction, extra }
        .encode_to_vec()
        .into()
}

pub(super) fn added(by: &Operator, users: &[UserId]) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    let user_ids = users.iter().map(|user| user.get()).collect();
    v1::AddGroupMembersPush { group_id, opt_id, opt_name, user_ids }.encode_to_vec().into()
}

pub(super) fn removed(by: &Operator, users: &[UserId]) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    let user_ids = users.iter().map(|user| user.get()).collect();
    v1::RemoveGroupMembersPush { group_id, opt_id, opt_name, user_ids }.encode_to_vec().into()
}

pub(super) fn dissolved(by: &Operator) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    v1::DissolveGroupPush { group_id, opt_id, opt_name }.encode_to_vec().into()
}

pub(super) fn transferred(by: &Operator, to: UserId) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    v1::TransferGroupPush { group_id, opt_id, opt_name, user_id: to.get() }.encode_to_vec().into()
}

pub(super) fn role_set(by: &Operator, user: UserId, role: Role) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    let role = role_number(role).into();
    v1::SetGroupRolePush { group_id, opt_id, opt_name, user_id: user.get(), role }.encode_to_vec().into()
}

pub(super) fn muted(by: &Operator, user: UserId, until_ms: i64) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    v1::MuteGroupPush { group_id, opt_id, opt_name, user_id: user.get(), until_ms }.encode_to_vec().into()
}

pub(super) fn member_set(by: &Operator, user: UserId, nickname: &str, extra: &str) -> Bytes {
    let (group_id, opt_id, opt_name) = by.fields();
    let (nickname, extra) = (nickname.to_owned(), extra.to_owned());
    v1::SetGroupMemberPush { group_id, opt_id, opt_name, user_id: user.get(), nickname, extra }
        .encode_to_vec()
        .into()
}

/// As the API names it.
pub(crate) const fn role_number(role: Role) -> v1::GroupRole {
    match role {
        Role::Member => v1::GroupRole::Member,
        Role::Admin => v1::GroupRole::Admin,
        Role::Owner => v1::GroupRole::Owner,
    }
}
