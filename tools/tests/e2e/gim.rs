//! A client that knows only gim's protocol: no cursor, gim's four commands, gim's exact answers.

use gimbal_codec::{CloseReason, Command, Seq, UserId, body, code, frame};

use crate::harness::{Api, Client, Event, Server, client::Refused};

#[test]
fn before_sign_in_a_command_is_answered_and_soon_too_many_are_not() {
    let server = Server::start();
    let mut client = Client::connect(server.tcp);
    for _ in 0..3 {
        assert_eq!(client.call(Command::Heartbeat, b"x".as_slice()), Err(Refused(code::NOT_SIGNED_IN)));
        assert_eq!(client.subscribe(3), Err(Refused(code::NOT_SIGNED_IN)));
    }
    for _ in 0..20 {
        client.request(Command::Heartbeat, b"x".as_slice());
    }
    assert_eq!(client.closed(), CloseReason::TooManyFrames.code());
}

#[test]
fn a_sign_in_is_answered_with_empty_content_and_messages_come_as_they_are() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut sender = Client::online(server.tcp, &alice);
    sender.send(bob.user, 1, b"while away").unwrap();
    let mut listener = Client::connect(server.tcp);
    let sign_in = body::SignIn { user: bob.user, device: bob.device, token: &bob.token, cursor: None };
    listener.write(&frame(Command::SignIn, "abc", 42, &sign_in));
    let answer = Event::Answer { request_id: "abc".to_owned(), command: 1, content: Vec::new() };
    assert_eq!(listener.event(), answer);
    sender.send(bob.user, 2, b"live").unwrap();
    let Event::Message(message) = listener.event() else { panic!("not a message") };
    assert_eq!((message.seq, message.content.as_slice()), (2, b"live".as_slice()));
    let page = api.sync(&bob, 0).unwrap();
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn subscribing_again_replaces_the_room_and_zero_leaves() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let mut client = Client::connect(server.tcp);
    client.sign_in(&api.device(), None).unwrap();
    let heard = |client: &mut Client, room: u64| {
        api.publish(room, b"x");
        client.flush().iter().any(|message| message.room == room) || {
            // The publish may still be on its way; a second one behind it decides.
            api.publish(room, b"x");
            client.flush().iter().any(|message| message.room == room)
        }
    };
    client.subscribe(1).unwrap();
    assert!(crate::harness::server::until(|| heard(&mut client, 1)));
    client.subscribe(2).unwrap();
    assert!(crate::harness::server::until(|| heard(&mut client, 2)));
    client.flush();
    assert!(!heard(&mut client, 1));
    client.subscribe(0).unwrap();
    client.flush();
    assert!(!heard(&mut client, 2));
}

#[test]
fn a_wrong_token_is_answered_as_gim_does_and_then_closed() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let device = api.device();
    for (user, token) in [(device.user, "0".repeat(64)), (UserId::new(u64::MAX), device.token.clone())] {
        let mut client = Client::connect(server.tcp);
        let sign_in = body::SignIn { user, device: device.device, token: &token, cursor: None };
        assert_eq!(client.call(Command::SignIn, &sign_in), Err(Refused(code::NOT_SIGNED_IN)));
        assert_eq!(client.closed(), CloseReason::SignInFailed.code());
    }
    let mut client = Client::connect(server.tcp);
    let sign_in =
        body::SignIn { user: device.user, device: device.device, token: "", cursor: Some(Seq::new(0)) };
    assert!(client.call(Command::SignIn, &sign_in).is_err());
    client.closed();
}

#[test]
fn one_that_reads_too_slowly_is_closed_with_a_code_to_reconnect() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut slow = Client::connect(server.tcp);
    slow.sign_in(&bob, None).unwrap();
    let mut sender = Client::online(server.tcp, &alice);
    let content = vec![1; 48 * 1024];
    // Far more than any socket buffer and the session's queue take together.
    for id in 1..=400 {
        sender.send(bob.user, id, &content).unwrap();
    }
    let mut last = None;
    loop {
        match slow.event() {
            Event::Message(message) => {
                assert_eq!(message.seq, last.map_or(1, |last: u64| last + 1));
                last = Some(message.seq);
            }
            Event::Close { code, .. } => {
                assert_eq!(code, CloseReason::TooSlow.code());
                break;
            }
            Event::End => break, // reset by the server before the close frame could be written
            other => panic!("{other:?}"),
        }
    }
    assert!(last.is_none_or(|last| last < 400));
    assert_eq!(api.mailbox(&bob).len(), 400, "the mailbox has them all");
}
