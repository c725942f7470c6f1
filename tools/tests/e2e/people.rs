//! The verbs that people type.

use std::path::Path;

use crate::harness::{
    Server,
    server::{run, until},
};

/// Runs a verb against a server, with the state of clients in `folder`; what it printed.
fn gimbal(server: &Server, folder: &Path, arguments: &[&str]) -> String {
    let address = if arguments.contains(&"--websocket") { server.websocket } else { server.tcp };
    let (grpc, address, state) = (server.grpc.to_string(), address.to_string(), folder.join("state"));
    let mut all = arguments.to_vec();
    all.extend(["--grpc", &grpc]);
    let state = state.display().to_string();
    if matches!(arguments, ["client", "listen" | "send" | "sync", ..] | ["client", "room", "join", ..]) {
        all.extend(["--address", &address, "--state", &state]);
    }
    let (status, text) = run(&all, folder);
    assert!(status.success(), "gimbal {}:\n{text}", arguments.join(" "));
    text
}

#[test]
fn ten_sends_are_listened_to_once_and_in_order() {
    let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
    let gimbal = |arguments: &[&str]| gimbal(&server, folder.path(), arguments);
    // The first user of a new directory is 10000.
    assert!(gimbal(&["client", "sync", "--phone", "13800000001"]).contains("10000"));
    for number in 0..9 {
        gimbal(&["client", "send", "--phone", "13800000002", "--to", "10000", &format!("message {number}")]);
    }
    let heard = gimbal(&["client", "listen", "--phone", "13800000001", "--count", "9"]);
    let numbers: Vec<usize> =
        (0..9).map(|number| heard.find(&format!("message {number}")).unwrap()).collect();
    assert!(numbers.is_sorted(), "{heard}");
    gimbal(&["client", "send", "--phone", "13800000002", "--to", "10000", "the tenth"]);
    let heard = gimbal(&["client", "listen", "--phone", "13800000001", "--count", "1"]);
    assert!(heard.contains("the tenth") && !heard.contains("message 8"), "{heard}");
}

#[test]
fn the_command_line_listens_over_websocket() {
    let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
    let gimbal = |arguments: &[&str]| gimbal(&server, folder.path(), arguments);
    gimbal(&["client", "sync", "--phone", "13800000001"]);
    gimbal(&["client", "send", "--phone", "13800000002", "--to", "10000", "over a message"]);
    let heard = gimbal(&["client", "listen", "--phone", "13800000001", "--count", "1", "--websocket"]);
    assert!(heard.contains("over a message"), "{heard}");
}

#[test]
fn an_administrator_sees_figures_and_pushes() {
    let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
    let gimbal = |arguments: &[&str]| gimbal(&server, folder.path(), arguments);
    gimbal(&["client", "sync", "--phone", "13800000001"]);
    gimbal(&["admin", "push", "--users", "10000", "--text", "from the backend", "--json"]);
    assert!(gimbal(&["client", "sync", "--phone", "13800000001"]).contains("from the backend"));
    let sessions = gimbal(&["admin", "sessions", "--json"]);
    assert_eq!(sessions.trim(), "[]");
    let stats: serde_json::Value = serde_json::from_str(&gimbal(&["admin", "stats", "--json"])).unwrap();
    assert!(stats.to_string().contains("wal_syncs"), "{stats}");
}

#[test]
fn a_load_run_ends_with_a_ledger_that_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "load",
        "steady",
        "--start",
        "--connections",
        "10",
        "--rate",
        "500",
        "--warm-up",
        "0",
        "--duration",
        "1",
    ];
    let (status, text) = run(&arguments, folder.path());
    assert!(status.success() && text.contains("ledger: all agree"), "{text}");
}

#[test]
fn an_administrator_asks_what_became_of_a_message() {
    let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
    let gimbal = |arguments: &[&str]| gimbal(&server, folder.path(), arguments);
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    gimbal(&["client", "sync", "--phone", "13800000001"]);
    let push = ["admin", "push", "--users", "10000", "--text", "where is it?", "--json"];
    let id = json(&gimbal(&push))["message_id"].to_string();

    let story = json(&gimbal(&["admin", "trace", &id, "--json"]));
    assert_eq!((&story["mailboxes"][0]["user"], &story["mailboxes"][0]["seq"]), (&10_000.into(), &1.into()));
    assert_eq!(story["mailboxes"][0]["devices"][0]["outcome"], "not_online", "{story}");
    assert!(gimbal(&["client", "listen", "--phone", "13800000001", "--count", "1"]).contains("where is it?"));
    // The listener does not wait until its ack is durable.
    let ask = || gimbal(&["admin", "trace", &id, "--user", "10000"]);
    let parts =
        ["from a backend", "12 bytes", "user 10000: seq 1", "sync was answered with it", ": acknowledged"];
    assert!(until(|| parts.iter().all(|part| ask().contains(part))), "{}", ask());
}
