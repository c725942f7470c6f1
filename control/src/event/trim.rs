//! The event stream is kept so long and so many, whichever is less: a task marks where it stood, and has the writer trim it
//! up to a mark.

use std::future::Future;
use std::time::Duration;

use crate::clock;
use crate::command::{Command, ReplyTo};
use crate::error::RequestError;
use crate::event::{is_one_life, read};
use crate::reader::Readers;
use crate::writer::Writer;

/// Between two marks.
const PAUSE: Duration = Duration::from_secs(10);
/// Events that one look at those of earlier lives reads: some milliseconds of a reader.
const LOOKS_MAX: usize = 4096;

/// Where the stream stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mark {
    number: u64,
    at_ms: i64,
    /// Events up to here, since the first one that was counted.
    count: u64,
}

/// Marks, oldest first, and what they are held against.
#[derive(Debug)]
pub(crate) struct Trim {
    kept_ms: i64,
    kept_max: u64,
    marks: Vec<Mark>,
    /// The newest number that was counted, and how many.
    seen: (u64, u64),
}

impl Trim {
    pub(crate) fn new(kept: Duration, kept_max: u64) -> Self {
        let kept_ms = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        Self { kept_ms, kept_max, marks: Vec::new(), seen: (0, 0) }
    }

    /// Until `stopped`.
    pub(crate) async fn run(mut self, readers: Readers, writer: Writer, stopped: impl Future<Output = ()>) {
        let mut stopped = std::pin::pin!(stopped);
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = &mut stopped => return,
            }
            pause = PAUSE;
            if let Err(error) = self.turn(&readers, &writer, clock::now_ms()).await {
                tracing::debug!(%error, "the event stream is trimmed later");
            }
        }
    }

    async fn turn(&mut self, readers: &Readers, writer: &Writer, now_ms: i64) -> Result<(), RequestError> {
        let newest = *writer.news().newest.borrow();
        // Numbers of one life follow each other: they need no look. Those kept for sessions that came and went count, too.
        while newest == 0 || !is_one_life(self.seen.0, newest) {
            let after = self.seen;
            let look = move |store: &dyn crate::store::Store| {
                let mut mark = Mark { number: after.0, at_ms: 0, count: after.1 };
                read::scan(&*store.snapshot(), after.0, LOOKS_MAX, |number, event| {
                    mark = Mark { number, at_ms: event.at_ms, count: mark.count + 1 };
                })?;
                Ok(mark)
            };
            let mark = readers.call(look).await?;
            if mark.number == after.0 {
                break;
            }
            self.add(mark);
        }
        if newest > self.seen.0 {
            self.add(Mark { number: newest, at_ms: now_ms, count: self.seen.1 + (newest - self.seen.0) });
        }
        if let Some(through) = self.due(now_ms) {
            writer.submit(Command::TrimEvents { through }, ReplyTo::Nobody)?;
        }
        Ok(())
    }

    fn add(&mut self, mark: Mark) {
        self.seen = (mark.number, mark.count);
        self.marks.push(mark);
    }

    /// Up to which event to trim; what is up to there is not marked any more.
    fn due(&mut self, now_ms: i64) -> Option<u64> {
        let (oldest_ms, most) =
            (now_ms.saturating_sub(self.kept_ms), self.seen.1.saturating_sub(self.kept_max));
        let due = self.marks.iter().take_while(|mark| mark.at_ms < oldest_ms || mark.count <= most).count();
        let last = self.marks.drain(..due).next_back()?;
        Some(last.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_or_too_many_is_due_up_to_a_mark_and_once() {
        let mut trim = Trim::new(Duration::from_millis(100), 50);
        for step in 1..=10_u64 {
            let count = step * 10;
            trim.marks.push(Mark { number: 1000 + count, at_ms: 10 * step as i64, count });
            trim.seen = (1000 + count, count);
        }
        assert_eq!(trim.due(100), Some(1050), "fifty are kept");
        assert_eq!(trim.due(100), None);
        assert_eq!(trim.due(181), Some(1080), "and those of a tenth of a second");
        assert_eq!(trim.due(1_000), Some(1100));
        assert_eq!(trim.due(1_000), None);
    }
}
