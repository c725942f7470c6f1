//! Whose command is next: askers take turns, so that nobody's thousand commands keep another's one waiting.
//!
//! What one asker asks keeps its order. Changes of links, and who is presumed offline, keep theirs towards everything.

use std::collections::VecDeque;
use std::time::Instant;

use gimbal_codec::DeviceId;
use hashbrown::HashMap;

use super::Job;
use crate::command::Command;

/// Commands that a device is given at once. Few: a flood of many devices shares a batch with all others.
const OF_DEVICE: usize = 4;
/// Commands of backends and of control itself that are executed at once: they speak for many.
const OF_OTHERS: usize = 64;
/// Empty lists kept for the next asker: as many as ask at once in most batches.
const SPARE_MAX: usize = 256;
/// A longer list is not kept.
const SPARE_JOBS_MAX: usize = 16;

/// Jobs, each with when it came.
type Jobs = VecDeque<(Job, Instant)>;

/// What waits for the writer. The askers of one part take turns; a part begins with a command that keeps its order.
#[derive(Default)]
pub(super) struct Turns {
    parts: VecDeque<Part>,
    spare: Vec<Jobs>,
    len: usize,
    /// Of the turn under way, the commands that its asker may still be given.
    left: usize,
}

#[derive(Default)]
struct Part {
    first: Option<(Job, Instant)>,
    /// By device; none: backends and control itself. Nobody's list is empty.
    lists: HashMap<DeviceId, Jobs>,
    /// Who is next.
    order: VecDeque<DeviceId>,
}

impl Part {
    fn is_empty(&self) -> bool {
        self.first.is_none() && self.order.is_empty()
    }
}

impl Turns {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, job: Job, now: Instant) {
        self.len += 1;
        if keeps_order(&job.command) {
            self.parts.push_back(Part { first: Some((job, now)), ..Part::default() });
            return;
        }
        if self.parts.is_empty() {
            self.parts.push_back(Part::default());
        }
        let part = self.parts.back_mut().expect("there is one now");
        let asker = asker(&job.command);
        let list = part.lists.entry(asker).or_insert_with(|| {
            part.order.push_back(asker);
            self.spare.pop().unwrap_or_default()
        });
        list.push_back((job, now));
    }

    /// The next one, with when it came.
    pub(super) fn peek(&mut self) -> Option<&(Job, Instant)> {
        while self.parts.len() > 1 && self.parts.front().is_some_and(Part::is_empty) {
            self.parts.pop_front();
            self.left = 0;
        }
        let part = self.parts.front()?;
        part.first.as_ref().or_else(|| part.lists.get(part.order.front()?)?.front())
    }

    /// Takes what [`Self::peek`] has shown.
    pub(super) fn pop(&mut self) -> Option<(Job, Instant)> {
        self.peek()?;
        let part = self.parts.front_mut()?;
        self.len -= 1;
        if let Some(first) = part.first.take() {
            return Some(first);
        }
        let asker = *part.order.front()?;
        if self.left == 0 {
            self.left = if asker.is_none() { OF_OTHERS } else { OF_DEVICE };
        }
        self.left -= 1;
        let list = part.lists.get_mut(&asker).expect("who is in the order has a list");
        let job = list.pop_front();
        if list.is_empty() {
            part.order.pop_front();
            self.left = 0;
            let list = part.lists.remove(&asker).unwrap_or_default();
            if self.spare.len() < SPARE_MAX && list.capacity() <= SPARE_JOBS_MAX {
                self.spare.push(list);
            }
        } else if self.left == 0 {
            part.order.rotate_left(1);
        }
        job
    }
}

/// Whose it is.
fn asker(command: &Command) -> DeviceId {
    match command {
        Command::Send { sender, .. } | Command::Ack { sender, .. } | Command::Sync { sender, .. } => {
            sender.device
        }
        Command::Attach { device, .. }
        | Command::Announce { device, .. }
        | Command::Detach { device, .. } => *device,
        Command::AttachVouched { vouched, .. } => vouched.device,
        _ => DeviceId::default(),
    }
}

/// Nothing may overtake it, and it may overtake nothing.
fn keeps_order(command: &Command) -> bool {
    matches!(
        command,
        Command::GatewayUp { .. } | Command::GatewayDown { .. } | Command::PresumeOffline { .. }
    )
}

#[cfg(test)]
mod tests {
    use gimbal_codec::{Seq, UserId};

    use super::*;
    use crate::clock;
    use crate::command::{Lane, Proof, ReplyTo, Sender};

    fn ack(device: u64, seq: u64) -> Command {
        let sender = Sender { user: UserId::new(1), device: DeviceId::new(device), proof: Proof::Admitted };
        Command::Ack { sender, seq: Seq::new(seq) }
    }

    fn turns(commands: impl IntoIterator<Item = Command>) -> Turns {
        let mut turns = Turns::default();
        for command in commands {
            turns.push(Job { command, reply_to: ReplyTo::Nobody }, clock::now());
        }
        turns
    }

    /// (device, seq) in the order in which they are taken; a change of links is (0, 0).
    fn taken(turns: &mut Turns) -> Vec<(u64, u64)> {
        let mut taken = Vec::new();
        while turns.peek().is_some() {
            taken.push(match turns.pop().unwrap().0.command {
                Command::Ack { sender, seq } => (sender.device.get(), seq.get()),
                _ => (0, 0),
            });
        }
        assert!(turns.len() == 0 && turns.pop().is_none());
        taken
    }

    #[test]
    fn one_command_waits_for_a_turn_of_each_other_asker_and_not_for_all_they_ask() {
        let flood = (1..=1000).flat_map(|seq| (1..=16).map(move |device| ack(device, seq)));
        let mut turns = turns(flood.chain([ack(99, 1)]));
        assert_eq!(turns.len(), 16_001);
        let taken = taken(&mut turns);
        assert_eq!(taken.iter().position(|(device, _)| *device == 99), Some(16 * OF_DEVICE));
        for device in 1..=16 {
            let seqs: Vec<u64> = taken.iter().filter(|(of, _)| *of == device).map(|(_, seq)| *seq).collect();
            assert_eq!(seqs, (1..=1000).collect::<Vec<_>>(), "each asker's own order stands");
        }
    }

    #[test]
    fn who_is_alone_waits_for_nobody_and_backends_get_more_at_once() {
        let seqs: Vec<_> = (1..=10).map(|seq| (7, seq)).collect();
        assert_eq!(taken(&mut turns((1..=10).map(|seq| ack(7, seq)))), seqs);
        let backend = (1..=100).map(|seq| ack(0, seq));
        let taken = taken(&mut turns(backend.chain((1..=9).map(|seq| ack(7, seq)))));
        let of_device =
            |range: std::ops::Range<usize>| taken[range].iter().filter(|(device, _)| *device == 7).count();
        assert_eq!(
            (of_device(0..64), of_device(64..68), of_device(68..104), of_device(104..109)),
            (0, 4, 0, 5)
        );
    }

    #[test]
    fn nothing_overtakes_a_change_of_links() {
        let down = || Command::GatewayDown { lane: Lane(1) };
        let before = (1..=9).map(|seq| ack(1, seq));
        let mut all = turns(before.chain([down(), ack(2, 1), ack(1, 10), down(), down(), ack(3, 1)]));
        let taken = taken(&mut all);
        assert_eq!(taken[..9], (1..=9).map(|seq| (1, seq)).collect::<Vec<_>>());
        assert_eq!(taken[9..], [(0, 0), (2, 1), (1, 10), (0, 0), (0, 0), (3, 1)]);
    }

    #[test]
    fn what_comes_between_two_turns_waits_for_its_own() {
        let mut turns = turns((1..=6).map(|seq| ack(1, seq)));
        (1..=3).for_each(|seq| assert_eq!(turns.pop().map(|(job, _)| seq_of(&job)), Some(seq)));
        turns.push(Job { command: ack(2, 1), reply_to: ReplyTo::Nobody }, clock::now());
        assert_eq!(taken(&mut turns), [(1, 4), (2, 1), (1, 5), (1, 6)]);
    }

    fn seq_of(job: &Job) -> u64 {
        match job.command {
            Command::Ack { seq, .. } => seq.get(),
            _ => 0,
        }
    }
}
