//! Lost links, announcements and late items of control.

use super::*;

#[test]
fn a_lost_link_ends_a_sync_and_the_announcement_tells_what_was_missed() {
    let mut fixture = Fixture::online(Some(5));
    fixture.send(17, &Sync::default()).unwrap();
    fixture.link = 2;
    fixture.call(|session, turn| session.handle_link_lost(turn)).unwrap();
    assert_eq!(fixture.replied(), code::UNAVAILABLE);
    fixture.send(18, &()).unwrap();
    assert_eq!(fixture.replied(), code::UNAVAILABLE);
    fixture.link = 3;
    fixture.send(18, &()).unwrap();
    assert_eq!(fixture.replied(), code::UNAVAILABLE, "control does not know the session on this link yet");
    fixture.call(|session, turn| session.handle_announced(Attach::new(11), Seq::new(9), turn)).unwrap();
    assert_eq!(fixture.counts.get(Counter::StaleItem), 1, "an answer of the old link");
    let (caller, cursor) = fixture.call(|session, turn| session.announce(turn.link)).unwrap();
    assert_eq!((caller.attach, cursor), (ATTACH, Some(Seq::new(5))));
    fixture.send(17, &Sync::default()).unwrap();
    assert_eq!(fixture.replied(), code::UNAVAILABLE);
    fixture.call(|session, turn| session.handle_announced(Attach::new(12), Seq::new(7), turn)).unwrap();
    assert_eq!(behind(&fixture.drain()[0]), 7);
    fixture.deliver(8).unwrap();
    assert_eq!(fixture.counts.get(Counter::StaleItem), 2, "the old attach number is nobody's");
}

#[test]
fn a_sign_in_is_refused_when_its_own_link_is_lost_and_control_is_told() {
    let mut fixture = Fixture::fresh();
    fixture.link = 3;
    fixture.sign_in(None).unwrap();
    fixture.actions.clear();
    assert_eq!(
        fixture.call(|session, turn| session.handle_link_lost(turn)),
        Ok(()),
        "it is on this very link"
    );
    fixture.link = 5;
    let outcome = fixture.call(|session, turn| session.handle_link_lost(turn));
    assert_eq!((outcome, fixture.replied()), (Err(CloseReason::Unavailable), code::UNAVAILABLE));
    let Some(Action::Up(Up::Detach { caller })) = fixture.actions.pop() else { panic!("no detach") };
    assert_eq!((caller.user.get(), caller.attach), (10, Attach::default()));
}

#[test]
fn an_announcement_that_only_a_new_sign_in_can_mend_is_stale() {
    for (cursor, latest, outcome) in
        [(Some(5), 4, Err(CloseReason::Stale)), (None, 6, Err(CloseReason::Stale)), (None, 5, Ok(()))]
    {
        let mut fixture = Fixture::online(cursor);
        let attach = Attach::new(12);
        let result = fixture.call(|session, turn| session.handle_announced(attach, Seq::new(latest), turn));
        assert_eq!(result, outcome);
    }
    let mut fixture = Fixture::online(None);
    assert_eq!(fixture.deliver(7), Err(CloseReason::Stale), "a gap without a cursor");
}

#[test]
fn a_kick_for_an_older_attachment_hits_nobody() {
    let mut fixture = Fixture::online(None);
    let kick = |attach| {
        move |session: &mut Session, turn: &mut Turn<'_>| {
            session.handle_kick(attach, CloseReason::Takeover, turn)
        }
    };
    assert_eq!(fixture.call(kick(Attach::new(8))), Ok(()));
    assert_eq!(fixture.call(kick(ATTACH)), Err(CloseReason::Takeover));
}
