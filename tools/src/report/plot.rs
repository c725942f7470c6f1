//! One plot as SVG to stand in a page: lines over linear or logarithmic axes, colours left to the page's style sheet.

use anyhow::{Result, anyhow};
use plotters::{
    coord::{Shift, ranged1d::ValueFormatter},
    prelude::*,
};

/// Size in the page's units; the page scales it.
const SIZE: (u32, u32) = (560, 280);
/// Colours of lines; further lines begin again.
pub(super) const COLORS: usize = 6;
/// Stand for colours that the style sheet decides.
const TEXT: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(4, 5, 6);
/// The first of the lines' colours; the others follow.
const LINE: RGBColor = RGBColor(7, 8, 16);

/// One line.
pub(super) struct Line {
    pub(super) name: String,
    /// Which of the page's colours.
    pub(super) color: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// What the axes show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Axes {
    /// Seconds, and a number from zero.
    Time,
    /// How rare, and microseconds; both logarithmic. Points are (quantile, microseconds).
    Latency,
}

/// Draws `lines`; `None` when there is nothing to draw.
///
/// # Errors
/// When plotters cannot draw them.
pub(super) fn svg(axes: Axes, lines: &[Line]) -> Result<Option<String>> {
    let rareness = |quantile: f64| -(1.0 - quantile).max(1e-9).log10();
    let lines: Vec<Line> = lines
        .iter()
        .map(|line| {
            let points = line.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
            let points = match axes {
                Axes::Time => points.copied().collect(),
                Axes::Latency => points.map(|&(q, us)| (rareness(q), us.max(1.0))).collect(),
            };
            Line { name: String::new(), color: line.color, points }
        })
        .collect();
    let all = || lines.iter().flat_map(|line| line.points.iter().copied());
    if lines.iter().all(|line| line.points.len() < 2) {
        return Ok(None);
    }
    let x_max = all().map(|(x, _)| x).fold(0.0, f64::max).max(1e-3);
    let y_max = all().map(|(_, y)| y).fold(0.0, f64::max);
    let y_min = all().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = match axes {
            Axes::Time => draw_time(&area, &lines, x_max, nice_above(y_max)),
            Axes::Latency => draw_latency(&area, &lines, x_max, decades(y_min, y_max)),
        };
        drawn.map_err(|error| anyhow!("cannot draw: {error}"))?;
        area.present().map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(Some(with_page_colors(&text)))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw_time<'a>(area: &Area<'a>, lines: &[Line], x_max: f64, y_max: f64) -> Drawn<'a> {
    let mut chart = builder(area).build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
    let seconds = |x: &f64| format!("{} s", short(*x));
    let value = |y: &f64| short(*y);
    mesh(&mut chart, 7, 5, &seconds, &value)?;
    draw_lines(&mut chart, lines)
}

fn draw_latency<'a>(area: &Area<'a>, lines: &[Line], x_max: f64, (low, high): (f64, f64)) -> Drawn<'a> {
    let mut chart = builder(area).build_cartesian_2d(0.0..x_max, (low..high).log_scale())?;
    let ticks = x_max.floor() as usize + 1;
    mesh(&mut chart, ticks, 6, &|x: &f64| percent(*x), &|y: &f64| micros(*y))?;
    draw_lines(&mut chart, lines)
}

fn builder<'a, 'b>(area: &'b Area<'a>) -> ChartBuilder<'b, 'b, SVGBackend<'a>>
where
    'a: 'b,
{
    let mut builder = ChartBuilder::on(area);
    builder.margin_top(8).margin_right(36).x_label_area_size(26).y_label_area_size(58);
    builder
}

fn mesh<'a, X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'a>, Cartesian2d<X, Y>>,
    x_count: usize,
    y_count: usize,
    x_text: &dyn Fn(&f64) -> String,
    y_text: &dyn Fn(&f64) -> String,
) -> Drawn<'a>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(("sans-serif", 15).into_font().color(&TEXT))
        .x_labels(x_count)
        .y_labels(y_count)
        .x_label_formatter(&x_text)
        .y_label_formatter(&y_text)
        .draw()
}

fn draw_lines<'a, X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'a>, Cartesian2d<X, Y>>,
    lines: &[Line],
) -> Drawn<'a>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for line in lines {
        let color = RGBColor(LINE.0, LINE.1, LINE.2 + (line.color % COLORS) as u8);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))?;
    }
    Ok(())
}

/// Puts the style sheet's colours where ours stand.
fn with_page_colors(text: &str) -> String {
    let hex = |color: RGBColor| format!("\"#{:02X}{:02X}{:02X}\"", color.0, color.1, color.2);
    let mut text = text.replace(&hex(TEXT), "\"currentColor\"").replace(&hex(GRID), "\"var(--line)\"");
    for color in 0..COLORS {
        let ours = RGBColor(LINE.0, LINE.1, LINE.2 + color as u8);
        text = text.replace(&hex(ours), &format!("\"var(--c{color})\""));
    }
    // Scaled by the page, not fixed.
    let fixed = format!("<svg width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1);
    text.replacen(&fixed, "<svg", 1)
}

/// The end of an axis from zero: a little above, and round.
fn nice_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let size = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0];
    steps.iter().map(|step| step * size).find(|&end| end >= value * 1.04).unwrap_or(value * 1.2)
}

/// Powers of ten around both ends.
fn decades(low: f64, high: f64) -> (f64, f64) {
    let from = low.max(1.0).log10().floor();
    let to = high.max(1.0).log10().ceil().max(from + 1.0);
    (10f64.powf(from), 10f64.powf(to))
}

/// A number on an axis.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled.abs() < 10.0 { 2 } else { 1 };
    let text = format!("{scaled:.digits$}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn percent(rareness: f64) -> String {
    match rareness.round() as usize {
        0 => "fastest".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        nines => format!("99.{} %", "9".repeat(nines - 2)),
    }
}

/// Microseconds on an axis.
pub(super) fn micros(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", short(us / 1e6)),
        us if us >= 1e3 => format!("{} ms", short(us / 1e3)),
        us => format!("{} us", short(us)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        Line { name: "x".into(), color: 1, points: points.to_vec() }
    }

    #[test]
    fn a_plot_takes_its_colours_from_the_page() {
        for axes in [Axes::Time, Axes::Latency] {
            let drawn = svg(axes, &[line(&[(0.0, 10.0), (0.9, 1_000.0), (0.999, 20_000.0)])]);
            let text = drawn.expect("it can be drawn").expect("there is something to draw");
            assert!(text.starts_with("<svg ") && text.contains("var(--c1)") && text.contains("currentColor"));
            assert!(!text.contains("#0708"), "{text}");
        }
    }

    #[test]
    fn nothing_and_odd_values_draw_nothing() {
        for points in [&[][..], &[(0.0, 1.0)], &[(f64::NAN, 1.0), (0.0, f64::INFINITY)]] {
            assert!(svg(Axes::Time, &[line(points)]).expect("no error").is_none());
        }
        assert!(svg(Axes::Time, &[line(&[(0.0, 0.0), (1.0, 0.0)])]).expect("no error").is_some());
    }

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!([0.0, 7.0, 96.0, 4_990.0].map(nice_above), [1.0, 8.0, 100.0, 6_000.0]);
        assert_eq!(decades(35.0, 4_000.0), (10.0, 10_000.0));
        assert_eq!(decades(0.0, 0.0), (1.0, 10.0));
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([0.0, 2.5, 15_000.0, 2e6].map(short), ["0", "2.5", "15k", "2M"]);
        assert_eq!([0.0, 1.0, 2.0, 4.0].map(percent), ["fastest", "90 %", "99 %", "99.99 %"]);
        assert_eq!([5.0, 1_500.0, 2e6].map(micros), ["5 us", "1.5 ms", "2 s"]);
    }
}
