//! Why a request is refused, and its only mapping to gRPC and to reply codes.

use gimbal_codec::code;
use gimbal_rpc::link::Refusal;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::store::StoreError;

/// A refusal. Nothing was changed, unless the variant says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// No credential, or one that is wrong, expired or revoked; also a device that is not the user's.
    #[error("not signed in")]
    NotSignedIn,
    /// The verification code is wrong or expired.
    #[error("the verification code is wrong or expired")]
    BadCode,
    /// A valid credential of the wrong kind.
    #[error("this credential may not call this method")]
    PermissionDenied,
    /// A valid key without the scope of the method.
    #[error("this key has no scope {scope:?}")]
    NoScope {
        /// Name of the scope.
        scope: &'static str,
    },
    /// A field breaks its rule.
    #[error("{field} {rule}")]
    BadRequest {
        /// Name of the field in the request.
        field: &'static str,
        /// The rule, as a predicate: "must be 1 to 512 users".
        rule: &'static str,
    },
    /// No such device.
    #[error("no such device")]
    DeviceNotFound,
    /// No such user.
    #[error("no such user")]
    UserNotFound,
    /// The other has not asked, or is no friend.
    #[error("no such friend or request")]
    FriendNotFound,
    /// They are friends already.
    #[error("they are friends already")]
    AlreadyFriends,
    /// No such group, or no more.
    #[error("no such group")]
    GroupNotFound,
    /// The group id that a backend has chosen is taken.
    #[error("there is such a group already")]
    GroupExists,
    /// The caller is not a member of the group.
    #[error("not in the group")]
    NotInGroup,
    /// The other is not a member of the group.
    #[error("no such member")]
    MemberNotFound,
    /// The other is a member already.
    #[error("already in the group")]
    AlreadyInGroup,
    /// The member, or everybody without a role, may not send now.
    #[error("muted in the group")]
    Muted,
    /// The owner cannot leave, be removed or lose the role: hand the group on, or dissolve it.
    #[error("the user owns the group")]
    IsOwner,
    /// The caller's role is not enough, or not above the other's.
    #[error("the role in the group does not allow this")]
    RoleTooLow,
    /// One of the two blocks the other.
    #[error("one of the two users blocks the other")]
    Blocked,
    /// The user has as many as may be.
    #[error("{what} are as many as may be")]
    TooMany {
        /// Of what, in the plural.
        what: &'static str,
    },
    /// The content is longer than [`crate::command::CONTENT_BYTES_MAX`].
    #[error("the content is longer than the limit")]
    ContentTooLarge,
    /// The client message id is below the window in which repeats are recognised.
    #[error("the client message id is below the window of remembered ids")]
    TooOld,
    /// The same client message id or idempotency key came before with another body.
    #[error("the same id or key came before with another body")]
    Conflict,
    /// A newer session of this device exists.
    #[error("a newer session of this device exists")]
    Stale,
    /// Another device of the user is online, and the policy lets it stay.
    #[error("another device of this user is online in its place")]
    DeviceTaken,
    /// The user has as many sessions as may be, and the policy lets them stay.
    #[error("as many devices of this user are online as may be")]
    TooManySessions,
    /// Members may not publish in this room.
    #[error("members may not publish in this room")]
    PublishNotAllowed,
    /// A queue is at its bound; the same call may succeed a little later.
    #[error("the server is at a bound")]
    Busy,
    /// The store refuses work. A write that was under way may or may not have happened: repeat it with the same id.
    #[error("the store is unavailable")]
    Unavailable,
    /// Who knows about the token does not answer; the same call may succeed a little later.
    #[error("the token cannot be checked now")]
    AuthUnavailable,
    /// Accounts are kept by an external service: nobody signs in or registers here.
    #[error("accounts are kept elsewhere")]
    AccountsElsewhere,
    /// Nothing is known of the message an operator asks about.
    #[error("nothing is known of this message: it is older than what is kept, or there is none")]
    NotTraced,
    /// Bytes on disk could not be understood.
    #[error("internal error")]
    Internal,
}

impl RequestError {
    /// Every [`Self::reason`].
    pub const REASONS: [&str; 31] = [
        "not_signed_in",
        "bad_code",
        "permission_denied",
        "bad_request",
        "device_not_found",
        "user_not_found",
        "friend_not_found",
        "already_friends",
        "group_not_found",
        "group_exists",
        "not_in_group",
        "member_not_found",
        "already_in_group",
        "muted",
        "is_owner",
        "role_too_low",
        "blocked",
        "too_many",
        "content_too_large",
        "too_old",
        "conflict",
        "stale",
        "device_taken",
        "too_many_sessions",
        "publish_not_allowed",
        "busy",
        "unavailable",
        "auth_unavailable",
        "accounts_elsewhere",
        "not_traced",
        "internal",
    ];

    /// Stable machine-readable reason; in gRPC metadata `gimbal-reason`, in metrics a label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotSignedIn => "not_signed_in",
            Self::BadCode => "bad_code",
            Self::PermissionDenied | Self::NoScope { .. } => "permission_denied",
            Self::BadRequest { .. } => "bad_request",
            Self::DeviceNotFound => "device_not_found",
            Self::UserNotFound => "user_not_found",
            Self::FriendNotFound => "friend_not_found",
            Self::AlreadyFriends => "already_friends",
            Self::GroupNotFound => "group_not_found",
            Self::GroupExists => "group_exists",
            Self::NotInGroup => "not_in_group",
            Self::MemberNotFound => "member_not_found",
            Self::AlreadyInGroup => "already_in_group",
            Self::Muted => "muted",
            Self::IsOwner => "is_owner",
            Self::RoleTooLow => "role_too_low",
            Self::Blocked => "blocked",
            Self::TooMany { .. } => "too_many",
            Self::ContentTooLarge => "content_too_large",
            Self::TooOld => "too_old",
            Self::Conflict => "conflict",
            Self::Stale => "stale",
            Self::DeviceTaken => "device_taken",
            Self::TooManySessions => "too_many_sessions",
            Self::PublishNotAllowed => "publish_not_allowed",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::AuthUnavailable => "auth_unavailable",
            Self::AccountsElsewhere => "accounts_elsewhere",
            Self::NotTraced => "not_traced",
            Self::Internal => "internal",
        }
    }

    /// The field at fault, if one is; in gRPC metadata `gimbal-field`.
    pub const fn field(self) -> Option<&'static str> {
        match self {
            Self::BadRequest { field, .. } => Some(field),
            Self::ContentTooLarge => Some("content"),
            Self::TooOld => Some("client_message_id"),
            _ => None,
        }
    }

    /// Reply code on the long connection.
    pub const fn code(self) -> i32 {
        match self {
            Self::NotSignedIn | Self::PermissionDenied | Self::NoScope { .. } => code::NOT_SIGNED_IN,
            Self::BadCode | Self::BadRequest { .. } => code::BAD_REQUEST,
            Self::DeviceNotFound => code::DEVICE_NOT_FOUND,
            Self::UserNotFound => code::USER_NOT_FOUND,
            Self::FriendNotFound => code::FRIEND_NOT_FOUND,
            Self::AlreadyFriends => code::ALREADY_FRIENDS,
            Self::GroupNotFound => code::GROUP_NOT_FOUND,
            Self::GroupExists => code::CONFLICT,
            Self::NotInGroup => code::NOT_IN_GROUP,
            Self::MemberNotFound => code::MEMBER_NOT_FOUND,
            Self::AlreadyInGroup => code::ALREADY_IN_GROUP,
            Self::Muted => code::MUTED,
            Self::IsOwner => code::IS_OWNER,
            Self::RoleTooLow => code::ROLE_TOO_LOW,
            Self::Blocked => code::BLOCKED,
            Self::TooMany { .. } => code::TOO_MANY,
            Self::ContentTooLarge => code::CONTENT_TOO_LARGE,
            Self::TooOld => code::TOO_OLD,
            Self::Conflict => code::CONFLICT,
            Self::Stale => code::STALE,
            Self::DeviceTaken => code::DEVICE_TAKEN,
            Self::TooManySessions => code::TOO_MANY_SESSIONS,
            Self::PublishNotAllowed => code::PUBLISH_NOT_ALLOWED,
            Self::Busy => code::BUSY,
            Self::Unavailable | Self::AuthUnavailable => code::UNAVAILABLE,
            Self::AccountsElsewhere | Self::NotTraced => code::BAD_REQUEST,
            Self::Internal => code::SERVER_ERROR,
        }
    }

    /// As the link carries it.
    pub fn refusal(self) -> Refusal {
        Refusal { code: self.code(), message: self.to_string() }
    }

    const fn status_code(self) -> Code {
        match self {
            Self::NotSignedIn => Code::Unauthenticated,
            Self::PermissionDenied
            | Self::NoScope { .. }
            | Self::Blocked
            | Self::NotInGroup
            | Self::Muted
            | Self::RoleTooLow
            | Self::PublishNotAllowed => Code::PermissionDenied,
            Self::BadCode | Self::BadRequest { .. } | Self::ContentTooLarge => Code::InvalidArgument,
            Self::DeviceNotFound
            | Self::UserNotFound
            | Self::FriendNotFound
            | Self::GroupNotFound
            | Self::MemberNotFound
            | Self::NotTraced => Code::NotFound,
            Self::TooOld
            | Self::Stale
            | Self::DeviceTaken
            | Self::AccountsElsewhere
            | Self::TooMany { .. }
            | Self::IsOwner => Code::FailedPrecondition,
            Self::Conflict | Self::AlreadyFriends | Self::GroupExists | Self::AlreadyInGroup => {
                Code::AlreadyExists
            }
            Self::Busy | Self::TooManySessions => Code::ResourceExhausted,
            Self::Unavailable | Self::AuthUnavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let mut status = Self::new(error.status_code(), error.to_string());
        status.metadata_mut().insert("gimbal-reason", MetadataValue::from_static(error.reason()));
        if let Some(field) = error.field() {
            status.metadata_mut().insert("gimbal-field", MetadataValue::from_static(field));
        }
        status
    }
}

impl From<StoreError> for RequestError {
    /// Logs what the caller is not told.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Poisoned => Self::Unavailable,
            StoreError::Engine(cause) => {
                tracing::error!(%cause, "store read failed");
                Self::Unavailable
            }
            StoreError::Corrupt(cause) => {
                tracing::error!(%cause, "stored bytes not understood");
                Self::Internal
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_reason_and_field() {
        let status = Status::from(RequestError::BadRequest { field: "user_ids", rule: "must not be empty" });
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "user_ids must not be empty");
        assert_eq!(status.metadata().get("gimbal-reason").unwrap(), "bad_request");
        assert_eq!(status.metadata().get("gimbal-field").unwrap(), "user_ids");
    }
}
