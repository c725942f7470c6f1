//! What load runs measure by themselves: that they count what they did, and refuse what they cannot do.

use crate::harness::server::run;

/// The report of a run that has to succeed.
fn report(arguments: &str) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let path = path.to_str().unwrap();
    let mut all: Vec<&str> = arguments.split(' ').collect();
    all.extend(["--json", path]);
    let (status, text) = run(&all, folder.path());
    assert!(status.success(), "gimbal {arguments}:\n{text}");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn number(report: &serde_json::Value, pointer: &str) -> f64 {
    report
        .pointer(pointer)
        .and_then(serde_json::Value::as_f64)
        .unwrap_or_else(|| panic!("{pointer}: {report}"))
}

#[test]
fn every_heartbeat_that_was_due_is_counted_and_the_bare_echo_answers_as_many() {
    let at_a_rate = report("load echo --start --bare --connections 4 --rate 500 --round 0.2 --rounds 2");
    for side in ["gateway", "bare"] {
        for round in 0..2 {
            assert_eq!(number(&at_a_rate, &format!("/{side}/rounds/{round}/count")), 100.0, "{side}");
        }
        assert_eq!(number(&at_a_rate, &format!("/{side}/latency/count")), 200.0, "{side}");
        assert!(number(&at_a_rate, &format!("/{side}/cpu_us")) > 0.0);
    }
    assert!(number(&at_a_rate, "/ratio") > 0.0);
    let busy = report("load echo --start --connections 4 --window 3 --round 0.2 --rounds 1");
    assert!(number(&busy, "/gateway/rounds/0/count") >= 12.0, "each of a window is answered: {busy}");
}

#[test]
fn acknowledgements_are_set_beside_an_echo_and_a_sync_round_by_round() {
    let line = "load steady --start --bare --connections 4 --rate 200 --warm-up 0 --duration 0.3 --rounds 2";
    let steady = report(line);
    for round in 0..2 {
        for figure in ["ack_p50_us", "ack_p99_us", "bound/echo_p99_us", "bound/sync_p50_us"] {
            assert!(number(&steady, &format!("/rounds/{round}/{figure}")) > 0.0, "{figure}: {steady}");
        }
    }
    // Every message of both rounds is measured, however late its answer came.
    assert_eq!(number(&steady, "/latency/ack/count"), 120.0, "{steady}");
    assert_eq!(number(&steady, "/counts/delivered"), 120.0, "{steady}");
    assert!(number(&steady, "/ratio") > 0.0);
    let folder = tempfile::tempdir().unwrap();
    let (status, text) = run(&["load", "steady", "--start", "--bare", "--rate", "0"], folder.path());
    assert!(!status.success() && text.contains("--rate above 0"), "{text}");
}

/// The lines are 512 and 256 bytes, held by the run in `docs/benchmarks.md`; with so few connections tables that have just doubled
/// weigh more, and a page more or less is 8 bytes each. In control the event of each sign-in weighs some 450 bytes in the store's
/// write buffer, until that is full and written out.
#[test]
fn an_idle_connection_takes_little_memory_of_gateway_and_control() {
    let idle = report("load idle --start --apart --low 500 --high 3000 --settle 1 --hold 0.1 --heartbeat 0");
    assert!(number(&idle, "/bytes_per_connection_of_processes/0") < 1200.0, "the gateway: {idle}");
    assert!(number(&idle, "/bytes_per_connection_of_processes/1") < 1200.0, "control: {idle}");
}

#[test]
fn signals_of_pairs_are_counted_and_half_a_pair_is_refused() {
    let signals = report("load signal --start --connections 4 --window 3 --round 0.2 --rounds 1");
    assert!(number(&signals, "/rounds/0/count") >= 12.0, "{signals}");
    let folder = tempfile::tempdir().unwrap();
    let (status, text) = run(&["load", "signal", "--start", "--connections", "3"], folder.path());
    assert!(!status.success() && text.contains("an even number"), "{text}");
}

#[test]
fn gateway_and_control_are_told_apart() {
    let idle = report("load idle --start --apart --low 5 --high 10 --settle 0.1 --hold 0.1");
    assert_eq!(idle["server"]["processes"].as_array().map(Vec::len), Some(2), "{idle}");
    assert_eq!(idle["bytes_per_connection_of_processes"].as_array().map(Vec::len), Some(2), "{idle}");
    assert!(number(&idle, "/at_high/rss_anon_bytes") > 0.0);
    assert_eq!(idle["counts"]["closed"], 0, "{idle}");
}
