//! The results as one picture: a panel for each kind of work, bars for the servers, whiskers from lowest to highest.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    results::{Results, Spread},
    server::Peer,
    table::{bound, number, work_title},
};

const WIDTH: u32 = 1240;
const HEAD: u32 = 92;
const WIDE: u32 = 330;
const SMALL: u32 = 300;
const MARGIN: i32 = 24;
/// Between a panel's edge and its bars.
const LEFT: i32 = 52;
const TOP: i32 = 70;
const BOTTOM: i32 = 44;
const INK: RGBColor = RGBColor(31, 41, 55);
const SOFT: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);
const BOUND: RGBColor = RGBColor(220, 38, 38);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

const fn colour(peer: Peer) -> RGBColor {
    match peer {
        Peer::Bare => RGBColor(148, 163, 184),
        Peer::Gimbal => RGBColor(13, 110, 110),
        Peer::Nats => RGBColor(96, 125, 200),
        Peer::Mosquitto => RGBColor(178, 132, 190),
        Peer::Redis => RGBColor(224, 152, 88),
    }
}

/// One panel: groups of bars over one axis.
struct Panel {
    title: &'static str,
    subtitle: &'static str,
    /// Decades instead of a linear axis.
    log: bool,
    /// A value that is the bound.
    line: Option<(f64, String)>,
    groups: Vec<(String, Vec<(Peer, Spread)>)>,
}

/// Writes the picture.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    draw(results, path).map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}

fn draw(results: &Results, path: &Path) -> Drawn {
    let wide = panel(results, "fanout", "cpu_us", true);
    let small = [
        panel(results, "pairs", "cpu_us", false),
        panel(results, "echo", "cpu_us", true),
        panel(results, "durable", "per_s", false),
        panel(results, "connect", "cpu_us", false),
        panel(results, "idle", "rss_bytes", false),
        panel(results, "idle", "idle_cpu_us", false),
    ];
    let small: Vec<Panel> = small.into_iter().flatten().collect();
    let rows = small.len().div_ceil(3) as u32;
    let wide_height = if wide.is_some() { WIDE } else { 0 };
    let size = (WIDTH, HEAD + wide_height + rows * SMALL + MARGIN as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    head(&root, results)?;
    let body = root.margin(0, MARGIN, MARGIN, MARGIN);
    let (_, body) = body.split_vertically(HEAD);
    let (top, bottom) = body.split_vertically(wide_height);
    if let Some(panel) = wide {
        panel.draw(&top)?;
    }
    for (panel, area) in small.iter().zip(bottom.split_evenly((rows.max(1) as usize, 3))) {
        panel.draw(&area)?;
    }
    root.present()
}

fn head(root: &Area<'_>, results: &Results) -> Drawn {
    let rounds = results.samples.iter().map(|sample| sample.round + 1).max().unwrap_or(0);
    let text = format!(
        "Medians of {rounds} interleaved rounds, whiskers from lowest to highest; loopback, server and client on a core each. \
         Commit {}, kernel {}.",
        results.facts.commit, results.facts.kernel
    );
    label(root, "gimbal and its peers", (MARGIN, 20), 24, INK, HPos::Left)?;
    label(root, &text, (MARGIN, 52), 13, SOFT, HPos::Left)?;
    let mut x = MARGIN;
    for peer in Peer::SERVERS {
        root.draw(&Rectangle::new([(x, 74), (x + 12, 86)], colour(*peer).filled()))?;
        label(root, peer.name(), (x + 18, 74), 13, INK, HPos::Left)?;
        x += 100;
    }
    Ok(())
}

/// A panel of one metric, over the bare bound of each round when `ratio` and there is one; `None` without values.
fn panel(results: &Results, kind: &str, key: &str, ratio: bool) -> Option<Panel> {
    let works = results.works(kind);
    let ratio = ratio && works.iter().any(|work| results.spread(work, Peer::Bare, key).is_some());
    let groups = works.iter().filter(|work| **work != "durable/disk").map(|work| {
        let bars = Peer::SERVERS.iter().filter_map(|peer| {
            let spread = match ratio {
                true => results.ratio(work, bound(work), *peer, key),
                false => results.spread(work, *peer, key),
            };
            Some((*peer, spread?))
        });
        (work_title(work), bars.collect::<Vec<_>>())
    });
    let groups: Vec<_> = groups.filter(|(_, bars)| !bars.is_empty()).collect();
    let (title, subtitle, log) = words(kind, key, ratio);
    let line = match kind {
        "durable" => results
            .spread("durable/disk", Peer::Bare, key)
            .map(|disk| (disk.median, "one fdatasync for each".to_owned())),
        _ => ratio.then(|| (1.0, "the bare bound".to_owned())),
    };
    (!groups.is_empty()).then_some(Panel { title, subtitle, log, line, groups })
}

/// Title, subtitle, whether the axis has decades.
fn words(kind: &str, key: &str, ratio: bool) -> (&'static str, &'static str, bool) {
    match (kind, key, ratio) {
        ("fanout", _, true) => {
            ("Fan-out", "server CPU per delivery over a bare send() loop; lower is better", true)
        }
        ("fanout", ..) => ("Fan-out", "server CPU, us per delivery; lower is better", true),
        ("pairs", ..) => ("One-to-one, not stored", "server CPU, us per message; lower is better", false),
        ("echo", _, true) => ("Pings", "server CPU over a bare io_uring echo; lower is better", false),
        ("echo", ..) => ("Pings", "server CPU, us each; lower is better", false),
        ("durable", ..) => {
            ("Durable sends", "acknowledged after the sync, per second; higher is better", true)
        }
        ("connect", ..) => ("Connecting", "server CPU, us; gimbal alone checks a token", false),
        (_, "rss_bytes", _) => ("Memory when idle", "bytes per connection; lower is better", true),
        _ => ("Keepalive each 25 s", "server CPU, us per connection and second", false),
    }
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Drawn {
        let (width, height) = (area.dim_in_pixel().0 as i32, area.dim_in_pixel().1 as i32);
        let axis = Axis::new(self, TOP, height - BOTTOM);
        label(area, self.title, (0, 8), 17, INK, HPos::Left)?;
        label(area, self.subtitle, (0, 29), 12, SOFT, HPos::Left)?;
        let right = width - 28;
        for tick in axis.ticks() {
            let y = axis.y(tick);
            area.draw(&PathElement::new([(LEFT, y), (right, y)], GRID))?;
            label(area, &number_of_axis(tick), (LEFT - 8, y - 6), 11, SOFT, HPos::Right)?;
        }
        let share = (right - LEFT) / self.groups.len() as i32;
        for (index, (title, bars)) in self.groups.iter().enumerate() {
            let left = LEFT + index as i32 * share;
            self.group(area, &axis, (left, share), title, bars)?;
        }
        if let Some((value, name)) = &self.line {
            let y = axis.y(*value);
            area.draw(&PathElement::new([(LEFT, y), (right, y)], BOUND.stroke_width(1)))?;
            area.draw(&PathElement::new([(0, 52), (14, 52)], BOUND.stroke_width(1)))?;
            label(area, name, (20, 46), 11, BOUND, HPos::Left)?;
        }
        Ok(())
    }

    /// `place`: left edge and width, pixels.
    fn group(
        &self,
        area: &Area<'_>,
        axis: &Axis,
        place: (i32, i32),
        title: &str,
        bars: &[(Peer, Spread)],
    ) -> Drawn {
        let (left, share) = place;
        let gap = 4;
        let bar = ((share - 20) / bars.len().max(1) as i32 - gap).min(46);
        let start = left + (share - bars.len() as i32 * (bar + gap) + gap) / 2;
        for (index, (peer, spread)) in bars.iter().enumerate() {
            let x = start + index as i32 * (bar + gap);
            let (top, middle) = (axis.y(spread.median), x + bar / 2);
            area.draw(&Rectangle::new([(x, top), (x + bar, axis.bottom)], colour(*peer).filled()))?;
            let (low, high) = (axis.y(spread.min), axis.y(spread.max));
            if low > high {
                area.draw(&PathElement::new([(middle, low), (middle, high)], INK.stroke_width(1)))?;
            }
            let ink = if *peer == Peer::Gimbal { INK } else { SOFT };
            label(area, &number(spread.median), (middle, high.min(top) - 15), 11, ink, HPos::Center)?;
        }
        area.draw(&PathElement::new([(left + 4, axis.bottom), (left + share - 4, axis.bottom)], SOFT))?;
        label(area, title, (left + share / 2, axis.bottom + 8), 12, INK, HPos::Center)
    }
}

/// Values to pixels.
struct Axis {
    log: bool,
    low: f64,
    high: f64,
    top: i32,
    bottom: i32,
}

impl Axis {
    fn new(panel: &Panel, top: i32, bottom: i32) -> Self {
        let bars = panel.groups.iter().flat_map(|(_, bars)| bars);
        let mut values: Vec<f64> = bars.flat_map(|(_, spread)| [spread.min, spread.max]).collect();
        values.extend(panel.line.iter().map(|(value, _)| *value));
        let largest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let positive = values.iter().copied().filter(|value| *value > 0.0);
        let smallest = positive.fold(largest, f64::min);
        // Room for a label above the largest, and for a stump of the smallest.
        let (low, high) = if panel.log { (smallest / 2.0, largest * 1.4) } else { (0.0, largest * 1.12) };
        Self { log: panel.log, low, high, top, bottom }
    }

    fn y(&self, value: f64) -> i32 {
        let share = match self.log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.bottom - (share.clamp(0.0, 1.0) * f64::from(self.bottom - self.top)) as i32
    }

    /// Round values within it: 1, 2 and 5 of each decade, or about five equal steps.
    fn ticks(&self) -> Vec<f64> {
        let decade = |value: f64| value.log10().floor() as i32;
        if self.log {
            let steps: &[f64] = if self.high / self.low > 500.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let decades = decade(self.low)..=decade(self.high);
            let all = decades.flat_map(|exponent| steps.iter().map(move |step| step * 10f64.powi(exponent)));
            return all.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        }
        let rough = self.high / 5.0;
        let scale = 10f64.powi(decade(rough));
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * scale >= rough).unwrap_or(10.0) * scale;
        (0..=5).map(|count| f64::from(count) * step).filter(|tick| *tick <= self.high).collect()
    }
}

/// As short as it is exact for a round value.
fn number_of_axis(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value => format!("{}", (value * 1e6).round() / 1e6),
    }
}

fn label(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, ink: RGBColor, from: HPos) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&ink).pos(Pos::new(from, VPos::Top));
    area.draw(&Text::new(text.to_owned(), at, style))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    fn axis(log: bool, low: f64, high: f64) -> Axis {
        Axis { log, low, high, top: 0, bottom: 100 }
    }

    #[test]
    fn values_lie_between_the_edges_and_ticks_within_the_axis() {
        for axis in [axis(true, 0.5, 120.0), axis(true, 1.0, 90_000.0), axis(false, 0.0, 7.3)] {
            assert_eq!((axis.y(axis.low), axis.y(axis.high), axis.y(0.0)), (100, 0, 100));
            let ticks = axis.ticks();
            assert!(
                ticks.len() >= 3 && ticks.iter().all(|tick| (axis.low..=axis.high).contains(tick)),
                "{ticks:?}"
            );
        }
    }

    #[test]
    fn the_picture_names_every_server_and_its_ratio() {
        let path = std::env::temp_dir().join(format!("peers-{}.svg", std::process::id()));
        write(&results(), &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        for words in ["gimbal and its peers", "redis", "1.10", "1.30", "the bare bound"] {
            assert!(text.contains(words), "{words}");
        }
    }
}
