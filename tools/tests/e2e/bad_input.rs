//! What a broken or hostile client sends: each gets its close code, is counted, and harms nobody.

use std::{io::Write as _, net::Shutdown, thread, time::Duration};

use gimbal_codec::{CloseReason, Command, DeviceId, UserId, body, code, frame, limits};

use crate::harness::{Api, Client, Device, Event, Server, Settings, client::Refused, http, server::until};

/// Sum of all counters labelled with this reason.
fn counted(server: &Server, reason: CloseReason) -> f64 {
    http::labelled(server.gateway_http, reason.text())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Bytes that end a connection before or after its sign-in, and the reason.
fn hostile(online: bool) -> Vec<(&'static str, Vec<u8>, CloseReason)> {
    let max = if online { limits::FRAME_BYTES_MAX } else { limits::FRAME_BYTES_MAX_FRESH };
    let garbage = [&[9][..], &[0xff; 9]].concat();
    let mut table = vec![
        ("a length over the bound", varint(max as u64 + 1), CloseReason::FrameTooLarge),
        ("a length of 4 GiB", varint(u32::MAX.into()), CloseReason::FrameTooLarge),
        ("an endless varint", vec![0xff; 64], CloseReason::BadLength),
        ("a length of zero", vec![0], CloseReason::EmptyFrame),
        ("garbage", garbage, CloseReason::BadPacket),
        ("a request id that is not UTF-8", vec![4, 0x0a, 2, 0xc3, 0x28], CloseReason::BadPacket),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(4), CloseReason::BadPacket),
    ];
    if online {
        table.push(("an unknown command", frame(4_000, "", 0, &()).to_vec(), CloseReason::UnknownCommand));
        table.push(("a close", frame(Command::Close, "", 0, &()).to_vec(), CloseReason::UnexpectedCommand));
        table.push((
            "a second sign-in",
            frame(Command::SignIn, "", 0, &()).to_vec(),
            CloseReason::UnexpectedCommand,
        ));
        let bad_body = [0x08, 0xff, 0xff].as_slice();
        table.push((
            "a send that does not parse",
            frame(Command::Send, "", 0, bad_body).to_vec(),
            CloseReason::BadBody,
        ));
    }
    table
}

#[test]
fn hostile_bytes_are_answered_with_their_close_code_counted_and_harm_nobody() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let mut witness = Client::online(server.tcp, &api.device());
    for online in [false, true] {
        let device = api.device();
        for (what, bytes, reason) in hostile(online) {
            let before = counted(&server, reason);
            let mut client = Client::connect(server.tcp);
            if online {
                client.sign_in(&device, Some(0)).unwrap();
            }
            client.write(&bytes);
            let code = client.closed();
            let got = CloseReason::from_code(code);
            assert!(
                got == Some(reason) || (what == "HTTP" && code >= 4300),
                "{what} (online: {online}): {got:?}, not {reason:?}"
            );
            if what != "HTTP" {
                assert!(until(|| counted(&server, reason) > before), "{what} is not counted");
            }
            witness.heartbeat();
        }
    }
}

#[test]
fn a_wrong_credential_is_refused_and_closed() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let good = api.device();
    let with = |user: u64, device: u64, token: &str| Device {
        user: UserId::new(user),
        device: DeviceId::new(device),
        token: token.to_owned(),
    };
    let (user, device) = (good.user.get(), good.device.get());
    let (wrong_token, long_token) = ("f".repeat(64), "f".repeat(700));
    for (what, bad) in [
        ("a wrong token", with(user, device, &wrong_token)),
        ("a token that is no hex", with(user, device, "\u{1F600}")),
        ("a long token", with(user, device, &long_token)),
        ("an unknown device", with(user, device + 1_000, &good.token)),
        ("an unknown user", with(user + 1_000, device, &good.token)),
        ("user 0", with(0, device, &good.token)),
        ("the last user", with(u64::MAX, u64::MAX, &good.token)),
        ("another device's token", with(user, api.device().device.get(), &good.token)),
    ] {
        let mut client = Client::connect(server.tcp);
        let Err(Refused(refused)) = client.sign_in(&bad, Some(0)) else { panic!("{what} signs in") };
        let known = [code::NOT_SIGNED_IN, code::DEVICE_NOT_FOUND, code::USER_NOT_FOUND, code::BAD_REQUEST];
        assert!(known.contains(&refused), "{what}: {refused}");
        assert_eq!(client.closed(), CloseReason::SignInFailed.code(), "{what}");
    }
    assert!(until(|| counted(&server, CloseReason::SignInFailed) >= 8.0));
    Client::online(server.tcp, &good).heartbeat();
}

#[test]
fn half_a_frame_and_then_silence_ends_at_the_deadline() {
    let settings = "sign_in_deadline = \"400ms\"\nidle_deadline = \"700ms\"";
    let server = Server::start_with(Settings::gateway(settings));
    let api = Api::connect(server.grpc);
    let mut nothing = Client::connect(server.tcp);
    let mut half = Client::connect(server.tcp);
    half.write(&[100, 8, 1]);
    let mut online = Client::online(server.tcp, &api.device());
    online.write(&[100, 8, 1]);
    assert_eq!(half.closed(), CloseReason::SignInDeadline.code());
    assert_eq!(nothing.closed(), CloseReason::SignInDeadline.code());
    assert_eq!(online.closed(), CloseReason::Idle.code());
}

/// Nine bytes of a frame, one at a time, do not keep a connection alive: only a whole frame does.
#[test]
fn one_byte_at_a_time_works_but_does_not_extend_the_deadline() {
    let server = Server::start_with(Settings::gateway("sign_in_deadline = \"1s\""));
    let api = Api::connect(server.grpc);
    let device = api.device();
    let mut patient = Client::connect(server.tcp);
    let sign_in =
        body::SignIn { user: device.user, device: device.device, token: &device.token, cursor: None };
    for byte in frame(Command::SignIn, "1", 0, &sign_in).iter() {
        patient.write(&[*byte]);
    }
    assert!(matches!(patient.event(), Event::Answer { content, .. } if content.is_empty()));
    for byte in frame(Command::Heartbeat, "2", 0, b"slowly".as_slice()).iter() {
        patient.write(&[*byte]);
    }
    assert!(matches!(patient.event(), Event::Answer { content, .. } if content == b"slowly"));

    let mut endless = Client::connect(server.tcp);
    let mut socket = endless.stream().try_clone().unwrap();
    let dripping = thread::spawn(move || {
        socket.write_all(&varint(1_000)).unwrap();
        while socket.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(endless.closed(), CloseReason::SignInDeadline.code());
    let _ = endless.stream().shutdown(Shutdown::Both);
    dripping.join().unwrap();
}

#[test]
fn room_zero_and_too_many_rooms_are_refused() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let mut client = Client::online(server.tcp, &api.device());
    let many: Vec<u64> = (1..=65).collect();
    assert_eq!(client.join(&many), Err(Refused(code::TOO_MANY_ROOMS)));
    client.join(&many[..64]).unwrap();
    client.join(&many[..64]).unwrap();
    assert_eq!(client.join(&[1_000]), Err(Refused(code::TOO_MANY_ROOMS)));
    client.leave(&[]).unwrap();
    client.join(&[1_000]).unwrap();
    let over: Vec<u64> = (1..=limits::ROOMS_PER_FRAME_MAX as u64 + 1).collect();
    let rooms = body::Rooms { rooms: over.into_iter().map(gimbal_codec::RoomId::new).collect() };
    client.request(Command::Join, &rooms);
    assert_eq!(client.closed(), CloseReason::BadBody.code());
}

#[test]
fn a_call_without_or_with_a_wrong_credential_is_refused() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    assert_eq!(api.send_unauthenticated().code(), tonic::Code::Unauthenticated);
    let mut device = api.device();
    device.token = "0".repeat(64);
    assert!(api.sync(&device, 0).is_err());
}
