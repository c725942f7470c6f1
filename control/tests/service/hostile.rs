//! Peers that speak HTTP/2 to do harm: each is bounded or ended, and an honest client beside them goes on.

use std::time::Duration;

use gimbal_rpc::v1;

use super::{
    raw::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, Raw, SETTINGS, call,
        fields, frame, reset,
    },
    rig::{Rig, WAIT, config, keyed},
};

const ENHANCE_YOUR_CALM: u32 = 11;
const SYNC: &str = "/gimbal.v1.Messages/Sync";

/// An honest call, and what the server counted.
async fn goes_on(rig: &Rig, reason: &str) {
    rig.admin().stats(keyed("dev", v1::StatsRequest {})).await.unwrap();
    let counted = async {
        loop {
            let (_, page) = rig.http("/metrics").await;
            let name = format!("gimbal_control_dropped_total{{reason=\"{reason}\"}} ");
            if page.lines().any(|line| line.starts_with(&name)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, counted).await.unwrap_or_else(|_| panic!("{reason} is not counted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_opens_and_resets_streams_without_end_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut raw = Raw::open(rig.server.grpc_address()).await;
    let head = call(SYNC, &[]);
    let mut sent = 0_u32;
    for chunk in 0..4096_u32 {
        let mut bytes = Vec::new();
        for stream in (chunk * 64..chunk * 64 + 64).map(|number| 2 * number + 1) {
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &head));
            bytes.extend(reset(stream));
        }
        if raw.send(&bytes).await.is_err() {
            break;
        }
        sent += 64;
    }
    assert!(sent < 4096 * 64, "it was ended while it sent");
    raw.farewells().await;
    goes_on(&rig, "protocol_error").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_abandons_calls_after_they_began_is_ended_too() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut raw = Raw::open(rig.server.grpc_address()).await;
    let head = call("/gimbal.v1.Messages/Send", &[]);
    let mut stream = 1;
    let ended = async {
        loop {
            // Streams are taken in their order: the answer to the last says that those before it have begun.
            let mut bytes = Vec::new();
            let streams: Vec<u32> = (0..100).map(|number| stream + 2 * number).collect();
            streams.iter().for_each(|stream| bytes.extend(frame(HEADERS, END_HEADERS, *stream, &head)));
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream + 200, &call(SYNC, &[])));
            if raw.send(&bytes).await.is_err() || raw.answer(stream + 200).await.is_none() {
                return;
            }
            let bytes: Vec<u8> = streams.iter().flat_map(|stream| reset(*stream)).collect();
            if raw.send(&bytes).await.is_err() {
                return;
            }
            stream += 202;
        }
    };
    tokio::time::timeout(WAIT, ended).await.expect("it is ended");
    goes_on(&rig, "calls_abandoned").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_without_end_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let filler = fields(&[("filler", &"x".repeat(100))]).repeat(100);
    for (first, more) in [(call(SYNC, &[]), filler), (call(SYNC, &[]), Vec::new())] {
        let mut raw = Raw::open(rig.server.grpc_address()).await;
        raw.send(&frame(HEADERS, 0, 1, &first)).await.unwrap();
        let continuation = frame(CONTINUATION, 0, 1, &more);
        let (mut bytes, mut ended) = (0, false);
        while bytes < 256 << 20 && !ended {
            bytes += continuation.len();
            ended = raw.send(&continuation).await.is_err();
        }
        assert!(ended, "it went on for {bytes} bytes");
        // The farewell may be lost in the reset of a connection whose bytes nobody reads any more.
        let farewells = raw.farewells().await;
        assert!(farewells.iter().all(|code| *code == ENHANCE_YOUR_CALM || *code == 1), "{farewells:?}");
    }
    goes_on(&rig, "protocol_error").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_long_is_refused_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut raw = Raw::open(rig.server.grpc_address()).await;
    let mut long = call(SYNC, &[]);
    long.extend(fields(&[("filler", &"x".repeat(100))]).repeat(140));
    assert!((15_000..16_384).contains(&long.len()), "it fits one frame: {}", long.len());
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &long)).await.unwrap();
    let refused = raw.answer(1).await.unwrap();
    // Status 200 would be entry 8 of HPACK's table.
    assert!(refused.kind == RST_STREAM || refused.payload[0] != 0x88, "{refused:?}");
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &call(SYNC, &[]))).await.unwrap();
    assert_eq!(raw.answer(3).await.unwrap().payload[0], 0x88);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_settings_and_pings_without_end_are_bounded_or_ended() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    for kind in [DATA, SETTINGS, PING] {
        let mut raw = Raw::open(rig.server.grpc_address()).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &call(SYNC, &[]))).await.unwrap();
        let one = match kind {
            DATA => frame(DATA, 0, 1, &[]),
            PING => frame(PING, 0, 0, &[1; 8]),
            _ => frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]),
        };
        // Answers are not read: the server's own side fills, and it reads no more or ends the connection.
        let flood = one.repeat(4096);
        let flooding = async { while raw.send_unbounded(&flood).await.is_ok() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), flooding).await;
        rig.admin().stats(keyed("dev", v1::StatsRequest {})).await.unwrap();
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_or_only_begins_is_closed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    // Long enough for the honest client on a busy machine.
    config.limits.handshake_deadline = Duration::from_secs(1);
    let rig = Rig::with(config).await;
    for begun in [&PREFACE[..0], &PREFACE[..10], b"GET / HTTP/1.1\r\n"] {
        let mut raw = Raw::silent(rig.server.grpc_address()).await;
        raw.send(begun).await.unwrap();
        raw.farewells().await;
    }
    goes_on(&rig, "first_bytes_late").await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_no_ping_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.keepalive = Duration::from_secs(1);
    let rig = Rig::with(config).await;
    let mut raw = Raw::open(rig.server.grpc_address()).await;
    // A head that never ends keeps it from answering.
    raw.send(&frame(HEADERS, 0, 1, &call(SYNC, &[]))).await.unwrap();
    raw.farewells().await;
    rig.admin().stats(keyed("dev", v1::StatsRequest {})).await.unwrap();
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_bound_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.calls_per_connection_max = 4;
    let rig = Rig::with(config).await;
    let mut raw = Raw::open(rig.server.grpc_address()).await;
    for stream in [1, 3, 5, 7, 9] {
        raw.send(&frame(HEADERS, END_HEADERS, stream, &call(SYNC, &[]))).await.unwrap();
    }
    let refused = raw.answer(9).await.unwrap();
    assert_eq!((refused.kind, &*refused.payload), (RST_STREAM, &[0, 0, 0, 7][..]), "REFUSED_STREAM");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_own_deadline_holds_and_a_malformed_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut raw = Raw::open(rig.server.grpc_address()).await;
    // No body comes, so only a deadline ends the call.
    for (stream, deadline, status) in [(1, "20m", "4"), (3, "soon", "3")] {
        let head = call(SYNC, &[("grpc-timeout", deadline)]);
        raw.send(&frame(HEADERS, END_HEADERS, stream, &head)).await.unwrap();
        let answer = raw.answer(stream).await.unwrap();
        assert_eq!(answer.kind, HEADERS);
        let (_, page) = rig.http("/metrics").await;
        let code = if status == "4" { "DEADLINE_EXCEEDED" } else { "INVALID_ARGUMENT" };
        let line = format!(
            "gimbal_control_grpc_calls_total{{method=\"gimbal.v1.Messages/Sync\",code=\"{code}\"}} 1"
        );
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    rig.stop().await;
}
