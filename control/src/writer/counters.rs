//! What the writer did, refused and dropped since start. Written by one thread, read by metrics.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gimbal_codec::CloseReason;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::clock;

use crate::error::RequestError;

/// A number that only rises.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of the writer.
#[derive(Default, Debug)]
pub struct Counters {
    /// Commands executed or refused.
    pub commands: Counter,
    /// Batches, with or without effects.
    pub batches: Counter,
    /// Commits that succeeded.
    pub commits: Counter,
    /// Messages stored; each mailbox counts.
    pub sends: Counter,
    /// Repeated sends that were recognised.
    pub duplicates: Counter,
    /// Remembered ids of sends that were forgotten because of their age.
    pub forgotten: Counter,
    /// Batches in which messages to groups were given out.
    pub fan_outs: Counter,
    /// Targets handed to gateways.
    pub deliveries: Counter,
    /// Sessions ended by a newer sign-in of their device.
    pub takeovers: Counter,
    ended: [Counter; Counters::ENDINGS.len()],
    /// Items lost because a gateway's link was full or down; it announces its sessions again.
    pub link_full: Counter,
    /// Submits refused at a bound of the queue (a batch of a link counts once).
    pub queue_full: Counter,
    /// Commands not executed because their callers had given up waiting: a deadline passed, or a call was cancelled.
    pub given_up: Counter,
    /// Online sessions now, and gateways linked now.
    pub online: Gauges,
    /// How long each batch took.
    pub stages: Stages,
    refused: [Counter; RequestError::REASONS.len()],
}

/// Where a batch spends its time, in order.
#[derive(Default, Debug)]
pub struct Stages {
    /// From the arrival of its first command until it begins.
    pub queue: Stage,
    /// Executing it.
    pub execute: Stage,
    /// Writing and syncing.
    pub commit: Stage,
    /// Handing out answers and deliveries.
    pub release: Stage,
}

impl Stages {
    /// Their seconds, in order.
    pub(crate) fn all(&self) -> Vec<(&'static str, Histogram)> {
        let Self { queue, execute, commit, release } = self;
        [("queue", queue), ("execute", execute), ("commit", commit), ("release", release)]
            .map(|(name, stage)| (name, stage.0.clone()))
            .into()
    }
}

/// Seconds of one stage, by batch.
pub struct Stage(Histogram);

impl Default for Stage {
    /// 10 us to 5 s: a batch of one takes less outside its sync, and above are deadlines.
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(1e-5, 2.0, 20)))
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stage")
    }
}

impl Stage {
    /// Enters the time since `from`, and returns the time now.
    pub(super) fn lap(&self, from: Instant) -> Instant {
        let now = clock::now();
        self.0.observe((now - from).as_secs_f64());
        now
    }
}

/// Values of the last batch.
#[derive(Default, Debug)]
pub struct Gauges {
    sessions: AtomicU64,
    users: AtomicU64,
    gateways: AtomicU64,
    fan_outs: AtomicU64,
}

impl Gauges {
    /// Sessions, users, gateways.
    pub fn get(&self) -> (u64, u64, u64) {
        let load = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        (load(&self.sessions), load(&self.users), load(&self.gateways))
    }

    /// Groups whose messages are being given out.
    pub fn fan_outs(&self) -> u64 {
        self.fan_outs.load(Ordering::Relaxed)
    }

    pub(super) fn set_fan_outs(&self, open: usize) {
        self.fan_outs.store(open as u64, Ordering::Relaxed);
    }

    pub(super) fn set(&self, (sessions, users, gateways): (u64, u64, u64)) {
        self.sessions.store(sessions, Ordering::Relaxed);
        self.users.store(users, Ordering::Relaxed);
        self.gateways.store(gateways, Ordering::Relaxed);
    }
}

impl Counters {
    /// Why the policy ends sessions for others of their user.
    const ENDINGS: [CloseReason; 2] = [CloseReason::OtherDevice, CloseReason::TooManySessions];

    /// Sessions that the policy ended, by what their clients were told.
    pub fn ended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::ENDINGS.into_iter().map(CloseReason::text).zip(self.ended.iter().map(Counter::get))
    }

    /// Sessions ended for others of their user.
    pub(super) fn count_ended(&self, reasons: &[CloseReason]) {
        for reason in reasons {
            match Self::ENDINGS.iter().position(|known| known == reason) {
                Some(at) => self.ended[at].add(1),
                None => self.takeovers.add(u64::from(*reason == CloseReason::Takeover)),
            }
        }
    }

    /// Commands refused, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RequestError::REASONS.into_iter().zip(self.refused.iter().map(Counter::get))
    }

    pub(super) fn count_refusal(&self, error: RequestError) {
        let at = RequestError::REASONS.iter().position(|reason| *reason == error.reason());
        self.refused[at.expect("every reason is listed")].add(1);
    }
}
