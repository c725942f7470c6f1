//! NATS: lines, and messages whose line names their length. JetStream's answers come as messages to an inbox.

use std::io::Write as _;

use super::{Event, Fault, Found, decimal, line};

/// Our answer to the server's ping.
pub(crate) const PONG: &[u8] = b"PONG\r\n";
/// Longest payload a client of ours is sent: the answer to a stream's creation has some 1 KiB.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// What the subjects of answers begin with.
const INBOX: &[u8] = b"_INBOX.";

/// See [`super::ItemFn`].
pub(crate) fn item(bytes: &[u8]) -> Found {
    let Some(line) = line(bytes)? else { return Ok(None) };
    let line_bytes = line.len() + 2;
    if let Some(head) = line.strip_prefix(b"MSG ") {
        return message(head, &bytes[line_bytes..], line_bytes);
    }
    let event = match line {
        b"PING" => Event::Ping,
        b"PONG" => Event::Pong,
        b"+OK" => Event::Other,
        line if line.starts_with(b"INFO ") => Event::Other,
        line if line.starts_with(b"-ERR") => {
            return Err(Fault::Refused(String::from_utf8_lossy(line).into_owned()));
        }
        _ => return Err(Fault::Malformed("an unknown line")),
    };
    Ok(Some((event, line_bytes)))
}

/// `head` is `subject sid [reply] bytes`.
fn message(head: &[u8], rest: &[u8], line_bytes: usize) -> Found {
    let size_at = head.iter().rposition(|&byte| byte == b' ').ok_or(Fault::Malformed("a message's line"))?;
    let size = decimal(&head[size_at + 1..])? as usize;
    if size > PAYLOAD_BYTES_MAX {
        return Err(Fault::Malformed("a payload beyond all we ask for"));
    }
    let Some(payload) = rest.get(..size + 2) else { return Ok(None) };
    let payload = payload.strip_suffix(b"\r\n").ok_or(Fault::Malformed("a payload without its end"))?;
    let event = if head.starts_with(INBOX) { answer(head, payload)? } else { Event::Delivery };
    Ok(Some((event, line_bytes + size + 2)))
}

/// An answer of JetStream: our number is the last part of its subject.
fn answer(head: &[u8], payload: &[u8]) -> Result<Event, Fault> {
    const ERROR: &[u8] = b"\"error\":";
    if !payload.starts_with(b"{") || payload.windows(ERROR.len()).any(|window| window == ERROR) {
        return Err(Fault::Refused(String::from_utf8_lossy(payload).into_owned()));
    }
    let subject = head.split(|&byte| byte == b' ').next().unwrap_or_default();
    let number = subject.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    Ok(Event::Ack(decimal(number)?))
}

/// Signs on; answered by a pong.
pub(crate) fn hello(out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":false,\"lang\":\"load\",\"version\":\"1\"}\r\n",
    );
    ping(out);
}

pub(crate) fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PING\r\n");
}

/// Answered by a pong, as the subscription itself has no answer.
pub(crate) fn subscribe(subject: &str, out: &mut Vec<u8>) {
    write!(out, "SUB {subject} 1\r\n").expect("memory takes all");
    ping(out);
}

pub(crate) fn publish(subject: &str, payload: &[u8], out: &mut Vec<u8>) {
    write!(out, "PUB {subject} {}\r\n", payload.len()).expect("memory takes all");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// The subjects of a connection's answers.
pub(crate) fn inbox(connection: usize) -> String {
    format!("_INBOX.{connection}.*")
}

/// A publish whose answer carries `number`.
pub(crate) fn request(subject: &str, connection: usize, number: u64, payload: &[u8], out: &mut Vec<u8>) {
    write!(out, "PUB {subject} _INBOX.{connection}.{number} {}\r\n", payload.len())
        .expect("memory takes all");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::tests::assert_events;

    #[test]
    fn items_are_told_apart_at_any_split() {
        let bytes = b"INFO {\"a\":1}\r\nPING\r\nPONG\r\n+OK\r\nMSG p.1 1 2\r\nhi\r\nMSG p.1 1 r.1 0\r\n\r\n\
            MSG _INBOX.3.41 1 24\r\n{\"stream\":\"D\",\"seq\":123}\r\n";
        let wanted = [
            Event::Other,
            Event::Ping,
            Event::Pong,
            Event::Other,
            Event::Delivery,
            Event::Delivery,
            Event::Ack(41),
        ];
        assert_events(item, bytes, &wanted);
    }

    #[test]
    fn errors_and_strangers_are_refused() {
        assert!(matches!(item(b"-ERR 'Authorization Violation'\r\n"), Err(Fault::Refused(_))));
        let refused = b"MSG _INBOX.3.41 1 17\r\n{\"error\":{\"a\":1}}\r\n";
        assert!(matches!(item(refused), Err(Fault::Refused(_))));
        for bad in [&b"HTTP/1.1 400\r\n"[..], b"MSG a\r\n", b"MSG a 1 x\r\n", b"MSG a 1 1\r\nabc", b"PING\n"]
        {
            assert!(matches!(item(bad), Err(Fault::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_request_names_its_inbox_and_length() {
        let mut out = Vec::new();
        request("d.1", 3, 41, b"hi", &mut out);
        assert_eq!(out, b"PUB d.1 _INBOX.3.41 2\r\nhi\r\n");
    }
}
