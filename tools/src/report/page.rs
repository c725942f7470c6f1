//! One or several reports as one page that needs nothing else: HTML, its style sheet and its plots in a single file.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    Report, Sample,
    outcome::{Figure, number},
    plot::{Axes, COLORS, Line, micros, svg},
};

const STYLE: &str = include_str!("page.css");

/// Writes the page of `reports` to `path`: of one run in full, of several side by side.
///
/// # Errors
/// When the file cannot be written or a plot not be drawn.
pub fn write_page(path: &Path, reports: &[Report]) -> Result<()> {
    fs::write(path, page(reports)?).with_context(|| format!("cannot write {}", path.display()))
}

/// The page as text.
fn page(reports: &[Report]) -> Result<String> {
    let names = names(reports);
    let title = match reports {
        [report] => format!("gimbal load {}", report.scenario),
        _ => format!("gimbal load: {} runs", reports.len()),
    };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style></head><body>\n",
        escape(&title)
    );
    match reports {
        [report] => one(&mut out, report, "h1")?,
        _ => several(&mut out, reports, &names, &title)?,
    }
    out.push_str("</body></html>\n");
    Ok(out)
}

fn one(out: &mut String, report: &Report, heading: &str) -> Result<()> {
    let _ = writeln!(
        out,
        "<header><{heading}>{}</{heading}>{}<span class=\"soft\">{}</span></header>",
        escape(&report.scenario),
        verdict(report),
        escape(&about(report))
    );
    out.push_str("<div class=\"figures\">\n");
    for Figure { name, value, unit } in &report.headline {
        let _ = writeln!(
            out,
            "<div class=\"card\"><span class=\"soft\">{}</span><b>{} <small>{}</small></b></div>",
            escape(name),
            number(*value),
            escape(unit)
        );
    }
    out.push_str("</div>\n");
    list(out, "notes card", report.notes.iter().chain(&report.faults));
    let latency = report.latency.iter().enumerate();
    let latency = latency
        .map(|(color, (name, table))| Line { name: name.clone(), color, points: table.curve.clone() })
        .collect();
    let series = &report.series;
    let line = |name: &str, color, points| Line { name: name.to_owned(), color, points };
    let total = |get: fn(&Sample) -> u64| move |sample: &Sample| get(sample) as f64;
    let rates = vec![
        line("sent", 0, rate(series, total(|s| s.sent))),
        line("acknowledged", 1, rate(series, total(|s| s.acked))),
        line("delivered", 2, rate(series, total(|s| s.delivered))),
    ];
    let cpu = vec![
        line("server", 0, rate(series, |s| s.server_cpu_s)),
        line("client", 1, rate(series, |s| s.client_cpu_s)),
    ];
    let memory = vec![
        line("server, anonymous", 0, level(series, |s| mib(s.rss_anon_bytes))),
        line("TCP sockets of the machine", 1, level(series, |s| mib(s.tcp_bytes))),
    ];
    let online = vec![line("signed in", 2, level(series, total(|s| s.online)))];
    let switches = vec![
        line("context switches", 3, rate(series, total(|s| s.switches))),
        line("io_uring_enter", 4, enters(series)),
    ];
    out.push_str("<div class=\"plots\">\n");
    plot(out, "Latency by how rare it is", Axes::Latency, latency)?;
    plot(out, "Messages per second", Axes::Time, rates)?;
    plot(out, "CPU, cores busy", Axes::Time, cpu)?;
    plot(out, "Memory, MiB", Axes::Time, memory)?;
    plot(out, "Connections", Axes::Time, online)?;
    plot(out, "The server's calls and switches per second", Axes::Time, switches)?;
    out.push_str("</div>\n");
    tables(out, report);
    Ok(())
}

fn several(out: &mut String, reports: &[Report], names: &[String], title: &str) -> Result<()> {
    let _ = writeln!(out, "<header><h1>{}</h1></header>", escape(title));
    let head: Vec<String> = names.iter().enumerate().map(|(at, name)| swatch(at, name)).collect();
    let mut rows = vec![row("verdict", reports.iter().map(verdict))];
    let mut figures: Vec<(&str, &str)> = Vec::new();
    for figure in reports.iter().flat_map(|report| &report.headline) {
        if !figures.contains(&(&figure.name, &figure.unit)) {
            figures.push((&figure.name, &figure.unit));
        }
    }
    for (name, unit) in figures {
        let find = |report: &Report| {
            let found = report.headline.iter().find(|figure| figure.name == name && figure.unit == unit);
            found.map_or_else(String::new, |figure| number(figure.value))
        };
        rows.push(row(&format!("{name}, {unit}"), reports.iter().map(find)));
    }
    let kinds: BTreeSet<&String> = reports.iter().flat_map(|report| report.latency.keys()).collect();
    for kind in &kinds {
        for (label, get) in QUANTILES {
            let find = |report: &Report| {
                report.latency.get(*kind).map_or_else(String::new, |table| micros(get(table)))
            };
            rows.push(row(&format!("{kind} {label}"), reports.iter().map(find)));
        }
    }
    table(out, "card scroll", &head, &rows);
    let lines = |points: &dyn Fn(&Report) -> Vec<(f64, f64)>| {
        let lines = reports.iter().zip(names).enumerate();
        lines
            .map(|(at, (report, name))| Line {
                name: name.clone(),
                color: at % COLORS,
                points: points(report),
            })
            .collect()
    };
    out.push_str("<div class=\"plots\">\n");
    for kind in kinds {
        let curve =
            |report: &Report| report.latency.get(kind).map_or_else(Vec::new, |table| table.curve.clone());
        plot(out, &format!("Latency by how rare it is: {kind}"), Axes::Latency, lines(&curve))?;
    }
    let delivered = |report: &Report| rate(&report.series, |s| s.delivered.max(s.acked) as f64);
    plot(out, "Messages per second", Axes::Time, lines(&delivered))?;
    plot(
        out,
        "Server CPU, cores busy",
        Axes::Time,
        lines(&|report| rate(&report.series, |s| s.server_cpu_s)),
    )?;
    let memory = |report: &Report| level(&report.series, |s| mib(s.rss_anon_bytes));
    plot(out, "Server memory, anonymous, MiB", Axes::Time, lines(&memory))?;
    out.push_str("</div>\n");
    for (report, name) in reports.iter().zip(names) {
        let _ = writeln!(out, "<details><summary>{}</summary>", escape(name));
        one(out, report, "h2")?;
        out.push_str("</details>\n");
    }
    Ok(())
}

type Quantile = (&'static str, fn(&super::LatencyTable) -> f64);

const QUANTILES: [Quantile; 6] = [
    ("p50", |table| table.p50_us),
    ("p90", |table| table.p90_us),
    ("p99", |table| table.p99_us),
    ("p99.9", |table| table.p99_9_us),
    ("p99.99", |table| table.p99_99_us),
    ("max", |table| table.max_us),
];

fn tables(out: &mut String, report: &Report) {
    if !report.latency.is_empty() {
        out.push_str("<h2>Latency</h2>\n");
        let head: Vec<String> =
            std::iter::once("count").chain(QUANTILES.map(|(label, _)| label)).map(str::to_owned).collect();
        let rows: Vec<String> = report
            .latency
            .iter()
            .map(|(name, table)| {
                let cells = QUANTILES.iter().map(|(_, get)| micros(get(table)));
                row(name, std::iter::once(number(table.count as f64)).chain(cells))
            })
            .collect();
        table(out, "card scroll", &head, &rows);
    }
    out.push_str("<h2>Ledger and counts</h2>\n");
    out.push_str("<div class=\"card counts\">");
    for (name, count) in report.counts.named() {
        let class = match (count, BAD.contains(&name)) {
            (0, _) => "none",
            (_, true) => "nonzero",
            _ => "some",
        };
        let _ = write!(out, "<span class=\"{class}\">{name}<b>{}</b></span>", number(count as f64));
    }
    out.push_str("</div>\n");
    server_tables(out, report);
    out.push_str("<h2>Parameters and facts</h2>\n");
    let mut rows = Vec::new();
    for (name, value) in report.parameters.as_object().into_iter().flatten() {
        rows.push(long(name, &plain(value)));
    }
    let facts = &report.facts;
    rows.push(long("commit", &facts.commit));
    rows.push(long("kernel", &facts.kernel));
    rows.push(long("cores of the client", &facts.cores.to_string()));
    rows.push(long("command", &facts.command.join(" ")));
    for process in report.server.iter().flat_map(|server| &server.processes) {
        rows.push(long("server", &format!("{} (cores {})", process.command.join(" "), process.cores)));
    }
    for (name, value) in report.details.iter().filter(|(_, value)| !value.is_object() && !value.is_array()) {
        rows.push(long(name, &plain(value)));
    }
    let _ = writeln!(out, "<div class=\"card scroll\"><table>{}</table></div>", rows.concat());
}

/// Counts that make a run invalid.
const BAD: [&str; 9] =
    ["lost", "duplicated", "gaps", "reordered", "wrong", "refused", "unanswered", "closed", "unexpected"];

fn server_tables(out: &mut String, report: &Report) {
    let Some(server) = &report.server else { return };
    out.push_str("<h2>Server and client</h2>\n");
    let head = ["count", "CPU", "context switches", "io_uring_enter", "bytes sent"].map(str::to_owned);
    let optional = |value: Option<f64>| value.map_or_else(String::new, number);
    let rows: Vec<String> = server
        .per
        .iter()
        .map(|per| {
            let cells = [
                number(per.count as f64),
                format!("{} us", number(per.cpu_us)),
                number(per.context_switches),
                optional(per.io_uring_enters),
                optional(per.sent_bytes),
            ];
            row(&format!("each {}", per.unit), cells)
        })
        .collect();
    if !rows.is_empty() {
        table(out, "card scroll", &head, &rows);
    }
    let busy = |share: f64| format!("{:.0} % of a core", share * 100.0);
    let mut threads = server.threads.clone();
    threads.retain(|thread| thread.cpu_ns > 0);
    threads.sort_by_key(|thread| std::cmp::Reverse(thread.cpu_ns));
    let threads: Vec<String> = threads
        .iter()
        .map(|thread| format!("{} {} s", thread.name, number(thread.cpu_ns as f64 / 1e9)))
        .collect();
    let rows = [
        long("measured time", &format!("{} s", number(server.seconds))),
        long(
            "server CPU",
            &format!("{} s, busiest thread {}", number(server.cpu_s), busy(server.busiest_thread)),
        ),
        long("by thread", &threads.join(", ")),
        long(
            "server memory at the end",
            &format!(
                "{} MiB resident, {} MiB anonymous",
                number(mib(server.rss_bytes)),
                number(mib(server.rss_anon_bytes))
            ),
        ),
        long(
            "client CPU",
            &format!(
                "{} s, busiest thread {}, processes {}",
                number(report.client.cpu_s),
                busy(report.client.busiest_thread),
                report.client.processes
            ),
        ),
    ];
    let _ = writeln!(
        out,
        "<div class=\"card scroll\" style=\"margin-top:14px\"><table>{}</table></div>",
        rows.concat()
    );
}

fn plot(out: &mut String, title: &str, axes: Axes, mut lines: Vec<Line>) -> Result<()> {
    // A line that never leaves zero says nothing.
    lines.retain(|line| line.points.iter().any(|&(_, y)| y > 0.0));
    let Some(drawn) = svg(axes, &lines)? else { return Ok(()) };
    let legend: String = lines.iter().map(|line| swatch(line.color, &line.name)).collect();
    let _ = writeln!(
        out,
        "<figure class=\"card\"><figcaption><strong>{}</strong>{legend}</figcaption>{drawn}</figure>",
        escape(title)
    );
    Ok(())
}

fn swatch(color: usize, name: &str) -> String {
    format!("<span><i style=\"background:var(--c{})\"></i>{}</span>", color % COLORS, escape(name))
}

fn table(out: &mut String, class: &str, head: &[String], rows: &[String]) {
    let head: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
    let _ = writeln!(
        out,
        "<div class=\"{class}\"><table><tr><th></th>{head}</tr>{}</table></div>",
        rows.concat()
    );
}

/// Cells are markup already.
fn row(name: &str, cells: impl IntoIterator<Item = String>) -> String {
    let cells: String = cells.into_iter().map(|cell| format!("<td>{cell}</td>")).collect();
    format!("<tr><td>{}</td>{cells}</tr>", escape(name))
}

fn long(name: &str, text: &str) -> String {
    format!("<tr><td>{}</td><td class=\"long\">{}</td></tr>", escape(name), escape(text))
}

fn list<'a>(out: &mut String, class: &str, items: impl Iterator<Item = &'a String>) {
    let items: String = items.map(|item| format!("<li>{}</li>", escape(item))).collect();
    if !items.is_empty() {
        let _ = writeln!(out, "<ul class=\"{class}\">{items}</ul>");
    }
}

fn verdict(report: &Report) -> String {
    let class = if report.ok { "good" } else { "bad" };
    format!("<span class=\"verdict {class}\">{}</span>", report.verdict())
}

fn about(report: &Report) -> String {
    let facts = &report.facts;
    format!("gimbal {} ({}), Linux {}, {} cores", facts.version, facts.commit, facts.kernel, facts.cores)
}

/// What tells the runs of one page apart: scenario, and the parameters in which they differ.
fn names(reports: &[Report]) -> Vec<String> {
    let differs = |key: &String| {
        let mut values = reports.iter().filter_map(|report| report.parameters.get(key));
        values.next().is_some_and(|first| values.any(|value| value != first))
    };
    let name = |(at, report): (usize, &Report)| {
        let mut name = format!("{}. {}", at + 1, report.scenario);
        for (key, value) in
            report.parameters.as_object().into_iter().flatten().filter(|(key, _)| differs(key))
        {
            let _ = write!(name, ", {key} {}", plain(value));
        }
        name
    };
    reports.iter().enumerate().map(name).collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(figure) => figure.as_f64().map_or_else(|| figure.to_string(), number),
        other => other.to_string(),
    }
}

fn level(series: &[Sample], get: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    series.iter().map(|sample| (sample.t_s, get(sample))).collect()
}

/// What a growing total grew by, per second.
fn rate(series: &[Sample], get: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    let step = |pair: &[Sample]| {
        let seconds = (pair[1].t_s - pair[0].t_s).max(1e-6);
        (pair[1].t_s, (get(&pair[1]) - get(&pair[0])).max(0.0) / seconds)
    };
    series.windows(2).map(step).collect()
}

fn enters(series: &[Sample]) -> Vec<(f64, f64)> {
    let known: Vec<Sample> =
        series.iter().filter(|sample| sample.io_uring_enters.is_some()).copied().collect();
    rate(&known, |sample| sample.io_uring_enters.unwrap_or(0) as f64)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{ClientFigures, Counts, Latency, RunFacts};
    use std::time::Duration;

    fn report(scenario: &str, rate: u64) -> Report {
        let mut latency = Latency::default();
        (1..5_000u64).for_each(|us| latency.record(us * 1_000));
        let series = (0..20u64).map(|at| Sample {
            t_s: at as f64 / 4.0,
            sent: at * rate,
            delivered: at * rate,
            server_cpu_s: at as f64 / 8.0,
            rss_anon_bytes: 50 << 20,
            ..Sample::default()
        });
        Report {
            scenario: scenario.into(),
            ok: true,
            complete: true,
            facts: RunFacts::collect(Duration::ZERO),
            parameters: serde_json::json!({ "rate": rate, "bytes": 100 }),
            headline: vec![Figure::new("delivered", rate as f64, "/s")],
            counts: Counts { sent: 20, ..Counts::default() },
            latency: [("ack".to_owned(), latency.table())].into(),
            server: None,
            client: ClientFigures::default(),
            series: series.collect(),
            notes: vec!["a <note> & more".into()],
            faults: Vec::new(),
            details: serde_json::Map::new(),
        }
    }

    #[test]
    fn one_page_holds_everything_and_nothing_foreign() {
        let text = page(&[report("steady", 1_000)]).expect("a page");
        assert_eq!(text.matches("<svg").count(), 4, "latency, rate, CPU, memory");
        assert!(text.contains("a &lt;note&gt; &amp; more") && text.contains("ledger: all agree"));
        for foreign in ["<script", "<link", "src=", "url("] {
            assert!(!text.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn several_runs_are_named_by_what_differs() {
        let text = page(&[report("steady", 1_000), report("steady", 2_000)]).expect("a page");
        assert!(text.contains("1. steady, rate 1,000") && text.contains("2. steady, rate 2,000"));
        assert!(!text.contains("bytes 100"));
        assert!(text.contains("ack p99.9"));
    }

    #[test]
    fn a_report_survives_json_with_its_own_figures() {
        let mut before = report("x", 3);
        before.detail("ratio", 1.25);
        let text = serde_json::to_string(&before).expect("JSON");
        let after: Report = serde_json::from_str(&text).expect("the same shape");
        assert_eq!(after.details["ratio"], 1.25);
        assert_eq!(serde_json::to_string(&after).expect("JSON"), text);
    }
}
