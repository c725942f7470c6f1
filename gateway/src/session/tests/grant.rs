//! Whose a session is by control's word, and until when.

use gimbal_codec::body::{Close, SignInResult};

use super::*;

fn grant(expires_at_ms: i64) -> Grant {
    Grant { user: UserId::new(30), device: DeviceId::new(40), expires_at_ms }
}

#[test]
fn a_session_is_whose_control_says_and_a_client_that_named_nobody_is_told() {
    for (named, told) in [((0, 0), (30, 40)), ((30, 0), (0, 40)), ((30, 40), (0, 0))] {
        let mut fixture = Fixture::fresh();
        let (user, device) = (UserId::new(named.0), DeviceId::new(named.1));
        fixture.send(1, &SignIn { user, device, token: "t", cursor: Some(Seq::new(5)) }).unwrap();
        fixture.call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), grant(0), turn)).unwrap();
        assert_eq!(fixture.actions[1], Action::Online { user: UserId::new(30) });
        let caller = fixture.session.caller().unwrap();
        assert_eq!((caller.user.get(), caller.device.get()), (30, 40));
        let out = fixture.received();
        let result = SignInResult::decode(Reply::decode(&out[0].3).unwrap().data).unwrap();
        assert_eq!((result.user.get(), result.device.get()), told, "{named:?}");
    }
}

#[test]
fn a_session_ends_with_its_token_however_busy_it_is() {
    let mut fixture = Fixture::fresh();
    fixture.sign_in(Some(5)).unwrap();
    // The fixture's wall clock stands at 77 ms. Rounded up to whole seconds.
    let ends = grant(77 + 89_001);
    fixture.call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), ends, turn)).unwrap();
    for seconds in (0..90).step_by(10) {
        fixture.now = Moment::from_ms(seconds * 1000);
        fixture.send(2, &()).unwrap();
        assert!(fixture.session.deadline() <= Moment::from_ms(90_000));
        fixture.call(|session, turn| session.handle_timeout(turn)).unwrap();
        fixture.drain();
    }
    fixture.now = Moment::from_ms(89_999);
    fixture.call(|session, turn| session.handle_timeout(turn)).unwrap();
    fixture.now = Moment::from_ms(90_000);
    assert_eq!(fixture.session.deadline(), fixture.now);
    let over = fixture.call(|session, turn| session.handle_timeout(turn));
    assert_eq!(over, Err(CloseReason::TokenExpired));
    fixture.call(|session, turn| session.begin_close(CloseReason::TokenExpired, 0, turn));
    let out = fixture.received();
    assert_eq!(Close::decode(&out.last().unwrap().3).unwrap().code, 4204);
}

#[test]
fn a_session_that_says_nothing_ends_with_its_token_too() {
    for life_ms in [1, 500, 1000, 1500, 2999] {
        let mut fixture = Fixture::fresh();
        fixture.sign_in(Some(5)).unwrap();
        let ends = grant(77 + life_ms);
        fixture.call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), ends, turn)).unwrap();
        fixture.now = fixture.session.deadline();
        assert!((life_ms as u64..life_ms as u64 + 1000).contains(&fixture.now.as_ms()));
        let over = fixture.call(|session, turn| session.handle_timeout(turn));
        assert_eq!(over, Err(CloseReason::TokenExpired), "{life_ms}");
    }
}

#[test]
fn a_token_that_ends_late_or_never_leaves_the_idle_limit_as_it_is() {
    for expires_at_ms in [0, 77 + 100 * 365 * 24 * 3_600_000, i64::MAX] {
        let mut fixture = Fixture::fresh();
        fixture.sign_in(Some(5)).unwrap();
        let ends = grant(expires_at_ms);
        fixture.call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), ends, turn)).unwrap();
        fixture.now = fixture.session.deadline();
        assert_eq!(fixture.now, Moment::from_ms(fixture.limits.idle_ms));
        assert_eq!(fixture.call(|session, turn| session.handle_timeout(turn)), Err(CloseReason::Idle));
    }
    let mut over = Fixture::fresh();
    over.sign_in(Some(5)).unwrap();
    over.call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), grant(1), turn)).unwrap();
    let outcome = over.call(|session, turn| session.handle_timeout(turn));
    assert_eq!(outcome, Err(CloseReason::TokenExpired), "over already");
}

#[test]
fn who_has_gone_before_control_knew_it_is_told_of_by_that_name() {
    let mut fixture = Fixture::fresh();
    fixture.sign_in(None).unwrap();
    fixture.call(|session, turn| session.begin_close(CloseReason::SignInDeadline, 0, turn));
    fixture.actions.clear();
    fixture.call(|session, turn| session.handle_signed_in(ATTACH, Seq::new(5), grant(0), turn)).unwrap();
    let Action::Up(Up::Detach { caller }) = &fixture.actions[0] else { panic!("{:?}", fixture.actions) };
    assert_eq!((caller.user.get(), caller.device.get(), caller.attach), (30, 40, ATTACH));
}

#[test]
fn moments_in_seconds_are_never_early() {
    for ms in [0, 1, 999, 1000, 1001, 77_777_777_777] {
        let there = Moment::from_seconds(Moment::from_ms(ms).to_seconds()).as_ms();
        assert!((ms..ms + 1000).contains(&there), "{ms} {there}");
    }
    assert_eq!(Moment::from_seconds(Moment::NEVER.to_seconds()), Moment::NEVER);
}
