//! What a run tells: latency tables, the facts that make its numbers comparable, and the [`Report`] that holds all of it.

mod outcome;
mod page;
mod plot;

use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer as _, V2Serializer},
};
use serde::{Deserialize, Serialize};

pub use outcome::{ClientFigures, Counts, Figure, PerUnit, Process, Report, Sample, ServerFigures};
pub use page::write_page;

use crate::proc;

/// Longest latency that is told apart, nanoseconds: 100 s.
const LATENCY_NS_MAX: u64 = 100_000_000_000;

/// Latencies of one kind. Takes memory with its first latency.
#[derive(Default)]
pub struct Latency {
    entered: Option<Histogram<u64>>,
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants in range")
}

impl Latency {
    /// Enters one latency, nanoseconds; longer ones than 100 s count as 100 s.
    pub fn record(&mut self, ns: u64) {
        self.entered.get_or_insert_with(empty).saturating_record(ns);
    }

    /// The table.
    pub fn table(&self) -> LatencyTable {
        let Some(histogram) = &self.entered else { return LatencyTable::default() };
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        LatencyTable {
            count: histogram.len(),
            p50_us: at(0.50),
            p90_us: at(0.90),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            p99_99_us: at(0.9999),
            max_us: histogram.max() as f64 / 1_000.0,
            curve: curve(histogram),
        }
    }

    /// Adds all latencies of another.
    pub fn merge(&mut self, other: &Self) {
        if let Some(other) = &other.entered {
            self.entered.get_or_insert_with(empty).add(other).expect("both have the same bounds");
        }
    }

    /// As text for another process: HdrHistogram's V2 form in hexadecimal.
    pub fn to_text(&self) -> String {
        let Some(histogram) = &self.entered else { return String::new() };
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(histogram, &mut bytes).expect("memory takes all bytes");
        hex::encode(bytes)
    }

    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn from_text(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let bytes = hex::decode(text).context("a histogram is not hexadecimal")?;
        let read: Histogram<u64> =
            Deserializer::new().deserialize(&mut bytes.as_slice()).ok().context("not a histogram")?;
        let mut histogram = empty();
        histogram.add(read).ok().context("a histogram of other bounds")?;
        Ok(Self { entered: Some(histogram) })
    }
}

/// Quantiles for a plot: evenly spaced by how rare the slower ones are, down to one in the count.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let count = histogram.len() as f64;
    let steps = (count.max(1.0).log10().min(CURVE_DECADES_MAX) * CURVE_PER_DECADE).ceil() as u32;
    let at = |step: u32| {
        let quantile = 1.0 - 10f64.powf(-f64::from(step) / CURVE_PER_DECADE);
        // Six digits are more than a plot shows.
        ((quantile * 1e6).round() / 1e6, histogram.value_at_quantile(quantile) as f64 / 1_000.0)
    };
    (0..=steps).map(at).collect()
}

/// Quantiles of a curve for each power of ten.
const CURVE_PER_DECADE: f64 = 12.0;
/// A curve ends at 99.999 %.
const CURVE_DECADES_MAX: f64 = 5.0;

/// Quantiles in microseconds, three significant digits.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LatencyTable {
    /// Latencies entered.
    pub count: u64,
    /// Half were at most this.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p99_9_us: f64,
    /// 99.99 %.
    pub p99_99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Quantile and microseconds, for a plot.
    #[serde(default)]
    pub curve: Vec<(f64, f64)>,
}

impl LatencyTable {
    /// One line of text.
    pub fn line(&self, name: &str) -> String {
        let mut line = format!("{name:<10}");
        let quantiles = [self.p50_us, self.p90_us, self.p99_us, self.p99_9_us, self.p99_99_us, self.max_us];
        for (label, value) in ["p50", "p90", "p99", "p99.9", "p99.99", "max"].iter().zip(quantiles) {
            let _ = write!(line, "  {label} {value:.0} us");
        }
        line
    }
}

/// Where and with what a run was made.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RunFacts {
    /// Commit of the tree the binary lies in, or else was built from, as `git describe --always --dirty` says now;
    /// `unknown` without one.
    pub commit: String,
    /// This binary's version.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// CPUs the load client may use.
    pub cores: usize,
    /// Its command line.
    pub command: Vec<String>,
    /// When it began, Unix milliseconds.
    pub started_at_ms: u64,
}

impl RunFacts {
    /// Collects them; `unix` is the time since 1970.
    pub fn collect(unix: Duration) -> Self {
        Self {
            commit: commit().unwrap_or_else(|| "unknown".into()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: proc::kernel(),
            cores: proc::cores(),
            command: hide_keys(std::env::args()),
            started_at_ms: unix.as_millis() as u64,
        }
    }
}

/// The command line without the values of `--key`.
pub fn hide_keys(args: impl Iterator<Item = String>) -> Vec<String> {
    let mut hide = false;
    let hidden = args.map(|arg| {
        let was = std::mem::replace(&mut hide, arg == "--key");
        match arg.split_once('=') {
            _ if was => "***".to_owned(),
            Some(("--key", _)) => "--key=***".to_owned(),
            _ => arg,
        }
    });
    hidden.collect()
}

fn commit() -> Option<String> {
    let exe = std::env::current_exe().ok()?;
    describe(exe.parent()?).or_else(|| describe(Path::new(env!("CARGO_MANIFEST_DIR"))))
}

fn describe(tree: &Path) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(tree)
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Writes one JSON object and a line break to `path`, or to standard output for `-`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(report).context("the report does not become JSON")?;
    line.push('\n');
    if path == Path::new("-") {
        crate::output::print(format_args!("{line}"));
        return Ok(());
    }
    fs::write(path, line).with_context(|| format!("cannot write {}", path.display()))
}

/// The middle of `values`, the mean of both middles when their count is even; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut latency = Latency::default();
        (1..=1000u64).for_each(|us| latency.record(us * 1_000));
        let table = latency.table();
        assert_eq!(table.count, 1000);
        assert!((499.0..=501.0).contains(&table.p50_us), "{table:?}");
        assert!((989.0..=991.0).contains(&table.p99_us), "{table:?}");
        assert!((999.0..=1001.0).contains(&table.max_us), "{table:?}");
    }

    #[test]
    fn an_endless_latency_is_entered_at_the_bound() {
        let mut latency = Latency::default();
        latency.record(u64::MAX);
        assert!(latency.table().max_us >= 99_000_000.0);
    }

    #[test]
    fn a_histogram_survives_its_trip_and_adds_up() {
        let mut latency = Latency::default();
        (1..=1000u64).for_each(|us| latency.record(us * 1_000));
        let mut twice = Latency::from_text(&latency.to_text()).expect("our own text");
        twice.merge(&latency);
        assert_eq!(twice.table().count, 2000);
        assert_eq!(twice.table().p99_us, latency.table().p99_us);
        for bad in ["z", "zz", "00ff"] {
            assert!(Latency::from_text(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_curve_rises_to_the_rarest_latency() {
        let mut latency = Latency::default();
        (1..=1000u64).for_each(|us| latency.record(us * 1_000));
        let curve = latency.table().curve;
        assert!(curve.is_sorted() && curve.len() > 30, "{curve:?}");
        assert!(curve.last().is_some_and(|&(quantile, us)| quantile > 0.9989 && us > 998.0), "{curve:?}");
        assert!(Latency::default().table().curve.is_empty());
    }

    #[test]
    fn keys_never_reach_a_report() {
        let args = ["gimbal", "--key", "secret", "--key=secret", "--rate", "1"].map(str::to_owned);
        assert_eq!(hide_keys(args.into_iter()), ["gimbal", "--key", "***", "--key=***", "--rate", "1"]);
    }

    #[test]
    fn the_median_of_an_even_count_is_between_both() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
