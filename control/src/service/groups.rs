//! Groups, their members, and messages to them.

use gimbal_codec::{GroupId, UserId};
use gimbal_rpc::v1::{self, groups_server::Groups};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::users::is_backend;
use super::{Services, bad, mismatch, next_token, page_limit, page_start};
use crate::{
    api_key::Scope,
    command::{
        Command, IdempotencyKey, Reply,
        group::{GroupAct, GroupChange},
        social::Actor,
    },
    credential,
    error::RequestError,
    group::{self, read},
    store::{
        Store,
        value::{MemberRecord, Role, Verdict},
    },
};

impl Services {
    /// Does `act` to a group for a device's user, for the user that a backend names, or for a backend itself.
    async fn act_in_group(
        &self,
        metadata: &MetadataMap,
        group_id: u64,
        act: GroupAct,
        idempotency_key: &str,
    ) -> Result<Reply, RequestError> {
        let by = match is_backend(metadata) {
            false => Actor::Device(self.sender(metadata).await?),
            true => {
                self.may(Scope::Groups, metadata)?;
                let claimed = credential::claimed(metadata);
                Actor::Backend(claimed.map_err(|_| bad("user_id", "must be a number"))?.0)
            }
        };
        let idempotency = IdempotencyKey::parse(idempotency_key)?.map(|key| match by {
            Actor::Device(sender) => key.of_user(sender.user),
            Actor::Backend(_) => key,
        });
        act.check()?;
        let group = GroupId::new(group_id);
        self.call(Command::Group { by, group, act: Box::new(act), idempotency }).await
    }

    async fn changes_members(
        &self,
        metadata: &MetadataMap,
        group_id: u64,
        act: GroupAct,
        idempotency_key: &str,
    ) -> Result<(u64, Vec<v1::ChangedMember>), RequestError> {
        match self.act_in_group(metadata, group_id, act, idempotency_key).await? {
            Reply::Members { group, members } => {
                Ok((group.get(), members.into_iter().map(changed).collect()))
            }
            reply => mismatch(&reply),
        }
    }

    async fn does(
        &self,
        metadata: &MetadataMap,
        group_id: u64,
        act: GroupAct,
        idempotency_key: &str,
    ) -> Result<(), RequestError> {
        match self.act_in_group(metadata, some_group(group_id)?, act, idempotency_key).await? {
            Reply::Done => Ok(()),
            reply => mismatch(&reply),
        }
    }
}

#[tonic::async_trait]
impl Groups for Services {
    async fn create(
        &self,
        request: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::CreateGroupRequest {
            group_id,
            name,
            avatar_url,
            introduction,
            extra,
            owner_id,
            user_ids,
            idempotency_key,
        } = body;
        let shows = GroupChange {
            name: Some(name),
            avatar_url: Some(avatar_url),
            introduction: Some(introduction),
            extra: Some(extra),
        };
        let act = GroupAct::Create { shows, owner: UserId::new(owner_id), users: users(user_ids) };
        let (group_id, members) = self.changes_members(&metadata, group_id, act, &idempotency_key).await?;
        Ok(Response::new(v1::CreateGroupReply { group_id, members }))
    }

    async fn get(
        &self,
        request: Request<v1::GetGroupRequest>,
    ) -> Result<Response<v1::GetGroupReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let id = GroupId::new(some_group(body.group_id)?);
        let find = move |store: &dyn Store, caller| Ok(shown(read::group(&*store.snapshot(), id, caller)?));
        Ok(Response::new(self.read_as(Scope::Groups, &metadata, find).await?))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateGroupRequest>,
    ) -> Result<Response<v1::UpdateGroupReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::UpdateGroupRequest { group_id, name, avatar_url, introduction, extra, idempotency_key } =
            body;
        let act = GroupAct::Update(GroupChange { name, avatar_url, introduction, extra });
        self.does(&metadata, group_id, act, &idempotency_key).await?;
        Ok(Response::new(v1::UpdateGroupReply {}))
    }

    async fn list_mine(
        &self,
        request: Request<v1::ListMineRequest>,
    ) -> Result<Response<v1::ListMineReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let (from, limit) = (page_start(&body.page_token)?, page_limit(body.page_size)?);
        let find = move |store: &dyn Store, caller: UserId| {
            if caller.is_none() {
                return Err(bad("user_id", "must be named in the metadata"));
            }
            let page = read::groups(&*store.snapshot(), caller, &from, limit)?;
            let groups = page.items.into_iter().map(shown).collect();
            Ok(v1::ListMineReply { groups, next_page_token: next_token(page.next) })
        };
        Ok(Response::new(self.read_as(Scope::Groups, &metadata, find).await?))
    }

    async fn dissolve(
        &self,
        request: Request<v1::DissolveGroupRequest>,
    ) -> Result<Response<v1::DissolveGroupReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        self.does(&metadata, body.group_id, GroupAct::Dissolve, &body.idempotency_key).await?;
        Ok(Response::new(v1::DissolveGroupReply {}))
    }

    async fn add_members(
        &self,
        request: Request<v1::AddMembersRequest>,
    ) -> Result<Response<v1::AddMembersReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::AddMembersRequest { group_id, user_ids, idempotency_key } = body;
        let (group_id, act) = (some_group(group_id)?, GroupAct::AddMembers(users(user_ids)));
        let (_, members) = self.changes_members(&metadata, group_id, act, &idempotency_key).await?;
        Ok(Response::new(v1::AddMembersReply { members }))
    }

    async fn remove_members(
        &self,
        request: Request<v1::RemoveMembersRequest>,
    ) -> Result<Response<v1::RemoveMembersReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::RemoveMembersRequest { group_id, user_ids, idempotency_key } = body;
        let (group_id, act) = (some_group(group_id)?, GroupAct::RemoveMembers(users(user_ids)));
        let (_, members) = self.changes_members(&metadata, group_id, act, &idempotency_key).await?;
        Ok(Response::new(v1::RemoveMembersReply { members }))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveGroupRequest>,
    ) -> Result<Response<v1::LeaveGroupReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        self.does(&metadata, body.group_id, GroupAct::Leave, &body.idempotency_key).await?;
        Ok(Response::new(v1::LeaveGroupReply {}))
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let id = GroupId::new(some_group(body.group_id)?);
        let (from, limit) = (page_start(&body.page_token)?, page_limit(body.page_size)?);
        let find = move |store: &dyn Store, caller| {
            let view = store.snapshot();
            read::group(&*view, id, caller)?;
            let page = read::members(&*view, id, &from, limit)?;
            let members = page.items.into_iter().map(member).collect();
            Ok(v1::ListMembersReply { members, next_page_token: next_token(page.next) })
        };
        Ok(Response::new(self.read_as(Scope::Groups, &metadata, find).await?))
    }

    async fn set_role(
        &self,
        request: Request<v1::SetRoleRequest>,
    ) -> Result<Response<v1::SetRoleReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let role = match v1::GroupRole::try_from(body.role) {
            Ok(v1::GroupRole::Member) => Role::Member,
            Ok(v1::GroupRole::Admin) => Role::Admin,
            _ => return Err(bad("role", "must be member or admin").into()),
        };
        let act = GroupAct::SetRole { user: some_user(body.user_id)?, role };
        self.does(&metadata, body.group_id, act, &body.idempotency_key).await?;
        Ok(Response::new(v1::SetRoleReply {}))
    }

    async fn set_member(
        &self,
        request: Request<v1::SetMemberRequest>,
    ) -> Result<Response<v1::SetMemberReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::SetMemberRequest { group_id, user_id, nickname, extra, idempotency_key } = body;
        let act = GroupAct::SetMember { user: UserId::new(user_id), nickname, extra };
        self.does(&metadata, group_id, act, &idempotency_key).await?;
        Ok(Response::new(v1::SetMemberReply {}))
    }

    async fn mute(&self, request: Request<v1::MuteRequest>) -> Result<Response<v1::MuteReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let act = GroupAct::Mute { user: some_user(body.user_id)?, until_ms: body.until_ms };
        self.does(&metadata, body.group_id, act, &body.idempotency_key).await?;
        Ok(Response::new(v1::MuteReply {}))
    }

    async fn mute_all(
        &self,
        request: Request<v1::MuteAllRequest>,
    ) -> Result<Response<v1::MuteAllReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        self.does(&metadata, body.group_id, GroupAct::MuteAll(body.muted), &body.idempotency_key).await?;
        Ok(Response::new(v1::MuteAllReply {}))
    }

    async fn transfer(
        &self,
        request: Request<v1::TransferGroupRequest>,
    ) -> Result<Response<v1::TransferGroupReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let act = GroupAct::Transfer(some_user(body.user_id)?);
        self.does(&metadata, body.group_id, act, &body.idempotency_key).await?;
        Ok(Response::new(v1::TransferGroupReply {}))
    }

    async fn push(
        &self,
        request: Request<v1::PushToGroupRequest>,
    ) -> Result<Response<v1::PushToGroupReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        // A device sends, by its own numbers.
        self.may(Scope::Groups, &metadata)?;
        self.plane.check_content(&body.content)?;
        let act = GroupAct::Push { command: body.command, content: body.content };
        match self.act_in_group(&metadata, some_group(body.group_id)?, act, &body.idempotency_key).await? {
            Reply::Sent(sent) => Ok(Response::new(v1::PushToGroupReply {
                message_id: sent.message_id.get(),
                group_seq: sent.seq.get(),
                created_at_ms: sent.created_at_ms,
                duplicate: sent.duplicate,
            })),
            reply => mismatch(&reply),
        }
    }
}

fn some_group(group_id: u64) -> Result<u64, RequestError> {
    if group_id == 0 { Err(bad("group_id", "must be set")) } else { Ok(group_id) }
}

fn some_user(user_id: u64) -> Result<UserId, RequestError> {
    if user_id == 0 { Err(bad("user_id", "must be set")) } else { Ok(UserId::new(user_id)) }
}

fn users(user_ids: Vec<u64>) -> Vec<UserId> {
    user_ids.into_iter().map(UserId::new).collect()
}

fn changed((user, verdict): (UserId, Verdict)) -> v1::ChangedMember {
    let reason = verdict.error().map(RequestError::reason).unwrap_or_default();
    v1::ChangedMember { user_id: user.get(), reason: reason.to_owned() }
}

fn shown(page: read::GroupPage) -> v1::GetGroupReply {
    let read::GroupPage { group, record, head, me } = page;
    let group = v1::Group {
        group_id: group.get(),
        name: record.name,
        avatar_url: record.avatar_url,
        introduction: record.introduction,
        extra: record.extra,
        owner_id: record.owner.get(),
        members: head.members,
        muted: record.muted,
        latest_seq: head.next.get() - 1,
        created_at_ms: record.created_at_ms,
        updated_at_ms: record.updated_at_ms,
    };
    v1::GetGroupReply { group: Some(group), me: me.map(member) }
}

fn member((user, record): (UserId, MemberRecord)) -> v1::GroupMember {
    v1::GroupMember {
        user_id: user.get(),
        role: group::role_number(record.role).into(),
        nickname: record.nickname,
        extra: record.extra,
        joined_at_ms: record.joined_at_ms,
        muted_until_ms: record.muted_until_ms,
    }
}
