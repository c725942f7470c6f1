//! What came of an attack, and whether a promise was broken.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Books, Parameters,
    attack::Plan,
    ground::{Peaks, of},
    honest::{Honest, Slow},
    swarm::Done,
};
use crate::{
    load::watch::Watched,
    report::{ClientFigures, Counts, Figure, Report, RunFacts, median},
};

/// Honest p99 beside the attack, to p99 without.
const RATIO_LINE: f64 = 2.0;
/// Memory that the kernel may take for what one attacker does not read, bytes.
const SEND_BYTES_LINE: u32 = 64 * 1024;

/// One round of each kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Round {
    pub(super) quiet: Slow,
    pub(super) attacked: Slow,
    /// Hostile connections at the end of the attacked one.
    pub(super) open: u64,
}

/// Everything about one attack over one transport.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) transport: &'static str,
    pub(super) attack: &'static str,
    pub(super) about: &'static str,
    /// No promise was broken.
    pub(super) ok: bool,
    /// Those that were, in words.
    pub(super) broken: Vec<String>,
    /// Connections that it keeps up.
    pub(super) connections: usize,
    pub(super) done: Done,
    /// Medians over the rounds, attacked to quiet.
    pub(super) delivery_ratio: f64,
    pub(super) room_ratio: f64,
    pub(super) delivery_p99_us: [f64; 2],
    pub(super) room_p99_us: [f64; 2],
    /// Resident anonymous memory of the server after the first quiet round, and the most that it grew by, bytes.
    pub(super) rss_before_bytes: u64,
    pub(super) rss_growth_bytes: u64,
    /// The most that the gateway counted against `memory_max`, bytes.
    pub(super) held_bytes: u64,
    pub(super) peaks: Peaks,
    /// Refusals and other counters that rose.
    pub(super) counted: BTreeMap<String, u64>,
    /// How long somebody new waited to be signed in after the attack.
    pub(super) newcomer_ms: f64,
    /// Room messages that some honest member was never given.
    pub(super) missed: u64,
    /// Of the honest.
    pub(super) counts: Counts,
    pub(super) faults: Vec<String>,
    pub(super) rounds: Vec<Round>,
}

/// Families whose growth is told, without `gimbal_`.
const TOLD: [&str; 5] = [
    "gateway_closed_total",
    "gateway_dropped_total",
    "gateway_refused_total",
    "gateway_websocket_",
    "control_dropped_total",
];

impl Outcome {
    pub(super) fn new(transport: &'static str, plan: &Plan, connections: usize) -> Self {
        Self {
            transport,
            attack: plan.name,
            about: plan.about,
            ok: false,
            broken: Vec::new(),
            connections,
            done: Done::default(),
            delivery_ratio: 0.0,
            room_ratio: 0.0,
            delivery_p99_us: [0.0; 2],
            room_p99_us: [0.0; 2],
            rss_before_bytes: 0,
            rss_growth_bytes: 0,
            held_bytes: 0,
            peaks: Peaks::default(),
            counted: BTreeMap::new(),
            newcomer_ms: 0.0,
            missed: 0,
            counts: Counts::default(),
            faults: Vec::new(),
            rounds: Vec::new(),
        }
    }

    /// Enters what the honest saw and the server counted, and decides.
    pub(super) fn judge(&mut self, honest: Honest, books: &Books, wanted: &[&str], parameters: &Parameters) {
        let middle = |of: fn(&Round) -> f64| median(&self.rounds.iter().map(of).collect::<Vec<_>>());
        self.delivery_p99_us =
            [middle(|round| round.quiet.delivery_p99_us), middle(|round| round.attacked.delivery_p99_us)];
        self.room_p99_us =
            [middle(|round| round.quiet.room_p99_us), middle(|round| round.attacked.room_p99_us)];
        let ratio = |[quiet, attacked]: [f64; 2]| attacked / quiet.max(1e-9);
        (self.delivery_ratio, self.room_ratio) = (ratio(self.delivery_p99_us), ratio(self.room_p99_us));
        self.rss_before_bytes = books.rss_before;
        self.rss_growth_bytes = books.peaks.rss_bytes.saturating_sub(books.rss_before);
        (self.held_bytes, self.peaks) = (books.held_max, books.peaks);
        let rose = |(name, &after): (&String, &u64)| {
            let growth = after.saturating_sub(of(&books.before, name));
            (growth > 0 && TOLD.iter().any(|family| name.starts_with(family))).then(|| (name.clone(), growth))
        };
        self.counted = books.after.iter().filter_map(rose).collect();
        (self.counts, self.faults, self.missed) = (honest.meters.counts, honest.meters.faults, honest.missed);
        self.judge_counts(books, wanted, parameters);
        if parameters.enforce && self.delivery_ratio.max(self.room_ratio) > RATIO_LINE {
            self.broken.push(format!(
                "honest p99 is {:.2} x (messages) and {:.2} x (room) its quiet value, above {RATIO_LINE} x",
                self.delivery_ratio, self.room_ratio
            ));
        }
        self.ok = self.broken.is_empty();
    }

    fn judge_counts(&mut self, books: &Books, wanted: &[&str], parameters: &Parameters) {
        let broken = &mut self.broken;
        if !self.counts.is_clean() || self.counts.shed > 0 {
            broken.push(format!("honest clients were harmed: {}", self.faults.join("; ")));
        }
        if self.missed > 0 {
            broken.push(format!("{} room messages did not reach honest members", self.missed));
        }
        for name in wanted {
            if of(&books.after, name) <= of(&books.before, name) {
                broken.push(format!("{name} did not rise"));
            }
        }
        let panics = "control_grpc_panics_total";
        if of(&books.after, panics) > of(&books.before, panics) {
            broken.push("a call panicked".to_owned());
        }
        if self.held_bytes > parameters.memory_max {
            broken.push(format!("the gateway held {} bytes, above memory_max", self.held_bytes));
        }
        if self.rss_growth_bytes > parameters.memory_max {
            broken.push(format!("memory grew by {} bytes, above memory_max", self.rss_growth_bytes));
        }
        if self.peaks.send_bytes > SEND_BYTES_LINE {
            broken.push(format!(
                "the kernel took {} bytes for one attacker, above {SEND_BYTES_LINE}",
                self.peaks.send_bytes
            ));
        }
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let [quiet, attacked] = self.delivery_p99_us;
        let [room_quiet, room_attacked] = self.room_p99_us;
        format!(
            "{:<9} {:<15} {} | message p99 {quiet:.0} -> {attacked:.0} us ({:.2} x), room {room_quiet:.0} -> {room_attacked:.0} us \
             ({:.2} x) | {} connections, {} begun, {} ended by the server | memory +{:.1} MiB, send buffers at most {} B each",
            self.transport,
            self.attack,
            if self.ok { "kept" } else { "BROKEN" },
            self.delivery_ratio,
            self.room_ratio,
            self.peaks.hostile_sockets,
            self.done.opened,
            self.done.ended,
            mib(self.rss_growth_bytes),
            self.peaks.send_bytes,
        )
    }
}

/// A report to enter outcomes into.
pub(super) fn empty(facts: RunFacts, parameters: &Parameters) -> Report {
    Report {
        scenario: "hostile".to_owned(),
        ok: false,
        complete: false,
        facts,
        parameters: serde_json::to_value(parameters).expect("plain values become JSON"),
        headline: Vec::new(),
        counts: Counts::default(),
        latency: BTreeMap::new(),
        server: None,
        client: ClientFigures::default(),
        series: Vec::new(),
        notes: Vec::new(),
        faults: Vec::new(),
        details: serde_json::Map::new(),
    }
}

/// Enters the figures of one server: one behind the other.
pub(super) fn enter(report: &mut Report, watched: Watched) {
    let begin = report.series.last().map_or(0.0, |sample| sample.t_s);
    report.series.extend(watched.series.into_iter().map(|mut sample| {
        sample.t_s += begin;
        sample
    }));
    report.client.processes = watched.client.processes;
    report.client.cpu_s += watched.client.cpu_s;
    report.client.busiest_thread = report.client.busiest_thread.max(watched.client.busiest_thread);
    if let Some(server) = watched.server {
        let before = report.server.take().map_or((0.0, 0.0), |before| (before.cpu_s, before.seconds));
        report.server = Some(crate::report::ServerFigures {
            cpu_s: server.cpu_s + before.0,
            seconds: server.seconds + before.1,
            ..server
        });
    }
}

/// The verdict on all of them.
pub(super) fn conclude(report: &mut Report, outcomes: &[Outcome], parameters: &Parameters) {
    let count = |of: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| of(outcome)).count() as f64;
    let worst = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).fold(0.0, f64::max);
    report.headline = vec![
        Figure::new("attacks under which every promise was kept", count(|outcome| outcome.ok), ""),
        Figure::new("attacks under which one was broken", count(|outcome| !outcome.ok), ""),
        Figure::new("worst honest p99 of messages, to the quiet one", worst(|of| of.delivery_ratio), "x"),
        Figure::new("worst honest p99 of the room, to the quiet one", worst(|of| of.room_ratio), "x"),
        Figure::new(
            "attacks above the line of 2 x",
            count(|outcome| outcome.delivery_ratio.max(outcome.room_ratio) > RATIO_LINE),
            "",
        ),
        Figure::new(
            "most growth of the server's memory",
            worst(|of| of.rss_growth_bytes as f64) / f64::from(1 << 20),
            "MiB",
        ),
        Figure::new("its bound", parameters.memory_max as f64 / f64::from(1 << 20), "MiB"),
        Figure::new(
            "most kernel memory for what one attacker does not read",
            worst(|of| of.peaks.send_bytes.into()),
            "B",
        ),
    ];
    for outcome in outcomes {
        report.counts.add(&outcome.counts);
        report.notes.push(outcome.line());
        for why in &outcome.broken {
            Report::fault(&mut report.faults, format!("{} {}: {why}", outcome.transport, outcome.attack));
        }
    }
    report.ok = report.complete && !outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.ok);
    report.detail("attacks", outcomes);
}
