//! TLS from end to end: certificates of one's own, a gateway's link, an administrator.

use crate::harness::{Server, Settings, server::run};

#[test]
fn a_gateway_links_and_an_administrator_asks_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let make = ["cert", "--dir", "certs", "--client", "ops.example"];
    let (status, text) = run(&make, folder.path());
    assert!(status.success() && text.contains("certs/ca.pem"), "{text}");
    let (status, text) = run(&make, folder.path());
    assert!(!status.success() && text.contains("cannot make certs/ca.pem"), "nothing is overwritten: {text}");

    // Its readiness says that the gateway is linked.
    let settings = Settings { certs: Some(folder.path().join("certs")), ..Settings::default() };
    let server = Server::start_apart(settings);
    let url = format!("https://localhost:{}", server.grpc.port());
    let (status, text) = run(&["admin", "stats", "--grpc", &url, "--ca", "certs/ca.pem"], folder.path());
    assert!(status.success(), "{text}");
    let (status, text) = run(&["admin", "stats", "--grpc", &url], folder.path());
    assert!(!status.success() && text.contains("needs --ca FILE"), "{text}");
    let (status, text) = run(&["admin", "stats", "--grpc", &server.grpc.to_string()], folder.path());
    assert!(!status.success(), "plain text: {text}");
}
