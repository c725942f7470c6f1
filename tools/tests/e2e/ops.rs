//! What operators look at.

use std::collections::HashSet;

use crate::harness::{Api, Client, Server, http, server};

#[test]
fn health_readiness_and_metrics_are_served() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut sender = Client::online(server.tcp, &alice);
    sender.send(bob.user, 1, b"counted").unwrap();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http::get(server.http, path).unwrap().0, 200, "{path}");
    }
    assert_eq!(http::get(server.http, "/nothing").unwrap().0, 404);

    let (_, page) = http::get(server.http, "/metrics").unwrap();
    let mut named = HashSet::new();
    for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(name.starts_with("gimbal_"), "{name}");
        assert!(named.insert(name.to_owned()), "{name} stands there twice");
    }
    assert!(named.len() > 20, "only {} metrics", named.len());
    assert!(!page.contains(&alice.token) && !page.contains("counted"), "a secret or a body on the page");
    let log = server.log("serve");
    assert!(!log.contains(&alice.token), "a token in the log");
}

#[test]
fn the_two_processes_have_health_pages_of_their_own() {
    let server = Server::start_apart(crate::harness::Settings::default());
    for address in [server.http, server.gateway_http] {
        assert_eq!(http::get(address, "/healthz").unwrap().0, 200);
        let samples = http::metrics(address);
        assert!(samples.iter().any(|sample| sample.name.starts_with("gimbal_")), "{samples:?}");
    }
}

#[test]
fn the_start_in_development_says_loudly_that_any_code_signs_in_and_which_ports_serve_what() {
    let server = Server::start();
    assert!(server::until(|| server.log("serve").contains("Try next")), "{}", server.log("serve"));
    let log = server.log("serve");
    let banner = log.split_once(" is running").expect("the first line").1;
    assert!(banner.contains("ANY verification code"), "{log}");
    for address in [server.tcp, server.grpc, server.http] {
        assert!(banner.contains(&address.to_string()), "{address} is not in\n{log}");
    }
}

#[test]
fn doctor_ends_with_a_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let (_, text) = server::run(&["doctor"], folder.path());
    assert!(text.contains("io_uring") && text.contains("kernel"), "{text}");
}

#[test]
fn the_default_configuration_it_prints_is_one_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let (status, text) = server::run(&["config", "default"], folder.path());
    assert!(status.success(), "{text}");
    std::fs::write(folder.path().join("gimbal.toml"), &text).unwrap();
    let (status, checked) = server::run(&["config", "check", "--dev", "gimbal.toml"], folder.path());
    assert!(status.success() && checked.contains("is valid"), "{checked}");
}
