//! SIGHUP: limits change while sessions go on, and a file with a mistake changes nothing.

use std::fs;

use crate::harness::{Api, Client, Server, Settings, server::until};

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
