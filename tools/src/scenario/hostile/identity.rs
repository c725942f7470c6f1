//! Attacks by those who are not who they say.

use std::time::Duration;

use gimbal_codec::limits::TOKEN_BYTES_MAX;

use super::attack::{Attack, Door, Ground, Hand, Next};
use crate::load::fleet::{Member, sign_in_frame};

/// How long an answer is waited for before another connection is made.
const PATIENCE: Duration = Duration::from_secs(1);

fn sign_in(hand: &mut Hand<'_>, member: &Member) -> Next {
    if hand.step > 0 {
        return Next::Reset;
    }
    let frame = sign_in_frame(member, None);
    hand.sockets.write(hand.index, |out| out.extend_from_slice(&frame));
    Next::Again(PATIENCE)
}

/// Tokens that are worth nothing.
pub(super) struct Tokens {
    bad: Vec<Member>,
}

impl Tokens {
    pub(super) fn new(ground: Ground) -> Self {
        let with = |member: &Member, token: String| Member { token, ..member.clone() };
        let mut bad = ground.revoked;
        for member in &ground.members {
            let token = &member.token;
            bad.push(with(member, token[..token.len() / 2].to_owned()));
            bad.push(with(member, token[1..].to_owned()));
            bad.push(with(member, format!("{token}0")));
            bad.push(with(member, "f".repeat(token.len())));
            bad.push(with(member, "é".repeat(100)));
            bad.push(with(member, String::new()));
            bad.push(with(member, "0".repeat(TOKEN_BYTES_MAX + 1)));
            bad.push(with(member, "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxMDAwMCJ9.".to_owned()));
        }
        Self { bad }
    }
}

impl Attack for Tokens {
    fn door(&self, _: u64) -> Door {
        Door::Open
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        sign_in(hand, &self.bad[hand.number as usize % self.bad.len()])
    }
}

/// A valid token shown for another user, for another device, or for both.
pub(super) struct Impostors {
    claims: Vec<Member>,
}

impl Impostors {
    pub(super) fn new(ground: Ground) -> Self {
        let pairs = ground.members.iter().zip(ground.victims.iter().cycle());
        let claims = pairs.flat_map(|(own, victim)| {
            let token = own.token.clone();
            [
                Member { user: victim.user, device: victim.device, token: token.clone() },
                Member { user: victim.user, device: own.device, token: token.clone() },
                Member { user: own.user, device: victim.device, token },
            ]
        });
        Self { claims: claims.collect() }
    }
}

impl Attack for Impostors {
    fn door(&self, _: u64) -> Door {
        Door::Open
    }

    fn step(&mut self, hand: &mut Hand<'_>) -> Next {
        sign_in(hand, &self.claims[hand.number as usize % self.claims.len()])
    }
}

/// One device from many connections, each of which takes the session from the one before.
pub(super) struct Takeovers;

impl Attack for Takeovers {
    fn door(&self, _: u64) -> Door {
        Door::SignedIn(0)
    }

    fn step(&mut self, _: &mut Hand<'_>) -> Next {
        Next::Wait
    }
}
