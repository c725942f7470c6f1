//! Crowds in several processes. The parent speaks to each child in lines of JSON: a [`Job`], then orders, each
//! answered by one result; between them the child tells its progress.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use gimbal_codec::{DeviceId, UserId};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::{
    Place,
    crowd::{Crowd, Done, Order, Part},
    fleet::Member,
    stage::Stage,
    stop,
    watch::Live,
};
use crate::report::{Counts, Latency};

/// Between two words of progress.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);
/// A child that says nothing for so long hangs: it tells its progress all the time.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What a child is told first.
#[derive(Deserialize, Serialize)]
struct Job {
    place: Place,
    sources: Vec<Ipv4Addr>,
    members: Vec<(u64, u64, String)>,
    part: Part,
}

/// What a child says.
#[derive(Deserialize, Serialize)]
enum Word {
    Progress { online: u64, delivered: u64 },
    Done { seconds: f64, counts: Box<Counts>, latency: String, online: usize, faults: Vec<String> },
    Failed(String),
}

/// All crowds of a load: one here, or one in each of several processes.
pub struct Crowds {
    here: Option<Crowd>,
    there: Vec<Remote>,
    live: Arc<Live>,
}

struct Remote {
    child: Child,
    orders: ChildStdin,
    words: Receiver<Word>,
    online: u64,
    delivered: u64,
}

impl Crowds {
    /// Shares the stage's members among the target's processes.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn start(stage: &Stage<'_>) -> Result<Self> {
        let (target, parts) = (stage.target, stage.target.processes);
        let live = Arc::clone(&stage.live);
        if parts <= 1 {
            let part = Part { part: 0, parts: 1 };
            let crowd =
                Crowd::new(target.place(), &target.sources, stage.members.clone(), part, Arc::clone(&live))?;
            return Ok(Self { here: Some(crowd), there: Vec::new(), live });
        }
        let there = (0..parts).map(|part| {
            let members = stage.members.iter().skip(part).step_by(parts);
            let members = members
                .map(|member| (member.user.get(), member.device.get(), member.token.clone()))
                .collect();
            let job = Job {
                place: target.place(),
                sources: target.sources.clone(),
                members,
                part: Part { part, parts },
            };
            Remote::start(&job)
        });
        Ok(Self { here: None, there: there.collect::<Result<_>>()?, live })
    }

    /// Process ids of the children.
    pub fn pids(&self) -> Vec<u32> {
        self.there.iter().map(|remote| remote.child.id()).collect()
    }

    /// Has all crowds carry out an order and merges what came of it. `first` runs once the children have begun.
    ///
    /// # Errors
    /// What `first` says, or when a crowd cannot go on.
    pub fn execute(&mut self, order: &Order, first: impl FnOnce() -> Result<()>) -> Result<Done> {
        for remote in &mut self.there {
            remote.say(order)?;
        }
        first()?;
        let mut done = Done::default();
        if let Some(crowd) = &mut self.here {
            done.merge(crowd.execute(order)?);
        }
        let mut is_told = false;
        for at in 0..self.there.len() {
            loop {
                if stop::is_requested() && !std::mem::replace(&mut is_told, true) {
                    self.there.iter().for_each(|remote| stop::tell(remote.child.id(), Signal::TERM));
                }
                if let Some(part) = self.there[at].hear()? {
                    done.merge(part);
                    break;
                }
                let sum = |get: fn(&Remote) -> u64| self.there.iter().map(get).sum();
                Live::set(&self.live.online, sum(|remote| remote.online));
                Live::set(&self.live.delivered, sum(|remote| remote.delivered));
            }
        }
        Ok(done)
    }
}

impl Remote {
    fn start(job: &Job) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("where is this binary?")?)
            .args(["load", "worker"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a client process")?;
        stop::add_child(child.id());
        let orders = child.stdin.take().context("no input of a client process")?;
        let stdout = child.stdout.take().context("no output of a client process")?;
        let (told, words) = channel();
        let read = move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let word =
                    serde_json::from_str(&line).unwrap_or_else(|error| Word::Failed(error.to_string()));
                if told.send(word).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("words".into()).spawn(read).context("no thread")?;
        let mut remote = Self { child, orders, words, online: 0, delivered: 0 };
        remote.say(job)?;
        Ok(remote)
    }

    fn say(&mut self, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(what).context("an order becomes no JSON")?;
        line.push('\n');
        self.orders.write_all(line.as_bytes()).context("a client process is gone")
    }

    /// The result, if that comes next; `None` after progress or a little time.
    fn hear(&mut self) -> Result<Option<Done>> {
        match self.words.recv_timeout(SILENCE_MAX) {
            Ok(Word::Progress { online, delivered }) => {
                (self.online, self.delivered) = (online, delivered);
                Ok(None)
            }
            Ok(Word::Done { seconds, counts, latency, online, faults }) => {
                let latency = Latency::from_text(&latency)?;
                Ok(Some(Done { seconds, counts: *counts, latency, online, faults }))
            }
            Ok(Word::Failed(why)) => Err(anyhow!("a client process failed: {why}")),
            Err(RecvTimeoutError::Timeout) => bail!("a client process hangs"),
            Err(RecvTimeoutError::Disconnected) => bail!("a client process ended early"),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        stop::remove_child(self.child.id());
    }
}

/// A child's whole life; it ends with its input.
///
/// # Errors
/// When the parent says what it cannot understand.
pub fn serve() -> Result<()> {
    // Should the parent die, so do we. It cannot fail: the signal is valid.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut lines = std::io::stdin().lines();
    let job = lines.next().context("no job")??;
    let job: Job = serde_json::from_str(&job).context("not a job")?;
    let members = job.members.into_iter().map(|(user, device, token)| Member {
        user: UserId::new(user),
        device: DeviceId::new(device),
        token,
    });
    let live = Arc::new(Live::default());
    let mut crowd = Crowd::new(job.place, &job.sources, members.collect(), job.part, Arc::clone(&live))?;
    let is_busy = Arc::new(AtomicBool::new(false));
    thread::Builder::new().name("progress".into()).spawn({
        let is_busy = Arc::clone(&is_busy);
        move || tell_progress(&live, &is_busy)
    })?;
    for line in lines {
        let order: Order = serde_json::from_str(&line?).context("not an order")?;
        is_busy.store(true, Ordering::Relaxed);
        let word = match crowd.execute(&order) {
            Ok(Done { seconds, counts, latency, online, faults }) => {
                let latency = latency.to_text();
                Word::Done { seconds, counts: Box::new(counts), latency, online, faults }
            }
            Err(error) => Word::Failed(format!("{error:#}")),
        };
        is_busy.store(false, Ordering::Relaxed);
        tell(&word)?;
    }
    Ok(())
}

fn tell(word: &Word) -> Result<()> {
    let mut line = serde_json::to_string(word).context("a word becomes no JSON")?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("the parent is gone")
}

fn tell_progress(live: &Live, is_busy: &AtomicBool) {
    loop {
        thread::sleep(PROGRESS_PERIOD);
        let (online, delivered) =
            (live.online.load(Ordering::Relaxed), live.delivered.load(Ordering::Relaxed));
        if is_busy.load(Ordering::Relaxed) && tell(&Word::Progress { online, delivered }).is_err() {
            return;
        }
    }
}
