//! The outcome of a run: one shape for all scenarios, as one JSON object.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{LatencyTable, RunFacts};
use crate::{ledger::Fault, proc::ThreadFigures};

/// Faults put in words; the others are only counted.
const FAULTS_SHOWN_MAX: usize = 20;

/// What a run was, what came of it, and what it cost.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// It is complete, and nothing was lost, doubled, reordered, missing, refused or closed that should not be.
    pub ok: bool,
    /// It ran to its end; `false` after an interruption or when the server went away.
    pub complete: bool,
    /// Where and with what.
    pub facts: RunFacts,
    /// The scenario's own parameters.
    pub parameters: Value,
    /// What the run was made for, most important first.
    pub headline: Vec<Figure>,
    /// Everything counted.
    pub counts: Counts,
    /// Latency tables by what they are of.
    pub latency: BTreeMap<String, LatencyTable>,
    /// What the server spent in the measured time.
    pub server: Option<ServerFigures>,
    /// What the client spent in the measured time.
    pub client: ClientFigures,
    /// The run over time.
    pub series: Vec<Sample>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// The first faults in words.
    pub faults: Vec<String>,
    /// Figures of this scenario alone.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// One number worth a headline.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: String,
}

impl Figure {
    /// A figure.
    pub fn new(name: &str, value: f64, unit: &str) -> Self {
        Self { name: name.to_owned(), value, unit: unit.to_owned() }
    }
}

/// Everything counted, over the whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Counts {
    /// Messages sent.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Given to recipients.
    pub delivered: u64,
    /// Acknowledged and not stored, or stored and never given to the connection.
    pub lost: u64,
    /// Given, stored or answered twice.
    pub duplicated: u64,
    /// Numbers left out.
    pub gaps: u64,
    /// Out of the sender's order.
    pub reordered: u64,
    /// Stored otherwise than acknowledged, or of another sender.
    pub wrong: u64,
    /// Refused because the server is at a bound, or left out for a slow reader as it promises: shed, not lost.
    pub shed: u64,
    /// Refused for another reason.
    pub refused: u64,
    /// Never answered.
    pub unanswered: u64,
    /// Connections that ended before the run did, unasked.
    pub closed: u64,
    /// Frames that no rule of the protocol explains.
    pub unexpected: u64,
    /// Times a recipient was told that it is behind.
    pub behind: u64,
    /// Sync pages that followed.
    pub pages: u64,
    /// Sign-ins answered with success.
    pub signed_in: u64,
    /// Heartbeats answered.
    pub heartbeats: u64,
}

impl Counts {
    /// Nothing that must not be.
    pub fn is_clean(&self) -> bool {
        let bad = [self.lost, self.duplicated, self.gaps, self.reordered, self.wrong];
        let worse = [self.refused, self.unanswered, self.closed, self.unexpected];
        bad.iter().chain(&worse).all(|&count| count == 0)
    }

    /// Enters a fault the ledger found.
    pub fn enter(&mut self, fault: &Fault) {
        let count = match fault {
            Fault::Lost { .. } | Fault::NotGiven { .. } => &mut self.lost,
            Fault::GivenTwice { .. } | Fault::AnsweredTwice { .. } => &mut self.duplicated,
            Fault::Order { before, number, .. } if before == number => &mut self.duplicated,
            Fault::Order { .. } => &mut self.reordered,
            Fault::Gap { .. } | Fault::SeqGap { .. } => &mut self.gaps,
            Fault::Foreign { .. } | Fault::Moved { .. } | Fault::Unasked { .. } | Fault::Differs { .. } => {
                &mut self.wrong
            }
        };
        *count += 1;
    }

    /// Each with its name, in order.
    pub fn named(&self) -> [(&'static str, u64); 17] {
        [
            ("sent", self.sent),
            ("acked", self.acked),
            ("delivered", self.delivered),
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("gaps", self.gaps),
            ("reordered", self.reordered),
            ("wrong", self.wrong),
            ("shed", self.shed),
            ("refused", self.refused),
            ("unanswered", self.unanswered),
            ("closed", self.closed),
            ("unexpected", self.unexpected),
            ("behind", self.behind),
            ("pages", self.pages),
            ("signed in", self.signed_in),
            ("heartbeats", self.heartbeats),
        ]
    }

    /// Adds those of another part of the run.
    pub fn add(&mut self, other: &Self) {
        let Self { sent, acked, delivered, lost, duplicated, gaps, reordered, wrong, .. } = other;
        self.sent += sent;
        self.acked += acked;
        self.delivered += delivered;
        self.lost += lost;
        self.duplicated += duplicated;
        self.gaps += gaps;
        self.reordered += reordered;
        self.wrong += wrong;
        let Self {
            shed, refused, unanswered, closed, unexpected, behind, pages, signed_in, heartbeats, ..
        } = other;
        self.shed += shed;
        self.refused += refused;
        self.unanswered += unanswered;
        self.closed += closed;
        self.unexpected += unexpected;
        self.behind += behind;
        self.pages += pages;
        self.signed_in += signed_in;
        self.heartbeats += heartbeats;
    }
}

/// The server in the measured time; several processes are summed.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ServerFigures {
    /// Its processes.
    pub processes: Vec<Process>,
    /// Length of the measured time.
    pub seconds: f64,
    /// CPU time, seconds.
    pub cpu_s: f64,
    /// CPU time of the busiest thread over the time: 1 is a whole core.
    pub busiest_thread: f64,
    /// CPU time for each name of threads.
    pub threads: Vec<ThreadFigures>,
    /// Resident memory at the end, bytes.
    pub rss_bytes: u64,
    /// Resident anonymous memory at the end, bytes.
    pub rss_anon_bytes: u64,
    /// Voluntary context switches.
    pub voluntary_switches: u64,
    /// Involuntary context switches.
    pub involuntary_switches: u64,
    /// What the gateway's counters grew by, by their names without prefix and suffix; empty when its page is not
    /// known. Shards write them ten times a second.
    pub counters: BTreeMap<String, u64>,
    /// Per delivery, per connection and the like.
    pub per: Vec<PerUnit>,
}

/// One process of a server.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command line: its configuration, as far as it is not the default.
    pub command: Vec<String>,
    /// CPUs it may run on.
    pub cores: String,
}

/// What the server spent for one of something.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PerUnit {
    /// Of what.
    pub unit: String,
    /// How many there were.
    pub count: u64,
    /// CPU time, microseconds.
    pub cpu_us: f64,
    /// Context switches of both kinds.
    pub context_switches: f64,
    /// Calls of `io_uring_enter`.
    pub io_uring_enters: Option<f64>,
    /// Bytes sent to clients.
    pub sent_bytes: Option<f64>,
}

impl ServerFigures {
    /// Enters what one `unit` took of the whole, of which there were `count`.
    pub fn divide(&mut self, unit: &str, count: u64) {
        let each = |total: f64| total / count.max(1) as f64;
        let counter = |name: &str| self.counters.get(name).map(|&total| each(total as f64));
        let switches = self.voluntary_switches + self.involuntary_switches;
        let per = PerUnit {
            unit: unit.to_owned(),
            count,
            cpu_us: each(self.cpu_s * 1e6),
            context_switches: each(switches as f64),
            io_uring_enters: counter("io_uring_enters"),
            sent_bytes: counter("sent_bytes"),
        };
        self.per.push(per);
    }
}

/// The load client in the measured time.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ClientFigures {
    /// Processes.
    pub processes: usize,
    /// CPU time of all, seconds.
    pub cpu_s: f64,
    /// CPU time of the busiest thread over the time: 1 is a whole core.
    pub busiest_thread: f64,
    /// The busiest thread had no time left while the server had some: the figures are the client's, not the server's.
    pub is_bottleneck: bool,
}

/// One look at the run. Everything but time, connections and memory only grows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Sample {
    /// Since the watch began, seconds.
    pub t_s: f64,
    /// Messages sent.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Connections signed in.
    pub online: u64,
    /// The server's CPU time, seconds.
    pub server_cpu_s: f64,
    /// The client's CPU time, seconds.
    pub client_cpu_s: f64,
    /// The server's resident anonymous memory, bytes.
    pub rss_anon_bytes: u64,
    /// Memory of all TCP sockets of the machine, both ends of loopback, bytes.
    pub tcp_bytes: u64,
    /// The server's context switches.
    pub switches: u64,
    /// Bytes the gateway received.
    pub received_bytes: Option<u64>,
    /// Bytes the gateway sent.
    pub sent_bytes: Option<u64>,
    /// The gateway's calls of `io_uring_enter`.
    pub io_uring_enters: Option<u64>,
}

impl Report {
    /// Enters a figure of this scenario alone.
    pub fn detail(&mut self, name: &str, value: impl Serialize) {
        self.details.insert(name.to_owned(), serde_json::to_value(value).unwrap_or(Value::Null));
    }

    /// Enters a fault in words, if there are not too many yet.
    pub fn fault(faults: &mut Vec<String>, words: String) {
        if faults.len() < FAULTS_SHOWN_MAX {
            faults.push(words);
        }
    }

    /// The verdict in words.
    pub fn verdict(&self) -> &'static str {
        match (self.complete, self.ok) {
            (_, true) => "ledger: all agree",
            (false, _) => "INCOMPLETE: the run did not reach its end",
            (true, false) => "RUN INVALID",
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("{}:", self.scenario)];
        let width = self.headline.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        for Figure { name, value, unit } in &self.headline {
            lines.push(format!("  {name:<width$}  {} {unit}", number(*value)));
        }
        lines.extend(self.latency.iter().map(|(name, table)| table.line(name)));
        let mut counts = String::from("counts");
        for (name, count) in self.counts.named().into_iter().filter(|(_, count)| *count > 0) {
            let _ = write!(counts, "  {name} {count}");
        }
        lines.push(counts);
        if let Some(server) = &self.server {
            lines.push(server.line());
        }
        let ClientFigures { cpu_s, busiest_thread, .. } = self.client;
        lines.push(format!(
            "client: {cpu_s:.2} s CPU, busiest thread {:.0} % of a core",
            busiest_thread * 100.0
        ));
        lines.extend(self.notes.iter().map(|note| format!("NOTE {note}")));
        lines.extend(self.faults.iter().map(|fault| format!("FAULT {fault}")));
        lines.push(self.verdict().to_owned());
        lines.join("\n")
    }
}

impl ServerFigures {
    fn line(&self) -> String {
        let mut line = format!(
            "server: {:.2} s CPU in {:.2} s, busiest thread {:.0} % of a core, {:.1} MiB resident",
            self.cpu_s,
            self.seconds,
            self.busiest_thread * 100.0,
            self.rss_bytes as f64 / f64::from(1 << 20)
        );
        for per in &self.per {
            let _ = write!(line, "; {:.3} us CPU", per.cpu_us);
            if let Some(enters) = per.io_uring_enters {
                let _ = write!(line, " and {enters:.4} io_uring_enter");
            }
            let _ = write!(line, " per {}", per.unit);
        }
        line
    }
}

/// A number with as many digits as it needs: four, and no fraction from a thousand on.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 1_000.0 || size == 0.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |rest| ("-", rest));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let fraction = fraction.map(|digits| digits.trim_end_matches('0')).filter(|digits| !digits.is_empty());
    fraction.map_or_else(|| format!("{sign}{grouped}"), |fraction| format!("{sign}{grouped}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        let cases =
            [(0.0, "0"), (1_234_567.8, "1,234,568"), (-1_000.0, "-1,000"), (12.345, "12.35"), (0.5, "0.5")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn each_fault_spoils_a_count() {
        let faults = [
            Fault::Lost { number: 0, seq: 1 },
            Fault::Order { seq: 1, before: 2, number: 2 },
            Fault::Order { seq: 1, before: 2, number: 1 },
            Fault::SeqGap { expected: 1, got: 2 },
            Fault::Unasked { number: 1 },
        ];
        let mut all = Counts::default();
        for fault in &faults {
            let mut counts = Counts::default();
            counts.enter(fault);
            assert!(!counts.is_clean(), "{fault}");
            all.add(&counts);
        }
        assert_eq!([all.lost, all.duplicated, all.reordered, all.gaps, all.wrong], [1; 5]);
    }

    #[test]
    fn counts_of_parts_add_up_in_every_field() {
        let one: Counts = serde_json::from_value(
            serde_json::to_value(Counts::default())
                .map(|value| {
                    value
                        .as_object()
                        .expect("an object")
                        .keys()
                        .map(|key| (key.clone(), Value::from(1)))
                        .collect()
                })
                .expect("it becomes JSON"),
        )
        .expect("the same fields");
        let mut two = one.clone();
        two.add(&one);
        assert!(two.named().iter().all(|(_, count)| *count == 2), "{two:?}");
        assert_eq!(
            serde_json::to_value(&two).expect("JSON").as_object().map(Map::len),
            Some(two.named().len())
        );
    }
}
