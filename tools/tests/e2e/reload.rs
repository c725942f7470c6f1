//! SIGHUP: limits change while sessions go on, and a file with a mistake changes nothing.

use std::fs;

use gimbal_codec::code;

use crate::harness::{
    Api, Client, Server, Settings,
    client::Refused,
    server::{run, until},
};

#[test]
fn limits_are_taken_over_and_a_mistake_changes_nothing() {
    let lines = "rooms_per_session_max = 64";
    let server = Server::start_with(Settings::gateway(lines));
    let api = Api::connect(server.grpc);
    let mut client = Client::online(server.tcp, &api.device());
    let text = fs::read_to_string(server.config()).unwrap();
    let says = |what: &str| assert!(until(|| server.log("serve").contains(what)), "{}", server.log("serve"));

    for (broken, told) in
        [("rooms_per_session_max = 0", "rooms_per_session_max"), ("nonsense = 1", "nonsense")]
    {
        fs::write(server.config(), text.replace(lines, broken)).unwrap();
        server.signal("-HUP");
        says("all stays as it is");
        says(told);
    }
    fs::write(server.config(), text.replace(lines, "rooms_per_session_max = 1\nbacklog = 17")).unwrap();
    server.signal("-HUP");
    says("takes effect at the next start");
    says("the limits of the file hold");
    client.heartbeat();
}

#[test]
fn control_takes_over_its_limits_and_keys_and_a_weak_key_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("admin.key");
    fs::write(&key, "the-first-key-of-administrators").unwrap();
    let control = format!("admin_key_file = {key:?}\n[control.limits]\ncontent_bytes_max = \"60KiB\"\n");
    let server = Server::start_with(Settings { control, ..Settings::default() });
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut client = Client::online(server.tcp, &alice);
    client.send(bob.user, 1, &[7; 100]).unwrap();
    let grpc = server.grpc.to_string();
    let may = |key: &str| {
        let (status, text) = run(&["admin", "stats", "--grpc", &grpc, "--key", key], folder.path());
        assert!(status.success() || text.contains("Unauthenticated"), "{text}");
        status.success()
    };
    assert!(may("the-first-key-of-administrators") && !may("the-second-key-of-administrators"));
    let reload = |says: &str| {
        let count = || server.log("serve").matches(says).count();
        let before = count();
        server.signal("-HUP");
        assert!(until(|| count() > before), "{says}: {}", server.log("serve"));
    };

    let text = fs::read_to_string(server.config()).unwrap();
    fs::write(server.config(), text.replace("60KiB", "50B")).unwrap();
    fs::write(&key, "").unwrap();
    reload("all stays as it is");
    client.send(bob.user, 2, &[7; 100]).unwrap();
    assert!(may("the-first-key-of-administrators"));

    fs::write(&key, "the-second-key-of-administrators").unwrap();
    reload("the limits of the file hold");
    assert_eq!(client.send(bob.user, 3, &[7; 100]), Err(Refused(code::CONTENT_TOO_LARGE)));
    client.send(bob.user, 4, &[7; 50]).unwrap();
    assert!(!may("the-first-key-of-administrators") && may("the-second-key-of-administrators"));
}
