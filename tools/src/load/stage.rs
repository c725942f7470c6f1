//! What nearly every scenario begins with: a probed target, registered devices, and then their connections signed in.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::{
    Target,
    fleet::{self, Member},
    limits, probe, progress,
    sockets::Sockets,
    stop,
    watch::{Live, Watch, Watched},
};
use crate::{
    clock,
    grpc::Api,
    report::{Counts, Report, RunFacts},
};

/// A run's surroundings.
pub struct Stage<'a> {
    /// Whom it loads.
    pub target: &'a Target,
    /// Of gRPC calls.
    pub runtime: Runtime,
    /// Control.
    pub api: Api,
    /// Registered devices, each of a user of its own.
    pub members: Vec<Member>,
    /// Progress, for the watch.
    pub live: Arc<Live>,
    facts: RunFacts,
}

impl<'a> Stage<'a> {
    /// Checks limits for `connections` and the target, and registers as many devices.
    ///
    /// # Errors
    /// What is short, what is wrong with the target, or the first refused registration.
    pub fn open(target: &'a Target, connections: usize) -> Result<Self> {
        limits::check(target, connections)?;
        probe::gateway(&target.place())?;
        let facts = RunFacts::collect(clock::unix());
        let runtime = fleet::runtime()?;
        let api = runtime.block_on(Api::connect(&target.grpc))?;
        let bar = progress(connections as u64, "register");
        let members = runtime.block_on(fleet::register(&api, &target.key, connections, &bar))?;
        bar.finish_and_clear();
        Ok(Self { target, runtime, api, members, live: Arc::new(Live::default()), facts })
    }

    /// Connects and signs in all members; each has its index in the sockets.
    ///
    /// # Errors
    /// As [`fleet::sign_in`].
    pub fn sign_in(&self) -> Result<Sockets> {
        let mut sockets = self.target.place().sockets(&self.target.sources)?;
        let bar = progress(self.members.len() as u64, "sign in");
        fleet::sign_in(&mut sockets, self.target.address, &self.members, &bar)?;
        bar.finish_and_clear();
        Live::set(&self.live.online, self.members.len() as u64);
        Ok(sockets)
    }

    /// Begins to watch the server and further client processes.
    ///
    /// # Errors
    /// As [`Watch::start`].
    pub fn watch(&self, clients: &[u32]) -> Result<Watch> {
        Watch::start(&self.target.pids, self.target.http, clients, Arc::clone(&self.live))
    }

    /// The report, without the scenario's own figures and with `ok` when it is complete and its counts are clean.
    ///
    /// # Panics
    /// Never: parameters are plain values.
    pub fn report(
        self,
        scenario: &str,
        parameters: &impl Serialize,
        counts: Counts,
        watched: Watched,
    ) -> Report {
        let complete = !stop::is_requested();
        Report {
            scenario: scenario.to_owned(),
            ok: complete && counts.is_clean(),
            complete,
            facts: self.facts,
            parameters: serde_json::to_value(parameters).expect("plain values become JSON"),
            headline: Vec::new(),
            counts,
            latency: std::collections::BTreeMap::new(),
            server: watched.server,
            client: watched.client,
            series: watched.series,
            notes: watched.notes,
            faults: Vec::new(),
            details: serde_json::Map::new(),
        }
    }
}

/// Refuses to go on after an interruption, for steps without which there is nothing to report.
///
/// # Errors
/// When the run was interrupted.
pub fn unless_stopped(during: &str) -> Result<()> {
    ensure!(!stop::is_requested(), "interrupted during {during}: there is nothing to report yet");
    Ok(())
}
