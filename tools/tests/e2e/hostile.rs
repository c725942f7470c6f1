//! Every attack of `gimbal load hostile` in small: refusals are counted under their reasons, nobody honest is harmed, the server lives.

use std::process::Command;

use serde_json::Value;

/// Runs one attack; it goes on until the server has counted what it must, so nothing here depends on how fast the machine is.
fn attack(transport: &str, name: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    // How many frames a second are too many is set so low that attackers reach it on the slowest machine, and the honest do not.
    let floods = ["pings", "frames", "fragments", "key-updates"].contains(&name);
    let gateway = if floods { "--gateway frames_per_second=30" } else { "" };
    let line = format!(
        "load hostile --start --transport {transport} --attack {name} --attackers 24 --honest 4 --rate 20 --publishes 10 \
         --lead 0.2 --round 0.5 --rounds 1 --deadline 8 --niceness 0 {gateway} --json run.json --report run.html"
    );
    // The run's own patience bounds it.
    let output = Command::new(env!("CARGO_BIN_EXE_gimbal"))
        .args(line.split_whitespace())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("all agree"), "{transport} {name}:\n{text}");
    assert!(std::fs::read_to_string(folder.path().join("run.html")).unwrap().contains(name));
    let report = std::fs::read_to_string(folder.path().join("run.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let outcome = report["attacks"][0].clone();
    assert_eq!((&outcome["attack"], &outcome["ok"]), (&Value::from(name), &Value::from(true)), "{text}");
    for count in ["lost", "duplicated", "reordered", "closed", "refused", "unanswered"] {
        assert_eq!(report["counts"][count], 0, "{transport} {name}: {count}");
    }
    assert!(report["counts"]["acked"].as_u64().unwrap() > 0, "{transport} {name}");
    assert!(outcome["done"]["opened"].as_u64().unwrap() > 0, "{transport} {name}");
    outcome
}

fn counted(outcome: &Value, name: &str) -> u64 {
    outcome["counted"][name].as_u64().unwrap_or(0)
}

const SILENT: [&str; 4] = ["half-open", "slow-writers", "largest-frames", "resets"];
const GREEDY: [&str; 4] = ["slow-readers", "unread-answers", "pings", "frames"];
const FALSE: [&str; 3] = ["tokens", "impostors", "takeovers"];

fn all(transport: &str, names: &[&str]) {
    for name in names {
        attack(transport, name);
    }
}

#[test]
fn silent_and_slow_peers_over_tcp() {
    all("tcp", &SILENT);
}

#[test]
fn silent_and_slow_peers_over_websocket() {
    all("websocket", &SILENT);
}

#[test]
fn greedy_peers_over_tcp() {
    all("tcp", &GREEDY);
}

#[test]
fn greedy_peers_over_websocket() {
    all("websocket", &GREEDY);
    let fragments = attack("websocket", "fragments");
    assert!(counted(&fragments, "gateway_closed_total{reason=\"over_rate\"}") > 0, "{fragments}");
}

#[test]
fn peers_who_are_not_who_they_say() {
    all("tcp", &FALSE);
    all("websocket", &FALSE);
    let streams = attack("tcp", "rapid-resets");
    assert!(counted(&streams, "control_dropped_total{reason=\"protocol_error\"}") > 0, "{streams}");
}

#[test]
fn tls_peers_who_make_work() {
    all("tls", &["handshakes", "key-updates"]);
}

#[test]
fn quic_peers_who_break_off_and_do_not_read() {
    all("quic", &["handshakes", "resets", "slow-readers"]);
}

#[test]
fn what_cannot_be_run_is_said_and_nobody_elses_server_is_attacked() {
    for (line, why) in [
        ("load hostile --start --attack nothing", "no attack \"nothing\"; there are half-open, "),
        ("load hostile --start --transport udp", "none of tcp, websocket, tls, wss, quic, all"),
        (
            "load hostile --start --transport tcp --attack fragments",
            "none of these attacks is for this transport",
        ),
        ("load hostile --transport tcp --attack resets", "only one of our own"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_gimbal")).args(line.split(' ')).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(why), "{line}: {text}");
    }
}
