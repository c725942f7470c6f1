//! A client that stops reading while its room is busy.

use crate::harness::{Api, Client, Event, Server, http, server::until};

/// Published while it does not read: 24 MiB, against 128 KiB of queue and a few hundred KiB of socket buffers.
const PUBLISHED: usize = 3_000;
const PUBLISH_BYTES: usize = 8 * 1024;
/// Far above what one slow session may cost, far below what keeping its room frames would.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

#[test]
fn it_costs_bounded_memory_its_neighbours_nothing_and_its_mailbox_catches_up() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, sleeper) = (api.device(), api.device());
    let mut slow = Client::online(server.tcp, &sleeper);
    let mut neighbours: Vec<Client> = (0..8).map(|_| Client::online(server.tcp, &api.device())).collect();
    slow.join(&[6]).unwrap();
    neighbours.iter_mut().for_each(|client| client.join(&[6]).unwrap());
    assert!(until(|| api.publish(6, b"warm").gateways == 1));
    let warm = std::iter::once(&mut slow).chain(&mut neighbours);
    warm.for_each(|client| drop(client.receive(1)));
    let mut sender = Client::online(server.tcp, &alice);
    publish_and_read(&api, &mut neighbours, PUBLISHED / 10);
    let shed_before = shed(&server);
    let before = server.resident_bytes();

    publish_and_read(&api, &mut neighbours, PUBLISHED);
    for id in 1..=100 {
        sender.send(sleeper.user, id, &id.to_be_bytes()).unwrap();
    }
    let growth = server.resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more for one slow reader");
    assert!(until(|| shed(&server) > shed_before), "what was dropped is not counted");

    let got = read_all(&mut slow, 100);
    let stored: Vec<u64> = got.iter().filter(|message| message.seq != 0).map(|message| message.seq).collect();
    assert_eq!(stored, (1..=100).collect::<Vec<_>>());
    let rooms = got.len() - stored.len();
    assert!(rooms < PUBLISHED, "some room frames were shed: {rooms}");
    assert!(slow.flush().iter().all(|message| message.seq == 0));
    sender.send(sleeper.user, 101, b"live again").unwrap();
    assert!(until(|| slow.flush().iter().any(|message| message.content == b"live again")));
}

/// Publishes and has every neighbour read all of it, in order.
fn publish_and_read(api: &Api, neighbours: &mut [Client], count: usize) {
    let mut content = vec![0; PUBLISH_BYTES];
    for number in 0..count as u64 {
        content[..8].copy_from_slice(&number.to_be_bytes());
        api.publish(6, &content);
        for client in &mut *neighbours {
            let got = client.receive(1).remove(0);
            assert_eq!(got.content[..8], number.to_be_bytes(), "a neighbour lost a publish");
        }
    }
}

/// Everything up to the message with that seq.
fn read_all(client: &mut Client, seq: u64) -> Vec<crate::harness::client::Message> {
    let mut got = Vec::new();
    while client.cursor() < seq {
        got.extend(client.receive(1));
    }
    got.extend(client.flush());
    got
}

fn shed(server: &Server) -> f64 {
    http::labelled(server.gateway_http, "room_frame_shed")
}

#[test]
fn a_socket_that_takes_nothing_is_closed_at_the_write_deadline() {
    let server = Server::start_with(crate::harness::Settings::gateway("write_deadline = \"300ms\""));
    let api = Api::connect(server.grpc);
    let sleeper = api.device();
    let mut slow = Client::online(server.tcp, &sleeper);
    slow.join(&[6]).unwrap();
    assert!(until(|| api.publish(6, b"warm").gateways == 1));
    let content = vec![0; 32 * 1024];
    assert!(until(|| {
        api.publish(6, &content);
        api.sessions(sleeper.user).is_empty()
    }));
    while slow.event() != Event::End {}
}
