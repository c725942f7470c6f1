//! Decoded values as protobuf text format, so that documented examples can be compared as text.

use gimbal_codec::body::{
    Ack, Behind, Close, Message, Publish, Published, Reply, Rooms, Send, SendResult, SignIn, SignInResult,
    Signal, SubscribeRoom, Sync, SyncPage,
};
use gimbal_codec::{DecodeError, Packet};

use crate::checks::encoded;

/// Fields of one message in the order of their numbers; defaults are left out, as on the wire.
#[derive(Default)]
struct Text(String);

impl Text {
    fn put(mut self, name: &str, value: &str) -> Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(name);
        self.0.push_str(value);
        self
    }

    fn number(self, name: &str, value: impl Into<i128>) -> Self {
        let value = value.into();
        if value == 0 { self } else { self.put(name, &format!(": {value}")) }
    }

    fn bytes(self, name: &str, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.put(name, &format!(": \"{}\"", value.escape_ascii())) }
    }

    /// Valid UTF-8 stands as it is.
    fn str(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.put(name, &format!(": \"{value}\"")) }
    }

    fn flag(self, name: &str, value: bool) -> Self {
        if value { self.put(name, ": true") } else { self }
    }
}

/// The packet's own fields; the content only when no line of its own describes it.
pub(crate) fn packet(packet: &Packet<'_>, with_content: bool) -> String {
    Text::default()
        .str("request_id", packet.request_id)
        .number("command", packet.command)
        .bytes("content", if with_content { packet.content } else { &[] })
        .number("seq", packet.seq)
        .0
}

fn message(message: &Message<'_>) -> Text {
    Text::default()
        .number("command", message.command)
        .bytes("content", message.content)
        .number("seq", message.seq.get())
        .number("created_at", message.created_at)
        .number("room_id", message.room.get())
        .number("message_id", message.id.get())
        .number("from_user", message.from_user.get())
        .number("from_device", message.from_device.get())
        .number("created_at_ms", message.created_at_ms)
        .number("room_epoch", message.room_epoch)
        .number("room_seq", message.room_seq)
        .number("group_id", message.group.get())
        .number("group_seq", message.group_seq.get())
}

fn sync_page(page: &SyncPage<'_>) -> Text {
    let mut text = Text::default();
    for entry in &page.messages {
        text = text.put("messages", &format!(" {{ {} }}", message(entry).0));
    }
    text.number("latest", page.latest.get())
        .flag("has_more", page.has_more)
        .number("trimmed_to", page.trimmed_to.get())
}

fn sign_in(sign_in: &SignIn<'_>) -> Text {
    let text = Text::default()
        .number("user_id", sign_in.user.get())
        .number("device_id", sign_in.device.get())
        .str("token", sign_in.token);
    match sign_in.cursor {
        Some(cursor) => text.put("cursor", &format!(": {cursor}")),
        None => text,
    }
}

fn signal(signal: &Signal<'_>) -> Text {
    Text::default()
        .number("to_user", signal.to_user.get())
        .number("room_id", signal.room.get())
        .number("command", signal.command)
        .bytes("content", signal.content)
        .number("from_user", signal.from_user.get())
        .number("from_device", signal.from_device.get())
}

fn rooms(rooms: &Rooms) -> Text {
    rooms.rooms.iter().fold(Text::default(), |text, room| text.put("room_ids", &format!(": {room}")))
}

/// What one line of an example says of `bytes`.
pub(crate) struct Described<'a> {
    /// Text format of the decoded value.
    pub(crate) text: String,
    /// The decoded value, encoded again.
    pub(crate) encoded: Vec<u8>,
    /// What the next line describes, if there is one.
    pub(crate) inner: &'a [u8],
}

/// Decodes `bytes` as the message `kind` of `wire.proto`. A reply's data is described by the next line.
///
/// # Panics
/// When there is no such message.
pub(crate) fn describe<'a>(kind: &str, bytes: &'a [u8]) -> Result<Described<'a>, DecodeError> {
    macro_rules! described {
        ($kind:ident, $text:expr) => {{
            let value = $kind::decode(bytes)?;
            let text: fn(&$kind<'_>) -> Text = $text;
            Described { text: text(&value).0, encoded: encoded(&value), inner: &[] }
        }};
        (plain $kind:ident, $text:expr) => {{
            let value = $kind::decode(bytes)?;
            let text: fn(&$kind) -> Text = $text;
            Described { text: text(&value).0, encoded: encoded(&value), inner: &[] }
        }};
    }
    Ok(match kind {
        "SignIn" => described!(SignIn, sign_in),
        "Message" => described!(Message, message),
        "SyncPage" => described!(SyncPage, sync_page),
        "Signal" => described!(Signal, signal),
        "Rooms" => described!(plain Rooms, rooms),
        "Ack" => described!(plain Ack, |ack| Text::default().number("seq", ack.seq.get())),
        "Behind" => described!(plain Behind, |behind| Text::default().number("latest", behind.latest.get())),
        "SubscribeRoom" => {
            described!(plain SubscribeRoom, |body| Text::default().number("room_id", body.room.get()))
        }
        "Sync" => described!(plain Sync, |sync| {
            Text::default().number("after", sync.after.get()).number("limit", sync.limit)
        }),
        "Close" => described!(Close, |close| {
            let text = Text::default().number("code", close.code).str("reason", close.reason);
            text.number("retry_after_ms", close.retry_after_ms)
        }),
        "Publish" => described!(Publish, |publish| {
            let text = Text::default().number("room_id", publish.room.get());
            text.number("command", publish.command).bytes("content", publish.content)
        }),
        "Published" => described!(plain Published, |published| {
            let text = Text::default().number("room_epoch", published.room_epoch);
            text.number("room_seq", published.room_seq).number("created_at_ms", published.created_at_ms)
        }),
        "Send" => described!(Send, |send| {
            let text = Text::default().number("client_message_id", send.client_message_id.get());
            let text = text.number("to_user", send.to.get()).number("command", send.command);
            text.bytes("content", send.content).number("to_group", send.group.get())
        }),
        "SendResult" => described!(plain SendResult, |result| {
            let text = Text::default().number("message_id", result.message_id.get());
            let text = text.number("seq", result.seq.get()).number("created_at_ms", result.created_at_ms);
            text.flag("duplicate", result.duplicate)
        }),
        "SignInResult" => described!(plain SignInResult, |result| {
            let text = Text::default().number("latest", result.latest.get()).number("idle_ms", result.idle_ms);
            let text = text.number("frame_bytes_max", result.frame_bytes_max);
            let text = text.number("server_time_ms", result.server_time_ms);
            text.number("user_id", result.user.get()).number("device_id", result.device.get())
        }),
        "Reply" => {
            let reply = Reply::decode(bytes)?;
            let text = Text::default().number("code", reply.code).str("message", reply.message).0;
            Described { text, encoded: encoded(&reply), inner: reply.data }
        }
        _ => panic!("no message {kind} in wire.proto"),
    })
}
