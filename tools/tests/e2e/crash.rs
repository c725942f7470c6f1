//! `kill -9` of the whole server at random moments while clients send.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use gimbal_codec::{ClientMessageId, Command, Seq, UserId, body, code};

use crate::harness::{Api, Client, Device, Event, Rng, Server, server::until};

/// Times the server is killed.
const KILLS: u64 = 60;
/// Longest a life lasts after its first acknowledged message, ms.
const LIFE_MS_MAX: u64 = 40;
/// Sends without an answer, for each sender.
const WINDOW: usize = 8;
const SEED: u64 = 0x6b69_6c6c_2d39;

/// One acknowledged message: sender, client message id, seq in the mailbox of `to`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Acknowledged {
    sender: usize,
    id: u64,
    to: usize,
    seq: u64,
    message_id: u64,
}

#[derive(Default)]
struct Shared {
    acknowledged: Mutex<Vec<Acknowledged>>,
    count: AtomicU64,
    stop: AtomicBool,
}

/// Which mailbox a message goes to; fixed by its number, so that a retry goes the same way.
fn target(sender: usize, id: u64) -> usize {
    (sender + id as usize) % 2
}

fn content(sender: usize, id: u64) -> Vec<u8> {
    format!("{sender}:{id}").into_bytes()
}

/// Sends without end, numbering from 1, and tries again what was not answered before the connection broke.
fn sender(number: usize, device: &Device, users: [UserId; 2], tcp: SocketAddr, shared: &Shared) {
    let mut oldest = 1; // lowest id that is not acknowledged
    while !shared.stop.load(Ordering::Relaxed) {
        let Some(mut client) = connect(tcp, device, None) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let mut next = oldest;
        while !shared.stop.load(Ordering::Relaxed) {
            while next < oldest + WINDOW as u64 {
                let (to, text) = (users[target(number, next)], content(number, next));
                let id = ClientMessageId::new(next);
                client.request(
                    Command::Send,
                    &body::Send {
                        client_message_id: id,
                        to,
                        command: 1,
                        content: &text,
                        ..Default::default()
                    },
                );
                next += 1;
            }
            let Some(result) = answer(&mut client) else { break };
            let done = Acknowledged {
                sender: number,
                id: oldest,
                to: target(number, oldest),
                seq: result.seq.get(),
                message_id: result.message_id.get(),
            };
            shared.acknowledged.lock().unwrap().push(done);
            shared.count.fetch_add(1, Ordering::Relaxed);
            oldest += 1;
        }
    }
}

/// A signed-in connection, or none while the server is down.
fn connect(tcp: SocketAddr, device: &Device, cursor: Option<u64>) -> Option<Client> {
    let mut client = Client::try_connect(tcp).ok()?;
    let sign_in = body::SignIn {
        user: device.user,
        device: device.device,
        token: &device.token,
        cursor: cursor.map(Seq::new),
    };
    client.request(Command::SignIn, &sign_in);
    match client.event() {
        Event::Answer { content, .. } => {
            let code = body::Reply::decode(&content).unwrap().code;
            // A server that is still coming up may refuse for the moment, but never for want of the token.
            assert_ne!(code, code::NOT_SIGNED_IN, "a token was lost (seed {SEED})");
            (code == code::OK).then_some(client)
        }
        _ => None,
    }
}

/// Reads one mailbox over all lives of the server, each time from its cursor; what it was shown, in order of seq.
fn listener(device: &Device, tcp: SocketAddr, shared: &Shared) -> Vec<Vec<u8>> {
    let mut shown: Vec<Vec<u8>> = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let Some(mut client) = connect(tcp, device, Some(shown.len() as u64)) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        while !shared.stop.load(Ordering::Relaxed) {
            match client.event() {
                Event::Message(message) => take(&mut shown, message.seq, message.content),
                Event::Behind(_) => {
                    client.request(
                        Command::Sync,
                        &body::Sync { after: Seq::new(shown.len() as u64), limit: 0 },
                    );
                }
                Event::Answer { content, .. } => {
                    let reply = body::Reply::decode(&content).unwrap();
                    for message in body::SyncPage::decode(reply.data).unwrap().messages {
                        take(&mut shown, message.seq.get(), message.content.to_vec());
                    }
                }
                _ => break,
            }
        }
    }
    shown
}

fn take(shown: &mut Vec<Vec<u8>>, seq: u64, content: Vec<u8>) {
    assert_eq!(seq, shown.len() as u64 + 1, "shown out of order (seed {SEED})");
    shown.push(content);
}

/// The next answer to a send: they come in the order of the sends. None: the connection is gone.
fn answer(client: &mut Client) -> Option<body::SendResult> {
    match client.event() {
        Event::Answer { content, .. } => {
            let reply = body::Reply::decode(&content).unwrap();
            (reply.code == 0).then(|| body::SendResult::decode(reply.data).unwrap())
        }
        _ => None,
    }
}

#[test]
fn every_acknowledged_message_survives_kill_9_once_and_without_a_gap() {
    let mut server = Server::start();
    let api = Api::connect(server.grpc);
    let senders: Vec<Device> = (0..3).map(|_| api.device()).collect();
    let receivers = [api.device(), api.device()];
    drop(api);
    let (shared, mut rng) = (Shared::default(), Rng::new(SEED));
    thread::scope(|scope| {
        for (number, device) in senders.iter().enumerate() {
            let (tcp, shared, users) = (server.tcp, &shared, [receivers[0].user, receivers[1].user]);
            scope.spawn(move || sender(number, device, users, tcp, shared));
        }
        let (tcp, shared, devices) = (server.tcp, &shared, &receivers);
        let listeners: Vec<_> =
            devices.iter().map(|device| scope.spawn(move || listener(device, tcp, shared))).collect();
        for kill in 0..KILLS {
            let before = shared.count.load(Ordering::Relaxed);
            let progress = until(|| shared.count.load(Ordering::Relaxed) > before);
            assert!(progress, "life {kill}: nothing is acknowledged (seed {SEED})");
            thread::sleep(Duration::from_micros(rng.below(LIFE_MS_MAX * 1_000)));
            server.kill();
            if rng.below(4) == 0 {
                // Again, while it comes up.
                server.launch_unready();
                thread::sleep(Duration::from_micros(rng.below(LIFE_MS_MAX * 1_000)));
                server.kill();
            }
            server.launch();
        }
        shared.stop.store(true, Ordering::Relaxed);
        // The end of their connections wakes those who wait.
        server.kill();
        server.launch();
        for (device, listener) in receivers.iter().zip(listeners) {
            let mailbox = Api::connect(server.grpc).mailbox(device);
            let shown = listener.join().unwrap();
            let stored: Vec<&[u8]> = mailbox.iter().map(|message| &message.content[..]).collect();
            let common = shown.len().min(stored.len());
            assert_eq!(
                shown[..common],
                stored[..common],
                "what was shown is not what is stored (seed {SEED})"
            );
            assert!(shown.len() <= stored.len(), "shown and then lost (seed {SEED})");
        }
    });
    let acknowledged = shared.acknowledged.into_inner().unwrap();
    let api = Api::connect(server.grpc);
    for (number, receiver) in receivers.iter().enumerate() {
        check_mailbox(number, &api.mailbox(receiver), &acknowledged);
    }
    println!("{} acknowledged messages over {KILLS} kills", acknowledged.len());
}

fn check_mailbox(number: usize, mailbox: &[gimbal_rpc::v1::Message], acknowledged: &[Acknowledged]) {
    let seqs: Vec<u64> = mailbox.iter().map(|message| message.seq).collect();
    assert_eq!(seqs, (1..=mailbox.len() as u64).collect::<Vec<_>>(), "a gap (seed {SEED})");
    let distinct: HashSet<&[u8]> = mailbox.iter().map(|message| &message.content[..]).collect();
    assert_eq!(distinct.len(), mailbox.len(), "stored twice (seed {SEED})");
    for done in acknowledged.iter().filter(|done| done.to == number) {
        let stored = mailbox.get(done.seq as usize - 1);
        let stored = stored.unwrap_or_else(|| panic!("lost: {done:?} (seed {SEED})"));
        assert_eq!(stored.content, content(done.sender, done.id), "{done:?} (seed {SEED})");
        assert_eq!(stored.message_id, done.message_id, "{done:?} (seed {SEED})");
    }
    for sender in 0..3 {
        let prefix = format!("{sender}:");
        let texts = mailbox.iter().map(|message| std::str::from_utf8(&message.content).unwrap());
        let ids: Vec<u64> = texts.filter_map(|text| text.strip_prefix(&prefix)?.parse().ok()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "sender {sender} reordered (seed {SEED})");
    }
}
