//! Every bound on the wire, with its reason. What a configuration may lower or raise has its default here.

/// Longest packet a signed-in client may send: content and envelope of one message.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Longest packet before the sign-in is answered: a sign-in with a long token; strangers get no more of our memory.
pub const FRAME_BYTES_MAX_FRESH: usize = 1024;
/// Longest packet a server sends: a whole sync page. A client that allows this much never closes wrongly.
pub const FRAME_BYTES_MAX_DOWN: usize = 128 * 1024;
/// Longest content of one message; leaves room for every envelope within [`FRAME_BYTES_MAX`].
pub const CONTENT_BYTES_MAX: usize = 60 * 1024;
/// Longest request id: we echo and carry it, so it is kept short. A UUID has 36.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Longest token: ours has 64; the rest is for signed tokens of other issuers.
pub const TOKEN_BYTES_MAX: usize = 768;
/// Most rooms in one join or leave: more go in several frames.
pub const ROOMS_PER_FRAME_MAX: usize = 256;
/// Messages in a sync page when the client names no number.
pub const SYNC_LIMIT_DEFAULT: u32 = 50;
/// Most messages in a sync page; a larger wish is lowered to it.
pub const SYNC_LIMIT_MAX: u32 = 500;
/// Most bytes of contents in a sync page, unless its first message alone is longer.
pub const SYNC_PAGE_BYTES_MAX: usize = 48 * 1024;
/// Most frames before the sign-in is answered: one sign-in and the haste of a client that does not wait.
pub const FRESH_FRAMES_MAX: u32 = 8;
/// Bytes of the longest length prefix that is accepted: 32 bits.
pub const LENGTH_BYTES_MAX: usize = 5;

/// Longest varint of 64 bits, and a tag before it (two bytes from field 16 on).
const FIELD_BYTES_MAX: usize = 2 + 10;
/// Tag and length of a field of at most 2 MiB.
const HEAD_BYTES_MAX: usize = 2 + 3;
/// All of a packet but its content: request id, command, head of the content, seq.
pub const PACKET_OVERHEAD_MAX: usize =
    HEAD_BYTES_MAX + REQUEST_ID_BYTES_MAX + HEAD_BYTES_MAX + 2 * FIELD_BYTES_MAX;
/// All of a `Message` but its content: ten numbers and one head.
pub const MESSAGE_OVERHEAD_MAX: usize = 10 * FIELD_BYTES_MAX + HEAD_BYTES_MAX;
/// All of a successful `Reply` with a sync page but the messages: code, head of the data, three numbers.
const PAGE_OVERHEAD_MAX: usize = FIELD_BYTES_MAX + HEAD_BYTES_MAX + 3 * FIELD_BYTES_MAX;

// A message of any legal size can be sent, delivered and given in a page.
const _: () = assert!(CONTENT_BYTES_MAX + MESSAGE_OVERHEAD_MAX + PACKET_OVERHEAD_MAX <= FRAME_BYTES_MAX);
// A sign-in of any legal size fits the first frame: user, device, token, cursor.
const _: () = assert!(
    TOKEN_BYTES_MAX + HEAD_BYTES_MAX + 3 * FIELD_BYTES_MAX + PACKET_OVERHEAD_MAX <= FRAME_BYTES_MAX_FRESH
);
// A page of any legal shape fits a frame: many small messages, or one long.
const _: () = assert!(
    SYNC_PAGE_BYTES_MAX
        + SYNC_LIMIT_MAX as usize * (MESSAGE_OVERHEAD_MAX + HEAD_BYTES_MAX)
        + PAGE_OVERHEAD_MAX
        + PACKET_OVERHEAD_MAX
        <= FRAME_BYTES_MAX_DOWN
);
const _: () = assert!(
    CONTENT_BYTES_MAX + MESSAGE_OVERHEAD_MAX + HEAD_BYTES_MAX + PAGE_OVERHEAD_MAX + PACKET_OVERHEAD_MAX
        <= FRAME_BYTES_MAX_DOWN
);
// A full list of rooms fits a frame.
const _: () = assert!(ROOMS_PER_FRAME_MAX * FIELD_BYTES_MAX + PACKET_OVERHEAD_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(SYNC_LIMIT_DEFAULT <= SYNC_LIMIT_MAX && FRAME_BYTES_MAX <= FRAME_BYTES_MAX_DOWN);
// Heads are counted with three bytes of length, and a decoder's prefix with five.
const _: () = assert!(FRAME_BYTES_MAX_DOWN < 1 << 21);
