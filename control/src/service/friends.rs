//! Who knows whom.

use gimbal_codec::UserId;
use gimbal_rpc::v1::{self, friends_server::Friends};
use tonic::{Request, Response, Status};

use super::users::{is_backend, user};
use super::{Services, bad, mismatch, next_token, page_limit, page_start};
use crate::{
    api_key::Scope,
    command::{Reply, social::Social},
    error::RequestError,
    social::read,
    store::{Store, value::Friendship},
};

#[tonic::async_trait]
impl Friends for Services {
    async fn add(
        &self,
        request: Request<v1::AddFriendRequest>,
    ) -> Result<Response<v1::AddFriendReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::AddFriendRequest { user_id, remark, description, idempotency_key } = body;
        let act = Social::AddFriend { friend: other(user_id)?, remark, description };
        match self.act(Scope::Friends, &metadata, act, &idempotency_key).await? {
            (_, Reply::Friendship(friendship)) => {
                Ok(Response::new(v1::AddFriendReply { friendship: told(friendship).into() }))
            }
            (_, reply) => mismatch(&reply),
        }
    }

    async fn agree(
        &self,
        request: Request<v1::AgreeFriendRequest>,
    ) -> Result<Response<v1::AgreeFriendReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::AgreeFriendRequest { user_id, remark, idempotency_key } = body;
        let act = Social::AgreeFriend { friend: other(user_id)?, remark };
        self.act(Scope::Friends, &metadata, act, &idempotency_key).await?;
        Ok(Response::new(v1::AgreeFriendReply {}))
    }

    async fn decline(
        &self,
        request: Request<v1::DeclineFriendRequest>,
    ) -> Result<Response<v1::DeclineFriendReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let act = Social::DeclineFriend(other(body.user_id)?);
        self.act(Scope::Friends, &metadata, act, &body.idempotency_key).await?;
        Ok(Response::new(v1::DeclineFriendReply {}))
    }

    async fn set(
        &self,
        request: Request<v1::SetFriendRequest>,
    ) -> Result<Response<v1::SetFriendReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let v1::SetFriendRequest { user_id, remark, extra, idempotency_key } = body;
        let act = Social::SetFriend { friend: other(user_id)?, remark, extra };
        self.act(Scope::Friends, &metadata, act, &idempotency_key).await?;
        Ok(Response::new(v1::SetFriendReply {}))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveFriendRequest>,
    ) -> Result<Response<v1::RemoveFriendReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let act = Social::RemoveFriend(other(body.user_id)?);
        self.act(Scope::Friends, &metadata, act, &body.idempotency_key).await?;
        Ok(Response::new(v1::RemoveFriendReply {}))
    }

    async fn list(
        &self,
        request: Request<v1::ListFriendsRequest>,
    ) -> Result<Response<v1::ListFriendsReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let kind = match v1::Friendship::try_from(body.friendship) {
            Ok(v1::Friendship::Unspecified | v1::Friendship::Friends) => Friendship::Friends,
            Ok(v1::Friendship::Asked) => Friendship::Asked,
            Ok(v1::Friendship::WasAsked) => Friendship::WasAsked,
            Err(_) => return Err(bad("friendship", "must be a known one").into()),
        };
        let (from, limit) = (page_start(&body.page_token)?, page_limit(body.page_size)?);
        let is_backend = is_backend(&metadata);
        let find = move |store: &dyn Store, caller: UserId| {
            let page = read::friends(&*store.snapshot(), caller, kind, &from, limit)?;
            let friend = |(page, record): (read::UserPage, crate::store::value::FriendRecord)| v1::Friend {
                user: Some(user(page, is_backend, caller)),
                friendship: told(record.friendship).into(),
                remark: record.remark,
                extra: record.extra,
                description: record.description,
                since_ms: record.since_ms,
            };
            let friends = page.items.into_iter().map(friend).collect();
            Ok(v1::ListFriendsReply { friends, next_page_token: next_token(page.next) })
        };
        Ok(Response::new(self.read_as(Scope::Friends, &metadata, find).await?))
    }

    async fn block(&self, request: Request<v1::BlockRequest>) -> Result<Response<v1::BlockReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let act = Social::Block(other(body.user_id)?);
        self.act(Scope::Friends, &metadata, act, &body.idempotency_key).await?;
        Ok(Response::new(v1::BlockReply {}))
    }

    async fn unblock(
        &self,
        request: Request<v1::UnblockRequest>,
    ) -> Result<Response<v1::UnblockReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let act = Social::Unblock(other(body.user_id)?);
        self.act(Scope::Friends, &metadata, act, &body.idempotency_key).await?;
        Ok(Response::new(v1::UnblockReply {}))
    }

    async fn list_blocked(
        &self,
        request: Request<v1::ListBlockedRequest>,
    ) -> Result<Response<v1::ListBlockedReply>, Status> {
        let (metadata, _, body) = request.into_parts();
        let (from, limit) = (page_start(&body.page_token)?, page_limit(body.page_size)?);
        let is_backend = is_backend(&metadata);
        let find = move |store: &dyn Store, caller: UserId| {
            let page = read::blocked(&*store.snapshot(), caller, &from, limit)?;
            let users = page.items.into_iter().map(|page| user(page, is_backend, caller)).collect();
            Ok(v1::ListBlockedReply { users, next_page_token: next_token(page.next) })
        };
        Ok(Response::new(self.read_as(Scope::Friends, &metadata, find).await?))
    }
}

fn other(user_id: u64) -> Result<UserId, RequestError> {
    if user_id == 0 { Err(bad("user_id", "must be set")) } else { Ok(UserId::new(user_id)) }
}

const fn told(friendship: Friendship) -> v1::Friendship {
    match friendship {
        Friendship::Friends => v1::Friendship::Friends,
        Friendship::Asked => v1::Friendship::Asked,
        Friendship::WasAsked => v1::Friendship::WasAsked,
    }
}
