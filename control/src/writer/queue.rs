//! The bounded queue into the writer thread. One lock for a whole batch on either side.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::turns::Turns;
use super::{Job, Limits};
use crate::clock;
use crate::command::Command;
use crate::error::RequestError;

/// Detaches that may wait beyond the bound.
const DETACHES_MAX: usize = 4096;
/// Link changes that may wait beyond that: gateways are few, and detaches must not lock them out.
const LINK_CHANGES_MAX: usize = 1024;

/// What [`Queue::take`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// Work; the first of it waited since then.
    Some(Instant),
    /// None in time.
    None,
    /// None any more.
    Closed,
}

pub(super) struct Queue {
    limits: Limits,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Turns,
    bytes: usize,
    closed: bool,
    writer_waits: bool,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::default(), filled: Condvar::new() }
    }

    pub(super) fn push(&self, job: Job) -> Result<(), RequestError> {
        let bytes = job_bytes(&job);
        let reserve = reserve(&job.command);
        let mut state = self.admit(1, bytes, reserve)?;
        state.jobs.push(job, clock::now());
        self.wake(state);
        Ok(())
    }

    pub(super) fn push_many(&self, jobs: &mut Vec<Job>) -> Result<(), RequestError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let bytes = jobs.iter().map(job_bytes).sum();
        let reserve = jobs.iter().map(|job| reserve(&job.command)).min().unwrap_or(0);
        let mut state = self.admit(jobs.len(), bytes, reserve)?;
        let now = clock::now();
        jobs.drain(..).for_each(|job| state.jobs.push(job, now));
        self.wake(state);
        Ok(())
    }

    /// Waits for work, not longer than to `until`, and fills `batch` (empty before) with what fits one commit.
    pub(super) fn take(&self, batch: &mut Vec<Job>, until: Option<Instant>) -> Taken {
        let mut state = self.lock();
        while state.jobs.len() == 0 {
            if state.closed {
                return Taken::Closed;
            }
            let patience = until.map(|until| until.saturating_duration_since(clock::now()));
            if patience.is_some_and(|patience| patience.is_zero()) {
                return Taken::None;
            }
            state.writer_waits = true;
            state = match patience {
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    self.filled.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.writer_waits = false;
        }
        let (mut weight, mut bytes, mut since) = (0, 0, None::<Instant>);
        while let Some((job, came)) = state.jobs.peek() {
            let came = *came;
            weight += job.command.weight();
            bytes += job.command.effect_bytes();
            let full = weight > self.limits.batch_commands_max || bytes > self.limits.batch_bytes_max;
            if full && !batch.is_empty() {
                break;
            }
            since = Some(since.map_or(came, |since| since.min(came)));
            let (job, _) = state.jobs.pop().expect("it was just seen");
            state.bytes -= job_bytes(&job);
            batch.push(job);
        }
        Taken::Some(since.expect("there was one at least"))
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        drop(state);
        self.filled.notify_one();
    }

    pub(super) fn depth(&self) -> (usize, usize) {
        let state = self.lock();
        (state.jobs.len(), state.bytes)
    }

    fn admit(
        &self,
        count: usize,
        bytes: usize,
        reserve: usize,
    ) -> Result<MutexGuard<'_, State>, RequestError> {
        let mut state = self.lock();
        if state.closed {
            return Err(RequestError::Unavailable);
        }
        // A batch above the whole bound still enters an empty queue: else it could never be served.
        let fits = state.jobs.len() + count <= self.limits.queue_commands_max + reserve
            && (reserve > 0 || state.bytes + bytes <= self.limits.queue_bytes_max);
        if !fits && state.jobs.len() > 0 {
            return Err(RequestError::Busy);
        }
        state.bytes += bytes;
        Ok(state)
    }

    fn wake(&self, state: MutexGuard<'_, State>) {
        let waits = state.writer_waits;
        drop(state);
        if waits {
            self.filled.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn job_bytes(job: &Job) -> usize {
    size_of::<Job>() + job.command.heap_bytes()
}

/// How far beyond the bound a command may still wait: those whose loss nothing would mend.
fn reserve(command: &Command) -> usize {
    match command {
        Command::Detach { .. } => DETACHES_MAX,
        Command::GatewayUp { .. } | Command::GatewayDown { .. } => DETACHES_MAX + LINK_CHANGES_MAX,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use gimbal_codec::{Attach, DeviceId, SessionKey, UserId};

    use super::*;
    use crate::command::{Lane, ReplyTo, SessionRef};

    fn job(command: Command) -> Job {
        Job { command, reply_to: ReplyTo::Nobody }
    }

    fn small() -> Queue {
        Queue::new(Limits {
            batch_commands_max: 2,
            batch_bytes_max: 100,
            queue_commands_max: 3,
            queue_bytes_max: 4096,
            ..Limits::default()
        })
    }

    #[test]
    fn a_full_queue_keeps_a_reserve_for_detaches_and_one_behind_it_for_link_changes() {
        let queue = small();
        let detach = || {
            let session =
                SessionRef { lane: Lane(1), session: SessionKey::from_u64(1), attach: Attach::default() };
            job(Command::Detach { session, user: UserId::default(), device: DeviceId::default() })
        };
        for _ in 0..3 {
            queue.push(job(Command::Stats)).unwrap();
        }
        assert_eq!(queue.push(job(Command::Stats)), Err(RequestError::Busy));
        for _ in 0..DETACHES_MAX {
            queue.push(detach()).unwrap();
        }
        assert_eq!(queue.push(detach()), Err(RequestError::Busy));
        queue.push(job(Command::GatewayDown { lane: Lane(1) })).unwrap();
        assert_eq!(
            queue.push_many(&mut vec![job(Command::GatewayDown { lane: Lane(1) }), detach()]),
            Err(RequestError::Busy)
        );
        assert_eq!(queue.depth().0, 3 + DETACHES_MAX + 1);
    }

    #[test]
    fn many_are_taken_whole_or_not_at_all_and_leave_in_batches() {
        let queue = small();
        let mut jobs: Vec<Job> = (0..3).map(|_| job(Command::Stats)).collect();
        queue.push_many(&mut jobs).unwrap();
        assert!(jobs.is_empty());
        jobs.push(job(Command::Stats));
        assert_eq!(queue.push_many(&mut jobs), Err(RequestError::Busy));
        assert_eq!(jobs.len(), 1);
        let mut batch = Vec::new();
        assert!(matches!(queue.take(&mut batch, None), Taken::Some(_)));
        assert_eq!(batch.len(), 2);
        batch.clear();
        assert!(matches!(queue.take(&mut batch, None), Taken::Some(_)));
        assert_eq!((batch.len(), queue.depth()), (1, (0, 0)));
        queue.close();
        batch.clear();
        assert_eq!(queue.take(&mut batch, None), Taken::Closed);
        assert_eq!(queue.push(job(Command::Stats)), Err(RequestError::Unavailable));
    }
}
