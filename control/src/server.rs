//! The control plane as one thing to start and stop: store, writer, readers, gRPC and HTTP listeners.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use gimbal_rpc::{
    DESCRIPTORS,
    link_v1::link_server::LinkServer,
    v1::{
        accounts_server::AccountsServer, admin_server::AdminServer, events_server::EventsServer,
        friends_server::FriendsServer, groups_server::GroupsServer, messages_server::MessagesServer,
        presence_server::PresenceServer, rooms_server::RoomsServer,
    },
};
use hyper::{Request, body::Incoming};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{body::Body, codegen::Service as _, server::NamedService, service::Routes};
use tonic_health::server::HealthReporter;
use tonic_web::GrpcWebLayer;
use tower_layer::Layer as _;

use crate::{
    api_key::{Keys, Scope},
    auth::Gate,
    clock,
    code::Codes,
    command::{CONTENT_BYTES_MAX, PUSH_USERS_MAX},
    config::{Checked, Limits},
    event::{Kinds, trim::Trim},
    front::{self, Asked, Bounds, Count, Front, Peer, raised},
    http::{self, ExtraMetrics, Pages},
    layer::{CallLayer, CallService},
    link_server::{self, LinkService},
    live::LiveLimits,
    log::EmbeddedLog,
    metrics::{Metrics, Sample, Value},
    plane::Plane,
    presence,
    reader::Readers,
    room::Rooms,
    service::Services,
    store::{
        Store,
        rocks::{OpenError, RocksOptions, RocksStore},
    },
    sweep::Sweep,
    writer::{self, Writer},
};

/// Largest request with a content: a push of the longest one to as many users as may be, 10 bytes of varint and a key
/// byte each, and some fields beside.
/// After a gateway has linked up it announces its sessions: in so much time at most, unless it is busy.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(20);
const CONTENT_REQUEST_BYTES_MAX: usize = 72 << 10;
const _: () = assert!(CONTENT_BYTES_MAX + 11 * PUSH_USERS_MAX + 1024 <= CONTENT_REQUEST_BYTES_MAX);
/// Largest request without one: a registration with every text at its longest takes a fifth of it.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Streams that were reset before a handler took them (h2's own default), and streams that we reset for errors of the
/// peer; beyond either the connection is ended.
const RESET_STREAMS_MAX: usize = 20;
const ERROR_STREAMS_MAX: usize = 64;
/// What one stream may have under way towards us: one message of a gateway. Over 1 ms this is 256 MB/s.
const WINDOW_BYTES: u32 = 256 << 10;
/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// How often a stop looks whether the store is still in use.
const CLOSE_INTERVAL: Duration = Duration::from_millis(2);
/// How often health follows the store.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Why the control plane does not start; each text names what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address is taken or not ours.
    #[error("control.{key}: cannot listen on {address}: {cause}")]
    Bind {
        /// The key below `[control]`.
        key: &'static str,
        /// As configured.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The data directory is locked, damaged, of a newer schema, or cannot be written.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The code issuer's file cannot be opened.
    #[error("control.code_issuer: cannot open the file: {0}")]
    CodeIssuer(#[source] io::Error),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The reflection service does not understand our own descriptors.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A running control plane. Dropping it stops listeners without waiting; [`ControlServer::stop`] is the orderly way.
pub struct ControlServer {
    plane: Arc<Plane>,
    store: Arc<dyn Store>,
    warnings: Vec<String>,
    grpc_address: SocketAddr,
    http_address: SocketAddr,
    extra_metrics: Arc<OnceLock<ExtraMetrics>>,
    health: HealthReporter,
    live: Live,
    stop: watch::Sender<bool>,
    stop_http: watch::Sender<bool>,
    grpc: JoinHandle<()>,
    http: JoinHandle<()>,
}

/// All that follows [`ControlServer::reload`].
struct Live {
    limits: LiveLimits,
    keys: Keys,
    codes: Arc<Codes>,
    grpc: Arc<ArcSwap<Bounds>>,
    http: Arc<ArcSwap<Bounds>>,
}

impl Live {
    fn new(checked: &Checked) -> Result<Self, StartError> {
        let limits = &checked.config.limits;
        Ok(Self {
            limits: LiveLimits::new(limits.clone()),
            keys: checked.keys.clone(),
            codes: Arc::new(Codes::open(checked).map_err(StartError::CodeIssuer)?),
            grpc: Arc::new(ArcSwap::from_pointee(grpc_bounds(limits))),
            http: Arc::new(ArcSwap::from_pointee(http::page_bounds(limits.http_connections_max))),
        })
    }
}

impl ControlServer {
    /// Binds both listeners, opens the store, and serves. Needs a Tokio runtime with I/O and time.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(checked: Checked) -> Result<Self, StartError> {
        let server = Self::start_not_ready(checked, axum::Router::new()).await?;
        server.set_ready(true).await;
        Ok(server)
    }

    /// As [`Self::start`], but not ready until [`Self::set_ready`]: what clients connect to has yet to start. The HTTP
    /// listener serves `more_pages` beside its own, under the same bounds.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_not_ready(checked: Checked, more_pages: axum::Router) -> Result<Self, StartError> {
        let config = &checked.config;
        checked.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let (grpc_listener, grpc_address) = bind("grpc_listen", config.grpc_listen).await?;
        let (http_listener, http_address) = bind("http_listen", config.http_listen).await?;
        let live = Live::new(&checked)?;
        let store = open_store(&checked).await?;
        let control_epoch = store.control_epoch();
        let (plane, metrics) = plane(Arc::clone(&store), &checked, &live.limits)?;
        let stop = watch::Sender::new(false);
        let services = Services {
            plane: Arc::clone(&plane),
            keys: checked.keys.clone(),
            codes: Arc::clone(&live.codes),
            token_lifetime: config.token_lifetime,
            stop: stop.subscribe(),
        };
        let link = LinkService {
            plane: Arc::clone(&plane),
            keys: checked.keys.clone(),
            metrics: Arc::clone(&metrics),
            limits: live.limits.clone(),
            control_epoch,
            stop: stop.subscribe(),
        };
        let (health, routes) = routes(services, link, checked.web.is_open()).await?;
        let web = checked.web.clone();
        let layer = CallLayer::new(Arc::clone(&metrics), control_epoch, live.limits.clone(), web);
        let front = grpc_front(grpc_listener, &checked, Arc::clone(&live.grpc), count_into(&metrics));
        let grpc = tokio::spawn(serve_grpc(front, layer.layer(routes), &stop));
        follow_tls(&checked, &metrics, &stop);

        let extra_metrics = Arc::new(OnceLock::new());
        let extra = Arc::clone(&extra_metrics);
        let pages = Pages { plane: Arc::clone(&plane), metrics: Arc::clone(&metrics), extra };
        let stop_http = watch::Sender::new(false);
        let http = tokio::spawn(http::serve_pages_over(
            http_listener,
            http::router(pages).merge(more_pages),
            Arc::clone(&live.http),
            checked.tls.clone().filter(|_| config.tls.http),
            count_into(&metrics),
            raised(stop_http.subscribe()),
        ));
        follow_issuer(&checked, &plane, &stop);
        let sweep = Sweep::new(plane.readers().clone(), plane.writer().clone(), config.limits.repeats_kept);
        tokio::spawn(sweep.run(raised(stop.subscribe())));
        let (readers, writer) = (plane.readers().clone(), plane.writer().clone());
        let trim = Trim::new(config.events.keep, config.events.keep_max);
        tokio::spawn(trim.run(readers.clone(), writer.clone(), raised(stop.subscribe())));
        let lease = config.limits.gateway_lease + ANNOUNCED_WITHIN;
        tokio::spawn(presence::presume(readers, writer, lease, raised(stop.subscribe())));
        tokio::spawn(follow_health(Arc::clone(&plane), health.clone(), stop.subscribe()));

        tracing::info!(%grpc_address, %http_address, data_dir = %config.data_dir.display(), control_epoch, "control up");
        Ok(Self {
            plane,
            store,
            warnings: checked.warnings,
            grpc_address,
            http_address,
            extra_metrics,
            health,
            live,
            stop,
            stop_http,
            grpc,
            http,
        })
    }

    /// Takes over limits and keys of a configuration that was read again: for calls, connections and links that begin from now
    /// on. What else differs waits for a start ([`Config::needs_start_for`](crate::Config::needs_start_for)).
    pub fn reload(&self, checked: &Checked) {
        let Live { limits, keys, codes, grpc, http } = &self.live;
        let newer = &checked.config.limits;
        grpc.store(Arc::new(grpc_bounds(newer)));
        http.store(Arc::new(http::page_bounds(newer.http_connections_max)));
        codes.set_per_address_max(newer.codes_per_address);
        self.plane.rooms().set_rooms_max(newer.rooms_max);
        limits.set(newer.clone());
        if checked.keys.serve(Scope::Link) && !keys.serve(Scope::Link) {
            tracing::warn!("the first key of remote gateways takes effect at the next start");
        }
        keys.replace(&checked.keys);
    }

    /// The control plane for a gateway in this process.
    pub fn plane(&self) -> Arc<Plane> {
        Arc::clone(&self.plane)
    }

    /// Where gRPC listens; the real port when 0 was configured.
    pub const fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Where /healthz, /readyz and /metrics are.
    pub const fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// What whoever started this must know, one line each; also in the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Adds a part to the metrics page, once: text in OpenMetrics form, appended at each scrape. A second call is ignored.
    pub fn add_metrics(&self, extra: ExtraMetrics) {
        let _ = self.extra_metrics.set(extra);
    }

    /// Whether `/readyz` and the health service tell balancers to come here; calls and links go on in either case.
    pub async fn set_ready(&self, is_ready: bool) {
        self.plane.set_serving(is_ready);
        set_health(&self.health, is_ready).await;
    }

    /// Stops in order: readiness fails, links and calls end (within `deadline`, then they are cut), the writer finishes
    /// what it took, and the store closes, unless somebody still holds [`Self::plane`] or a link of it. What was
    /// acknowledged is durable in any case.
    pub async fn stop(self, deadline: Duration) {
        let Self { plane, store, health, stop, stop_http, mut grpc, mut http, .. } = self;
        plane.set_serving(false);
        set_health(&health, false).await;
        stop.send_replace(true);
        if tokio::time::timeout(deadline, &mut grpc).await.is_err() {
            tracing::warn!(deadline_ms = deadline.as_millis() as u64, "calls were cut at the deadline");
            grpc.abort();
        }
        let writer = plane.writer().clone();
        if tokio::task::spawn_blocking(move || writer.stop()).await.is_err() {
            tracing::error!("the writer did not stop");
        }
        stop_http.send_replace(true);
        if tokio::time::timeout(deadline, &mut http).await.is_err() {
            http.abort();
        }
        plane.forget_links();
        drop(plane);
        if tokio::time::timeout(deadline, unshared(&store)).await.is_err() {
            tracing::warn!("the store is still in use");
        }
        // The last reference closes the engine, which takes a while.
        let _ = tokio::task::spawn_blocking(move || drop(store)).await;
        tracing::info!("control stopped");
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |cause| StartError::Bind { key, address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn open_store(checked: &Checked) -> Result<Arc<dyn Store>, StartError> {
    let path = checked.config.data_dir.clone();
    let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
    let options = RocksOptions {
        block_cache_bytes: bytes(checked.config.store.block_cache),
        write_buffer_bytes: bytes(checked.config.store.write_buffer),
    };
    let opening = tokio::task::spawn_blocking(move || RocksStore::open(&path, options));
    Ok(Arc::new(opening.await.expect("opening a store does not panic")?))
}

fn plane(
    store: Arc<dyn Store>,
    checked: &Checked,
    live: &LiveLimits,
) -> Result<(Arc<Plane>, Arc<Metrics>), StartError> {
    let (limits, keys) = (&checked.config.limits, checked.keys.clone());
    let log = Box::new(EmbeddedLog::new(Arc::clone(&store)));
    let readers = Readers::start(&store, limits.reads_max).map_err(StartError::Thread)?;
    let rooms = Arc::new(
        Rooms::new(store.control_epoch(), limits.rooms_max).with_options(checked.config.rooms.options()),
    );
    let bounds = writer::Limits {
        events: Kinds::of(&checked.config.events.kinds),
        devices: checked.config.devices.policy(),
        friends_only: checked.config.friends_only,
        trace_kept: checked.config.trace.kept,
        ..writer::Limits::default()
    };
    let writer = Writer::start(store, log, bounds, Box::new(clock::now_ms)).map_err(StartError::Thread)?;
    let mut metrics = Metrics::new();
    let (of_writer, of_readers, of_rooms) = (writer.clone(), readers.clone(), Arc::clone(&rooms));
    metrics.read_from(Arc::new(move || samples(&of_writer, &of_readers, &of_rooms)));
    metrics.read_from(Arc::new(move || vec![key_calls(&keys)]));
    let metrics = Arc::new(metrics);
    let (jwt, external) = (checked.jwt.clone(), checked.external.as_ref());
    let gate = Arc::new(Gate::new(&checked.config.auth, jwt, external, Arc::clone(&metrics)));
    let plane = Plane::new(writer, readers, rooms, Arc::clone(&metrics), live.clone(), gate);
    Ok((Arc::new(plane), metrics))
}

fn samples(writer: &Writer, readers: &Readers, rooms: &Rooms) -> Vec<Sample> {
    let counters = writer.counters();
    let (sessions, users, gateways) = counters.online.get();
    let (queued, queued_bytes) = writer.queued();
    let counter = |name, help, value| Sample { name, help, value: Value::Counter(value) };
    let gauge = |name, help, value: u64| Sample { name, help, value: Value::Gauge(value as i64) };
    vec![
        counter("commands", "Commands executed or refused", counters.commands.get()),
        counter("batches", "Batches of commands", counters.batches.get()),
        counter("commits", "Commits, each one synced write", counters.commits.get()),
        counter("wal_syncs", "Syncs of the write-ahead log", writer.store().wal_syncs()),
        counter("sends", "Messages stored; each mailbox counts", counters.sends.get()),
        counter("fan_outs", "Batches in which messages to groups were given out", counters.fan_outs.get()),
        counter("duplicates", "Repeated sends that were recognised", counters.duplicates.get()),
        counter(
            "ids_forgotten",
            "Remembered ids of sends, forgotten for their age",
            counters.forgotten.get(),
        ),
        counter("events", "Events written to the stream", writer.news().count()),
        counter("deliveries", "Targets handed to gateways", counters.deliveries.get()),
        counter("takeovers", "Sessions ended by a newer sign-in of their device", counters.takeovers.get()),
        Sample {
            name: "policy_ends",
            help: "Sessions ended for another of their user, by what the client was told",
            value: Value::Reasons(counters.ended().collect()),
        },
        counter(
            "writer_link_full",
            "Items of the writer lost at a full or broken link",
            counters.link_full.get(),
        ),
        counter(
            "given_up",
            "Commands not executed: their callers had given up waiting",
            counters.given_up.get(),
        ),
        counter("writer_queue_full", "Submits refused at the writer's queue", counters.queue_full.get()),
        Sample {
            name: "refused",
            help: "Commands refused, by reason",
            value: Value::Reasons(counters.refused().collect()),
        },
        Sample {
            name: "writer_batch_seconds",
            help: "Time of each batch of the writer in each stage",
            value: Value::Stages(counters.stages.all()),
        },
        gauge("sessions", "Sessions online", sessions),
        gauge("users_online", "Users with a session", users),
        gauge("gateways", "Gateways with routes", gateways),
        gauge("fan_outs_open", "Groups whose messages are being given out", counters.online.fan_outs()),
        gauge("rooms", "Rooms with members", rooms.len() as u64),
        gauge("writer_queue_commands", "Commands that wait for the writer", queued as u64),
        gauge("writer_queue_bytes", "Bytes that wait for the writer", queued_bytes as u64),
        gauge("reader_queue", "Reads that wait for a reader thread", readers.queued() as u64),
        gauge("trace_bytes", "Memory of what happened to messages lately", writer.trace().bytes() as u64),
        gauge("store_healthy", "1 until a commit fails", u64::from(writer.is_healthy())),
    ]
}

fn key_calls(keys: &Keys) -> Sample {
    let labelled = |(name, outcome, count): (String, _, _)| {
        (vec![("key", name), ("outcome", String::from(outcome))], count)
    };
    let value = Value::Labelled(keys.counts().into_iter().map(labelled).collect());
    Sample { name: "api_calls", help: "Calls with a key, by its name and outcome", value }
}

/// Reads the keys of the tokens' issuer again, if there is one, until the stop.
fn follow_issuer(checked: &Checked, plane: &Arc<Plane>, stop: &watch::Sender<bool>) {
    if checked.jwt.is_some() {
        let interval = checked.config.auth.jwt.reload_interval;
        tokio::spawn(follow_keys(Arc::clone(plane), interval, stop.subscribe()));
    }
}

/// Reads the files of TLS again when they change, until the stop.
fn follow_tls(checked: &Checked, metrics: &Arc<Metrics>, stop: &watch::Sender<bool>) {
    let Some(tls) = checked.tls.clone() else { return };
    let (count, stopped) = (count_into(metrics), raised(stop.subscribe()));
    tokio::spawn(async move {
        tokio::select! {
            () = tls.follow(count) => {}
            () = stopped => {}
        }
    });
}

/// Refusals of a listener, among what is dropped.
fn count_into(metrics: &Arc<Metrics>) -> Count {
    let metrics = Arc::clone(metrics);
    Arc::new(move |reason| metrics.drop_items(reason, 1))
}

/// Answers calls until the stop, then finishes those under way.
fn serve_grpc(
    front: Front,
    calls: CallService<Routes>,
    stop: &watch::Sender<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    front.serve(move |request| answer(calls.clone(), request), raised(stop.subscribe()))
}

fn grpc_bounds(limits: &Limits) -> Bounds {
    Bounds {
        connections_max: limits.connections_max,
        per_address_max: limits.connections_per_address,
        first_bytes: limits.handshake_deadline,
        life: None,
    }
}

fn grpc_front(listener: TcpListener, checked: &Checked, bounds: Arc<ArcSwap<Bounds>>, count: Count) -> Front {
    let (limits, is_web) = (&checked.config.limits, checked.web.is_open());
    let http = front::http_builder(limits.handshake_deadline);
    let mut http = if is_web { http } else { http.http2_only() };
    http.http2()
        .keep_alive_interval(limits.keepalive)
        .keep_alive_timeout(limits.keepalive)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.calls_per_connection_max)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(ERROR_STREAMS_MAX);
    Front { listener, bounds, http, tls: checked.tls.clone(), count }
}

async fn answer(
    mut calls: CallService<Routes>,
    request: Request<Incoming>,
) -> Result<tonic::codegen::http::Response<Body>, Infallible> {
    let peer = request.extensions().get::<Peer>().cloned();
    calls.call(request.map(|body| Body::new(Asked::new(body, peer)))).await
}

async fn routes(
    services: Services,
    link: LinkService,
    is_web: bool,
) -> Result<(HealthReporter, Routes), StartError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    set_health(&reporter, false).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let accounts = AccountsServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let messages = MessagesServer::new(services.clone()).max_decoding_message_size(CONTENT_REQUEST_BYTES_MAX);
    let friends = FriendsServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let presence = PresenceServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let events = EventsServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let groups = GroupsServer::new(services.clone()).max_decoding_message_size(CONTENT_REQUEST_BYTES_MAX);
    let rooms = RoomsServer::new(services.clone()).max_decoding_message_size(CONTENT_REQUEST_BYTES_MAX);
    let routes = if is_web {
        let web = GrpcWebLayer::new();
        Routes::new(web.layer(accounts))
            .add_service(web.layer(messages))
            .add_service(web.layer(friends))
            .add_service(web.layer(presence))
            .add_service(web.layer(groups))
    } else {
        Routes::new(accounts)
            .add_service(messages)
            .add_service(friends)
            .add_service(presence)
            .add_service(groups)
    };
    let mut routes = routes
        .add_service(rooms)
        .add_service(events)
        .add_service(AdminServer::new(services).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(health.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(reflection().build_v1()?.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(REQUEST_BYTES_MAX));
    // A server without a link key refuses every gateway, so the service need not be there.
    if link.keys.serve(Scope::Link) {
        let link = LinkServer::new(link)
            .max_decoding_message_size(link_server::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(link_server::MESSAGE_BYTES_MAX);
        routes = routes.add_service(link);
    }
    Ok((reporter, routes.prepare()))
}

async fn set_health(health: &HealthReporter, serving: bool) {
    let status =
        if serving { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    let names = [
        "",
        <AccountsServer<Services> as NamedService>::NAME,
        <MessagesServer<Services> as NamedService>::NAME,
        <FriendsServer<Services> as NamedService>::NAME,
        <PresenceServer<Services> as NamedService>::NAME,
        <EventsServer<Services> as NamedService>::NAME,
        <GroupsServer<Services> as NamedService>::NAME,
        <RoomsServer<Services> as NamedService>::NAME,
        <AdminServer<Services> as NamedService>::NAME,
    ];
    for name in names {
        health.set_service_status(name, status).await;
    }
}

/// Tells health checkers once the store refuses work; that lasts until a restart.
async fn follow_health(plane: Arc<Plane>, health: HealthReporter, stop: watch::Receiver<bool>) {
    let mut stop = std::pin::pin!(raised(stop));
    loop {
        tokio::select! {
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
            () = &mut stop => return,
        }
        if !plane.readiness().store {
            set_health(&health, false).await;
            return;
        }
    }
}

/// Reads the issuer's keys again and again, so that they can be changed without a restart.
async fn follow_keys(plane: Arc<Plane>, interval: Duration, stop: watch::Receiver<bool>) {
    let mut stop = std::pin::pin!(raised(stop));
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = &mut stop => return,
        }
        let plane = Arc::clone(&plane);
        // A panic is ours, and the next look another chance.
        let _ = tokio::task::spawn_blocking(move || plane.gate().reload()).await;
    }
}

/// Returns when the last of tasks and threads has let go of the store.
async fn unshared(store: &Arc<dyn Store>) {
    while Arc::strong_count(store) > 1 {
        tokio::time::sleep(CLOSE_INTERVAL).await;
    }
}
