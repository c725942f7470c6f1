//! Redis, RESP2: typed lines, bulk strings, arrays of them.

use std::io::Write as _;

use super::{Event, Fault, Found, decimal, line};

/// Longest bulk string we are sent.
const BULK_BYTES_MAX: u64 = 1 << 20;
/// Most elements of an array we are sent: a message has three.
const ELEMENTS_MAX: u64 = 8;

/// See [`super::ItemFn`].
pub(crate) fn item(bytes: &[u8]) -> Found {
    match bytes.first() {
        None => Ok(None),
        Some(b'*') => array(bytes),
        Some(_) => {
            let Some((head, length)) = element(bytes)? else { return Ok(None) };
            let event = match (bytes[0], head) {
                (b'+', b"PONG") => Event::Pong,
                (b':', digits) => Event::Ack(decimal(digits)?),
                _ => Event::Other,
            };
            Ok(Some((event, length)))
        }
    }
}

/// What its first element says.
fn array(bytes: &[u8]) -> Found {
    let Some(count) = line(bytes)? else { return Ok(None) };
    let mut at = count.len() + 2;
    let elements = decimal(&count[1..])?;
    if !(1..=ELEMENTS_MAX).contains(&elements) {
        return Err(Fault::Malformed("an array that is no push"));
    }
    let mut event = Event::Other;
    for index in 0..elements {
        let Some((value, length)) = element(&bytes[at..])? else { return Ok(None) };
        at += length;
        if index == 0 {
            event = match value {
                b"message" => Event::Delivery,
                b"subscribe" => Event::Ready,
                b"pong" => Event::Pong,
                _ => Event::Other,
            };
        }
    }
    Ok(Some((event, at)))
}

/// A line or bulk string: its value and its length with all around it.
fn element(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Fault> {
    let Some(head) = line(bytes)? else { return Ok(None) };
    let (Some((kind, value)), line_bytes) = (head.split_first(), head.len() + 2) else {
        return Err(Fault::Malformed("an empty line"));
    };
    match kind {
        b'+' | b':' => Ok(Some((value, line_bytes))),
        b'-' => Err(Fault::Refused(String::from_utf8_lossy(value).into_owned())),
        b'$' => match decimal(value)? {
            size @ 0..=BULK_BYTES_MAX => {
                let end = line_bytes + size as usize;
                let Some(rest) = bytes.get(end..end + 2) else { return Ok(None) };
                if rest != b"\r\n" {
                    return Err(Fault::Malformed("a bulk string without its end"));
                }
                Ok(Some((&bytes[line_bytes..end], end + 2)))
            }
            _ => Err(Fault::Malformed("a bulk string beyond all we ask for")),
        },
        _ => Err(Fault::Malformed("an unknown type")),
    }
}

pub(crate) fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
}

pub(crate) fn subscribe(channel: &str, out: &mut Vec<u8>) {
    write!(out, "*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{channel}\r\n", channel.len()).expect("memory takes all");
}

pub(crate) fn publish(channel: &str, payload: &[u8], out: &mut Vec<u8>) {
    write!(out, "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), payload.len())
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
        let bytes =
            b"+PONG\r\n*3\r\n$9\r\nsubscribe\r\n$2\r\np1\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$2\r\np1\r\n$2\r\n\
            \r\n\r\n:3\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n+OK\r\n";
        let wanted = [Event::Pong, Event::Ready, Event::Delivery, Event::Ack(3), Event::Pong, Event::Other];
        assert_events(item, bytes, &wanted);
    }

    #[test]
    fn errors_and_strangers_are_faults() {
        assert!(matches!(item(b"-ERR max number of clients reached\r\n"), Err(Fault::Refused(_))));
        for bad in [&b"HTTP\r\n"[..], b"*0\r\n", b"*9\r\n", b"$x\r\n", b"$1\r\nabc", b"*1\r\n*1\r\n", b"\r\n"]
        {
            assert!(matches!(item(bad), Err(Fault::Malformed(_))), "{bad:?}");
        }
    }

    /// A client's commands are arrays of bulk strings too.
    #[test]
    fn commands_are_whole_items() {
        for write in [
            (|out| publish("room", b"hi", out)) as fn(&mut Vec<u8>),
            |out| subscribe("room", out),
            |out| ping(out),
        ] {
            let mut out = Vec::new();
            write(&mut out);
            assert_eq!(item(&out), Ok(Some((Event::Other, out.len()))));
        }
    }
}
