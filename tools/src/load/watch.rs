//! A thread that looks at server and client while a run goes on, so that the thread with the sockets does not have to.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::server::http_get;
use crate::{
    clock,
    proc::{self, ProcessFigures},
    report::{ClientFigures, Process, Sample, ServerFigures, hide_keys},
};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);
/// Looks for each one at the server's page of metrics: rendering it costs the server something.
const LOOKS_PER_PAGE: u64 = 4;
/// Above this share of a core a thread has no time left.
const SATURATED: f64 = 0.9;
/// Above this share of a core, taken by the machine's host, a run's slowest hundredth may be the host's.
const STOLEN: f64 = 0.002;
/// Samples kept; beyond it every second one is given up, so that a long run has a short report.
const SAMPLES_MAX: usize = 2_400;

/// Progress of a run, written by the thread with the sockets and read by the watch.
#[derive(Default, Debug)]
pub struct Live {
    /// Messages sent.
    pub sent: AtomicU64,
    /// Acknowledged.
    pub acked: AtomicU64,
    /// Deliveries.
    pub delivered: AtomicU64,
    /// Connections signed in.
    pub online: AtomicU64,
}

impl Live {
    /// Writes a count; cheap enough for every turn.
    pub fn set(cell: &AtomicU64, count: u64) {
        cell.store(count, Ordering::Relaxed);
    }
}

/// Shards publish their counters ten times a second: after this the page tells all that was.
const PAGE_SETTLES: Duration = Duration::from_millis(120);

/// The edges of the measured time.
enum Edge {
    /// While traffic goes on already: the page may be a tenth of a second old.
    Begin,
    /// Before traffic; the sender waits for the answer.
    BeginAtRest(Sender<()>),
    End,
}

/// One look, in full.
#[derive(Clone)]
struct Reading {
    at: Instant,
    server: ProcessFigures,
    client: ProcessFigures,
    counters: Option<BTreeMap<String, u64>>,
    /// CPU time the machine's host has kept for others so far, seconds.
    stolen_s: f64,
}

/// The running thread.
pub struct Watch {
    orders: Sender<Edge>,
    thread: JoinHandle<Seen>,
    processes: Vec<Process>,
    clients: usize,
}

/// What the thread saw.
#[derive(Default)]
struct Seen {
    samples: Vec<Sample>,
    begin: Option<Reading>,
    end: Option<Reading>,
}

/// The figures of a run.
pub struct Watched {
    /// The server in the measured time; `None` when it is not known or went away before.
    pub server: Option<ServerFigures>,
    /// The client in the measured time.
    pub client: ClientFigures,
    /// The whole run over time.
    pub series: Vec<Sample>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Watch {
    /// Begins to look at the server's processes `pids` and its page of metrics, at this process and at further `clients`.
    ///
    /// # Errors
    /// When no thread can be started, or a process that was named cannot be read.
    pub fn start(pids: &[u32], page: Option<SocketAddr>, clients: &[u32], live: Arc<Live>) -> Result<Self> {
        let process = |pid: u32| {
            ProcessFigures::read(pid).with_context(|| format!("cannot read /proc/{pid}, the server"))?;
            let command = hide_keys(proc::command_line(pid).into_iter());
            Ok(Process { pid, command, cores: proc::allowed_cores(pid).unwrap_or_default() })
        };
        let processes = pids.iter().map(|&pid| process(pid)).collect::<Result<Vec<_>>>()?;
        let mut all_clients = vec![std::process::id()];
        all_clients.extend(clients);
        let eye = Eye { start: clock::now(), servers: pids.to_vec(), clients: all_clients, page, live };
        let (orders, inbox) = channel();
        let clients = eye.clients.len();
        let thread = thread::Builder::new().name("watch".into()).spawn(move || eye.look_until_end(&inbox));
        Ok(Self { orders, thread: thread.context("no thread")?, processes, clients })
    }

    /// The measured time begins, amid traffic; returns at once.
    pub fn begin(&self) {
        let _ = self.orders.send(Edge::Begin); // a watch that ended has nothing to tell
    }

    /// The measured time begins, and with it the traffic; returns when everything was read, after a tenth of a second.
    pub fn begin_at_rest(&self) {
        let (done, answer) = channel();
        if self.orders.send(Edge::BeginAtRest(done)).is_ok() {
            let _ = answer.recv();
        }
    }

    /// The measured time ends.
    pub fn end(&self) {
        let _ = self.orders.send(Edge::End);
    }

    /// Ends the watch and adds up. Without [`Self::end`] the measured time ends here.
    pub fn finish(self) -> Watched {
        drop(self.orders);
        let seen = self.thread.join().unwrap_or_default();
        let mut notes = Vec::new();
        let Some((begin, end)) = seen.begin.zip(seen.end) else {
            let client = ClientFigures { processes: self.clients, ..ClientFigures::default() };
            return Watched { server: None, client, series: seen.samples, notes };
        };
        let seconds = (end.at - begin.at).as_secs_f64().max(1e-9);
        let is_known = !self.processes.is_empty() || end.counters.is_some();
        let server = is_known.then(|| between(&begin, &end, seconds, self.processes));
        let mut client = client_between(&begin, &end, seconds, self.clients);
        client.is_bottleneck = server
            .as_ref()
            .is_some_and(|server| !server.processes.is_empty() && is_bottleneck(&client, server));
        if client.is_bottleneck {
            notes.push(format!(
                "the client was the bottleneck: its busiest thread took {:.0} % of a core, the server's {:.0} %",
                client.busiest_thread * 100.0,
                server.as_ref().map_or(0.0, |server| server.busiest_thread * 100.0)
            ));
        }
        let stolen_s = end.stolen_s - begin.stolen_s;
        if stolen_s > STOLEN * seconds {
            notes.push(format!(
                "the machine itself paused: its host kept {stolen_s:.2} s of CPU time for others in {seconds:.1} s, and the \
                 slowest latencies may be its own"
            ));
        }
        if server.as_ref().is_some_and(|server| server.counters.is_empty()) {
            notes
                .push("the server's page of metrics is not known (--server-http): no bytes, no calls".into());
        }
        Watched { server, client, series: seen.samples, notes }
    }
}

fn between(begin: &Reading, end: &Reading, seconds: f64, processes: Vec<Process>) -> ServerFigures {
    let spent = end.server.since(&begin.server);
    let counters = match (&begin.counters, &end.counters) {
        (Some(before), Some(after)) => after
            .iter()
            .map(|(name, &total)| {
                (name.clone(), total.saturating_sub(before.get(name).copied().unwrap_or(0)))
            })
            .collect(),
        _ => BTreeMap::new(),
    };
    ServerFigures {
        processes,
        seconds,
        cpu_s: spent.cpu_ns as f64 / 1e9,
        busiest_thread: spent.busiest_ns() as f64 / 1e9 / seconds,
        rss_bytes: spent.rss_bytes,
        rss_anon_bytes: spent.rss_anon_bytes,
        voluntary_switches: spent.voluntary_switches,
        involuntary_switches: spent.involuntary_switches,
        threads: spent.threads,
        counters,
        per: Vec::new(),
    }
}

fn client_between(begin: &Reading, end: &Reading, seconds: f64, processes: usize) -> ClientFigures {
    let spent = end.client.since(&begin.client);
    let busiest_thread = spent.busiest_ns() as f64 / 1e9 / seconds;
    ClientFigures { processes, cpu_s: spent.cpu_ns as f64 / 1e9, busiest_thread, is_bottleneck: false }
}

/// A client thread has no time left while no thread of the server, and not the server as a whole, is out of time too.
fn is_bottleneck(client: &ClientFigures, server: &ServerFigures) -> bool {
    let cores = server.processes.iter().map(|process| count_cores(&process.cores)).max().unwrap_or(0);
    let share = server.cpu_s / server.seconds / cores.max(1) as f64;
    client.busiest_thread > SATURATED && server.busiest_thread < SATURATED && share < SATURATED
}

/// CPUs in a list as `0-3,6`.
fn count_cores(list: &str) -> usize {
    let count = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        (last + 1).checked_sub(first)
    };
    list.split(',').filter_map(count).sum()
}

/// All figures of the server's processes, summed.
///
/// # Errors
/// When none is known, or one cannot be read.
pub fn read_server(pids: &[u32]) -> Result<ProcessFigures> {
    ensure!(
        !pids.is_empty(),
        "this needs the figures of a server on this machine: give --server-pid or --start"
    );
    let mut sum = ProcessFigures::default();
    for &pid in pids {
        sum.add(&ProcessFigures::read(pid).with_context(|| format!("cannot read /proc/{pid}, the server"))?);
    }
    Ok(sum)
}

/// What the thread looks at.
struct Eye {
    start: Instant,
    servers: Vec<u32>,
    clients: Vec<u32>,
    page: Option<SocketAddr>,
    live: Arc<Live>,
}

impl Eye {
    fn look_until_end(self, inbox: &Receiver<Edge>) -> Seen {
        let mut seen = Seen::default();
        let (mut looks, mut period, mut next) = (0, PERIOD, self.start);
        loop {
            match inbox.recv_timeout(next.saturating_duration_since(clock::now())) {
                Ok(Edge::Begin) => seen.begin = self.look(true),
                Ok(Edge::BeginAtRest(done)) => {
                    thread::sleep(PAGE_SETTLES);
                    seen.begin = self.look(true);
                    let _ = done.send(()); // whoever does not wait has gone
                }
                Ok(Edge::End) => seen.end = self.last_look(),
                Err(RecvTimeoutError::Timeout) => {
                    let reading = self.look(looks % LOOKS_PER_PAGE == 0);
                    seen.samples.extend(reading.map(|reading| self.sample(&reading)));
                    looks += 1;
                    next += period;
                    if seen.samples.len() == SAMPLES_MAX {
                        let mut place = 0;
                        seen.samples.retain(|_| {
                            place += 1;
                            place % 2 == 1
                        });
                        period *= 2;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    if seen.begin.is_some() && seen.end.is_none() {
                        seen.end = self.last_look();
                    }
                    return seen;
                }
            }
        }
    }

    /// `None` when a server process is gone.
    fn look(&self, with_page: bool) -> Option<Reading> {
        let sum = |pids: &[u32]| {
            pids.iter().try_fold(ProcessFigures::default(), |mut sum, &pid| {
                sum.add(&ProcessFigures::read(pid).ok()?);
                Some(sum)
            })
        };
        let counters = self.page.filter(|_| with_page).and_then(read_counters);
        let at = clock::now();
        let client = sum(&self.clients).or_else(|| sum(&self.clients[..1])).unwrap_or_default();
        let stolen_s = proc::stolen_s().unwrap_or(0.0);
        Some(Reading { at, server: sum(&self.servers)?, client, counters, stolen_s })
    }

    /// The processes now, and the page when it has caught up with now.
    fn last_look(&self) -> Option<Reading> {
        let mut reading = self.look(false)?;
        if let Some(page) = self.page {
            thread::sleep(PAGE_SETTLES);
            reading.counters = read_counters(page);
        }
        Some(reading)
    }

    fn sample(&self, reading: &Reading) -> Sample {
        let live = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let counter = |name: &str| reading.counters.as_ref().and_then(|counters| counters.get(name).copied());
        Sample {
            t_s: (reading.at - self.start).as_secs_f64(),
            sent: live(&self.live.sent),
            acked: live(&self.live.acked),
            delivered: live(&self.live.delivered),
            online: live(&self.live.online),
            server_cpu_s: reading.server.cpu_ns as f64 / 1e9,
            client_cpu_s: reading.client.cpu_ns as f64 / 1e9,
            rss_anon_bytes: reading.server.rss_anon_bytes,
            tcp_bytes: proc::tcp_bytes().unwrap_or(0),
            switches: reading.server.voluntary_switches + reading.server.involuntary_switches,
            received_bytes: counter("received_bytes"),
            sent_bytes: counter("sent_bytes"),
            io_uring_enters: counter("io_uring_enters"),
        }
    }
}

/// The gateway's counters, without labels, by their names without prefix and suffix.
fn read_counters(page: SocketAddr) -> Option<BTreeMap<String, u64>> {
    let counters = counters_of(&http_get(page, "/metrics").ok()?);
    (!counters.is_empty()).then_some(counters)
}

fn counters_of(text: &str) -> BTreeMap<String, u64> {
    let counter = |line: &str| {
        let (name, value) = line.strip_prefix("gimbal_gateway_")?.split_once(' ')?;
        Some((name.strip_suffix("_total")?.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(counter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_gauges_and_labels_left_out() {
        let text = "# TYPE x counter\ngimbal_gateway_sent_bytes_total 12\ngimbal_gateway_rooms 3\n\
                    gimbal_gateway_closed_total{reason=\"idle\"} 1\ngimbal_control_x_total 5\n";
        assert_eq!(counters_of(text), BTreeMap::from([("sent_bytes".to_owned(), 12)]));
    }

    #[test]
    fn cores_are_counted() {
        assert_eq!(["0", "0-3,6", "", "x", "3-1"].map(count_cores), [1, 5, 0, 0, 0]);
    }

    #[test]
    fn only_a_full_client_beside_an_idle_server_is_the_bottleneck() {
        let client = |busiest_thread| ClientFigures { busiest_thread, ..ClientFigures::default() };
        let server = |busiest_thread, cpu_s| {
            let processes = vec![Process { cores: "0-1".into(), ..Process::default() }];
            ServerFigures { processes, busiest_thread, cpu_s, seconds: 1.0, ..ServerFigures::default() }
        };
        assert!(is_bottleneck(&client(0.95), &server(0.5, 0.7)));
        assert!(!is_bottleneck(&client(0.95), &server(0.95, 1.0)));
        assert!(!is_bottleneck(&client(0.95), &server(0.7, 1.9)));
        assert!(!is_bottleneck(&client(0.5), &server(0.5, 0.7)));
    }

    #[test]
    fn a_watch_of_ourselves_sees_time_and_work() {
        let live = Arc::new(Live::default());
        let watch =
            Watch::start(&[std::process::id()], None, &[], Arc::clone(&live)).expect("we may read ourselves");
        watch.begin();
        Live::set(&live.sent, 7);
        let watched = watch.finish();
        let server = watched.server.expect("we live");
        assert!(server.seconds > 0.0 && server.rss_bytes > 0 && server.processes.len() == 1);
        assert!(server.counters.is_empty() && !watched.notes.is_empty());
    }
}
