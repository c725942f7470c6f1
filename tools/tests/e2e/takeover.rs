//! One session for each device: the newest. Revocation and kicks end sessions too.

use gimbal_codec::{CloseReason, code};

use crate::harness::{
    Api, Client, Server,
    client::Refused,
    server::{Settings, until},
};

#[test]
fn a_newer_sign_in_closes_the_older_whose_late_end_does_not_unseat_it() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let (alice, bob) = (api.device(), api.device());
    let mut sender = Client::online(server.tcp, &alice);
    let mut older = Client::online(server.tcp, &bob);
    for round in 1..=20 {
        let mut newer = Client::online_from(server.tcp, &bob, older.cursor());
        assert_eq!(older.closed(), CloseReason::Takeover.code());
        drop(older); // its end arrives at the server after the newer session is attached
        sender.send(bob.user, round, b"to the newer").unwrap();
        assert_eq!(newer.receive(1)[0].content, b"to the newer");
        older = newer;
    }
    assert_eq!(api.sessions(bob.user).len(), 1);
    drop(older);
    assert!(until(|| api.sessions(bob.user).is_empty()));
}

#[test]
fn a_revoked_token_closes_the_session_and_opens_no_other() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let device = api.device();
    let mut client = Client::online(server.tcp, &device);
    assert!(api.revoke(&device));
    assert_eq!(client.closed(), CloseReason::TokenRevoked.code());
    assert!(!api.revoke(&device));
    let mut again = Client::connect(server.tcp);
    assert_eq!(again.sign_in(&device, Some(0)), Err(Refused(code::NOT_SIGNED_IN)));
    assert_eq!(again.closed(), CloseReason::SignInFailed.code());
    assert!(api.sync(&device, 0).is_err(), "nor does a call");
}

#[test]
fn a_kick_ends_all_sessions_of_the_user() {
    let server = Server::start();
    let api = Api::connect(server.grpc);
    let phone = Api::phone();
    let (first, second) = (api.device_of(&phone), api.device_of(&phone));
    let (mut one, mut two) = (Client::online(server.tcp, &first), Client::online(server.tcp, &second));
    assert_eq!(api.kick(first.user), 2);
    assert_eq!((one.closed(), two.closed()), (CloseReason::Kicked.code(), CloseReason::Kicked.code()));
    assert!(until(|| api.sessions(first.user).is_empty()));
}

#[test]
fn where_one_device_may_be_online_a_second_one_takes_its_place_or_is_refused() {
    for (conflict, takes_over) in [("takeover", true), ("refuse", false)] {
        let control = format!("[control.devices]\npolicy = \"one\"\nconflict = \"{conflict}\"");
        let server = Server::start_with(Settings { control, ..Settings::default() });
        let api = Api::connect(server.grpc);
        let phone = Api::phone();
        let (first, second) = (api.device_of(&phone), api.device_of(&phone));
        let mut one = Client::online(server.tcp, &first);
        let mut two = Client::connect(server.tcp);
        if takes_over {
            assert_eq!(two.sign_in(&second, Some(0)), Ok(0));
            assert_eq!(one.closed(), CloseReason::OtherDevice.code());
        } else {
            assert_eq!(two.sign_in(&second, Some(0)), Err(Refused(code::DEVICE_TAKEN)));
            assert_eq!(two.closed(), CloseReason::DeviceRefused.code());
        }
        let stays = if takes_over { second.device } else { first.device };
        let online: Vec<u64> = api.sessions(first.user).iter().map(|session| session.device_id).collect();
        assert_eq!(online, [stays.get()]);
    }
}
