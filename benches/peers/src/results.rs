//! All that was measured, and what is read from it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use gimbal::report::{RunFacts, median};
use serde::Serialize;

use crate::{
    server::Peer,
    work::{Parameters, Sample},
};

/// One object; written after every work, so that an interrupted run leaves what it has.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    /// All rounds were made.
    pub(crate) complete: bool,
    pub(crate) facts: RunFacts,
    /// As `/proc/cpuinfo` names it.
    pub(crate) processor: String,
    /// Name and version of each server.
    pub(crate) versions: Vec<(String, String)>,
    pub(crate) parameters: Parameters,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
    /// What went wrong: a run with any is not to be believed.
    pub(crate) faults: Vec<String>,
    pub(crate) samples: Vec<Sample>,
}

/// Of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` for no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let min = values.iter().copied().min_by(f64::total_cmp)?;
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(values), min, max })
    }
}

impl Results {
    /// One peer's values of one metric, by round.
    fn values<'a>(
        &'a self,
        work: &'a str,
        peer: Peer,
        key: &'a str,
    ) -> impl Iterator<Item = (usize, f64)> + 'a {
        let samples = self.samples.iter().filter(move |sample| sample.peer == peer && sample.work == work);
        samples.filter_map(move |sample| Some((sample.round, *sample.values.get(key)?)))
    }

    /// The rounds of one peer.
    pub(crate) fn spread(&self, work: &str, peer: Peer, key: &str) -> Option<Spread> {
        Spread::of(&self.values(work, peer, key).map(|(_, value)| value).collect::<Vec<_>>())
    }

    /// One peer over the bare bound of the same round: both saw the same machine.
    pub(crate) fn ratio(&self, work: &str, bound: &str, peer: Peer, key: &str) -> Option<Spread> {
        let ratios = self.values(work, peer, key).filter_map(|(round, value)| {
            let (_, bare) = self.values(bound, Peer::Bare, key).find(|(other, _)| *other == round)?;
            Some(value / bare)
        });
        Spread::of(&ratios.collect::<Vec<_>>())
    }

    /// Names of the works of a kind, in the order in which they were first done.
    pub(crate) fn works(&self, kind: &str) -> Vec<&str> {
        let mut works: Vec<&str> = Vec::new();
        for sample in &self.samples {
            let is_kind = sample.work.split('/').next() == Some(kind);
            if is_kind && !works.contains(&sample.work.as_str()) {
                works.push(&sample.work);
            }
        }
        works.sort_by_key(|work| numbers(work));
        works
    }

    /// Writes the object, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("the results do not become JSON")?;
        text.push('\n');
        let part = path.with_extension("part");
        fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The numbers in a work's name, for their order.
fn numbers(work: &str) -> Vec<u64> {
    work.split('/').filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Three rounds of a fan-out in which the machine got slower with each.
    pub(crate) fn results() -> Results {
        let mut samples = Vec::new();
        for (round, pace) in [1.0, 2.0, 4.0].into_iter().enumerate() {
            let each = [(Peer::Bare, 2.0), (Peer::Gimbal, 2.2), (Peer::Redis, 2.6), (Peer::Nats, 8.0)];
            for (peer, cpu_us) in each {
                let values = BTreeMap::from([
                    ("cpu_us", cpu_us * pace),
                    ("per_s", 1e6 / cpu_us / pace),
                    ("p50_ms", if peer == Peer::Redis { 1.0 } else { 3.0 }),
                    ("client_busy", if peer == Peer::Bare { 0.97 } else { 0.5 }),
                ]);
                samples.push(Sample { work: "fanout/1000/1".into(), peer, round, values });
            }
        }
        Results {
            complete: true,
            facts: RunFacts::collect(gimbal::clock::unix()),
            processor: "a processor".into(),
            versions: vec![("redis".into(), "Redis 7".into())],
            parameters: Parameters::full(),
            notes: vec!["mosquitto is not installed".into()],
            faults: Vec::new(),
            samples,
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let results = results();
        let ratio = results.ratio("fanout/1000/1", "fanout/1000/1", Peer::Gimbal, "cpu_us").unwrap();
        assert!((ratio.min - 1.1).abs() < 1e-9 && (ratio.max - 1.1).abs() < 1e-9, "{ratio:?}");
        let spread = results.spread("fanout/1000/1", Peer::Gimbal, "cpu_us").unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (2.2, 4.4, 8.8));
        assert_eq!(results.spread("fanout/1000/1", Peer::Mosquitto, "cpu_us"), None);
    }

    #[test]
    fn works_are_ordered_by_their_numbers() {
        let mut results = results();
        for work in ["fanout/10000/1", "fanout/1000/16", "pairs/1"] {
            results.samples.push(Sample { work: work.into(), ..results.samples[0].clone() });
        }
        assert_eq!(results.works("fanout"), ["fanout/1000/1", "fanout/1000/16", "fanout/10000/1"]);
    }
}
