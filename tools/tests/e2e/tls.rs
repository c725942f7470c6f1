//! TLS from end to end: certificates of one's own, a gateway's link, an administrator.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;

use crate::harness::{
    Server, Settings,
    server::{loopback, run},
};

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

/// By an issuer whose secret the server has.
fn token(secret: &str, name: &str) -> String {
    let claims = format!(r#"{{"sub":"{name}","aud":"gimbal","iat":1700000000,"exp":4000000000}}"#);
    let message = [r#"{"alg":"HS256"}"#, &claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())))
}

#[test]
fn the_command_line_talks_over_tls_and_websocket_in_tls_by_phone_and_by_token() {
    let folder = tempfile::tempdir().unwrap();
    for dir in ["certs", "others"] {
        let (status, text) = run(&["cert", "--dir", dir], folder.path());
        assert!(status.success(), "{text}");
    }
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (tls, websocket) = (loopback(), loopback());
    let secret = "what the issuer and the server share";
    std::fs::write(folder.path().join("issuer.key"), secret).unwrap();
    let settings = Settings {
        gateway: format!(
            "[gateway.tls]\ncertificate = {:?}\nkey = {:?}\nlisten = \"{tls}\"\nwebsocket_listen = \"{websocket}\"\n[gateway.quic]\nlisten = \"\"\n",
            path("certs/server.pem"),
            path("certs/server.key")
        ),
        control: format!(
            "[control.auth.jwt]\nalgorithms = [\"HS256\"]\nkey_file = {:?}\naudience = \"gimbal\"\nuser_claim_is = \"mapped\"\n",
            path("issuer.key")
        ),
        ..Settings::default()
    };
    let server = Server::start_with(settings);
    let (grpc, state) = (server.grpc.to_string(), path("state"));
    let client = |ca: &str, address: &str, words: &[&str]| {
        let (verb, rest) = words.split_at(2);
        let over = ["--tls", "--gateway-ca", ca, "--address", address, "--grpc", &grpc, "--state", &state];
        run(&[verb, &over[..], rest].concat(), folder.path())
    };
    let good = |address: String, words: &[&str]| {
        let (status, text) = client("certs/ca.pem", &address, words);
        assert!(status.success(), "{words:?}: {text}");
        text
    };
    let [tls, websocket] = [tls, websocket].map(|address| format!("localhost:{}", address.port()));
    // The first user, over TLS; the second has a token and is known by it, over both transports.
    assert!(good(tls.clone(), &["client", "sync", "--phone", "13800000001"]).contains("latest seq 0"));
    for (file, name) in [("anna.token", "anna"), ("ben.token", "ben")] {
        std::fs::write(folder.path().join(file), token(secret, name)).unwrap();
    }
    let by_token = ["--token-file", "anna.token", "--device", "anna"];
    good(tls.clone(), &[&["client", "send"], &by_token[..], &["--to", "10000", "in TLS"]].concat());
    let over_websocket =
        [&["client", "send", "--websocket"], &by_token[..], &["--to", "10000", "in a message"]];
    good(websocket.clone(), &over_websocket.concat());
    let heard = good(
        websocket.clone(),
        &["client", "listen", "--websocket", "--phone", "13800000001", "--count", "2"],
    );
    assert!(heard.contains("in TLS") && heard.contains("in a message"), "{heard}");
    assert!(heard.matches("from user 10001").count() == 2, "one user by her token: {heard}");
    let saved = std::fs::read_to_string(folder.path().join("state/token.anna.json")).unwrap();
    assert!(!saved.contains("eyJ"), "the token stays in its own file: {saved}");

    let (status, text) = client("others/ca.pem", &tls, &["client", "sync", "--phone", "13800000001"]);
    assert!(!status.success() && text.contains("cannot connect to"), "{text}");
    let (status, text) =
        client("certs/ca.pem", &tls, &["client", "sync", "--token-file", "ben.token", "--device", "anna"]);
    assert!(!status.success() && text.contains("10000"), "her device is not his: {text}");
    // As of a server that has lost its data since.
    let other: String = saved.split_whitespace().collect::<String>().replace("\"user\":0", "\"user\":7");
    std::fs::write(folder.path().join("state/token.anna.json"), other).unwrap();
    let sync = [&["client", "sync"], &by_token[..]].concat();
    let (status, text) = client("certs/ca.pem", &tls, &sync);
    assert!(!status.success() && text.contains("take another --device"), "{text}");
    let forged = token("another secret of 32 bytes or more", "anna");
    std::fs::write(folder.path().join("anna.token"), forged).unwrap();
    let (status, text) = client("certs/ca.pem", &tls, &sync);
    assert!(!status.success() && text.contains("10000"), "{text}");
}
