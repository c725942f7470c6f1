//! What members do in rooms, as far as control has to know.

use gimbal_codec::body::{Publish, Published};
use gimbal_rpc::link::RoomPlace;

use super::*;

#[test]
fn a_publish_is_for_a_room_of_the_session_and_within_the_rate() {
    let mut fixture = Fixture::online(None);
    fixture.limits.publishes = Pace::new(50, 2);
    let publish = |room| Publish { room: RoomId::new(room), command: 5, content: b"hi" };
    for (room, code) in [(0, code::BAD_REQUEST), (7, code::NOT_IN_ROOM)] {
        fixture.send(22, &publish(room)).unwrap();
        assert_eq!(fixture.replied(), code, "{room}");
    }
    fixture.send(19, &Rooms { rooms: vec![RoomId::new(7)] }).unwrap();
    fixture.received();
    fixture.actions.clear();
    let large = vec![0; CONTENT_BYTES_MAX + 1];
    fixture.send(22, &Publish { content: &large, ..publish(7) }).unwrap();
    assert_eq!(fixture.replied(), code::CONTENT_TOO_LARGE);
    fixture.send(22, &publish(7)).unwrap();
    let up = fixture.actions.pop().unwrap();
    let Action::UpToRoom(Up::Publish { caller, tag, room, command, content }) = up else { panic!("{up:?}") };
    assert_eq!((caller.user, caller.device, room), (UserId::new(10), DeviceId::new(20), RoomId::new(7)));
    assert_eq!((command, &content[..]), (5, b"hi".as_slice()));
    let place = RoomPlace { epoch: 3, seq: 4, created_at_ms: 5 };
    let mut done = |attach| {
        fixture.call(|session, turn| session.handle_publish_done(attach, &tag, Ok(place), turn)).unwrap();
        fixture.received()
    };
    assert_eq!(done(Attach::new(1)), [], "of another session");
    let out = done(ATTACH);
    assert_eq!((out[0].0.as_str(), out[0].1, out[0].2), ("id", 22, 8));
    let data = Reply::decode(&out[0].3).unwrap().data;
    let expected = Published { room_epoch: 3, room_seq: 4, created_at_ms: 5 };
    assert_eq!(Published::decode(data), Ok(expected));

    fixture.send(22, &publish(7)).unwrap();
    // Leaving and coming back gives no new burst.
    fixture.send(20, &Rooms::default()).unwrap();
    fixture.send(19, &Rooms { rooms: vec![RoomId::new(7)] }).unwrap();
    fixture.received();
    fixture.send(22, &publish(7)).unwrap();
    assert_eq!((fixture.replied(), fixture.counts.get(Counter::PublishOverRate)), (code::BUSY, 1));
    fixture.now = Moment::from_ms(20);
    fixture.send(22, &publish(7)).unwrap();
    assert!(fixture.queue.is_empty());
    fixture.link = 2;
    fixture.now = Moment::from_ms(40);
    fixture.send(22, &publish(7)).unwrap();
    assert_eq!(fixture.replied(), code::UNAVAILABLE);
}
