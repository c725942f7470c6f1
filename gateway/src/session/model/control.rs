//! Control as far as one user with one device sees it.

use std::collections::VecDeque;
use std::sync::Arc;

use gimbal_codec::{Attach, CloseReason, MessageId, Seq, SessionKey, code, epoch_number};
use gimbal_rpc::link::{Body, Down, Grant, Page, Refusal, Tag, Target, Up};

use super::client::content_of;

/// Messages in a page; few, so that many pages are needed.
const PAGE_MESSAGES: u64 = 2;

/// A sync that waits for a reader, or its answer that waits for the link.
pub(super) enum Job {
    Asked { to: (SessionKey, Attach), tag: Tag, after: u64 },
    Read(Down),
}

/// Where the device is.
#[derive(Clone, Copy)]
struct Route {
    session: SessionKey,
    attach: Attach,
    /// Its attach number at sign-in, or the one it announced: the higher one is the newer session.
    rank: Attach,
}

#[derive(Default)]
pub(super) struct Control {
    /// The mailbox holds 1 to this.
    pub(super) latest: u64,
    /// Of these, those up to this are no longer kept.
    trimmed_to: u64,
    epoch: u32,
    counter: u64,
    route: Option<Route>,
    /// Ordered answers and deliveries on their way to the shard.
    pub(super) lane: VecDeque<Down>,
    /// Syncs, which other threads answer in any order.
    pub(super) jobs: Vec<Job>,
}

impl Control {
    pub(super) fn append(&mut self) {
        self.latest += 1;
        let Some(Route { session, attach, .. }) = self.route else { return };
        let target = Target { session, attach, seq: Seq::new(self.latest) };
        self.lane.push_back(Down::Deliver { body: body_of(self.latest), targets: vec![target] });
    }

    pub(super) fn take(&mut self, up: Up) {
        let latest = Seq::new(self.latest);
        match up {
            Up::SignIn { session, .. } => {
                let attach = self.next_attach();
                self.replace(Route { session, attach, rank: attach });
                self.lane.push_back(Down::SignedIn { session, attach, latest, grant: Grant::default() });
            }
            Up::Announce { caller, .. } => {
                let (session, rank) = (caller.session, caller.attach);
                let attach = match self.route {
                    Some(route) if route.session == session => route.attach,
                    Some(route) if route.rank >= rank => {
                        let reason = CloseReason::Takeover;
                        self.lane.push_back(Down::Kick { session, attach: rank, reason });
                        return;
                    }
                    _ => {
                        let attach = self.next_attach();
                        self.replace(Route { session, attach, rank });
                        attach
                    }
                };
                self.lane.push_back(Down::Announced { session, attach, latest });
            }
            Up::Detach { caller } => {
                if self.is_newest(caller.session, caller.attach) {
                    self.route = None;
                }
            }
            Up::Sync { caller, tag, after, .. } => {
                let to = (caller.session, caller.attach);
                if self.is_newest(to.0, to.1) {
                    self.jobs.push(Job::Asked { to, tag, after: after.get() });
                } else {
                    self.jobs.push(refused(to, tag, code::STALE));
                }
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// A reader takes a snapshot for one of the syncs, or fails.
    pub(super) fn read_page(&mut self, job: usize, fails: bool) {
        let Job::Asked { to, tag, after } = &self.jobs[job] else { return };
        let (to, tag, after) = (*to, tag.clone(), (*after).min(self.latest));
        if fails {
            self.jobs[job] = refused(to, tag, code::BUSY);
            return;
        }
        let start = after.max(self.trimmed_to);
        let end = self.latest.min(start + PAGE_MESSAGES);
        let page = Page {
            entries: (start + 1..=end).map(|seq| (Seq::new(seq), body_of(seq))).collect(),
            end: Seq::new(end),
            latest: Seq::new(self.latest),
            has_more: end < self.latest,
            trimmed_to: Seq::new(self.trimmed_to),
        };
        self.jobs[job] = Job::Read(Down::SyncDone { to, tag, result: Ok(page) });
    }

    /// Retention takes all but the newest message.
    pub(super) fn trim(&mut self) {
        self.trimmed_to = self.trimmed_to.max(self.latest.saturating_sub(1));
    }

    /// What was on its way is gone, and so are the routes; what is stored is not.
    pub(super) fn lose_link(&mut self) {
        self.route = None;
        self.lane.clear();
        self.jobs.clear();
    }

    pub(super) fn restart(&mut self) {
        self.lose_link();
        self.epoch += 1;
        self.counter = 0;
    }

    /// Nobody but this session is online.
    pub(super) fn knows_only(&self, session: SessionKey) -> bool {
        self.route.is_none_or(|route| route.session == session)
    }

    /// An older number of the same session is its own.
    fn is_newest(&self, session: SessionKey, attach: Attach) -> bool {
        self.route.is_some_and(|route| route.session == session && attach <= route.attach)
    }

    fn replace(&mut self, route: Route) {
        if let Some(Route { session, attach, .. }) = self.route.replace(route) {
            self.lane.push_back(Down::Kick { session, attach, reason: CloseReason::Takeover });
        }
    }

    fn next_attach(&mut self) -> Attach {
        self.counter += 1;
        Attach::new(epoch_number(self.epoch, self.counter))
    }
}

fn refused(to: (SessionKey, Attach), tag: Tag, code: i32) -> Job {
    Job::Read(Down::SyncDone { to, tag, result: Err(Refusal { code, message: String::new() }) })
}

fn body_of(seq: u64) -> Arc<Body> {
    Arc::new(Body {
        message_id: MessageId::new(seq),
        from_user: Default::default(),
        from_device: Default::default(),
        command: 1,
        content: content_of(seq).into(),
        created_at_ms: 5,
        ..Body::default()
    })
}
