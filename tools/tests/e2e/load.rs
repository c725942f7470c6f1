//! The load harness itself: every scenario in small, its reports, and targets that are none.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::Value;

use crate::harness::{
    Server, http,
    server::{run, until},
};

/// Runs a scenario to its end: whether it succeeded, what it printed, its report.
fn load(folder: &Path, line: &str) -> (bool, String, Value) {
    let words: Vec<&str> =
        ["load"].into_iter().chain(line.split(' ')).chain(["--json", "run.json"]).collect();
    let (status, text) = run(&words, folder);
    let json = std::fs::read_to_string(folder.join("run.json")).unwrap_or_default();
    (status.success(), text, serde_json::from_str(&json).unwrap_or(Value::Null))
}

/// Runs a scenario that must succeed and checks what all reports have.
fn good(line: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let (ok, text, report) = load(folder.path(), &format!("{line} --start --report run.html"));
    assert!(ok && text.contains("ledger: all agree"), "{line}:\n{text}");
    assert_eq!(report["scenario"], line.split(' ').next().unwrap());
    assert_eq!((&report["ok"], &report["complete"]), (&Value::Bool(true), &Value::Bool(true)));
    for count in ["lost", "duplicated", "gaps", "reordered", "wrong", "closed", "unexpected", "unanswered"] {
        assert_eq!(report["counts"][count], 0, "{line}: {count}");
    }
    assert!(report["server"]["cpu_s"].as_f64().unwrap() > 0.0, "{line}");
    assert!(report["server"]["counters"]["io_uring_enters"].is_u64(), "{line}: {report}");
    assert!(report["server"]["processes"][0]["command"][1] == "serve", "{line}");
    assert!(report["client"]["cpu_s"].as_f64().unwrap() > 0.0, "{line}");
    assert!(!report["series"].as_array().unwrap().is_empty(), "{line}");
    assert!(!report["headline"].as_array().unwrap().is_empty(), "{line}");
    let page = std::fs::read_to_string(folder.path().join("run.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("ledger: all agree"), "{line}");
    report
}

fn count(report: &Value, name: &str) -> u64 {
    report["counts"][name].as_u64().unwrap()
}

#[test]
fn steady_in_small_delivers_all_it_acknowledged() {
    let report = good("steady --connections 10 --rate 500 --warm-up 0 --duration 1");
    assert!(count(&report, "acked") > 0);
    assert_eq!(count(&report, "acked"), count(&report, "delivered"));
    assert!(report["latency"]["ack"]["p99_9_us"].as_f64().unwrap() > 0.0);
}

#[test]
fn connect_in_small_signs_everybody_in_at_a_rate_and_all_at_once() {
    for how in ["--rate 500", "--open 0", "--open 16"] {
        let report = good(&format!("connect --connections 200 {how} --hold 0.1"));
        assert_eq!(count(&report, "signed_in"), 200, "{how}");
        assert_eq!(report["latency"]["sign-in"]["count"], 200, "{how}");
    }
}

#[test]
fn quic_carries_a_load_as_tcp_does() {
    let report = good("steady --quic --connections 10 --rate 200 --warm-up 0 --duration 1");
    assert_eq!(count(&report, "acked"), count(&report, "delivered"));
    let report = good("connect --quic --connections 100 --open 8 --hold 0.1 --processes 2");
    assert_eq!(count(&report, "signed_in"), 100);
    let report = good("idle --quic --low 10 --high 30 --settle 0.1 --hold 1 --heartbeat 0.25");
    assert!(count(&report, "heartbeats") >= 30);
    let report = good("room --quic --members 30 --window 4 --round 0.2 --rounds 2");
    assert!(count(&report, "delivered") > 0);
}

#[test]
fn idle_in_small_keeps_everybody_alive() {
    let report = good("idle --low 20 --high 60 --settle 0.1 --hold 1 --heartbeat 0.25");
    assert!(count(&report, "heartbeats") >= 60);
    assert_eq!(count(&report, "sent"), count(&report, "heartbeats"));
}

#[test]
fn room_in_small_gives_every_member_every_message_in_several_processes_too() {
    let one = good("room --members 50 --window 4 --round 0.2 --rounds 2");
    let three =
        good("room --members 50 --window 4 --round 0.2 --rounds 2 --processes 3 --source 127.0.0.0/28");
    for (report, processes) in [(one, 1), (three, 4)] {
        assert!(count(&report, "sent") > 0);
        assert_eq!(count(&report, "delivered"), count(&report, "sent") * 50);
        assert_eq!(report["latency"]["delivery"]["count"].as_u64().unwrap() % 200, 0);
        assert_eq!(report["client"]["processes"], processes);
    }
}

#[test]
fn several_processes_and_addresses_share_the_connections() {
    let report = good("connect --connections 101 --processes 3 --source 127.0.0.0/28 --hold 0.1");
    assert_eq!(count(&report, "signed_in"), 101);
    assert_eq!(report["client"]["processes"], 4);
    let report = good("idle --low 11 --high 40 --settle 0.1 --hold 0.5 --heartbeat 0.25 --processes 2");
    assert!(count(&report, "heartbeats") >= 40);
}

#[test]
fn slow_in_small_sheds_nothing_for_healthy_members() {
    // 300 KB/s for two seconds: more than a stalled reader's socket and queue hold, while a healthy one may lose its core for a
    // fifth of a second before so much waits for it.
    let report = good("slow --members 20 --stalled 0.2 --rate 200 --bytes 1500 --round 2 --rounds 2");
    assert_eq!(report["rounds"].as_array().unwrap().len(), 4);
    assert!(count(&report, "shed") > 0, "the stalled ones lost nothing: they did not stall");
}

#[test]
fn reconnect_in_small_brings_everybody_back_with_what_it_missed() {
    let report = good("reconnect --connections 40 --missed 3");
    assert_eq!(count(&report, "signed_in"), 40);
    assert_eq!(count(&report, "delivered"), 40 * 4);
    assert_eq!(report["latency"]["synced"]["count"], 40);
}

#[test]
fn group_in_small_reaches_every_user_of_a_call() {
    let report = good("group --users 50 --group 20 --rate 40 --warm-up 0 --duration 1");
    assert!(count(&report, "sent") > 0);
    assert_eq!(count(&report, "delivered"), report["stored"].as_u64().unwrap());
}

#[test]
fn mixed_in_small_keeps_the_ledger_through_comings_and_goings() {
    let report =
        good("mixed --users 40 --rate 200 --rooms 3 --publishes 20 --heartbeat 0.5 --churn 20 --duration 2");
    assert!(count(&report, "signed_in") > 0, "nobody came back");
    assert!(count(&report, "heartbeats") > 0 && report["room_deliveries"].as_u64().unwrap() > 0);
    assert_eq!(count(&report, "delivered"), report["stored"].as_u64().unwrap());
}

#[test]
fn social_in_small_ends_as_its_model_says() {
    let report = good("social --users 24 --rate 200 --churn 20 --duration 2");
    let of = |name: &str| report[name].as_u64().unwrap();
    assert!(of("stored") > count(&report, "acked") && of("events") > of("stored") && of("traced") > 20);
    assert!(of("groups") >= 5 && of("refused_as_the_model_says") > 0, "{report}");
}

#[test]
fn social_ends_as_its_model_says_when_the_server_is_killed_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let (ok, text, report) = load(
        folder.path(),
        "social --start --users 16 --rate 150 --churn 10 --duration 3 --restart 2 --seed 7",
    );
    assert!(ok && text.contains("ledger: all agree"), "{text}");
    assert_eq!(report["restarts"], 2);
    assert!(report["stored"].as_u64().unwrap() > 0 && count(&report, "lost") == 0, "{text}");
    let (ok, text, _) = load(folder.path(), "social --restart 1");
    assert!(!ok && text.contains("--start"), "{text}");
}

#[test]
fn several_reports_make_one_page_and_other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, rate) in [("a.json", 100), ("b.json", 200)] {
        let line = format!("steady --start --connections 4 --rate {rate} --warm-up 0 --duration 0.5");
        let (ok, text, _) = load(folder.path(), &line);
        assert!(ok, "{text}");
        std::fs::rename(folder.path().join("run.json"), folder.path().join(name)).unwrap();
    }
    let (status, text) = run(&["load", "report", "a.json", "b.json", "--report", "both.html"], folder.path());
    assert!(status.success(), "{text}");
    let page = std::fs::read_to_string(folder.path().join("both.html")).unwrap();
    assert!(page.contains("rate 100") && page.contains("rate 200"));
    std::fs::write(folder.path().join("c.json"), "{\"scenario\": 1}").unwrap();
    for bad in ["c.json", "missing.json"] {
        let (status, text) = run(&["load", "report", bad, "--report", "x.html"], folder.path());
        assert!(!status.success() && text.contains(bad), "{text}");
    }
}

/// A listener that treats every connection with `treat` for the rest of the test binary's life.
fn listener(treat: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let treat = treat.clone();
            thread::spawn(move || treat(stream));
        }
    });
    address
}

#[test]
fn a_target_that_is_no_gateway_is_told_in_one_line() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start());
    let http = listener(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let silent = listener(|mut stream| while stream.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {});
    let closing = listener(drop);
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let targets = [
        (http, "another protocol"),
        (silent, "silent"),
        (closing, "closed the connection"),
        (nobody, "nobody listens"),
    ];
    for scenario in ["steady --connections 2", "connect --connections 2", "slow --members 4"] {
        for (target, told) in targets {
            let line = format!("{scenario} --target {target} --grpc {}", server.grpc);
            let (ok, text, _) = load(folder.path(), &line);
            assert!(!ok && text.contains(told) && !text.contains("panicked"), "{line}:\n{text}");
        }
    }
    for (grpc, told) in [(nobody, "cannot reach gRPC"), (closing, "register"), (silent, "does not answer")] {
        let line = format!("group --users 2 --target {} --grpc {grpc}", server.tcp);
        let (ok, text, _) = load(folder.path(), &line);
        assert!(!ok && text.contains(told) && !text.contains("panicked"), "{line}:\n{text}");
    }
}

/// Starts a long run against a server and returns once its connections are online.
fn begin(server: &Server, folder: &Path, line: &str, online: f64) -> Child {
    let (tcp, grpc) = (server.tcp.to_string(), server.grpc.to_string());
    let child = Command::new(env!("CARGO_BIN_EXE_gimbal"))
        .arg("load")
        .args(line.split(' '))
        .args(["--target", &tcp, "--grpc", &grpc, "--json", "run.json"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let is_online = || http::value(server.http, "gimbal_gateway_sessions_online") >= online;
    assert!(until(is_online), "{line}: the clients do not come online");
    child
}

fn end(mut child: Child, folder: &Path) -> (bool, String, Value) {
    let ended = until(|| child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(ended && !text.contains("panicked"), "{text}");
    let json = std::fs::read_to_string(folder.join("run.json")).unwrap_or_default();
    (output.status.success(), text, serde_json::from_str(&json).unwrap_or(Value::Null))
}

#[test]
fn a_run_whose_server_dies_ends_with_what_it_has() {
    for line in ["steady --connections 10 --rate 200 --duration 300", "mixed --users 40 --duration 300"] {
        let (folder, mut server) = (tempfile::tempdir().unwrap(), Server::start());
        let child = begin(&server, folder.path(), line, 10.0);
        assert!(
            until(|| http::value(server.http, "gimbal_gateway_messages_delivered_total") >= 20.0),
            "{line}"
        );
        server.kill();
        let (ok, text, report) = end(child, folder.path());
        assert!(!ok && text.contains("ended"), "{line}: {text}");
        assert_eq!(
            (&report["ok"], &report["complete"]),
            (&Value::Bool(false), &Value::Bool(false)),
            "{text}"
        );
        assert!(count(&report, "acked") > 0 && count(&report, "closed") > 0, "{line}: {report}");
    }
}

#[test]
fn an_interrupted_run_writes_what_it_has() {
    for line in [
        "steady --connections 10 --rate 200 --duration 300 --warm-up 0",
        "idle --low 5 --high 10 --settle 0 --hold 300 --heartbeat 0.5",
    ] {
        let (folder, server) = (tempfile::tempdir().unwrap(), Server::start());
        let pid = server.pid().to_string();
        let line = format!("{line} --server-pid {pid} --server-http {}", server.http);
        let child = begin(&server, folder.path(), &line, 10.0);
        assert!(until(|| http::value(server.http, "gimbal_gateway_frames_received_total") >= 60.0), "{line}");
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let (ok, text, report) = end(child, folder.path());
        assert!(!ok && text.contains("INCOMPLETE"), "{line}: {text}");
        assert_eq!(report["complete"], false, "{line}");
        assert!(count(&report, "sent") > 0 && count(&report, "lost") == 0, "{line}: {report}");
        assert!(report["server"]["counters"]["io_uring_enters"].as_u64().unwrap() > 0, "{line}");
    }
}

#[test]
fn too_few_descriptors_are_named_before_the_start() {
    let server = Server::start();
    let script = format!(
        "ulimit -n 200; exec \"$0\" load connect --connections 1000 --target {} --grpc {}",
        server.tcp, server.grpc
    );
    let output = Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_gimbal")]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("ulimit -Hn") && text.contains("--processes"),
        "{text}"
    );
}
