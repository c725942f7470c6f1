//! What an idle session over QUIC holds, against what is counted for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};

use crate::quic_client::{ALPN, Quicly, runtime, trusting, wait};
use crate::support::eventually;

/// Sessions whose memory is measured; as many before them warm the process up.
const SESSIONS: u64 = 1000;

/// Counted for each: what the carrier and the shard add for one connection.
const COUNTED_BYTES: u64 = 24 * 1024 + 512;

/// Signs in and waits for the answer.
async fn sign_in(
    endpoint: &Endpoint,
    address: SocketAddr,
    user: u64,
) -> (Connection, SendStream, RecvStream) {
    let connection = endpoint.connect(address, "localhost").unwrap().await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let body = gimbal_codec::body::SignIn {
        user: gimbal_codec::UserId::new(user),
        device: gimbal_codec::DeviceId::new(user),
        token: crate::support::TOKEN,
        cursor: Some(gimbal_codec::Seq::new(0)),
    };
    send.write_all(&gimbal_codec::frame(gimbal_codec::Command::SignIn, "1", 0, &body)).await.unwrap();
    assert!(recv.read(&mut [0; 256]).await.unwrap().is_some());
    (connection, send, recv)
}

/// Resident memory of a process, in bytes.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Time of the processors that a process has used, in ms; the kernel counts in hundredths of a second (proc(5)).
fn used_ms(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

#[test]
fn an_idle_session_holds_no_more_than_is_counted_for_it() {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["quic_memory::child_that_serves", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let (address, certificate) = loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child ended early");
        if let Some((_, told)) = line.trim().split_once("listening ") {
            let (address, certificate) = told.split_once(' ').unwrap();
            break (address.parse::<SocketAddr>().unwrap(), hex(certificate));
        }
    };
    let mut endpoint = {
        let _inside = runtime().enter();
        Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
    };
    endpoint.set_default_client_config(trusting(&certificate.into(), Some(ALPN)));
    let mut open = Vec::new();
    let (mut before, mut before_ms) = (0, 0);
    for user in 1..=2 * SESSIONS {
        open.push(wait(sign_in(&endpoint, address, user)));
        if user == SESSIONS {
            (before, before_ms) = (resident(child.id()), used_ms(child.id()));
        }
    }
    let each = (resident(child.id()).saturating_sub(before)) / SESSIONS;
    let used_us = (used_ms(child.id()) - before_ms) * 1000 / SESSIONS;
    println!("{used_us} us of processor time for each handshake and sign-in");
    println!("{each} bytes of resident memory for each idle session over QUIC");
    child.stdin.take().unwrap().write_all(b"end\n").unwrap();
    output.read_to_string(&mut String::new()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(each <= COUNTED_BYTES, "{each} bytes, {COUNTED_BYTES} are counted");
}

#[test]
#[ignore = "run as a child process by an_idle_session_holds_no_more_than_is_counted_for_it"]
fn child_that_serves() {
    let quic = Quicly::new(|config| {
        config.shards = 1;
        config.sign_in_deadline = Duration::from_secs(600);
    });
    let certificate: String = quic.certificate().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("\nlistening {} {certificate}", quic.address());
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let metrics = quic.world.server.metrics();
    eventually(|| metrics.sessions_online() == 2 * SESSIONS, "sessions");
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
