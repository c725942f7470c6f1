//! One user to another: delivered, stored, deduplicated, acknowledged.

use gimbal_codec::{UserId, code, limits};
use gimbal_rpc::v1 as pb;

use crate::harness::{Api, Client, Server, client::Refused};

fn contents(messages: &[crate::harness::client::Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(&message.content).into_owned()).collect()
}

#[test]
fn a_message_crosses_with_its_seq() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut listener = Client::online(server.tcp, &bob);
    let mut sender = Client::online(server.tcp, &alice);
    let result = sender.send(bob.user, 1, b"hello").unwrap();
    let got = listener.receive(1).remove(0);
    assert_eq!((got.seq, got.id, got.content.as_slice()), (1, result.message_id.get(), b"hello".as_slice()));
    assert_eq!((got.from_user, got.room), (alice.user, 0));
    assert!(!result.duplicate && result.seq.get() == 1 && result.created_at_ms > 0);

    let request = pb::SendRequest {
        client_message_id: 2,
        to_user: bob.user.get(),
        command: 1,
        content: "by call".into(),
        to_group: 0,
    };
    let reply = api.send(&alice, request).unwrap();
    assert_eq!((reply.seq, contents(&listener.receive(1))), (2, vec!["by call".to_owned()]));
}

#[test]
fn ten_sends_to_an_absent_listener_are_read_once_in_order() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    drop(Client::online(server.tcp, &bob));
    let mut sender = Client::online(server.tcp, &alice);
    let sent: Vec<String> = (1..=10).map(|number| format!("message {number}")).collect();
    for (at, content) in sent.iter().enumerate() {
        sender.send(bob.user, at as u64 + 1, content.as_bytes()).unwrap();
    }
    let mut listener = Client::online(server.tcp, &bob);
    assert_eq!(contents(&listener.receive(10)), sent);
    assert!(listener.flush().is_empty());
    drop(listener);
    let mut again = Client::online_from(server.tcp, &bob, 10);
    assert!(again.flush().is_empty(), "what the cursor covers does not come again");
}

#[test]
fn two_devices_get_all_and_acknowledge_for_themselves() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, phone) = (api.device(), Api::phone());
    let (first, second) = (api.device_of(&phone), api.device_of(&phone));
    assert_eq!(first.user, second.user);
    let (mut one, mut two) = (Client::online(server.tcp, &first), Client::online(server.tcp, &second));
    let mut sender = Client::online(server.tcp, &alice);
    for number in 1..=5 {
        sender.send(first.user, number, format!("{number}").as_bytes()).unwrap();
    }
    assert_eq!(contents(&one.receive(5)), contents(&two.receive(5)));
    assert_eq!(one.ack(4), 4);
    assert_eq!(one.ack(2), 4, "an ack never moves back");
    assert_eq!(two.ack(1), 1, "the other device's state is its own");
    assert_eq!(api.ack(&first, 0).unwrap(), 4);
}

#[test]
fn the_same_client_message_id_is_one_message_and_one_answer() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut listener = Client::online(server.tcp, &bob);
    let mut sender = Client::online(server.tcp, &alice);
    let first = sender.send(bob.user, 7, b"once").unwrap();
    let second = sender.send(bob.user, 7, b"once").unwrap();
    let request = pb::SendRequest {
        client_message_id: 7,
        to_user: bob.user.get(),
        command: 1,
        content: "once".into(),
        to_group: 0,
    };
    let third = api.send(&alice, request).unwrap();
    assert_eq!(
        (first.message_id, first.seq, first.created_at_ms),
        (second.message_id, second.seq, second.created_at_ms)
    );
    assert_eq!((third.message_id, third.seq), (first.message_id.get(), first.seq.get()));
    assert!(!first.duplicate && second.duplicate && third.duplicate);
    assert_eq!(contents(&listener.receive(1)), ["once"]);
    assert!(listener.flush().is_empty());
    assert_eq!(sender.send(bob.user, 7, b"something else"), Err(Refused(code::CONFLICT)));
}

#[test]
fn a_send_to_nobody_is_refused_and_costs_nobody() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut sender = Client::online(server.tcp, &alice);
    for (id, nobody) in [9_999, 0, u64::MAX, bob.user.get() + 1_000].into_iter().enumerate() {
        let refused = sender.send(UserId::new(nobody), id as u64 + 1, b"?").unwrap_err();
        assert!([code::USER_NOT_FOUND, code::BAD_REQUEST].contains(&refused.0), "user {nobody}: {refused:?}");
        let request = pb::SendRequest {
            client_message_id: 50,
            to_user: nobody,
            command: 1,
            content: "?".into(),
            to_group: 0,
        };
        assert!(api.send(&alice, request).is_err(), "user {nobody}");
    }
    assert_eq!(sender.send(bob.user, 100, b"still fine").unwrap().seq.get(), 1);
}

#[test]
fn content_over_the_limit_is_refused_and_content_at_it_crosses() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut listener = Client::online(server.tcp, &bob);
    let mut sender = Client::online(server.tcp, &alice);
    let most = vec![7; limits::CONTENT_BYTES_MAX];
    sender.send(bob.user, 1, &most).unwrap();
    assert_eq!(listener.receive(1)[0].content, most);
    let more = vec![7; limits::CONTENT_BYTES_MAX + 1];
    assert_eq!(sender.send(bob.user, 2, &more), Err(Refused(code::CONTENT_TOO_LARGE)));
    let request = pb::SendRequest {
        client_message_id: 3,
        to_user: bob.user.get(),
        command: 1,
        content: more.into(),
        to_group: 0,
    };
    assert!(api.send(&alice, request).is_err());
    sender.send(bob.user, 4, b"still fine").unwrap();
}

#[test]
fn many_messages_in_flight_arrive_in_the_order_they_were_sent() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let bob = api.device();
    let mut listener = Client::online(server.tcp, &bob);
    let senders: Vec<_> = (0..4).map(|_| api.device()).collect();
    std::thread::scope(|scope| {
        for device in &senders {
            let (tcp, to) = (server.tcp, bob.user);
            scope.spawn(move || {
                let mut sender = Client::online(tcp, device);
                for id in 1..=250 {
                    sender.send(to, id, &id.to_be_bytes()).unwrap();
                }
            });
        }
        let got = listener.receive(1_000);
        for device in &senders {
            let of_one = got.iter().filter(|message| message.from_user == device.user);
            let ids: Vec<u64> =
                of_one.map(|message| u64::from_be_bytes(message.content[..].try_into().unwrap())).collect();
            assert_eq!(ids, (1..=250).collect::<Vec<_>>());
        }
    });
}

#[test]
fn the_backend_pushes_to_users_stored_or_transient() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut online = Client::online(server.tcp, &alice);
    let users = vec![alice.user.get(), bob.user.get()];
    let stored = pb::PushToUsersRequest {
        user_ids: users.clone(),
        command: 9,
        content: "stored".into(),
        transient: false,
        idempotency_key: "push-1".to_owned(),
    };
    let first = api.push_to_users(stored.clone()).unwrap();
    let again = api.push_to_users(stored.clone()).unwrap();
    assert_eq!(first, again, "the same key is the same push");
    assert!(first.message_id != 0 && first.users.iter().all(|user| user.seq == 1 && user.reason.is_empty()));
    let other = pb::PushToUsersRequest { content: "other".into(), ..stored.clone() };
    assert!(api.push_to_users(other).is_err(), "the same key with another body is a conflict");

    let transient = pb::PushToUsersRequest { transient: true, idempotency_key: String::new(), ..stored };
    assert_eq!(api.push_to_users(transient).unwrap().message_id, 0);
    let got = online.receive(2);
    assert_eq!((got[0].seq, got[1].seq), (1, 0));
    assert!(got[0].from_user.is_none());
    assert_eq!(api.mailbox(&bob).len(), 1, "the transient one was not stored");
}
