//! What is no packet and costs time all the same.

use super::*;

#[test]
fn pings_and_fragments_count_as_packets_and_prove_no_life() {
    let mut fixture = Fixture::online(None);
    fixture.limits.frames = Flow::new(10, 1);
    let deadline = fixture.session.deadline();
    fixture.now = Moment::from_ms(1_000);
    for _ in 0..30 {
        fixture.call(|session, turn| session.handle_other(1, turn)).unwrap();
    }
    assert_eq!(fixture.session.deadline(), deadline);
    assert_eq!(fixture.call(|session, turn| session.handle_other(1, turn)), Err(CloseReason::OverRate));
    fixture.send(2, &()).unwrap_err();
    fixture.now = Moment::from_ms(2_500);
    fixture.send(19, &Rooms { rooms: vec![RoomId::new(1)] }).unwrap();
    let answers = fixture.received();
    assert_eq!(Reply::decode(&answers[0].3).unwrap().code, code::BUSY, "they share one bound");
}

#[test]
fn before_the_sign_in_its_deadline_bounds_them() {
    let mut fixture = Fixture::fresh();
    fixture.limits.frames = Flow::new(1, 1);
    for _ in 0..100 {
        fixture.call(|session, turn| session.handle_other(1, turn)).unwrap();
    }
}
