//! Codes of `Reply.code`. gim's keep their numbers; ours start at 11000. Stable for ever.

/// Success.
pub const OK: i32 = 0;
/// Something failed here; the same call may succeed later (gim).
pub const SERVER_ERROR: i32 = 2;
/// Not signed in, or the token is wrong, expired or revoked (gim).
pub const NOT_SIGNED_IN: i32 = 10000;
/// A field breaks its rule (gim).
pub const BAD_REQUEST: i32 = 10001;
/// No such device (gim).
pub const DEVICE_NOT_FOUND: i32 = 10200;
/// Not a member of the group (gim).
pub const NOT_IN_GROUP: i32 = 10201;
/// The group has no such member (gim).
pub const MEMBER_NOT_FOUND: i32 = 10202;
/// A member already (gim).
pub const ALREADY_IN_GROUP: i32 = 10203;
/// The two users are not friends, or nobody asked (gim).
pub const FRIEND_NOT_FOUND: i32 = 10210;
/// The two users are friends already (gim).
pub const ALREADY_FRIENDS: i32 = 10211;
/// No such group (gim).
pub const GROUP_NOT_FOUND: i32 = 10220;
/// No such user (gim).
pub const USER_NOT_FOUND: i32 = 10301;
/// The content is longer than the server's limit.
pub const CONTENT_TOO_LARGE: i32 = 11001;
/// The client message id is below the window in which repeats are recognised; nothing was stored.
pub const TOO_OLD: i32 = 11002;
/// The server is at a bound; repeat the same call a little later.
pub const BUSY: i32 = 11003;
/// Control cannot be reached; repeat the same call later.
pub const UNAVAILABLE: i32 = 11004;
/// One sync of this session is still under way.
pub const SYNC_IN_PROGRESS: i32 = 11005;
/// The session is not a member of that room.
pub const NOT_IN_ROOM: i32 = 11006;
/// The session is in as many rooms as it may be.
pub const TOO_MANY_ROOMS: i32 = 11007;
/// The same id or key came before with other content.
pub const CONFLICT: i32 = 11008;
/// A newer session of this device exists.
pub const STALE: i32 = 11009;
/// The recipient takes no messages of this user.
pub const BLOCKED: i32 = 11010;
/// The user has as many of something as may be.
pub const TOO_MANY: i32 = 11011;
/// May not send to the group now.
pub const MUTED: i32 = 11012;
/// The owner of a group cannot leave it, be removed or lose the role.
pub const IS_OWNER: i32 = 11013;
/// The role in the group does not allow this.
pub const ROLE_TOO_LOW: i32 = 11014;
/// Another device of the user is online, and the server's policy lets it stay.
pub const DEVICE_TAKEN: i32 = 11020;
/// The user has as many sessions as may be, and the server's policy lets them stay.
pub const TOO_MANY_SESSIONS: i32 = 11021;
/// Members may not publish in this room.
pub const PUBLISH_NOT_ALLOWED: i32 = 11022;
