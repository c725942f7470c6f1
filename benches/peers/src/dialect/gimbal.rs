//! gimbal: a length and a packet.

use bytes::Bytes;
use gimbal::{clock, load::fleet::Member};
use gimbal_codec::{ClientMessageId, Command, Packet, RoomId, UserId, body, frame};

use super::{Event, Fault, Found, leb128};

/// The room of a fan-out; each server is fresh, so any number does.
pub(crate) const ROOM: u64 = 0x7065_6572;
/// As long on the wire as the number of any epoch of control: five bytes.
const EPOCH: u64 = u32::MAX as u64;
/// Marks our signals, so that a refusal, which carries it back, is not taken for a signal of somebody else.
const SIGNAL_MARK: u64 = 1;

/// See [`super::ItemFn`].
pub(crate) fn item(bytes: &[u8]) -> Found {
    let Some((length, prefix)) = leb128(bytes)? else { return Ok(None) };
    let Some(packet) = bytes[prefix..].get(..length) else { return Ok(None) };
    let packet = Packet::decode(packet).map_err(|_| Fault::Malformed("not a packet"))?;
    Ok(Some((event(&packet)?, prefix + length)))
}

fn event(packet: &Packet<'_>) -> Result<Event, Fault> {
    match Command::try_from(packet.command).map_err(|_| Fault::Malformed("an unknown command"))? {
        Command::Message => Ok(Event::Delivery),
        Command::Signal if packet.seq == 0 => Ok(Event::Delivery),
        Command::Heartbeat => Ok(Event::Pong),
        Command::SignIn | Command::Join => good(packet).map(|()| Event::Ready),
        Command::Send => good(packet).map(|()| Event::Ack(packet.seq)),
        Command::Signal => good(packet).map(|()| Event::Other),
        Command::Close => Err(Fault::Refused(format!("{:?}", body::Close::decode(packet.content)))),
        _ => Err(Fault::Malformed("a packet we did not ask for")),
    }
}

fn good(packet: &Packet<'_>) -> Result<(), Fault> {
    let reply = body::Reply::decode(packet.content).map_err(|_| Fault::Malformed("not a reply"))?;
    match reply.code {
        0 => Ok(()),
        code => Err(Fault::Refused(format!("{} ({code})", reply.message))),
    }
}

/// Signs in, with the token that the server will check.
pub(crate) fn hello(member: &Member, out: &mut Vec<u8>) {
    out.extend_from_slice(&gimbal::load::fleet::sign_in_frame(member, Some(gimbal_codec::Seq::new(0))));
}

pub(crate) fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(&frame(Command::Heartbeat, "", 0, &()));
}

pub(crate) fn join(out: &mut Vec<u8>) {
    out.extend_from_slice(&frame(Command::Join, "", 0, &body::Rooms { rooms: vec![RoomId::new(ROOM)] }));
}

pub(crate) fn signal(to: UserId, payload: &[u8], out: &mut Vec<u8>) {
    let signal = body::Signal { to_user: to, command: 1, content: payload, ..Default::default() };
    out.extend_from_slice(&frame(Command::Signal, "", SIGNAL_MARK, &signal));
}

/// A durable send; its answer carries `number`, which rises.
pub(crate) fn send(to: UserId, number: u64, payload: &[u8], out: &mut Vec<u8>) {
    let client_message_id = ClientMessageId::new(number);
    let send = body::Send { client_message_id, to, command: 1, content: payload, ..Default::default() };
    out.extend_from_slice(&frame(Command::Send, "", number, &send));
}

/// A frame as members of the room get it: what the bare loop sends.
pub(crate) fn room_frame(payload: &[u8]) -> Bytes {
    let message = body::Message {
        command: 1,
        content: payload,
        room: RoomId::new(ROOM),
        created_at_ms: clock::unix().as_millis() as i64,
        created_at: clock::unix().as_secs() as i64,
        room_epoch: EPOCH,
        room_seq: 1_000,
        ..Default::default()
    };
    frame(Command::Message, "", 0, &message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::tests::assert_events;

    #[test]
    fn items_are_told_apart_at_any_split() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&frame(Command::SignIn, "", 0, &body::Reply::default()));
        bytes.extend_from_slice(&frame(Command::Join, "", 0, &body::Reply::default()));
        ping(&mut bytes);
        bytes.extend_from_slice(&room_frame(&[b'.'; 300]));
        bytes.extend_from_slice(&frame(Command::Signal, "", 0, &body::Signal::default()));
        bytes.extend_from_slice(&frame(Command::Send, "", 9, &body::Reply::default()));
        let wanted =
            [Event::Ready, Event::Ready, Event::Pong, Event::Delivery, Event::Delivery, Event::Ack(9)];
        assert_events(item, &bytes, &wanted);
    }

    #[test]
    fn refusals_and_strangers_are_faults() {
        let refused = |command| frame(command, "", SIGNAL_MARK, &body::Reply::new(10_000, "no"));
        for command in [Command::SignIn, Command::Join, Command::Send, Command::Signal] {
            assert!(matches!(item(&refused(command)), Err(Fault::Refused(_))), "{command:?}");
        }
        assert!(matches!(item(b"\x04HTTP"), Err(Fault::Malformed(_))));
    }
}
