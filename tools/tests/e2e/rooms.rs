//! Rooms over both shards, signals, and pushes to everyone.

use gimbal_codec::{Command, RoomId, UserId, body, code};

use crate::harness::{
    Api, Client, Server,
    client::Refused,
    server::{Settings, until},
};

/// As many connections to one port are spread over two shards with a chance of 1 - 2^-31 to use both.
const MEMBERS: usize = 32;

fn members(server: &Server, api: &Api, count: usize) -> Vec<Client> {
    (0..count).map(|_| Client::online(server.tcp, &api.device())).collect()
}

/// Shards on which a user has sessions.
fn shard_of(api: &Api, user: UserId) -> String {
    let sessions = api.sessions(user);
    sessions[0].session.split('.').next().unwrap().to_owned()
}

#[test]
fn members_on_both_shards_get_each_publish_once_and_a_leaver_none() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let devices: Vec<_> = (0..MEMBERS).map(|_| api.device()).collect();
    let mut clients: Vec<Client> = devices.iter().map(|device| Client::online(server.tcp, device)).collect();
    let mut shards: Vec<String> = devices.iter().map(|device| shard_of(&api, device.user)).collect();
    shards.sort();
    shards.dedup();
    assert_eq!(shards, ["0", "1"], "the kernel spreads connections over both listeners");

    clients.iter_mut().for_each(|client| client.join(&[77, 78]).unwrap());
    let mut leaver = clients.pop().unwrap();
    leaver.leave(&[77]).unwrap();
    let mut stranger = Client::online(server.tcp, &api.device());
    // Interest crosses to control apart from the answer to the join.
    assert!(until(|| api.publish(99, b"nobody").gateways == 0 && api.publish(78, b"warm").gateways == 1));
    let published: Vec<(u64, u64)> = (0..50u64)
        .map(|number| api.publish(77, &number.to_be_bytes()))
        .map(|reply| (reply.room_epoch, reply.room_seq))
        .collect();
    for client in &mut clients {
        let got: Vec<_> = client.flush().into_iter().filter(|message| message.room == 77).collect();
        let got = if got.len() == 50 { got } else { rest(client, got, 50) };
        assert_eq!(got.iter().map(|message| message.room_order).collect::<Vec<_>>(), published);
        assert!(got.iter().all(|message| message.seq == 0));
        assert!(client.flush().is_empty());
    }
    assert!(leaver.flush().iter().all(|message| message.room != 77));
    assert!(stranger.flush().is_empty());
}

/// Waits for the remaining messages of room 77.
fn rest(
    client: &mut Client,
    mut got: Vec<crate::harness::client::Message>,
    count: usize,
) -> Vec<crate::harness::client::Message> {
    while got.len() < count {
        got.extend(client.receive(1).into_iter().filter(|message| message.room == 77));
    }
    got
}

#[test]
fn a_push_to_all_reaches_every_session() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let mut clients = members(&server, &api, MEMBERS);
    let mut fresh = Client::connect(server.tcp);
    assert_eq!(api.push_to_all(b"maintenance at noon").gateways, 1);
    for client in &mut clients {
        let got = client.receive(1).remove(0);
        assert_eq!((got.seq, got.content.as_slice()), (0, b"maintenance at noon".as_slice()));
        assert!(client.flush().is_empty(), "once");
    }
    let answer = fresh.call(Command::Heartbeat, &()).unwrap_err();
    assert_eq!(answer.0, gimbal_codec::code::NOT_SIGNED_IN, "a connection that is not signed in got nothing");
}

#[test]
fn a_signal_reaches_the_user_and_is_never_stored() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut listener = Client::online(server.tcp, &bob);
    let mut sender = Client::online(server.tcp, &alice);
    let typing =
        body::Signal { to_user: bob.user, command: 5, content: b"typing", ..body::Signal::default() };
    sender.request(Command::Signal, &typing);
    sender.heartbeat();
    let mut got = Vec::new();
    assert!(until(|| {
        got.extend(listener.signals());
        !got.is_empty()
    }));
    assert_eq!(got, [(alice.user, b"typing".to_vec())]);
    assert!(api.mailbox(&bob).is_empty());
}

#[test]
fn a_signal_to_a_room_reaches_the_members_but_not_the_sender() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let mut clients = members(&server, &api, MEMBERS);
    clients.iter_mut().for_each(|client| client.join(&[5]).unwrap());
    let mut sender = clients.pop().unwrap();
    let signal =
        body::Signal { room: RoomId::new(5), command: 5, content: b"hand up", ..body::Signal::default() };
    sender.request(Command::Signal, &signal);
    sender.heartbeat();
    for client in &mut clients {
        let mut got = Vec::new();
        assert!(until(|| {
            got.extend(client.signals());
            !got.is_empty()
        }));
        assert_eq!(got.len(), 1);
    }
    assert!(sender.signals().is_empty());
}

#[test]
fn members_publish_to_their_room_in_one_order_for_all() {
    let control = "[control.rooms]\nranges = [{ first = 70, last = 79, members_publish = true }]".to_owned();
    let gateway = "publishes_per_second = 0\n".to_owned();
    for apart in [false, true] {
        let settings = Settings { control: control.clone(), gateway: gateway.clone(), ..Settings::default() };
        let server = if apart { Server::start_apart(settings) } else { Server::start_with(settings) };
        let api = Api::connect(server.grpc);
        let mut clients = members(&server, &api, 4);
        clients.iter_mut().for_each(|client| client.join(&[77, 80]).unwrap());
        let publish = |room| body::Publish { room: RoomId::new(room), command: 9, content: b"hi" };
        let refused = clients[0].call(Command::Publish, &publish(80)).unwrap_err();
        assert_eq!(refused, Refused(code::PUBLISH_NOT_ALLOWED));
        // The room's order may begin anew until control knows of all members.
        assert!(until(|| api.publish(80, b"warm").gateways == 1 && api.members(77) == 4));
        let mut places = Vec::new();
        for round in 0..10 {
            let data = clients[round % 4].call(Command::Publish, &publish(77)).unwrap();
            let published = body::Published::decode(&data).unwrap();
            places.push((published.room_epoch, published.room_seq));
        }
        assert!(places.windows(2).all(|pair| pair[0].0 == pair[1].0 && pair[0].1 + 1 == pair[1].1));
        for client in &mut clients {
            let got = rest(client, Vec::new(), 10);
            assert_eq!(got.iter().map(|message| message.room_order).collect::<Vec<_>>(), places);
        }
    }
}
