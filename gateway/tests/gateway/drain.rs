//! The tidy end, and the start that cannot be.

use std::time::Duration;

use gimbal_codec::{CloseReason, Command};
use gimbal_gateway::config::Config;
use gimbal_gateway::error::StartError;
use gimbal_gateway::server::Drained;

use crate::support::{World, config};

#[test]
fn a_drain_tells_everybody_and_ends() {
    let world = World::new(&config());
    let online: Vec<_> = (1..=20).map(|user| world.online(user)).collect();
    let mut fresh = world.connect();
    fresh.send(Command::Heartbeat, 0, &());
    assert!(fresh.packet().is_some(), "refused, so it is accepted");
    let World { server, control } = world;
    let readers: Vec<_> = online
        .into_iter()
        .chain([fresh])
        .map(|mut client| std::thread::spawn(move || client.close_frame()))
        .collect();
    assert_eq!(server.drain(Duration::from_millis(300)), Drained { cut: 0, stuck: 0 });
    for reader in readers {
        let (code, retry_after_ms) = reader.join().unwrap();
        assert_eq!(code, CloseReason::Draining.code());
        // Not before the drain is over for all, and spread over as long again and four seconds.
        assert!(retry_after_ms <= 300 + 300 + 4000);
    }
    assert_eq!(control.online_count(), 0);
}

#[test]
fn a_drain_does_not_wait_for_a_peer_that_never_leaves() {
    let world = World::new(&Config { linger_deadline: Duration::from_millis(200), ..config() });
    let _deaf = world.online(1);
    let drained = world.server.drain(Duration::ZERO);
    assert_eq!(drained, Drained { cut: 0, stuck: 0 });
}

#[test]
fn a_busy_port_is_said_before_anything_runs() {
    let world = World::new(&config());
    let busy = Config { listen: world.server.local_addr(), ..config() };
    let control = std::sync::Arc::new(crate::support::NoControl);
    let Err(error) =
        gimbal_gateway::server::Server::start(&busy, gimbal_gateway::server::Plane::Local(control))
    else {
        panic!("two gateways on one port")
    };
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
    assert!(error.to_string().contains("another `listen`"));
}
