//! Deadlines: signing in, silence, and sockets that take nothing.

use std::time::Duration;

use gimbal_codec::{CloseReason, Command};
use gimbal_gateway::config::Config;

use crate::support::{Client, World, config, eventually};

#[test]
fn who_does_not_sign_in_is_closed_a_thousand_times() {
    let config = Config { sign_in_deadline: Duration::from_millis(300), ..config() };
    let world = World::new(&config);
    let mut clients: Vec<Client> = (0..1000).map(|_| world.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.close_code(), CloseReason::SignInDeadline.code());
    }
    drop(clients);
    world.await_connections(0);
    world.await_closed(CloseReason::SignInDeadline, 1000);
}

#[test]
fn half_a_frame_and_silence_is_closed_by_the_sign_in_deadline() {
    let world = World::new(&Config { sign_in_deadline: Duration::from_millis(200), ..config() });
    let mut client = world.connect();
    client.write(&[200]);
    assert_eq!(client.close_code(), CloseReason::SignInDeadline.code());
}

#[test]
fn a_silent_session_is_closed_and_one_with_heartbeats_is_not() {
    let world =
        World::new(&Config { idle_deadline: Duration::from_secs(3), frames_per_second: 0, ..config() });
    let (mut silent, mut lively) = (world.online(1), world.online(2));
    let closed = || world.server.metrics().closed(CloseReason::Idle) >= 1;
    while !closed() {
        lively.send(Command::Heartbeat, 1, &());
        assert!(lively.packet().unwrap().is(Command::Heartbeat));
    }
    assert_eq!(silent.close_code(), CloseReason::Idle.code());
    assert!(lively.flush().is_empty());
    eventually(|| world.control.online_count() == 1, "one is left");
}

#[test]
fn a_socket_that_takes_nothing_is_closed_by_the_write_deadline() {
    let config = Config { write_deadline: Duration::from_millis(400), ..config() };
    let world = World::new(&config);
    let mut stuck = world.online_as(1, 1, Some(0));
    stuck.join(&[5]);
    let frame = vec![7; 16 * 1024];
    // On and on, until the socket buffers of both sides are full.
    let closed = || {
        world.control.publish(5, &frame);
        world.server.metrics().closed(CloseReason::WriteDeadline) == 1
    };
    eventually(closed, "closed");
    world.await_connections(0);
    eventually(|| world.control.online_count() == 0, "detached");
}
