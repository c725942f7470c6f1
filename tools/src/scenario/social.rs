//! A day of a product: people sign up, befriend and block each other, make groups of several sizes, come and go in them, and
//! write to each other and to groups; their second devices come and go; the server may be killed in the middle.
//!
//! Acts begin by an open schedule. A model beside them says what the server has to answer to each, and what must be where in the
//! end: in every mailbox each message once and in order, on every device the mailbox, friends, blocks, groups and roles as the
//! model has them, the event stream telling the same story, and the last message of each mailbox traced to its ack.

mod act;
mod choose;
mod device;
mod judge;
mod model;
mod town;

use std::sync::{Arc, atomic::Ordering};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{
    grpc::Credential,
    load::{Target, server::Server, stage::Stage, watch::Watched},
    report::{Counts, Figure, Report},
};
use device::{Device, locked};
use judge::Verdict;
use town::Town;

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// People there are when the day begins.
    pub users: usize,
    /// Acts per second: four of five are messages.
    pub rate: f64,
    /// Devices per second that come, go, or come anew.
    pub churn: f64,
    /// Bytes of what is said, at least the mark's 24.
    pub bytes: usize,
    /// Length of the day, seconds.
    pub duration_s: f64,
    /// How often the server that was started for this is killed and started again.
    pub restart: u32,
    /// Of the choices.
    pub seed: u64,
}

/// Runs the scenario.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and is invalid has `ok == false`.
pub fn run(mut target: Target, parameters: &Parameters) -> Result<Report> {
    let Parameters { users, rate, churn, bytes, restart, .. } = *parameters;
    ensure!((4..=100_000).contains(&users), "--users is 4 to 100,000");
    ensure!(rate > 0.0 && churn >= 0.0, "a rate above 0");
    ensure!(bytes <= gimbal_codec::limits::CONTENT_BYTES_MAX, "a message is too long for one frame");
    let server = target.server.take();
    ensure!(restart == 0 || server.is_some(), "--restart kills the server: only one of our own (--start)");
    ensure!(
        restart == 0 || target.quic.is_none(),
        "over QUIC nobody notices that a server was killed: no --restart"
    );
    let stage = Stage::open(&target, users)?;
    let _inside = stage.runtime.enter();
    let mut town = Town::new(&stage, parameters)?;
    let watch = stage.watch(&[])?;
    stage.runtime.block_on(town.settle_in())?;
    watch.begin_at_rest();
    let (seconds, server) = stage.runtime.block_on(town.live(server))?;
    watch.end();
    stage.runtime.block_on(town.settle())?;
    let mut verdict = Verdict::default();
    let judged = stage.runtime.block_on(judge(&stage, &town, server.as_ref(), &mut verdict));
    if let Err(error) = &judged {
        verdict.faults.push(format!("what the server has cannot be read: {error:#}"));
    }
    town.leave();
    let day = Day::of(town, verdict, seconds);
    Ok(day.report(stage, parameters, watch.finish(), judged.is_ok()))
}

async fn judge(
    stage: &Stage<'_>,
    town: &Town<'_>,
    server: Option<&Server>,
    verdict: &mut Verdict,
) -> Result<()> {
    let (api, model) = (&stage.api, &town.model);
    let backend = Credential::bearer(&stage.target.key)?;
    let firsts: Vec<Arc<Device>> = town.people.iter().map(|person| Arc::clone(&person.first)).collect();
    let found = judge::read_all(api, &firsts).await?;
    for (who, found) in found.iter().enumerate() {
        judge::judge_mailbox(town.crowd.run, model, who, &found.messages, verdict);
        let devices: Vec<Arc<Device>> = town.people[who].devices().map(Arc::clone).collect();
        judge::judge_person(model, who, found, &devices, verdict);
    }
    judge::judge_groups(api, &backend, model, verdict).await.context("groups")?;
    judge::judge_events(api, &backend, model, &found, verdict).await?;
    // The key of backends opens the operator's calls on a server of our own alone.
    if server.is_some() {
        judge::judge_traces(api, &backend, &found, model, verdict).await?;
    }
    Ok(())
}

/// What a day came to.
struct Day {
    counts: Counts,
    faults: Vec<String>,
    verdict: Verdict,
    seconds: f64,
    latencies: [(&'static str, crate::report::Latency); 3],
    details: Vec<(&'static str, u64)>,
}

impl Day {
    fn of(town: Town<'_>, verdict: Verdict, seconds: f64) -> Self {
        let crowd = Arc::clone(&town.crowd);
        let load = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
        let mut counts = town.counts.clone();
        counts.add(&verdict.counts);
        counts.delivered = load(&crowd.delivered);
        counts.signed_in = load(&crowd.sign_ins);
        counts.closed += load(&crowd.closed);
        counts.shed += load(&town.hands.shed);
        let mut faults = Vec::new();
        for words in town.faults.iter().chain(&*locked(&crowd.faults)).chain(&verdict.faults) {
            Report::fault(&mut faults, words.clone());
        }
        let deliveries = std::mem::take(&mut *locked(&crowd.deliveries));
        let groups = town.model.groups.len() as u64;
        let details = vec![
            ("people", town.model.people.len() as u64),
            ("groups", groups),
            ("stored", verdict.stored),
            ("events", verdict.events),
            ("traced", verdict.traced),
            ("refused_as_the_model_says", town.refused_as_due),
            ("repeated_calls", load(&town.hands.repeats)),
            ("restarts", u64::from(town.restarts)),
            ("own_copies", u64::from(town.model.own_copies)),
        ];
        let latencies = [("ack", town.sends), ("act", town.others), ("delivery", deliveries)];
        Self { counts, faults, verdict, seconds, latencies, details }
    }

    fn report(
        self,
        stage: Stage<'_>,
        parameters: &Parameters,
        mut watched: Watched,
        is_judged: bool,
    ) -> Report {
        if let Some(server) = &mut watched.server {
            server.divide("delivery", self.counts.delivered);
        }
        let mut report = stage.report("social", parameters, self.counts, watched);
        report.complete &= is_judged;
        report.ok &= is_judged && self.faults.is_empty() && report.counts.acked > 0;
        report.latency =
            self.latencies.iter().map(|(name, latency)| ((*name).to_owned(), latency.table())).collect();
        let per_second = |count: u64| count as f64 / self.seconds.max(1e-9);
        report.headline = vec![
            Figure::new("messages", per_second(report.counts.acked), "/s"),
            Figure::new("stored in mailboxes", self.verdict.stored as f64, ""),
            Figure::new("p99 ack", report.latency["ack"].p99_us, "us"),
            Figure::new("p99 delivery", report.latency["delivery"].p99_us, "us"),
        ];
        self.details.into_iter().for_each(|(name, value)| report.detail(name, value));
        report.faults = self.faults;
        report
    }
}
