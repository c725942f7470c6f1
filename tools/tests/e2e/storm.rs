//! Ten thousand connections that never sign in.

use std::{fs, net::TcpStream, thread};

use gimbal_codec::CloseReason;

use crate::harness::{Api, Client, PATIENCE, Server, Settings, http, server::until};

const CONNECTIONS: usize = 10_000;
/// Files kept for everything else this process does.
const SPARE_FILES: usize = 2_000;
/// User memory for each, generously; the kernel's is not counted here.
const BYTES_EACH_MAX: u64 = 4 * 1024;

/// This process's soft limit of open files.
fn files_max() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX)
}

#[test]
fn ten_thousand_silent_connections_harm_nobody_and_are_closed() {
    let count = CONNECTIONS.min(files_max().saturating_sub(SPARE_FILES));
    if count < CONNECTIONS {
        println!("only {count} connections: raise the limit of open files (ulimit -n)");
    }
    let server = Server::start_with(Settings::gateway("sign_in_deadline = \"8s\""));
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut sender = Client::online(server.tcp, &alice);
    let mut listener = Client::online(server.tcp, &bob);
    let before = server.resident_bytes();
    let silent: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(server.tcp).unwrap()).collect();

    for id in 1..=100 {
        sender.send(bob.user, id, b"through the storm").unwrap();
    }
    assert_eq!(listener.receive(100).len(), 100);
    let mut late = Client::online(server.tcp, &api.device());
    late.heartbeat();
    let growth = server.resident_bytes().saturating_sub(before);
    assert!(growth < BYTES_EACH_MAX * count as u64 + (8 << 20), "{growth} bytes for {count} connections");

    for stream in &silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    thread::scope(|scope| {
        for part in silent.chunks(count.div_ceil(4)) {
            scope.spawn(move || part.iter().for_each(read_to_end));
        }
    });
    drop(silent);
    let reason = CloseReason::SignInDeadline.text();
    let counted = || http::labelled(server.gateway_http, reason);
    assert!(until(|| counted() >= count as f64), "{} of {count} closes are counted", counted());
    sender.heartbeat();
    late.heartbeat();
}

#[test]
fn accepting_goes_on_after_descriptors_ran_out() {
    let server = Server::start_with(Settings { open_files_max: Some(256), ..Settings::default() });
    let api = Api::connect(server.grpc);
    let devices: Vec<_> = (0..3).map(|_| api.device()).collect();
    let mut witness = Client::online(server.tcp, &devices[0]);
    for device in &devices[1..] {
        // More than there are descriptors; the kernel completes the connections that wait to be accepted.
        let crowd: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(server.tcp).unwrap()).collect();
        witness.heartbeat();
        drop(crowd);
        Client::online(server.tcp, device).heartbeat();
    }
    assert!(until(|| http::labelled(server.gateway_http, "accept_no_descriptor") > 0.0));
}

fn read_to_end(mut stream: &TcpStream) {
    let mut got = Vec::new();
    // A reset instead of an end is as good: the server let go.
    let _ = std::io::Read::read_to_end(&mut stream, &mut got);
}
