//! Who looks at whose presence. The writer thread says whose has changed; what it is now is asked for, so that a slow watcher
//! misses states between and never the last one, and costs no more than a mark for each user.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use std::future::Future;
use std::time::Duration;

use gimbal_codec::{DeviceId, UserId};
use hashbrown::HashMap;
use tokio::sync::Notify;

use crate::command::{Command, ReplyTo};
use crate::error::RequestError;
use crate::partition::Partition;
use crate::reader::Readers;
use crate::store::value::{CorruptValue, LastSeen, Value as _};
use crate::store::{Scan, StoreError, Table, View, key};
use crate::writer::Writer;

/// Most users that one watcher looks at.
pub const WATCHED_MAX: usize = 1000;
/// Most users that all watchers look at: beyond it nobody may look any more.
pub const WATCHED_ALL_MAX: usize = 1 << 20;

/// Devices of one look at those that were online.
const PRESUMED_MAX: usize = 512;

/// Until `stopped`: `lease` after the start, and after a gateway has gone, devices that were online and have no session are
/// offline.
pub(crate) async fn presume(
    readers: Readers,
    writer: Writer,
    lease: Duration,
    stopped: impl Future<Output = ()>,
) {
    let work = async {
        loop {
            tokio::time::sleep(lease).await;
            if let Err(error) = presume_all(&readers, &writer).await {
                tracing::warn!(%error, "sessions that did not come back are not told of");
            }
            writer.news().lost.notified().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = stopped => {}
    }
}

async fn presume_all(readers: &Readers, writer: &Writer) -> Result<(), RequestError> {
    let mut from = Some((Partition::META, Vec::new()));
    while let Some((partition, after)) = from {
        let look = move |store: &dyn crate::store::Store| Ok(online(&*store.snapshot(), partition, &after)?);
        let (devices, next) = readers.call(look).await?;
        if !devices.is_empty() {
            writer.submit(Command::PresumeOffline { devices }, ReplyTo::Nobody)?;
        }
        from = next;
    }
    Ok(())
}

/// Devices that the event stream has as online, from a place on; and the next place.
type Online = (Vec<(UserId, DeviceId)>, Option<(Partition, Vec<u8>)>);

fn online(view: &dyn View, first: Partition, after: &[u8]) -> Result<Online, StoreError> {
    let mut found = Vec::new();
    for number in first.get()..Partition::COUNT {
        let Some(partition) = Partition::from_u16(number) else { break };
        let (start, end) = key::online_range(partition);
        let from = if number == first.get() && !after.is_empty() { after } else { &start };
        let mut last = None;
        view.scan(Table::Event, from, &end, &mut |at, _| {
            let device =
                key::device_at_end(at).ok_or(CorruptValue { what: "online", why: "foreign key", at: 0 })?;
            found.push(device);
            last = Some(at.to_vec());
            Ok(if found.len() < PRESUMED_MAX { Scan::Continue } else { Scan::Stop })
        })?;
        if let (Some(mut last), true) = (last, found.len() >= PRESUMED_MAX) {
            last.push(0);
            return Ok((found, Some((partition, last))));
        }
    }
    Ok((found, None))
}

/// When the last session of a user ended that the event stream has, Unix milliseconds; 0: none.
///
/// # Errors
/// A store error.
pub fn last_seen(view: &dyn View, user: UserId) -> Result<i64, StoreError> {
    let stored = view.get(Table::Event, &key::last_seen(user))?;
    Ok(stored.map(|bytes| LastSeen::from_bytes(&bytes)).transpose()?.map_or(0, |seen| seen.at_ms))
}

/// Watchers by user.
#[derive(Debug, Default)]
pub struct Watched {
    by_user: Mutex<HashMap<UserId, Vec<Weak<Marks>>>>,
}

/// Whose presence has changed since a watcher looked.
#[derive(Debug, Default)]
struct Marks {
    changed: Mutex<BTreeSet<UserId>>,
    some: Notify,
}

/// Looks at some users until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    marks: Arc<Marks>,
    users: Vec<UserId>,
    news: Arc<crate::event::News>,
}

impl Watched {
    /// Marks `user` for all who look at it.
    pub(crate) fn change(&self, users: impl Iterator<Item = UserId>) {
        let by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if by_user.is_empty() {
            return;
        }
        for user in users {
            for marks in by_user.get(&user).into_iter().flatten().filter_map(Weak::upgrade) {
                marks.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(user);
                marks.some.notify_one();
            }
        }
    }

    /// Looks at `users` from now on: all of them are marked. `None` when too many are looked at.
    pub fn watch(news: &Arc<crate::event::News>, users: &[UserId]) -> Option<Watcher> {
        let users: BTreeSet<UserId> = users.iter().copied().collect();
        let marks = Arc::new(Marks { changed: Mutex::new(users.clone()), some: Notify::new() });
        marks.some.notify_one();
        let mut by_user = news.watched.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if by_user.len() + users.len() > WATCHED_ALL_MAX {
            return None;
        }
        for user in &users {
            by_user.entry(*user).or_default().push(Arc::downgrade(&marks));
        }
        drop(by_user);
        Some(Watcher { marks, users: users.into_iter().collect(), news: Arc::clone(news) })
    }
}

impl Watcher {
    /// Waits until somebody is marked, and takes all marks.
    ///
    /// # Cancel-safety
    /// Nothing is lost when it is dropped.
    pub async fn changed(&self) -> Vec<UserId> {
        loop {
            let taken =
                std::mem::take(&mut *self.marks.changed.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken.into_iter().collect();
            }
            self.marks.some.notified().await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut by_user = self.news.watched.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        for user in &self.users {
            if let Some(watchers) = by_user.get_mut(user) {
                watchers.retain(|watcher| !std::ptr::eq(watcher.as_ptr(), Arc::as_ptr(&self.marks)));
                if watchers.is_empty() {
                    by_user.remove(user);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::News;

    #[tokio::test]
    async fn a_watcher_is_told_of_its_users_and_leaves_nothing_behind() {
        let news = Arc::new(News::default());
        let [one, two, three] = [1, 2, 3].map(UserId::new);
        let watcher = Watched::watch(&news, &[one, two, one]).unwrap();
        assert_eq!(watcher.changed().await, [one, two], "of all at first");
        news.watched.change([two, three, two].into_iter());
        assert_eq!(watcher.changed().await, [two]);
        let other = Watched::watch(&news, &[two]).unwrap();
        drop(watcher);
        news.watched.change([one, two].into_iter());
        assert_eq!(other.changed().await, [two]);
        drop(other);
        assert!(news.watched.by_user.lock().unwrap().is_empty());
    }
}
