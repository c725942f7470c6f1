//! What clients want: each keeps one message at a time under way, and repeats it until it is answered.

use gimbal_codec::{Attach, Seq, UserId};
use gimbal_control::command::Lane;

use super::rng::Rng;
use crate::support::Account;

/// A message that its sender has not yet seen acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: u64,
    pub(crate) to: UserId,
    pub(crate) text: String,
}

/// An acknowledged message: the promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) wanted: Wanted,
    pub(crate) seq: Seq,
}

pub(crate) struct Client {
    pub(crate) account: Account,
    /// Slot at its gateway; a new one for each connection.
    pub(crate) slot: u32,
    /// Its session, as its gateway knows it.
    pub(crate) online: Option<(Lane, Attach)>,
    pub(crate) wanted: Option<Wanted>,
    pub(crate) acknowledged: Vec<Acknowledged>,
    next_id: u64,
}

impl Client {
    pub(crate) fn new(account: Account) -> Self {
        Self { account, slot: 0, online: None, wanted: None, acknowledged: Vec::new(), next_id: 1 }
    }

    /// The message under way, or a new one.
    pub(crate) fn want(&mut self, users: &[UserId], rng: &mut Rng) -> Wanted {
        let (account, next_id) = (self.account, &mut self.next_id);
        let wanted = self.wanted.get_or_insert_with(|| {
            let id = *next_id;
            *next_id += 1 + rng.below(3);
            let to = users[rng.below(users.len() as u64) as usize];
            Wanted { id, to, text: format!("{}:{id}", account.device) }
        });
        wanted.clone()
    }

    pub(crate) fn answered(&mut self, id: u64, seq: Seq) {
        if let Some(wanted) = self.wanted.take_if(|wanted| wanted.id == id) {
            self.acknowledged.push(Acknowledged { wanted, seq });
        }
    }
}
