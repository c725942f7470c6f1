//! The one thread that changes anything: drains a bounded queue, executes, commits, and only then answers.
//!
//! Group commit comes by itself: while one commit is under way the next batch collects in the queue.

pub mod counters;
pub mod engine;
mod queue;
mod turns;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

pub use counters::Counters;
pub use engine::Engine;

use crate::clock;
use crate::command::{Command, Reply, ReplyTo};
use crate::error::RequestError;
use crate::event::{Kinds, News};
use crate::log::CommandLog;
use crate::route::policy::Policy;
use crate::store::Store;
use crate::trace::Trace;
use queue::{Queue, Taken};

/// Bounds of the writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most commands of one commit (a push counts once for each of its users): bounds what one synced write carries
    /// and how long a reply can wait for its neighbours. One command may exceed it.
    pub batch_commands_max: usize,
    /// Most content bytes of one commit; one command may exceed it.
    pub batch_bytes_max: usize,
    /// Most commands that wait: some batches ahead, so that the bound says busy before latency grows without end.
    pub queue_commands_max: usize,
    /// Most bytes that wait.
    pub queue_bytes_max: usize,
    /// Kinds of events that are written.
    pub events: Kinds,
    /// Which sessions of a user may be online together.
    pub devices: Policy,
    /// Users take messages of friends only.
    pub friends_only: bool,
    /// Records of what happened to messages.
    pub trace_kept: usize,
}

/// Sessions that begin and end wait so long for a commit to ride, and then have one of their own.
const CHANGES_WAIT: Duration = Duration::from_millis(100);

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_commands_max: 128,
            batch_bytes_max: 1 << 20,
            queue_commands_max: 32 * 1024,
            queue_bytes_max: 64 << 20,
            events: Kinds::ALL,
            devices: Policy::all(),
            friends_only: false,
            trace_kept: Trace::KEPT,
        }
    }
}

/// A command and where its answer goes.
pub struct Job {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes.
    pub reply_to: ReplyTo,
}

/// Unix milliseconds, read once per batch on the writer thread. It may jump either way.
pub type Clock = Box<dyn FnMut() -> i64 + Send>;

/// Handle to the writer thread; clones share it.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Queue,
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    news: Arc<News>,
    trace: Arc<Trace>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread, named `writer`.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(
        store: Arc<dyn Store>,
        log: Box<dyn CommandLog>,
        limits: Limits,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let mut engine = Engine::new(Arc::clone(&store), log, Arc::clone(&counters), limits.devices);
        engine.set_kinds(limits.events);
        engine.set_friends_only(limits.friends_only);
        let trace = Arc::new(Trace::new(limits.trace_kept));
        engine.set_trace(Arc::clone(&trace));
        let (queue, news) = (Queue::new(limits), Arc::clone(engine.news()));
        let shared = Arc::new(Shared { queue, store, counters, news, trace, thread: Mutex::default() });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("writer".into())
            .spawn(move || run_or_abort(&of_thread, engine, clock))?;
        *shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self { shared })
    }

    /// Hands over one command. Never blocks for long: the lock is held for a push.
    ///
    /// # Errors
    /// [`RequestError::Busy`] at a bound of the queue, [`RequestError::Unavailable`] after [`Self::stop`]; the command
    /// is dropped and counted, its waiting call (if any) sees its channel close. Link changes and detaches have a
    /// reserve of their own, so that load cannot lose them.
    pub fn submit(&self, command: Command, reply_to: ReplyTo) -> Result<(), RequestError> {
        self.counted(self.shared.queue.push(Job { command, reply_to }))
    }

    /// Hands over all of `jobs` in order, leaving it empty, or none of them.
    ///
    /// # Errors
    /// As [`Self::submit`]; `jobs` is untouched.
    pub fn submit_many(&self, jobs: &mut Vec<Job>) -> Result<(), RequestError> {
        self.counted(self.shared.queue.push_many(jobs))
    }

    /// Submits and waits for the answer.
    ///
    /// # Errors
    /// What the executor refuses, what [`Self::submit`] refuses, or [`RequestError::Unavailable`] when the writer
    /// ends before it answers.
    ///
    /// # Cancel-safety
    /// A command that is not begun when the future is dropped is not executed; one that is, is.
    pub async fn call(&self, command: Command) -> Result<Reply, RequestError> {
        let (answer, waits) = oneshot::channel();
        self.submit(command, ReplyTo::Call(answer))?;
        waits.await.unwrap_or(Err(RequestError::Unavailable))
    }

    /// The same for a plain thread.
    ///
    /// # Errors
    /// As [`Self::call`].
    ///
    /// # Panics
    /// Within an asynchronous task.
    pub fn call_blocking(&self, command: Command) -> Result<Reply, RequestError> {
        let (answer, waits) = oneshot::channel();
        self.submit(command, ReplyTo::Call(answer))?;
        waits.blocking_recv().unwrap_or(Err(RequestError::Unavailable))
    }

    /// False after a failed commit: readiness must fail, the process keeps refusing until it is restarted.
    pub fn is_healthy(&self) -> bool {
        self.shared.store.is_healthy()
    }

    /// The store behind it, for pages and snapshots.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// What was done and dropped, for metrics.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// What is told after a commit.
    pub fn news(&self) -> &Arc<News> {
        &self.shared.news
    }

    /// What happened to messages lately.
    pub fn trace(&self) -> &Trace {
        &self.shared.trace
    }

    /// Commands and bytes that wait now.
    pub fn queued(&self) -> (usize, usize) {
        self.shared.queue.depth()
    }

    /// Refuses new commands, finishes those that wait, and joins the thread. May be called more than once.
    pub fn stop(&self) {
        self.shared.queue.close();
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            thread.join().expect("a panic on the writer thread ends the process");
        }
    }

    fn counted(&self, result: Result<(), RequestError>) -> Result<(), RequestError> {
        if result.is_err() {
            self.shared.counters.queue_full.add(1);
        }
        result
    }
}

fn run_or_abort(shared: &Shared, mut engine: Engine, mut clock: Clock) {
    let run = || {
        let mut batch = Vec::new();
        // When the oldest change of sessions that is not written has to be.
        let mut flush_at = None;
        loop {
            // What is on its way to groups waits for nothing.
            let until = if engine.has_fan_out() { Some(clock::now()) } else { flush_at };
            let since = match shared.queue.take(&mut batch, until) {
                Taken::Some(since) => since,
                Taken::None if engine.has_fan_out() => clock::now(),
                Taken::None => {
                    engine.flush_changes(clock());
                    flush_at = None;
                    continue;
                }
                Taken::Closed => {
                    engine.flush_changes(clock());
                    return;
                }
            };
            batch.extend(engine.next_fan_out());
            let now_ms = clock();
            let stages = &shared.counters.stages;
            let mut lap = stages.queue.lap(since);
            while !batch.is_empty() {
                let mut executed = engine.execute(&mut batch, now_ms);
                lap = stages.execute.lap(lap);
                engine.commit(&mut executed);
                lap = stages.commit.lap(lap);
                engine.release(executed, clock());
                lap = stages.release.lap(lap);
            }
            flush_at = match (engine.has_changes(), flush_at) {
                (false, _) => None,
                (true, None) => Some(lap + CHANGES_WAIT),
                (true, Some(at)) if at <= lap => {
                    engine.flush_changes(now_ms);
                    None
                }
                (true, at) => at,
            };
        }
    };
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        // State may be half changed: nothing may be answered from it. What was acknowledged is on disk.
        tracing::error!("the writer thread panicked; ending the process");
        std::process::abort();
    }
}
