//! The results as one page of tables for people.

use std::fmt::Write as _;

use crate::{
    results::{Results, Spread},
    server::Peer,
};

/// A busier client may have set the pace itself.
const CLIENT_BUSY_MAX: f64 = 0.9;
/// Cores that others may use meanwhile.
const OTHERS_BUSY_MAX: f64 = 0.15;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    Lower,
    Higher,
    /// Nobody competes in it.
    Neither,
}

struct Metric {
    key: &'static str,
    title: &'static str,
    better: Better,
    /// What a value over the bare bound's is called.
    ratio: Option<&'static str>,
}

const fn metric(key: &'static str, title: &'static str, better: Better) -> Metric {
    Metric { key, title, better, ratio: None }
}

const BUSY: Metric = metric("client_busy", "client busy, share of its core", Better::Neither);

/// Kind, its title, what is in its tables.
const KINDS: &[(&str, &str, &[Metric])] = &[
    (
        "fanout",
        "Fan-out: one room, 100 B",
        &[
            Metric {
                ratio: Some("x bare loop"),
                ..metric("cpu_us", "server CPU, us per delivery", Better::Lower)
            },
            metric("per_s", "deliveries/s", Better::Higher),
            metric("p50_ms", "publish to last delivery, p50 ms", Better::Lower),
            metric("p99_ms", "publish to last delivery, p99 ms", Better::Lower),
            metric("bytes", "bytes per delivery", Better::Neither),
            BUSY,
        ],
    ),
    (
        "pairs",
        "One-to-one, not stored: 100 pairs, 100 B",
        &[
            metric("cpu_us", "server CPU, us per message", Better::Lower),
            metric("per_s", "messages/s", Better::Higher),
            BUSY,
        ],
    ),
    (
        "durable",
        "Durable sends: acknowledged after the sync, 100 B, nobody online",
        &[
            Metric { ratio: Some("for each sync of the disk"), ..metric("per_s", "per s", Better::Higher) },
            metric("p50_ms", "p50 ms", Better::Lower),
            metric("p99_ms", "p99 ms", Better::Lower),
            metric("cpu_us", "server CPU, us per send", Better::Lower),
        ],
    ),
    (
        "connect",
        "Connecting: gimbal checks a token, the others check nothing",
        &[
            metric("cpu_us", "server CPU, us per connection", Better::Lower),
            metric("per_s", "connections/s", Better::Higher),
            BUSY,
        ],
    ),
    (
        "echo",
        "Pings: 64 connections, one on the way for each",
        &[
            Metric {
                ratio: Some("x bare io_uring echo"),
                ..metric("cpu_us", "server CPU, us per ping", Better::Lower)
            },
            metric("per_s", "pings/s", Better::Higher),
            BUSY,
        ],
    ),
    (
        "idle",
        "Idle connections: a keepalive each 25 s",
        &[
            metric("rss_bytes", "memory, B per connection", Better::Lower),
            metric("rss_low_mib", "memory at the lower count, MiB", Better::Lower),
            metric("rss_high_mib", "memory at the higher count, MiB", Better::Lower),
            metric("idle_cpu_us", "server CPU, us per connection and second", Better::Lower),
            metric("ping_cpu_us", "server CPU, us per keepalive", Better::Lower),
        ],
    ),
];

/// One line of a table.
struct Row {
    title: String,
    better: Better,
    /// By the order of [`Peer::ALL`].
    cells: Vec<Option<Spread>>,
}

impl Row {
    /// The best server; a bare bound serves nobody.
    fn best(&self) -> Option<(Peer, Spread)> {
        let servers = Peer::ALL.iter().zip(&self.cells).filter(|(peer, _)| **peer != Peer::Bare);
        let found = servers.filter_map(|(peer, cell)| Some((*peer, (*cell)?)));
        match self.better {
            Better::Lower => found.min_by(|a, b| a.1.median.total_cmp(&b.1.median)),
            Better::Higher => found.max_by(|a, b| a.1.median.total_cmp(&b.1.median)),
            Better::Neither => None,
        }
    }

    fn line(&self) -> String {
        let best = self.best().map(|(peer, _)| peer);
        let mut line = format!("| {} |", self.title);
        for (peer, cell) in Peer::ALL.iter().zip(&self.cells) {
            let text = cell.map_or_else(|| "-".to_owned(), spread);
            let mark = if best == Some(*peer) { "**" } else { "" };
            let _ = write!(line, " {mark}{text}{mark} |");
        }
        let _ = write!(line, " {} |", best.map_or("", Peer::name));
        line
    }

    /// Says so when a peer is better than gimbal.
    fn behind(&self, title: &str) -> Option<String> {
        let (peer, best) = self.best().filter(|(peer, _)| *peer != Peer::Gimbal)?;
        let Some(own) = Peer::ALL.iter().position(|peer| *peer == Peer::Gimbal).and_then(|at| self.cells[at])
        else {
            return Some(format!("- {title}, {}: gimbal has no figure", self.title));
        };
        let factor = (own.median / best.median).max(best.median / own.median);
        let overlap = own.min <= best.max && best.min <= own.max;
        let doubt = if overlap { "; their ranges overlap" } else { "" };
        let (best, own) = (number(best.median), number(own.median));
        let name = peer.name();
        Some(format!("- {title}, {}: {name} {best}, gimbal {own} ({factor:.2} times{doubt})", self.title))
    }
}

fn rows(results: &Results, kind: &str, metrics: &[Metric]) -> Vec<Row> {
    let mut rows = Vec::new();
    for work in results.works(kind) {
        for metric in metrics {
            let cells =
                |cell: &dyn Fn(Peer) -> Option<Spread>| Peer::ALL.iter().map(|peer| cell(*peer)).collect();
            let title = format!("{}: {}", work_title(work), metric.title);
            rows.push(Row {
                title: title.clone(),
                better: metric.better,
                cells: cells(&|peer| results.spread(work, peer, metric.key)),
            });
            let (Some(ratio), bound) = (metric.ratio, bound(work)) else { continue };
            if work == "durable/disk" {
                continue;
            }
            rows.push(Row {
                title: format!("{title}, {ratio}"),
                better: metric.better,
                cells: cells(&|peer| results.ratio(work, bound, peer, metric.key)),
            });
        }
    }
    rows.retain(|row| row.cells.iter().any(Option::is_some));
    rows
}

/// The work in which the bare bound of `work` was measured.
pub(crate) fn bound(work: &str) -> &str {
    if work.starts_with("durable/") { "durable/disk" } else { work }
}

/// A work's name for people.
pub(crate) fn work_title(work: &str) -> String {
    let at_once = |window: &str| match window {
        "1" => "one at a time".to_owned(),
        window => format!("{window} at once"),
    };
    match work.split('/').collect::<Vec<_>>()[..] {
        ["fanout", members, window] => format!("{} members, {}", grouped(members), at_once(window)),
        ["pairs", window] => at_once(window),
        ["durable", "disk"] => "the disk: append of 1 KiB and fdatasync".to_owned(),
        ["durable", shape] => match shape.split_once('x') {
            Some(("1", window)) => format!("1 connection x {window} open"),
            Some((connections, window)) => format!("{connections} connections x {window} open"),
            None => shape.to_owned(),
        },
        ["connect"] => "storm".to_owned(),
        ["echo"] => "ping".to_owned(),
        ["idle", range] => range.split('-').map(grouped).collect::<Vec<_>>().join(" to "),
        _ => work.to_owned(),
    }
}

/// `10,000` for `10000`.
fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits; thousands as k, millions as M.
pub(crate) fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 999_500.0 => (value / 1e6, "M"),
        size if size >= 9_995.0 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let decimals = match scaled.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    format!("{scaled:.decimals$}{unit}")
}

fn spread(spread: Spread) -> String {
    format!("{} [{}..{}]", number(spread.median), number(spread.min), number(spread.max))
}

/// The whole page.
pub(crate) fn render(results: &Results) -> String {
    let mut page = head(results);
    let mut behind = Vec::new();
    for (kind, title, metrics) in KINDS {
        let rows = rows(results, kind, metrics);
        if rows.is_empty() {
            continue;
        }
        let names: Vec<&str> = Peer::ALL.iter().map(|peer| peer.name()).collect();
        let _ = write!(page, "\n## {title}\n\n| | {} | best |\n|", names.join(" | "));
        page.push_str(&" --- |".repeat(names.len() + 2));
        page.push('\n');
        for row in &rows {
            page.push_str(&row.line());
            page.push('\n');
        }
        let doubled = |row: &&Row| {
            metrics.iter().all(|metric| metric.ratio.is_none_or(|name| !row.title.ends_with(name)))
        };
        behind.extend(rows.iter().filter(doubled).filter_map(|row| row.behind(short(title))));
    }
    page.push_str("\n## Where a peer is better than gimbal\n\n");
    page.push_str(&if behind.is_empty() { "Nowhere in this run.".to_owned() } else { behind.join("\n") });
    page.push('\n');
    let notes = notes(results);
    if !notes.is_empty() {
        let _ = write!(page, "\n## Read with care\n\n{}\n", notes.join("\n"));
    }
    page
}

fn head(results: &Results) -> String {
    let (facts, parameters) = (&results.facts, &results.parameters);
    let versions: Vec<String> =
        results.versions.iter().map(|(name, version)| format!("{name}: {version}")).collect();
    let rounds = results.samples.iter().map(|sample| sample.round + 1).max().unwrap_or(0);
    format!(
        "# gimbal and its peers\n\n\
         Medians of {rounds} interleaved rounds, [lowest..highest]; k: thousand, M: million. Fresh servers in each round, in\n\
         rotating order; server and client each on a core of its own; {} s for each figure. The best server of each line is bold.\n\n\
         Commit {}, kernel {}, {}.\n{}.\n",
        parameters.seconds,
        facts.commit,
        facts.kernel,
        results.processor,
        versions.join("; "),
    )
}

fn notes(results: &Results) -> Vec<String> {
    let mut notes: Vec<String> = results.faults.iter().map(|fault| format!("- FAULT: {fault}")).collect();
    if !results.complete {
        notes.push("- The run is incomplete.".into());
    }
    if results.parameters.rounds < 5 {
        notes.push("- Fewer than five rounds: a trial, not figures to rank by.".into());
    }
    notes.extend(results.notes.iter().map(|note| format!("- {note}")));
    let kinds = KINDS.iter().map(|(kind, title, _)| (kind, short(title)));
    for (work, title) in
        kinds.flat_map(|(kind, title)| results.works(kind).into_iter().map(move |work| (work, title)))
    {
        let title = format!("{title}, {}", work_title(work));
        if let Some(names) = above(results, work, "client_busy", CLIENT_BUSY_MAX) {
            notes.push(format!(
                "- {title}: the client was the limit with {names}; those rates and latencies are bounds, compare CPU."
            ));
        }
        if let Some(names) = above(results, work, "others_busy", OTHERS_BUSY_MAX) {
            notes.push(format!("- {title}: the machine was not idle beside {names}."));
        }
    }
    notes
}

/// The peers whose median is above `max`, with it.
fn above(results: &Results, work: &str, key: &str, max: f64) -> Option<String> {
    let found = Peer::ALL.iter().filter_map(|peer| {
        let spread = results.spread(work, *peer, key)?;
        (spread.median > max).then(|| format!("{} ({:.2} cores)", peer.name(), spread.median))
    });
    let names: Vec<String> = found.collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// A title without what follows the colon.
fn short(title: &str) -> &str {
    title.split(':').next().unwrap_or(title)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn the_best_is_bold_and_a_better_peer_is_named() {
        let page = render(&results());
        let cpu = page.lines().find(|line| line.contains("us per delivery |")).unwrap();
        assert!(cpu.contains("| **4.40 [2.20..8.80]** |") && cpu.ends_with("| gimbal |"), "{cpu}");
        let ratio = page.lines().find(|line| line.contains("x bare loop")).unwrap();
        assert!(ratio.contains("| 1.00 [1.00..1.00] | **1.10 [1.10..1.10]** |"), "{ratio}");
        assert!(page.contains("p50 ms: redis 1.00, gimbal 3.00 (3.00 times)"), "{page}");
        assert!(!page.contains("deliveries/s: redis"), "{page}");
    }

    #[test]
    fn what_weakens_the_run_is_said() {
        let mut results = results();
        results.complete = false;
        results.parameters.rounds = 1;
        for sample in &mut results.samples {
            sample.values.insert("others_busy", 0.8);
        }
        results.faults.push("a message was lost".into());
        let page = render(&results);
        for words in [
            "FAULT: a message was lost",
            "incomplete",
            "a trial",
            "the machine was not idle beside bare (0.80 cores)",
            "mosquitto is not installed",
            "the client was the limit with bare",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        let cases = [(0.1724, "0.172"), (2.5, "2.50"), (9.996, "10.0"), (105.2, "105"), (9_050.0, "9050")];
        for (value, text) in cases.into_iter().chain([(40_800.0, "40.8k"), (5_370_000.0, "5.37M")]) {
            assert_eq!(number(value), text);
        }
        assert_eq!(grouped("1000000"), "1,000,000");
    }
}
