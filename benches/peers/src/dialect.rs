//! What each server speaks, as little of it as a load client needs.
//!
//! A stream is a row of items. [`ItemFn`] looks at the bytes that are there and says what the first item means and how
//! long it is, or that it is not complete. It keeps nothing, so the loop around it is the same for all servers.

pub(crate) mod gimbal;
pub(crate) mod mqtt;
pub(crate) mod nats;
pub(crate) mod resp;

/// Meaning of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message for us.
    Delivery,
    /// A publish was taken; its number, where the protocol carries one.
    Ack(u64),
    /// The answer to our ping.
    Pong,
    /// A connection or subscription stands.
    Ready,
    /// The server wants a pong.
    Ping,
    /// Nothing that a load client cares about.
    Other,
}

/// Why a stream is not worth reading on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// Not this protocol.
    #[error("not an item of the protocol: {0}")]
    Malformed(&'static str),
    /// The server says no.
    #[error("refused: {0}")]
    Refused(String),
}

/// An item and its length in bytes; `None` when it is not complete.
pub(crate) type Found = Result<Option<(Event, usize)>, Fault>;
/// Reads the first item.
pub(crate) type ItemFn = fn(&[u8]) -> Found;

/// Longest line of a text protocol; the longest is NATS's greeting of a few hundred bytes.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// The first line without its `\r\n`.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Fault> {
    match bytes.iter().take(LINE_BYTES_MAX).position(|&byte| byte == b'\n') {
        Some(end) => match bytes[..end].strip_suffix(b"\r") {
            Some(line) => Ok(Some(line)),
            None => Err(Fault::Malformed("a line that does not end in CR LF")),
        },
        None if bytes.len() < LINE_BYTES_MAX => Ok(None),
        None => Err(Fault::Malformed("an endless line")),
    }
}

/// A decimal number of at most 19 digits.
fn decimal(digits: &[u8]) -> Result<u64, Fault> {
    let is_number = (1..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    if !is_number {
        return Err(Fault::Malformed("a number is wanted"));
    }
    Ok(digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// An unsigned LEB128 number of at most four bytes, and its length: MQTT's and gimbal's length prefix.
fn leb128(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(Fault::Malformed("a length of more than four bytes")) }
}

fn put_leb128(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conns::Stream;

    /// Checks that `bytes` are these events, in one piece and in any two pieces and byte by byte.
    pub(crate) fn assert_events(item: ItemFn, bytes: &[u8], wanted: &[Event]) {
        for split in 0..=bytes.len() {
            assert_eq!(read(item, [&bytes[..split], &bytes[split..]]), wanted, "split at {split}");
        }
        assert_eq!(read(item, bytes.chunks(1)), wanted, "byte by byte");
    }

    fn read<'a>(item: ItemFn, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let (mut stream, mut events) = (Stream::default(), Vec::new());
        for piece in pieces {
            stream.feed(piece, item, |event| events.push(event)).expect("a good stream");
        }
        assert_eq!(stream.kept(), 0, "something is left over");
        events
    }

    /// A row of deliveries with something else between them, as each server sends it.
    fn samples() -> Vec<(ItemFn, Vec<u8>)> {
        let payload = [b'.'; 100];
        let mut mqtt = vec![0xd0, 0];
        mqtt::publish("room", &payload, &mut mqtt);
        let mut resp = b"+PONG\r\n".to_vec();
        resp.extend_from_slice(b"*3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$100\r\n");
        resp.extend_from_slice(&payload);
        resp.extend_from_slice(b"\r\n");
        let mut nats = b"PONG\r\nMSG room 1 100\r\n".to_vec();
        nats.extend_from_slice(&payload);
        nats.extend_from_slice(b"\r\n");
        let mut own = Vec::new();
        gimbal::ping(&mut own);
        own.extend_from_slice(&gimbal::room_frame(&payload));
        vec![(mqtt::item, mqtt), (resp::item, resp), (nats::item, nats), (gimbal::item, own)]
    }

    proptest! {
        #[test]
        fn deliveries_are_counted_the_same_over_any_split(
            repeats in 1usize..40,
            cuts in prop::collection::vec(1usize..400, 1..60),
        ) {
            for (item, sample) in samples() {
                let bytes = sample.repeat(repeats);
                let (mut stream, mut deliveries, mut pongs) = (Stream::default(), 0, 0);
                let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
                while !rest.is_empty() {
                    let cut = (*cuts.next().expect("a cycle")).min(rest.len());
                    stream.feed(&rest[..cut], item, |event| match event {
                        Event::Delivery => deliveries += 1,
                        Event::Pong => pongs += 1,
                        other => panic!("{other:?}"),
                    }).expect("a good stream");
                    rest = &rest[cut..];
                }
                prop_assert_eq!((deliveries, pongs, stream.kept()), (repeats, repeats, 0));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for (item, _) in samples() {
                let _ = Stream::default().feed(&bytes, item, |_| {});
            }
        }
    }

    #[test]
    fn lengths_survive_the_round_trip() {
        for value in [0, 1, 127, 128, 16_383, 16_384, 2_097_152, 268_435_455] {
            let mut bytes = Vec::new();
            put_leb128(&mut bytes, value);
            assert_eq!(leb128(&bytes), Ok(Some((value, bytes.len()))));
            assert_eq!(leb128(&bytes[..bytes.len() - 1]), Ok(None));
        }
        assert!(leb128(&[0x80; 4]).is_err());
    }

    #[test]
    fn an_endless_line_and_a_bad_number_are_refused() {
        assert!(line(&[b'a'; LINE_BYTES_MAX]).is_err());
        assert!(line(b"PONG\n").is_err());
        for bad in [&b""[..], b"-1", b"1a", b"99999999999999999999"] {
            assert!(decimal(bad).is_err(), "{bad:?}");
        }
    }
}
