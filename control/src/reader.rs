//! The reader pool: two threads that read snapshots, so that neither the writer nor the runtime waits for the disk.

use std::{io, sync::Arc, thread};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use tokio::sync::oneshot;

use crate::{error::RequestError, store::Store};

/// One reads while the other waits for the disk; more would take the writer's core.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce(&dyn Store) + Send>;

/// Handle to the pool; clones share it. The threads end when the last handle is gone and the queue is empty.
#[derive(Clone)]
pub struct Readers {
    queue: Sender<Job>,
}

impl Readers {
    /// Starts the threads, named `reader-0` and on. `reads_max` bounds the queue.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(store: &Arc<dyn Store>, reads_max: usize) -> io::Result<Self> {
        let (queue, jobs) = crossbeam_channel::bounded(reads_max);
        for index in 0..THREADS {
            let store = Arc::clone(store);
            let jobs: Receiver<Job> = jobs.clone();
            thread::Builder::new().name(format!("reader-{index}")).spawn(move || {
                for job in jobs {
                    run(job, &*store);
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// Queues a read; it answers by what it captured. Never blocks.
    ///
    /// # Errors
    /// [`RequestError::Busy`] when the queue is full: the job is dropped.
    pub fn submit(&self, job: impl FnOnce(&dyn Store) + Send + 'static) -> Result<(), RequestError> {
        self.queue.try_send(Box::new(job)).map_err(|refused| match refused {
            TrySendError::Full(_) => RequestError::Busy,
            TrySendError::Disconnected(_) => RequestError::Unavailable,
        })
    }

    /// Queues a read and waits for its answer.
    ///
    /// # Errors
    /// As [`Self::submit`], or what the read gives.
    ///
    /// # Cancel-safety
    /// A read that is not begun when the future is dropped is not done.
    pub async fn call<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let (answer, waits) = oneshot::channel();
        self.submit(move |store| {
            if !answer.is_closed() {
                // Nobody waiting any more is the caller's choice.
                drop(answer.send(read(store)));
            }
        })?;
        waits.await.unwrap_or(Err(RequestError::Internal))
    }

    /// Reads that wait now.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

/// A panic in one read ends that read alone: its caller sees the channel close.
fn run(job: Job, store: &dyn Store) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(store))).is_err() {
        tracing::error!("a read panicked");
    }
}
