//! Rounds of one server under measurement: what each thing it did cost in CPU, its own and the client's.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::watch::read_server;
use crate::{clock, report::median};

/// One round.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Things done.
    pub count: u64,
    /// Per second.
    pub per_second: f64,
    /// Server CPU of each, microseconds.
    pub cpu_us: f64,
    /// The client's own CPU of each, microseconds.
    pub client_cpu_us: f64,
    /// Voluntary context switches of the server for each: how often it slept.
    pub sleeps: f64,
    /// Server CPU of each for each name of threads, microseconds.
    pub threads: Vec<(String, f64)>,
}

/// The rounds of one server.
pub struct Rounds {
    pids: Vec<u32>,
    rounds: Vec<Round>,
}

/// Medians of the rounds, and the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct RoundTable {
    /// Per second.
    pub per_second: f64,
    /// Server CPU of each, microseconds.
    pub cpu_us: f64,
    /// The client's own CPU of each, microseconds.
    pub client_cpu_us: f64,
    /// Voluntary context switches of the server for each.
    pub sleeps: f64,
    /// Things done in all rounds.
    pub count: u64,
    /// In the order in which they were run.
    pub rounds: Vec<Round>,
}

impl Rounds {
    /// No rounds yet of the server with these processes.
    pub fn new(pids: &[u32]) -> Self {
        Self { pids: pids.to_vec(), rounds: Vec::new() }
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.rounds.len()
    }

    /// Measures one round: `work`, which says how many things it did.
    ///
    /// # Errors
    /// What `work` says, and when the server is gone.
    pub fn measure(&mut self, work: impl FnOnce() -> Result<u64>) -> Result<()> {
        let read = || read_server(&self.pids);
        let read_own = || read_server(&[std::process::id()]);
        let (before, own_before, start) = (read()?, read_own()?, clock::now());
        let count = work()?;
        let took = clock::now() - start;
        let (spent, own) = (read()?.since(&before), read_own()?.since(&own_before));
        let each = |total: u64| total as f64 / count.max(1) as f64;
        let each_us = |cpu_ns: u64| each(cpu_ns) / 1_000.0;
        self.rounds.push(Round {
            count,
            per_second: count as f64 / took.max(Duration::from_nanos(1)).as_secs_f64(),
            cpu_us: each_us(spent.cpu_ns),
            client_cpu_us: each_us(own.cpu_ns),
            sleeps: each(spent.voluntary_switches),
            threads: spent.threads.into_iter().map(|thread| (thread.name, each_us(thread.cpu_ns))).collect(),
        });
        Ok(())
    }

    /// The table.
    pub fn table(self) -> RoundTable {
        let middle = |of: fn(&Round) -> f64| median(&self.rounds.iter().map(of).collect::<Vec<_>>());
        RoundTable {
            per_second: middle(|round| round.per_second),
            cpu_us: middle(|round| round.cpu_us),
            client_cpu_us: middle(|round| round.client_cpu_us),
            sleeps: middle(|round| round.sleeps),
            count: self.rounds.iter().map(|round| round.count).sum(),
            rounds: self.rounds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_divided_by_what_it_did_and_a_failed_one_does_not_count() {
        let mut rounds = Rounds::new(&[std::process::id()]);
        rounds.measure(|| Ok(1_000_000_000_000)).expect("we may read ourselves");
        assert!(rounds.measure(|| anyhow::bail!("no")).is_err());
        let table = rounds.table();
        assert_eq!(table.rounds.len(), 1);
        assert!(table.cpu_us < 1.0 && table.per_second > 1e9, "{table:?}");
    }
}
