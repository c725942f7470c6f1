//! Control restarts alone, and whole servers drain.

use gimbal_codec::{ClientMessageId, CloseReason, Command, body, code};
use gimbal_rpc::v1 as pb;

use crate::harness::{Api, Client, Event, Server, Settings, client::Refused, http, server::until};

fn send_by_call(api: &Api, from: &crate::harness::Device, to: &crate::harness::Device, id: u64) {
    let request = pb::SendRequest {
        client_message_id: id,
        to_user: to.user.get(),
        command: 1,
        content: id.to_be_bytes().to_vec().into(),
        to_group: 0,
    };
    api.send(from, request).unwrap();
}

#[test]
fn control_restarts_alone_and_no_client_sees_a_close() {
    let mut server = Server::start_apart(Settings::default());
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut listener = Client::online(server.tcp, &bob);
    let mut sender = Client::online(server.tcp, &alice);
    listener.join(&[4]).unwrap();
    sender.send(bob.user, 1, b"before").unwrap();
    assert_eq!(listener.receive(1)[0].seq, 1);
    for round in 0..3 {
        server.kill_control();
        // The gateway answers for itself: heartbeats are echoed, a send is refused for the moment.
        listener.heartbeat();
        assert!(
            until(|| try_send(&mut sender, &bob, 1_000 + round) == Err(Some(Refused(code::UNAVAILABLE))))
        );
        server.launch_control();
        // Before the gateway has found control again, others already send.
        let api = Api::connect(server.grpc);
        let stranger = api.device();
        send_by_call(&api, &stranger, &bob, 1);
        assert!(until(|| try_send(&mut sender, &bob, 2_000 + round).is_ok()), "sends work again");
        for from in [stranger.user, alice.user] {
            while listener.receive(1)[0].from_user != from {}
        }
        // Interest in the room is announced again too.
        assert!(until(|| api.publish(4, b"room").gateways == 1));
        assert!(until(|| listener.flush().iter().any(|message| message.content == b"room")));
    }
    assert_eq!(Api::connect(server.grpc).sessions(bob.user).len(), 1);
}

/// `Err(None)`: no answer, as for a call that was under way when the link broke. An id that was refused is not used up.
fn try_send(client: &mut Client, to: &crate::harness::Device, id: u64) -> Result<(), Option<Refused>> {
    let id = ClientMessageId::new(id);
    let request = body::Send {
        client_message_id: id,
        to: to.user,
        command: 1,
        content: b"retried",
        ..body::Send::default()
    };
    match client.try_call(Command::Send, &request) {
        Some(result) => result.map(drop).map_err(Some),
        None => Err(None),
    }
}

#[test]
fn a_message_stored_while_the_link_was_down_is_delivered_after_it() {
    let mut server = Server::start_apart(Settings::default());
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut listener = Client::online(server.tcp, &bob);
    listener.heartbeat();
    server.kill_control();
    server.launch_control();
    let api = Api::connect(server.grpc);
    (1..=20).for_each(|id| send_by_call(&api, &alice, &bob, id));
    let seqs: Vec<u64> = listener.receive(20).iter().map(|message| message.seq).collect();
    assert_eq!(seqs, (1..=20).collect::<Vec<_>>());
    assert!(listener.flush().is_empty());
}

#[test]
fn on_sigterm_clients_are_told_when_to_come_back_and_the_process_ends_well() {
    let mut server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut sender = Client::online(server.tcp, &alice);
    let mut others: Vec<Client> = (0..20).map(|_| Client::online(server.tcp, &api.device())).collect();
    for id in 1..=50 {
        sender.send(bob.user, id, &id.to_be_bytes()).unwrap();
    }
    server.terminate();
    for client in others.iter_mut().chain([&mut sender]) {
        let mut told = None;
        loop {
            match client.event() {
                Event::Close { code, retry_after_ms } => {
                    told = Some((code, retry_after_ms));
                    let ready = http::get(server.http, "/readyz");
                    assert!(!matches!(ready, Ok((200, _))), "balancers are still sent here: {ready:?}");
                }
                Event::End => break,
                _ => {}
            }
        }
        let (code, retry_after_ms) = told.expect("a close frame");
        assert_eq!(code, CloseReason::Draining.code());
        assert!(retry_after_ms > 0, "nobody is told when to come back");
    }
    assert!(server.wait().success(), "{}", server.log("serve"));
    server.launch();
    let mailbox = Api::connect(server.grpc).mailbox(&bob);
    assert_eq!(mailbox.len(), 50);
}
