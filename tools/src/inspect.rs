//! Bytes of the wire as text, for people.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use gimbal_codec::{
    CloseReason, Command, DecodeError, Decoder, Packet,
    body::{
        Ack, Behind, Close, Message, Publish, Published, Reply, Rooms, Send, SendResult, SignIn,
        SignInResult, Signal, SubscribeRoom, Sync, SyncPage,
    },
    limits::FRAME_BYTES_MAX_DOWN,
};

/// Who wrote the frames: the same command means a request or its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Side {
    /// Whichever parses; a request when both do.
    Auto,
    /// Requests.
    Client,
    /// Answers, and what the server sends by itself.
    Server,
}

/// Hexadecimal digits to bytes; white space and `0x` before a word are ignored.
///
/// # Errors
/// When something else is in the text.
pub fn parse_hex(text: &str) -> Result<Vec<u8>> {
    let words = text.split_ascii_whitespace().map(|word| word.strip_prefix("0x").unwrap_or(word));
    let digits: String = words.collect();
    hex::decode(&digits).context("not hexadecimal")
}

/// Describes frame after frame, one block each.
///
/// # Errors
/// At the first frame that is invalid or cut off; what came before is in the error's text.
pub fn describe_frames(bytes: &[u8], side: Side) -> Result<String> {
    let (mut text, mut decoder) = (String::new(), Decoder::new());
    let mut feed = decoder.feed(bytes);
    let mut count = 0;
    loop {
        match feed.next_frame(FRAME_BYTES_MAX_DOWN) {
            Ok(Some(body)) => {
                count += 1;
                let _ = writeln!(text, "frame {count}: packet of {} bytes", body.len());
                describe_packet(body, side, &mut text)
                    .with_context(|| format!("{text}frame {count} is invalid"))?;
            }
            Ok(None) => break,
            Err(error) => bail!("{text}frame {} is invalid: {error}", count + 1),
        }
    }
    match decoder.buffered() {
        0 if count == 0 => bail!("no bytes"),
        0 => Ok(text),
        left => bail!("{text}{left} bytes of an incomplete frame are left"),
    }
}

fn describe_packet(body: &[u8], side: Side, text: &mut String) -> Result<()> {
    let packet = Packet::decode(body)?;
    let name =
        Command::try_from(packet.command).map_or_else(|_| "unknown".into(), |command| format!("{command:?}"));
    let _ = writeln!(text, "  command     {} {name}", packet.command);
    let _ = writeln!(text, "  request_id  {:?}", packet.request_id);
    let _ = writeln!(text, "  seq         {}", packet.seq);
    let Ok(command) = Command::try_from(packet.command) else {
        let _ = writeln!(text, "  content     {}", content(packet.content));
        return Ok(());
    };
    let described = match side {
        Side::Client => from_client(command, packet.content)?,
        Side::Server => from_server(command, packet.content)?,
        Side::Auto => match from_client(command, packet.content) {
            Ok(Some(described)) => Some(described),
            Ok(None) | Err(_) => from_server(command, packet.content)?,
        },
    };
    let described = described.unwrap_or_else(|| format!("not from this side: {}", content(packet.content)));
    let _ = writeln!(text, "  content     {described}");
    Ok(())
}

/// `None`: clients do not send this.
fn from_client(command: Command, bytes: &[u8]) -> Result<Option<String>, DecodeError> {
    Ok(Some(match command {
        Command::SignIn => {
            let SignIn { user, device, token, cursor } = SignIn::decode(bytes)?;
            let cursor = cursor.map_or("none".into(), |cursor| cursor.to_string());
            format!("SignIn user {user} device {device} token of {} characters, cursor {cursor}", token.len())
        }
        Command::Heartbeat => format!("heartbeat {}", content(bytes)),
        Command::SubscribeRoom => format!("SubscribeRoom room {}", SubscribeRoom::decode(bytes)?.room),
        Command::Send => {
            let Send { client_message_id, to, command, content: body, group } = Send::decode(bytes)?;
            let to = if group.is_none() { to.to_string() } else { format!("group {group}") };
            format!(
                "Send client_message_id {client_message_id} to {to} command {command} content {}",
                content(body)
            )
        }
        Command::Sync => {
            let Sync { after, limit } = Sync::decode(bytes)?;
            format!("Sync after {after} limit {limit}")
        }
        Command::Ack => format!("Ack seq {}", Ack::decode(bytes)?.seq),
        Command::Join => format!("Join rooms {:?}", rooms(bytes)?),
        Command::Leave => format!("Leave rooms {:?}", rooms(bytes)?),
        Command::Signal => signal(bytes)?,
        Command::Publish => {
            let Publish { room, command, content: body } = Publish::decode(bytes)?;
            format!("Publish room {room} command {command} content {}", content(body))
        }
        Command::Message | Command::Behind | Command::Close => return Ok(None),
    }))
}

/// `None`: servers do not send this.
fn from_server(command: Command, bytes: &[u8]) -> Result<Option<String>, DecodeError> {
    Ok(Some(match command {
        Command::Heartbeat => format!("heartbeat {}", content(bytes)),
        Command::Message => message(&Message::decode(bytes)?),
        Command::Behind => format!("Behind latest {}", Behind::decode(bytes)?.latest),
        Command::Close => {
            let Close { code, reason, retry_after_ms } = Close::decode(bytes)?;
            let advice = CloseReason::from_code(code)
                .map_or("unknown".into(), |known| format!("{:?}", known.advice()));
            format!("Close {code} {reason:?}, retry after {retry_after_ms} ms, advice {advice}")
        }
        Command::Signal => match signal(bytes) {
            Ok(text) => text,
            Err(_) => reply(command, bytes)?,
        },
        _ => reply(command, bytes)?,
    }))
}

fn reply(command: Command, bytes: &[u8]) -> Result<String, DecodeError> {
    let Reply { code, message: words, data } = Reply::decode(bytes)?;
    let result = match command {
        _ if data.is_empty() => "no data".into(),
        Command::SignIn => {
            let SignInResult { latest, idle_ms, frame_bytes_max, server_time_ms, user, device } =
                SignInResult::decode(data)?;
            let who = if user.is_none() && device.is_none() {
                String::new()
            } else {
                format!(" user {user} device {device}")
            };
            format!(
                "latest {latest} idle_ms {idle_ms} frame_bytes_max {frame_bytes_max} server_time_ms {server_time_ms}{who}"
            )
        }
        Command::Send => {
            let SendResult { message_id, seq, created_at_ms, duplicate } = SendResult::decode(data)?;
            format!("message_id {message_id} seq {seq} created_at_ms {created_at_ms} duplicate {duplicate}")
        }
        Command::Sync => page(&SyncPage::decode(data)?),
        Command::Ack => format!("seq {}", Ack::decode(data)?.seq),
        Command::Publish => {
            let Published { room_epoch, room_seq, created_at_ms } = Published::decode(data)?;
            format!("order {room_epoch}.{room_seq} created_at_ms {created_at_ms}")
        }
        _ => content(data),
    };
    Ok(format!("Reply code {code} {words:?}: {result}"))
}

fn page(page: &SyncPage<'_>) -> String {
    let mut text =
        format!("page latest {} has_more {} trimmed_to {}", page.latest, page.has_more, page.trimmed_to);
    for entry in &page.messages {
        let _ = write!(text, "\n              {}", message(entry));
    }
    text
}

fn message(message: &Message<'_>) -> String {
    let mut text = format!(
        "Message id {} seq {} from {}/{} command {} created_at_ms {}",
        message.id,
        message.seq,
        message.from_user,
        message.from_device,
        message.command,
        message.created_at_ms
    );
    if !message.room.is_none() {
        let _ = write!(text, " room {} order {}.{}", message.room, message.room_epoch, message.room_seq);
    }
    if !message.group.is_none() {
        let _ = write!(text, " group {} seq {}", message.group, message.group_seq);
    }
    let _ = write!(text, " content {}", content(message.content));
    text
}

fn signal(bytes: &[u8]) -> Result<String, DecodeError> {
    let Signal { to_user, room, command, content: body, from_user, from_device } = Signal::decode(bytes)?;
    Ok(format!(
        "Signal to user {to_user} room {room} from {from_user}/{from_device} command {command} content {}",
        content(body)
    ))
}

fn rooms(bytes: &[u8]) -> Result<Vec<u64>, DecodeError> {
    Ok(Rooms::decode(bytes)?.rooms.iter().map(|room| room.get()).collect())
}

/// Readable text as text, anything else as hexadecimal digits.
fn content(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        _ if bytes.is_empty() => "empty".into(),
        Ok(text) if !text.chars().any(char::is_control) => format!("{} bytes {text:?}", bytes.len()),
        _ => format!("{} bytes {}", bytes.len(), hex::encode(bytes)),
    }
}

/// Text from outside on one line of a terminal: control characters are escaped.
pub fn printable(bytes: &[u8]) -> String {
    let mut line = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use gimbal_codec::{ClientMessageId, DeviceId, RoomId, Seq, UserId, body, frame};
    use proptest::prelude::*;

    #[test]
    fn hex_may_have_spaces_and_prefixes() {
        assert_eq!(parse_hex("0x01 02\n0a0B").unwrap(), [1, 2, 10, 11]);
        assert!(parse_hex("0102 zz").is_err());
        assert!(parse_hex("012").is_err());
    }

    #[test]
    fn a_sign_in_is_described_without_its_token() {
        let (user, device, token) = (UserId::new(7), DeviceId::new(8), "secret");
        let made = frame(Command::SignIn, "a", 5, &SignIn { user, device, token, cursor: Some(Seq::new(9)) });
        let text = describe_frames(&made, Side::Auto).unwrap();
        assert!(text.contains("SignIn user 7 device 8 token of 6 characters, cursor 9"), "{text}");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn every_command_of_both_sides_is_described() {
        for &command in Command::ALL {
            let made = frame(command, "1", 0, &());
            for side in [Side::Auto, Side::Client, Side::Server] {
                let text = describe_frames(&made, side).unwrap();
                assert!(text.contains(&format!("{command:?}")), "{text}");
            }
        }
    }

    #[test]
    fn an_answer_shows_its_data() {
        let result = SendResult {
            message_id: gimbal_codec::MessageId::new(3),
            seq: Seq::new(4),
            ..Default::default()
        };
        let made = frame(Command::Send, "1", 0, &body::ReplyWith(&result));
        let text = describe_frames(&made, Side::Server).unwrap();
        assert!(text.contains("Reply code 0 \"\": message_id 3 seq 4"), "{text}");
    }

    #[test]
    fn a_send_and_rooms_are_shown_with_their_fields() {
        let send = Send {
            client_message_id: ClientMessageId::new(1),
            to: UserId::new(2),
            command: -3,
            content: b"hi",
            ..Send::default()
        };
        let mut bytes = frame(Command::Send, "1", 0, &send).to_vec();
        bytes.extend_from_slice(&frame(Command::Join, "2", 0, &Rooms { rooms: vec![RoomId::new(6)] }));
        let text = describe_frames(&bytes, Side::Auto).unwrap();
        assert!(text.contains("to 2 command -3 content 2 bytes \"hi\""), "{text}");
        assert!(text.contains("frame 2") && text.contains("Join rooms [6]"), "{text}");
    }

    #[test]
    fn a_cut_frame_is_an_error_that_says_so() {
        let made = frame(Command::Heartbeat, "abc", 0, &());
        let error = describe_frames(&made[..made.len() - 1], Side::Auto).unwrap_err();
        assert!(error.to_string().contains("incomplete"), "{error}");
        assert!(describe_frames(&[], Side::Auto).is_err());
    }

    #[test]
    fn terminal_commands_in_a_message_are_escaped() {
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }

    proptest! {
        #[test]
        fn any_bytes_are_described_or_refused(bytes: Vec<u8>) {
            let _ = describe_frames(&bytes, Side::Auto);
            let _ = describe_frames(&bytes, Side::Server);
        }
    }
}
