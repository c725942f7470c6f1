//! gimbal, its peers and the bare bounds beside each other: `benches/peers/run` builds and starts this.

#![forbid(unsafe_code)]

mod bare;
mod conns;
mod dialect;
mod plot;
mod results;
mod server;
mod side;
mod table;
mod work;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use gimbal::{
    clock,
    load::{pin, progress, stop},
    proc::{cores, raise_open_files},
    report::RunFacts,
    say,
};

use results::Results;
use server::{Machine, Peer, Programs};
use work::{Kind, Parameters, Sample, WINDOW_MAX};

/// Measures gimbal, nats-server, mosquitto, redis-server and the bare bounds in one run.
#[derive(Parser, Debug)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    bare: Option<Bare>,
    /// A short trial: one round, 1,000 members, fewer idle connections
    #[arg(long)]
    quick: bool,
    /// Interleaved rounds [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Measured seconds of each closed loop [default: 2]
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Only these works
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Kind>,
    /// Members of the fan-outs [default: 1000,10000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    members: Vec<u32>,
    /// Messages under way at once [default: 1,16]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=WINDOW_MAX as i64))]
    windows: Vec<u8>,
    /// Idle connections at the second reading of memory [default: 10000]
    #[arg(long, value_name = "COUNT")]
    idle_high: Option<usize>,
    /// Core of the servers
    #[arg(long, default_value = "0", value_name = "CORE")]
    server_core: String,
    /// Core of the client
    #[arg(long, default_value = "1", value_name = "CORE")]
    client_core: String,
    /// The binary `gimbal` [default: beside this one]
    #[arg(long, value_name = "FILE")]
    gimbal: Option<PathBuf>,
    /// The binary `nats-server` [default: from PATH]
    #[arg(long, value_name = "FILE")]
    nats: Option<PathBuf>,
    /// The commit that was built, for the record
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Where table.md, results.json and plot.svg go; the servers' data lies there as well
    #[arg(long, default_value = "target/peers", value_name = "FOLDER")]
    out: PathBuf,
}

/// The bounds that are processes of this program.
#[derive(clap::Subcommand, Debug)]
enum Bare {
    /// The send loop; started by the fan-out
    #[command(hide = true)]
    BareSender {
        #[arg(long)]
        members: usize,
        #[arg(long)]
        payload_bytes: usize,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gimbal-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    raise_open_files();
    if let Some(Bare::BareSender { members, payload_bytes }) = cli.bare {
        bare::send_loop(members, payload_bytes)?;
        return Ok(ExitCode::SUCCESS);
    }
    stop::install()?;
    ensure!(cores() > 1 && cli.server_core != cli.client_core, "server and client need a core each");
    let programs = cli.programs()?;
    fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
    let out = cli.out.canonicalize().with_context(|| format!("cannot find {}", cli.out.display()))?;
    let machine = Machine { programs, server_core: cli.server_core.clone(), work_dir: out.join("work") };
    let mut results = Results {
        complete: false,
        facts: RunFacts { commit: cli.commit.clone(), ..RunFacts::collect(clock::unix()) },
        processor: processor(),
        versions: Vec::new(),
        parameters: cli.parameters(),
        notes: others_running(),
        faults: Vec::new(),
        samples: Vec::new(),
    };
    pin(&cli.client_core)?;
    let plan = plan(&cli, &machine.programs, &mut results);
    measure(&machine, &plan, &mut results, &out)?;
    let _ = fs::remove_dir_all(&machine.work_dir);
    let page = table::render(&results);
    fs::write(out.join("table.md"), &page).context("cannot write the table")?;
    plot::write(&results, &out.join("plot.svg"))?;
    say!("{page}\n{}/: table.md, results.json, plot.svg", out.display());
    Ok(if results.complete && results.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Each kind of work, its sizes and who does it.
type Plan = Vec<(Kind, Vec<usize>, Vec<Peer>)>;

/// Leaves out who is not there, and says so.
fn plan(cli: &Cli, programs: &Programs, results: &mut Results) -> Plan {
    for peer in Peer::SERVERS {
        let Some(program) = programs.of(*peer) else {
            results.notes.push(format!("{} is not installed here and was left out.", peer.name()));
            continue;
        };
        let version = programs.version(*peer).unwrap_or_else(|| program.display().to_string());
        results.versions.push((peer.name().into(), version));
    }
    let all = <Kind as clap::ValueEnum>::value_variants();
    let kinds = if cli.only.is_empty() { all } else { &cli.only };
    let mut plan = Plan::new();
    for kind in kinds {
        let mut peers = kind.peers().to_vec();
        peers.retain(|peer| programs.of(*peer).is_some());
        if *kind == Kind::Echo && !has_bare_echo(&programs.gimbal) {
            results
                .notes
                .push("This gimbal has no bare io_uring echo; the pings have no bound beside them.".into());
            peers.retain(|peer| *peer != Peer::Bare);
        }
        plan.push((*kind, kind.sizes(&results.parameters), peers));
    }
    plan
}

/// All that is done in a round; the order of the servers rotates with the rounds.
fn turns(plan: &Plan, round: usize) -> impl Iterator<Item = (Kind, usize, Peer)> {
    plan.iter().flat_map(move |(kind, sizes, peers)| {
        let turn = move |turn| peers[(turn + round) % peers.len()];
        let of_size = move |&size| (0..peers.len()).map(move |at| (*kind, size, turn(at)));
        sizes.iter().flat_map(of_size)
    })
}

/// All rounds, or those before an interruption.
fn measure(machine: &Machine, plan: &Plan, results: &mut Results, out: &Path) -> Result<()> {
    let works: usize = plan.iter().map(|(_, sizes, peers)| sizes.len() * peers.len()).sum();
    let parameters = results.parameters.clone();
    let bar = progress((works * parameters.rounds) as u64, "peers");
    'rounds: for round in 0..parameters.rounds {
        for (kind, size, peer) in turns(plan, round) {
            let name = format!("round {}: {kind:?} {}", round + 1, peer.name());
            bar.set_message(name.clone());
            let done = kind.run(machine, &parameters, peer, size);
            if stop::is_requested() {
                // What this work did is not whole.
                break 'rounds;
            }
            match done {
                Ok(done) => results.samples.extend(done.into_iter().map(|(work, values)| Sample {
                    work,
                    peer,
                    round,
                    values,
                })),
                Err(error) => {
                    bar.suspend(|| eprintln!("{name}: {error:#}"));
                    results.faults.push(format!("{name}: {error:#}"));
                }
            }
            bar.inc(1);
            results.write(&out.join("results.json"))?;
        }
    }
    bar.finish_and_clear();
    results.complete = !stop::is_requested();
    results.write(&out.join("results.json"))
}

impl Cli {
    fn parameters(&self) -> Parameters {
        let mut parameters = if self.quick { Parameters::quick() } else { Parameters::full() };
        parameters.rounds = self.rounds.map_or(parameters.rounds, usize::from);
        parameters.seconds = self.seconds.unwrap_or(parameters.seconds);
        parameters.idle_high = self.idle_high.unwrap_or(parameters.idle_high);
        if !self.members.is_empty() {
            parameters.members = self.members.iter().map(|members| *members as usize).collect();
        }
        if !self.windows.is_empty() {
            parameters.windows = self.windows.iter().map(|window| usize::from(*window)).collect();
        }
        parameters
    }

    fn programs(&self) -> Result<Programs> {
        let own = std::env::current_exe().context("where is this program?")?;
        let gimbal = self.gimbal.clone().unwrap_or_else(|| own.with_file_name("gimbal"));
        ensure!(gimbal.is_file(), "{} is not there: build it, or name it with --gimbal", gimbal.display());
        Ok(Programs {
            gimbal,
            nats: self.nats.clone().filter(|path| path.is_file()).or_else(|| find("nats-server")),
            mosquitto: find("mosquitto"),
            redis: find("redis-server"),
        })
    }
}

/// In PATH, or where Debian puts what only root calls.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn has_bare_echo(gimbal: &Path) -> bool {
    let output = Command::new(gimbal).args(["load", "bare-echo", "--help"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// Servers that run here already: they share the cores.
fn others_running() -> Vec<String> {
    let names = Peer::SERVERS.iter().map(|peer| match peer {
        Peer::Gimbal => "gimbal",
        Peer::Nats => "nats-server",
        Peer::Redis => "redis-server",
        _ => "mosquitto",
    });
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let running: Vec<String> =
        processes.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok()).collect();
    let found = names.filter(|name| running.iter().any(|comm| comm.trim() == *name));
    found.map(|name| format!("A {name} was running on this machine before the run.")).collect()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Seconds: a tenth to an hour.
fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=3_600.0).contains(&value) { Ok(value) } else { Err("0.1 to 3600 seconds".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_arguments_are_refused() {
        for bad in [
            ["--rounds", "0"],
            ["--seconds", "0"],
            ["--seconds", "x"],
            ["--only", "fanout,chess"],
            ["--members", "0"],
            ["--windows", "256"],
        ] {
            assert!(Cli::try_parse_from(["gimbal-peers", bad[0], bad[1]]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flags_win_over_the_short_trial() {
        let cli = Cli::parse_from(["gimbal-peers", "--quick", "--rounds", "3", "--members", "50,60"]);
        let parameters = cli.parameters();
        assert_eq!((parameters.rounds, parameters.members), (3, vec![50, 60]));
        assert_eq!(parameters.idle_high, Parameters::quick().idle_high);
    }
}
