//! Hostile peers beside honest clients: does anybody honest notice, and does the server keep what it promises?
//!
//! For each transport and attack a server of its own. Honest clients send each other durable messages and share a room, open loop;
//! rounds with and without the attack alternate, and the medians of their p99 are compared. Attackers run on the client's cores with
//! the lowest priority. What counts is judged: nothing honest is lost, refused or ended; the server lives, gives back
//! what attackers held, stays within its memory, and has counted each refusal under its reason. Times are shown against their line.

mod attack;
mod flood;
mod ground;
mod honest;
mod identity;
mod outcome;
mod reader;
mod silent;
mod streams;
mod swarm;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use gimbal_rpc::v1::RevokeTokenRequest;
use serde::Serialize;

use crate::{
    clock,
    grpc::{Credential, explain},
    load::{
        Target,
        fleet::{self, Member},
        limits,
        mailboxes::read_mailboxes,
        progress,
        server::http_ok,
        sockets::Sockets,
        stage::Stage,
        stop,
        watch::{Watched, read_server},
    },
    report::{Report, RunFacts},
    scenario::steady::judge,
};

use attack::{PLANS, Plan};
use ground::{Eye, Ground, Page, Peaks, of, read_page};
use honest::Honest;
use outcome::{Outcome, Round};
use swarm::{Plot, Swarm};

pub use attack::Transport;

/// Connections of an attack that is about what one peer can do.
const FEW: usize = 16;
/// Devices whose tokens are revoked before the attack.
const REVOKED: usize = 4;
/// How long the server may take to count what it must.
const NOTICE: Duration = Duration::from_secs(120);
/// How long it may take to let go of those who have gone.
const PEACE: Duration = Duration::from_secs(60);
/// How long somebody new is tried to be let in.
const NEWCOMER: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    /// Transports.
    pub transports: Vec<Transport>,
    /// Attacks by name; none: all.
    pub attacks: Vec<String>,
    /// Connections of an attack that is about their number.
    pub attackers: usize,
    /// Honest connections; even.
    pub honest: usize,
    /// Durable messages per second over all honest connections.
    pub rate: f64,
    /// Publishes per second to their room.
    pub publishes: f64,
    /// Bytes of each message's content, at least the mark's 24.
    pub bytes: usize,
    /// Before each round the traffic, and the attack, go on unmeasured for so long, seconds.
    pub lead_s: f64,
    /// Measured in each round, seconds.
    pub round_s: f64,
    /// Rounds of each kind.
    pub rounds: usize,
    /// The server's `memory_max`, bytes.
    pub memory_max: u64,
    /// Its deadlines for sign-ins and for sockets that take nothing, seconds.
    pub deadline_s: f64,
    /// Further lines of its `[gateway]` table.
    pub gateway: Vec<String>,
    /// How nice the attackers' thread is to the honest clients' (setpriority(2)), 0 to 19.
    pub niceness: u8,
    /// A ratio above the line fails the run.
    pub enforce: bool,
}

impl Parameters {
    fn check(&self) -> Result<()> {
        ensure!(self.honest >= 2 && self.honest.is_multiple_of(2), "honest clients come in pairs");
        ensure!(self.rate > 0.0 && self.publishes > 0.0, "rates are above 0");
        ensure!(self.rounds > 0 && self.round_s > 0.0, "at least one round, and not an empty one");
        ensure!(self.attackers >= 8, "at least 8 attackers");
        for name in &self.attacks {
            let names: Vec<&str> = PLANS.iter().map(|plan| plan.name).collect();
            ensure!(names.contains(&name.as_str()), "no attack {name:?}; there are {}", names.join(", "));
        }
        Ok(())
    }

    /// What is to be done, in order.
    fn pairs(&self) -> Vec<(Transport, &'static Plan)> {
        let wanted =
            |plan: &&Plan| self.attacks.is_empty() || self.attacks.iter().any(|name| name == plan.name);
        let pairs = self.transports.iter().flat_map(|&transport| {
            PLANS
                .iter()
                .filter(wanted)
                .filter(move |plan| (plan.is_for)(transport))
                .map(move |plan| (transport, plan))
        });
        pairs.collect()
    }

    /// Connections that `plan` keeps up.
    fn connections(&self, plan: &Plan) -> usize {
        if plan.is_crowd { self.attackers } else { self.attackers.min(FEW) }
    }
}

/// Runs the scenario; `start` starts a server with the text of its configuration.
///
/// # Errors
/// When the run cannot be made at all; a run that was made and shows a broken promise has `ok == false`.
pub fn run(parameters: &Parameters, start: impl Fn(&str) -> Result<Target>) -> Result<Report> {
    parameters.check()?;
    let pairs = parameters.pairs();
    ensure!(!pairs.is_empty(), "none of these attacks is for this transport");
    let facts = RunFacts::collect(clock::unix());
    let bar = progress(pairs.len() as u64, "attacks");
    let mut report = outcome::empty(facts, parameters);
    let mut outcomes = Vec::new();
    for (transport, plan) in pairs {
        if stop::is_requested() {
            break;
        }
        let ground = Ground::new()?;
        let target = start(&ground.config(parameters))?;
        let assault = Assault { transport, plan, parameters, ground };
        let (outcome, watched) =
            assault.run(target).with_context(|| format!("{} over {}", plan.name, transport.name()))?;
        bar.suspend(|| eprintln!("{}", outcome.line()));
        bar.inc(1);
        outcome::enter(&mut report, watched);
        outcomes.push(outcome);
    }
    bar.finish_and_clear();
    report.complete = !stop::is_requested();
    outcome::conclude(&mut report, &outcomes, parameters);
    Ok(report)
}

/// One attack over one transport.
struct Assault<'a> {
    transport: Transport,
    plan: &'static Plan,
    parameters: &'a Parameters,
    ground: Ground,
}

/// What a server held and counted.
struct Books {
    before: Page,
    after: Page,
    rss_before: u64,
    held_max: u64,
    peaks: Peaks,
}

impl Assault<'_> {
    fn run(&self, mut target: Target) -> Result<(Outcome, Watched)> {
        let (mut outcome, watched) = self.fight(&target)?;
        let server = target.server.as_mut().context("a server of our own")?;
        if !server.is_alive() || !http_ok(server.http, "/healthz") {
            outcome.broken.push(format!("the server is no longer well:\n{}", server.log_tail()));
        }
        if server.log().contains("panicked") {
            outcome.broken.push("a thread of the server panicked".to_owned());
        }
        Ok((outcome, watched))
    }

    fn fight(&self, target: &Target) -> Result<(Outcome, Watched)> {
        let (parameters, plan) = (self.parameters, self.plan);
        let connections = parameters.connections(plan);
        let devices = if plan.signs_in { connections } else { 0 };
        limits::check(target, parameters.honest + connections)?;
        let stage = Stage::open(target, parameters.honest + 1 + REVOKED + devices)?;
        let address = self.address(target)?;
        let (honest_members, others) = stage.members.split_at(parameters.honest);
        let [newcomer, others @ ..] = others else { anyhow::bail!("somebody is missing") };
        let mut sockets = self.sockets(target)?;
        fleet::sign_in(&mut sockets, address, honest_members, &indicatif::ProgressBar::hidden())?;
        let mut honest = Honest::new(sockets, &stage, parameters)?;
        let plot = self.plot(&stage, address, honest_members, others)?;
        let eye = Eye::open(target.pids.clone(), plot.address.port(), honest.ports())?;
        let swarm = Swarm::start(plot)?;
        let watch = stage.watch(&[])?;
        let http = target.http.context("the server's page of metrics")?;
        let mut books = Books::open(http)?;
        let mut outcome = Outcome::new(self.transport.name(), plan, connections);
        let wanted = (plan.counters)(self.transport);
        watch.begin();
        while outcome.rounds.len() < parameters.rounds && !stop::is_requested() {
            let quiet = honest.round(parameters.lead_s, parameters.round_s)?;
            if outcome.rounds.is_empty() {
                books.rss_before = read_server(&target.pids)?.rss_anon_bytes;
            }
            swarm.order(true);
            let attacked = honest.round(parameters.lead_s, parameters.round_s)?;
            let open = swarm.deeds.open();
            if outcome.rounds.len() + 1 == parameters.rounds {
                // However slow the machine is, the attack goes on until it was noticed.
                honest.wait_until(NOTICE, || books.have_risen(http, &wanted))?;
            }
            books.held_max = books.held_max.max(of(&read_page(http)?, "gateway_held_bytes"));
            swarm.order(false);
            self.await_peace(&mut honest, http, &mut outcome)?;
            outcome.rounds.push(Round { quiet, attacked, open });
        }
        watch.end();
        let wanted = (plan.counters)(self.transport);
        books.peaks = eye.peaks();
        books.after = read_page(http)?;
        outcome.done = swarm.deeds.done();
        swarm.end()?;
        outcome.newcomer_ms = self.let_in(target, address, newcomer, &mut outcome.broken)?;
        let mailboxes = stage.runtime.block_on(read_mailboxes(
            &stage.api,
            honest_members,
            &indicatif::ProgressBar::hidden(),
        ))?;
        judge(honest.fleet.run, &honest.fleet, &mailboxes, &mut honest.meters);
        outcome.judge(honest, &books, &wanted, parameters);
        Ok((outcome, watch.finish()))
    }

    /// Where honest clients connect.
    fn address(&self, target: &Target) -> Result<SocketAddr> {
        let server = target.server.as_ref().context("a server of our own")?;
        Ok(match self.transport {
            Transport::Tcp => server.address,
            Transport::WebSocket => server.websocket,
            Transport::Tls => self.ground.certificates.tls,
            Transport::Wss => self.ground.certificates.wss,
            Transport::Quic => self.ground.certificates.quic,
        })
    }

    /// Sockets that speak this transport.
    fn sockets(&self, target: &Target) -> Result<Sockets> {
        let sockets = Sockets::with_sources(&target.sources).context("no epoll")?;
        sockets
            .over_websocket(self.transport.is_websocket())
            .over_tls(self.ground.client(self.transport)?)
            .over_quic(self.ground.quic_client(self.transport)?)
    }

    fn plot(
        &self,
        stage: &Stage<'_>,
        address: SocketAddr,
        victims: &[Member],
        others: &[Member],
    ) -> Result<Plot> {
        let (revoked, members) = others.split_at(REVOKED);
        for member in revoked {
            revoke(stage, member)?;
        }
        let server = stage.target.server.as_ref().context("a server of our own")?;
        let ground = attack::Ground {
            transport: self.transport,
            address,
            grpc: server.grpc,
            members: members.to_vec(),
            revoked: revoked.to_vec(),
            victims: victims.to_vec(),
            hello: self.ground.hello(self.transport, address)?,
        };
        Ok(Plot {
            address: self.plan.address(&ground),
            attack: (self.plan.make)(ground),
            sources: stage.target.sources.clone(),
            websocket: self.transport.is_websocket(),
            tls: self.ground.client(self.transport)?,
            quic: self.ground.quic_client(self.transport)?,
            members: members.to_vec(),
            connections: self.parameters.connections(self.plan),
            niceness: self.parameters.niceness.into(),
        })
    }

    /// Waits until the gateway has let go of all hostile connections.
    fn await_peace(&self, honest: &mut Honest, http: SocketAddr, outcome: &mut Outcome) -> Result<()> {
        let honest_count = self.parameters.honest as u64;
        let mut left = 0;
        let is_over = honest.wait_until(PEACE, || {
            left = read_page(http).map_or(u64::MAX, |page| of(&page, "gateway_connections"));
            left <= honest_count
        })?;
        if !is_over && !stop::is_requested() {
            outcome
                .broken
                .push(format!("{left} connections are left of {honest_count} honest ones after the attack"));
        }
        Ok(())
    }

    /// Signs in somebody new, and says how long that took, in milliseconds.
    fn let_in(
        &self,
        target: &Target,
        address: SocketAddr,
        newcomer: &Member,
        broken: &mut Vec<String>,
    ) -> Result<f64> {
        let begin = clock::now();
        loop {
            let mut sockets = self.sockets(target)?;
            let newcomer = std::slice::from_ref(newcomer);
            let came = fleet::sign_in(&mut sockets, address, newcomer, &indicatif::ProgressBar::hidden());
            let took = clock::now() - begin;
            match came {
                Ok(()) => return Ok(took.as_secs_f64() * 1e3),
                Err(why) if took > NEWCOMER => {
                    broken.push(format!("nobody new is let in after the attack: {why:#}"));
                    return Ok(0.0);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

impl Books {
    fn open(http: SocketAddr) -> Result<Self> {
        let before = read_page(http)?;
        Ok(Self { before, after: Page::new(), rss_before: 0, held_max: 0, peaks: Peaks::default() })
    }

    /// Whether all of `wanted` are above what they were.
    fn have_risen(&self, http: SocketAddr, wanted: &[&str]) -> bool {
        let rose = |page: &Page| wanted.iter().all(|name| of(page, name) > of(&self.before, name));
        read_page(http).is_ok_and(|page| rose(&page))
    }
}

fn revoke(stage: &Stage<'_>, member: &Member) -> Result<()> {
    let mut accounts = stage.api.accounts(Credential::bearer(&stage.target.key)?);
    let (user_id, device_id) = (member.user.get(), member.device.get());
    let request = RevokeTokenRequest { user_id, device_id, ..RevokeTokenRequest::default() };
    let reply = stage.runtime.block_on(accounts.revoke_token(request));
    reply.map_err(|status| explain("revoke a token", &status))?;
    Ok(())
}
