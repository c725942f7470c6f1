//! Clients with tokens of an issuer, as its backend gives them out: no call to the server comes before the connection.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gimbal_codec::{CloseReason, DeviceId, UserId, code};
use gimbal_rpc::v1 as pb;
use ring::hmac;

use crate::harness::{
    Api, Client, Device, Event, Server, Settings, client::Refused, server::run, server::until,
};

const SECRET: &str = "what the issuer and the server share";
/// Chosen by the client.
const PHONE: u64 = 1 << 40;

fn token(sub: &str, times: &str) -> String {
    let claims = format!(r#"{{"sub":"{sub}","iss":"e2e","aud":"gimbal",{times}}}"#);
    let [header, claims] =
        [r#"{"alg":"HS256","typ":"JWT"}"#, &claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let message = format!("{header}.{claims}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())))
}

/// Good for a century.
fn long(sub: &str) -> String {
    token(sub, r#""iat":1700000000,"exp":4000000000"#)
}

/// Settings with the issuer's key in a file that lives as long as the folder.
fn settings() -> (Settings, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("issuer.key");
    std::fs::write(&key, SECRET).unwrap();
    let control = format!(
        "[control.auth.jwt]\nalgorithms = [\"HS256\"]\nkey_file = {key:?}\naudience = \"gimbal\"\n\
         user_claim_is = \"mapped\"\nleeway = \"0s\"\n"
    );
    (Settings { control, ..Settings::default() }, folder)
}

/// A client that knows its token and nothing else of itself.
fn device(number: u64, token: String) -> Device {
    Device { user: UserId::new(0), device: DeviceId::new(PHONE + number), token }
}

fn user_of(api: &Api, device: &Device) -> UserId {
    let sessions = api.sessions(UserId::new(0));
    let session = sessions.iter().find(|session| session.device_id == device.device.get());
    UserId::new(session.expect("it is online").user_id)
}

fn send(api: &Api, from: &Device, id: u64, to: UserId) {
    let content = id.to_be_bytes().to_vec().into();
    let request =
        pb::SendRequest { client_message_id: id, to_user: to.get(), command: 1, content, to_group: 0 };
    api.send(from, request).unwrap();
}

#[test]
fn a_mapped_name_stays_one_user_through_restarts_and_its_session_through_those_of_control() {
    let (settings, _folder) = settings();
    let mut server = Server::start_apart(settings);
    let api = Api::connect(server.grpc);
    let anna = device(1, long("anna"));
    let mut listener = Client::online(server.tcp, &anna);
    let mut sender = Client::online(server.tcp, &device(2, long("ben")));
    let user = user_of(&api, &anna);
    sender.send(user, 1, b"one").unwrap();
    assert_eq!(listener.receive(1)[0].content, b"one");
    server.kill_control();
    server.launch_control();
    let api = Api::connect(server.grpc);
    // Over gRPC, by the same token; the listener is announced by the name that it was given.
    let ben = device(2, long("ben"));
    send(&api, &ben, 2, user);
    assert_eq!(listener.receive(1)[0].seq, 2);
    assert!(until(|| api.sessions(user).len() == 1));
    drop((listener, sender));
    let mut again = Client::online_from(server.tcp, &device(3, long("anna")), 0);
    assert_eq!(user_of(&api, &device(3, String::new())), user);
    assert_eq!(again.receive(2).iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2]);
    assert_ne!(api.device().user, user, "who signs in by phone is somebody else");
}

#[test]
fn tokens_that_are_forged_over_or_for_another_device_are_answered_and_closed() {
    let (settings, _folder) = settings();
    let server = Server::start_with(settings);
    let anna = device(1, long("anna"));
    drop(Client::online(server.tcp, &anna));
    let forged = format!("{}A", long("anna").rsplit_once('.').unwrap().0.to_owned() + ".AAAA");
    for (device, expected) in [
        (device(1, forged), code::NOT_SIGNED_IN),
        (device(1, token("anna", r#""exp":1700000000"#)), code::NOT_SIGNED_IN),
        (device(1, token("anna", r#""iat":1700000000"#)), code::NOT_SIGNED_IN),
        (device(1, long("anna").replace("eyJhbGciOiJIUzI1NiI", "eyJhbGciOiJub25lIiA")), code::NOT_SIGNED_IN),
        (device(1, long("ben")), code::NOT_SIGNED_IN),
        (Device { user: UserId::new(9), ..anna.clone() }, code::NOT_SIGNED_IN),
        (Device { device: DeviceId::new(5), ..anna.clone() }, code::DEVICE_NOT_FOUND),
    ] {
        let mut client = Client::connect(server.tcp);
        assert_eq!(client.sign_in(&device, Some(0)), Err(Refused(expected)), "{device:?}");
        assert!(matches!(client.event(), Event::Close { code: 4200, .. }));
    }
    drop(Client::online(server.tcp, &anna));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an issuer has a clock")]
fn a_session_ends_with_its_token() {
    let (settings, _folder) = settings();
    let server = Server::start_with(settings);
    // The shortest life that lasts for a sign-in on this machine.
    let (brief, mut client) = [3, 6, 12, 24, 48]
        .into_iter()
        .find_map(|seconds| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let brief = device(1, token("anna", &format!(r#""iat":{now},"exp":{}"#, now + seconds)));
            let mut client = Client::connect(server.tcp);
            client.sign_in(&brief, Some(0)).ok().map(|_| (brief, client))
        })
        .expect("a sign-in within 48 s");
    let mut long = Client::online(server.tcp, &device(2, long("anna")));
    let code = loop {
        if let Event::Close { code, .. } = client.event() {
            break code;
        }
    };
    assert_eq!(code, CloseReason::TokenExpired.code());
    let mut client = Client::connect(server.tcp);
    assert_eq!(client.sign_in(&brief, Some(0)), Err(Refused(code::NOT_SIGNED_IN)));
    long.heartbeat();
}

#[test]
fn the_command_line_ends_all_tokens_of_a_user_and_says_since_when() {
    let (settings, folder) = settings();
    let server = Server::start_with(settings);
    let api = Api::connect(server.grpc);
    let (anna, ben) = (device(1, long("anna")), device(2, long("ben")));
    let mut first = Client::online(server.tcp, &anna);
    let mut other = Client::online(server.tcp, &ben);
    let (user, grpc) = (user_of(&api, &anna).get().to_string(), server.grpc.to_string());
    let revoke = |more: &[&str]| {
        let words = ["admin", "revoke", "--grpc", &grpc, "--user", &user];
        run(&[&words[..], more].concat(), folder.path())
    };
    // Its token was issued in 2023: a time before that ends nothing.
    let (status, text) = revoke(&["--before", "1600000000"]);
    assert!(status.success() && text.contains("before 1600000000000 (Unix ms)"), "{text}");
    first.heartbeat();
    let (status, text) = revoke(&["--json"]);
    assert!(status.success(), "{text}");
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(said["before_ms"].as_i64().unwrap() > 1_700_000_000_000 && said["devices"] == 0, "{text}");
    assert_eq!(first.closed(), CloseReason::TokenRevoked.code());
    let mut again = Client::connect(server.tcp);
    assert_eq!(again.sign_in(&anna, Some(0)), Err(Refused(code::NOT_SIGNED_IN)));
    other.heartbeat();
    let (status, text) = revoke(&["--before", "4000000000"]);
    assert!(!status.success() && text.contains("before_ms"), "{text}");
    let (status, text) = revoke(&["--key", "another"]);
    assert!(!status.success() && text.contains("Unauthenticated"), "{text}");
}
