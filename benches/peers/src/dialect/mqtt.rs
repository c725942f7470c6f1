//! MQTT 3.1.1, QoS 0: a type byte, a length, the rest.

use super::{Event, Fault, Found, leb128, put_leb128};

/// Seconds after which the server may forget a silent client: more than twice our keepalive.
const KEEP_ALIVE_S: u16 = 60;
/// The only packet id we use; each subscription is answered before the next.
const PACKET_ID: u16 = 1;

/// See [`super::ItemFn`].
pub(crate) fn item(bytes: &[u8]) -> Found {
    let Some((&head, rest)) = bytes.split_first() else { return Ok(None) };
    let Some((length, prefix)) = leb128(rest)? else { return Ok(None) };
    let Some(body) = rest[prefix..].get(..length) else { return Ok(None) };
    let event = match (head >> 4, body) {
        (3, _) => Event::Delivery,
        (2, [_, 0]) => Event::Ready,
        (2, [_, code]) => return Err(Fault::Refused(format!("connection, code {code}"))),
        (9, [_, _, code]) if *code < 0x80 => Event::Ready,
        (9, [_, _, code]) => return Err(Fault::Refused(format!("subscription, code {code}"))),
        (13, []) => Event::Pong,
        _ => return Err(Fault::Malformed("an unknown packet")),
    };
    Ok(Some((event, 1 + prefix + length)))
}

/// Signs on with a clean session.
pub(crate) fn hello(client: usize, out: &mut Vec<u8>) {
    let name = format!("c{client}");
    out.push(0x10);
    put_leb128(out, 10 + 2 + name.len());
    put_text(out, "MQTT");
    out.extend_from_slice(&[4, 0b10]);
    out.extend_from_slice(&KEEP_ALIVE_S.to_be_bytes());
    put_text(out, &name);
}

pub(crate) fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xc0, 0]);
}

pub(crate) fn subscribe(topic: &str, out: &mut Vec<u8>) {
    out.push(0x82);
    put_leb128(out, 2 + 2 + topic.len() + 1);
    out.extend_from_slice(&PACKET_ID.to_be_bytes());
    put_text(out, topic);
    out.push(0);
}

pub(crate) fn publish(topic: &str, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x30);
    put_leb128(out, 2 + topic.len() + payload.len());
    put_text(out, topic);
    out.extend_from_slice(payload);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::tests::assert_events;

    #[test]
    fn items_are_told_apart_at_any_split() {
        let mut bytes = vec![0x20, 2, 0, 0, 0x90, 3, 0, 1, 0, 0xd0, 0];
        publish("p/1", &[7; 200], &mut bytes);
        assert_events(item, &bytes, &[Event::Ready, Event::Ready, Event::Pong, Event::Delivery]);
    }

    #[test]
    fn refusals_and_strangers_are_faults() {
        assert!(matches!(item(&[0x20, 2, 0, 5]), Err(Fault::Refused(_))));
        assert!(matches!(item(&[0x90, 3, 0, 1, 0x80]), Err(Fault::Refused(_))));
        assert!(matches!(item(b"\x00\x00"), Err(Fault::Malformed(_))));
        assert!(matches!(item(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x7f]), Err(Fault::Malformed(_))));
    }

    #[test]
    fn a_connect_packet_has_the_length_it_says() {
        let mut out = Vec::new();
        hello(12_345, &mut out);
        assert_eq!(out.len(), 2 + usize::from(out[1]));
        assert_eq!(&out[2..12], b"\x00\x04MQTT\x04\x02\x00\x3c");
    }
}
