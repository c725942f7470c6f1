//! Accepting goes on: over the connection limit, and when descriptors run out.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use gimbal_codec::{Command, code};
use gimbal_gateway::config::Config;

use crate::support::{Client, World, config, eventually};

#[test]
fn connections_over_the_limit_are_closed_and_counted() {
    let world = World::new(&Config { connections_max: 10, shards: 1, ..config() });
    let clients: Vec<_> = (1..=10).map(|user| world.online(user)).collect();
    let mut refused = world.connect();
    assert_eq!(refused.packet(), None);
    world.await_dropped("connection_over_limit", 1);
    world.await_connections(10);
    drop(clients);
    world.await_connections(0);
    assert!(world.online(11).flush().is_empty());
}

/// Limit of descriptors of the child below; glommio and the rings take some twenty for each shard.
const CHILD_FILES: u32 = 120;

#[test]
fn accepting_goes_on_after_descriptors_ran_out() {
    let mut child = Process::new("sh")
        .args(["-c", &format!("ulimit -n {CHILD_FILES}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["accept::child_with_few_descriptors", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child ended early");
        if let Some((_, address)) = line.trim().split_once("listening ") {
            break address.parse().unwrap();
        }
    };
    let mut clients: Vec<Client> = (0..2 * CHILD_FILES).map(|_| Client::connect(address)).collect();
    let mut served = Vec::new();
    let mut waiting = Vec::new();
    for mut client in clients.drain(..) {
        client.set_patience(Duration::from_millis(if waiting.is_empty() { 2000 } else { 1 }));
        client.send(Command::Heartbeat, 1, &());
        match client.try_packet() {
            Some(got) => {
                assert_eq!(got.reply_code(), code::NOT_SIGNED_IN);
                served.push(client);
            }
            None => waiting.push(client),
        }
    }
    assert!(!served.is_empty() && waiting.len() > 100, "{} served, {} wait", served.len(), waiting.len());
    while !waiting.is_empty() {
        served.clear();
        eventually(
            || {
                let before = waiting.len();
                let mut still = Vec::new();
                for mut client in waiting.drain(..) {
                    match client.try_packet() {
                        Some(_) => served.push(client),
                        None => still.push(client),
                    }
                }
                waiting = still;
                waiting.len() < before
            },
            "some that waited are served",
        );
    }
    child.stdin.take().unwrap().write_all(b"end\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(rest.contains("paused true"), "{rest}");
}

#[test]
#[ignore = "run as a child process by accepting_goes_on_after_descriptors_ran_out"]
fn child_with_few_descriptors() {
    let world = World::new(&Config { shards: 1, sign_in_deadline: Duration::from_secs(60), ..config() });
    println!("\nlistening {}", world.server.local_addr());
    std::io::stdin().read_line(&mut String::new()).unwrap();
    println!("\npaused {}", world.server.metrics().dropped("accept_no_descriptor").unwrap() > 0);
}
