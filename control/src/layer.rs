//! Around every gRPC call: a bound and a deadline, request id, span, time, status, and a net under panics.

mod answer;
mod deadline;
mod seats;
mod web;

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
};
use tower_layer::Layer;
use tracing::Instrument as _;

use crate::{
    api_key::CERTIFIED,
    clock,
    error::RequestError,
    front::Peer,
    live::LiveLimits,
    metrics::{CallLabels, MethodLabels, Metrics},
};
use answer::Answer;
use seats::{Seat, Seats};
use web::Access;
pub(crate) use web::Web;

/// Metadata that names a call; echoed, or made when absent.
const REQUEST_ID: &str = "request_id";
/// A longer request id is replaced: it would only fill the log.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The link's one call is a stream that its gateway holds: it takes no place and keeps its own deadlines.
const LINK: &str = "gimbal.link.v1.Link/Open";

/// A method whose answers are a stream, beside those that are "other".
const PUBLISH_STREAM: &str = "gimbal.v1.Rooms/PublishStream";
const TAIL: &str = "gimbal.v1.Events/Tail";
const WATCH: &str = "gimbal.v1.Presence/Watch";
/// Streams of answers at a time, on all connections: watchers of health, readers of reflection, publishers.
const STREAMS_MAX: usize = 1024;
/// The label of any path that is none of [`METHODS`]: streams of health and reflection, and what does not exist.
const OTHER: &str = "other";

/// Methods with a label of their own; any other path is [`OTHER`], so that callers cannot make labels.
const METHODS: &[&str] = &[
    "gimbal.v1.Accounts/RequestCode",
    "gimbal.v1.Accounts/SignIn",
    "gimbal.v1.Accounts/RegisterDevice",
    "gimbal.v1.Accounts/RevokeToken",
    "gimbal.v1.Accounts/RevokeTokens",
    "gimbal.v1.Accounts/GetUsers",
    "gimbal.v1.Accounts/UpdateUser",
    "gimbal.v1.Accounts/SearchUsers",
    "gimbal.v1.Accounts/ListDevices",
    "gimbal.v1.Accounts/RemoveDevice",
    "gimbal.v1.Friends/Add",
    "gimbal.v1.Friends/Agree",
    "gimbal.v1.Friends/Decline",
    "gimbal.v1.Friends/Set",
    "gimbal.v1.Friends/Remove",
    "gimbal.v1.Friends/List",
    "gimbal.v1.Friends/Block",
    "gimbal.v1.Friends/Unblock",
    "gimbal.v1.Friends/ListBlocked",
    "gimbal.v1.Presence/Get",
    WATCH,
    TAIL,
    "gimbal.v1.Groups/Create",
    "gimbal.v1.Groups/Get",
    "gimbal.v1.Groups/Update",
    "gimbal.v1.Groups/ListMine",
    "gimbal.v1.Groups/Dissolve",
    "gimbal.v1.Groups/AddMembers",
    "gimbal.v1.Groups/RemoveMembers",
    "gimbal.v1.Groups/Leave",
    "gimbal.v1.Groups/ListMembers",
    "gimbal.v1.Groups/SetRole",
    "gimbal.v1.Groups/SetMember",
    "gimbal.v1.Groups/Mute",
    "gimbal.v1.Groups/MuteAll",
    "gimbal.v1.Groups/Transfer",
    "gimbal.v1.Groups/Push",
    "gimbal.v1.Messages/Send",
    "gimbal.v1.Messages/PushToUsers",
    "gimbal.v1.Messages/PushToAll",
    "gimbal.v1.Messages/Sync",
    "gimbal.v1.Messages/Ack",
    "gimbal.v1.Rooms/Publish",
    PUBLISH_STREAM,
    "gimbal.v1.Rooms/Count",
    "gimbal.v1.Rooms/Top",
    "gimbal.v1.Admin/ListSessions",
    "gimbal.v1.Admin/Kick",
    "gimbal.v1.Admin/Stats",
    LINK,
    "grpc.health.v1.Health/Check",
];

/// The layer; one for the whole server.
#[derive(Clone)]
pub(crate) struct CallLayer {
    shared: Arc<Shared>,
}

struct Shared {
    metrics: Arc<Metrics>,
    control_epoch: u32,
    calls: AtomicU64,
    calls_under_way: Arc<Seats>,
    streams: Arc<Seats>,
    /// Of them the number of calls, and the time for each.
    limits: LiveLimits,
    web: Web,
}

impl CallLayer {
    /// With the services' message sizes `limits` bound what callers make the process hold before their credentials are seen.
    pub(crate) fn new(metrics: Arc<Metrics>, control_epoch: u32, limits: LiveLimits, web: Web) -> Self {
        let shared = Shared {
            metrics,
            control_epoch,
            calls: AtomicU64::new(0),
            calls_under_way: Arc::default(),
            streams: Arc::default(),
            limits,
            web,
        };
        Self { shared: Arc::new(shared) }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service with the layer around it.
#[derive(Clone)]
pub(crate) struct CallService<S> {
    inner: S,
    shared: Arc<Shared>,
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for CallService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answering<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let origin = match shared.web.admit(&request) {
            Access::Granted(origin) => origin,
            Access::Answered(response) => return Box::pin(std::future::ready(Ok(response))),
        };
        let peer = request.extensions().get::<Peer>().cloned();
        request.headers_mut().remove(CERTIFIED);
        if let Some(role) = peer.as_ref().and_then(Peer::role) {
            request.headers_mut().insert(CERTIFIED, http::HeaderValue::from_static(role.name()));
        }
        let method = method_of(request.uri().path());
        let request_id = shared.request_id(&request);
        let request_text = request_id.to_str().unwrap_or_default();
        let key = tracing::field::Empty;
        let span = tracing::debug_span!("call", method, request_id = request_text, key);
        let started = clock::now();
        let admitted = shared.admit(method, &request);
        let mut watched = Watched(peer);
        let inner = Caught::new(self.inner.call(request));
        let answer = async move {
            let mut response = match shared.bounded(admitted, inner).await {
                Ok((Ok(response), place)) => shared.held(method, response?, place, watched.0.as_ref()),
                Ok((Err(panic), _)) => shared.panicked(method, &*panic),
                Err(refused) => refused.into_http(),
            };
            watched.answered();
            response.headers_mut().insert(REQUEST_ID, request_id);
            if let Some(origin) = origin {
                web::allow(response.headers_mut(), origin);
            }
            shared.count(method, &response, (clock::now() - started).as_secs_f64());
            Ok(response)
        };
        Box::pin(answer.instrument(span))
    }
}

impl Shared {
    /// A call's place and deadline, or why it has none.
    fn admit(&self, method: &'static str, request: &http::Request<Body>) -> Result<Admitted, Status> {
        if method == LINK {
            return Ok(Admitted { place: None, within: None });
        }
        let asked = deadline::asked(request.headers()).map_err(|_| {
            Status::invalid_argument("grpc-timeout is not a number of at most 8 digits and a unit")
        })?;
        let limits = self.limits.get();
        let within = asked.map_or(limits.call_deadline, |asked| asked.min(limits.call_deadline));
        let place = match is_stream(method) {
            true => self.streams.take(STREAMS_MAX),
            false => self.calls_under_way.take(limits.calls_max),
        };
        let place = place.ok_or(RequestError::Busy)?;
        Ok(Admitted { place: Some(place), within: Some(within) })
    }

    /// Nothing of a call is read before it has a place. One that is cut at its deadline is dropped: what it asked of the
    /// writer or the readers is not done any more, unless it was begun.
    async fn bounded<T>(
        &self,
        admitted: Result<Admitted, Status>,
        call: impl Future<Output = T>,
    ) -> Result<(T, Option<Seat>), Status> {
        let Admitted { place, within } = admitted?;
        let Some(within) = within else { return Ok((call.await, place)) };
        let answer = tokio::time::timeout(within, call).await.map_err(|_| {
            Status::deadline_exceeded("no answer within the deadline of the caller or the server")
        })?;
        Ok((answer, place))
    }

    /// The place is free when the answer is read.
    fn held(
        &self,
        method: &'static str,
        response: http::Response<Body>,
        place: Option<Seat>,
        peer: Option<&Peer>,
    ) -> http::Response<Body> {
        if method == LINK {
            return response;
        }
        let reading = peer.filter(|_| !is_stream(method)).map(Peer::reading);
        let metrics = Arc::clone(&self.metrics);
        response.map(|body| Body::new(Answer { body: Some(body), place, _reading: reading, metrics }))
    }

    fn request_id(&self, request: &http::Request<Body>) -> http::HeaderValue {
        let shown = request.headers().get(REQUEST_ID);
        if let Some(shown) = shown
            && (1..=REQUEST_ID_BYTES_MAX).contains(&shown.len())
            && shown.to_str().is_ok()
        {
            return shown.clone();
        }
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        http::HeaderValue::try_from(format!("{}-{number}", self.control_epoch)).expect("digits fit a header")
    }

    fn panicked(&self, method: &'static str, panic: &(dyn Any + Send)) -> http::Response<Body> {
        self.metrics.call_panics.inc();
        let text =
            panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(method, panic = text.unwrap_or("not a text"), "a call panicked");
        Status::internal("internal error").into_http()
    }

    fn count(&self, method: &'static str, response: &http::Response<Body>, seconds: f64) {
        // A refusal travels in the headers; a status in trailers is that of a stream, or OK.
        let code =
            response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        let labels = CallLabels { method, code: code_name(code) };
        self.metrics.calls.get_or_create(&labels).inc();
        self.metrics.call_seconds.get_or_create(&MethodLabels { method }).observe(seconds);
        tracing::debug!(code = labels.code, seconds, "answered");
    }
}

/// What a call was granted.
struct Admitted {
    place: Option<Seat>,
    within: Option<Duration>,
}

/// Tells the connection of a call that is dropped before its answer.
struct Watched(Option<Peer>);

impl Watched {
    fn answered(&mut self) {
        self.0 = None;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(peer) = &self.0 {
            peer.cancelled();
        }
    }
}

fn is_stream(method: &'static str) -> bool {
    [PUBLISH_STREAM, TAIL, WATCH].contains(&method) || method == OTHER
}

fn method_of(path: &str) -> &'static str {
    let path = path.strip_prefix('/').unwrap_or(path);
    METHODS.iter().find(|method| **method == path).copied().unwrap_or(OTHER)
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A future whose panic is its result.
pub(crate) struct Caught<F> {
    inner: Pin<Box<F>>,
}

impl<F> Caught<F> {
    pub(crate) fn new(inner: F) -> Self {
        Self { inner: Box::pin(inner) }
    }
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // After a panic the future is dropped and never polled again, so nothing broken is seen.
        match catch_unwind(AssertUnwindSafe(|| self.inner.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    #[derive(Clone)]
    struct Handler;

    impl Service<http::Request<Body>> for Handler {
        type Response = http::Response<Body>;
        type Error = std::convert::Infallible;
        type Future = Answering<Self::Error>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            Box::pin(async move {
                match request.uri().path() {
                    "/gimbal.v1.Messages/Send" => panic!("on purpose"),
                    "/gimbal.v1.Messages/Sync" | "/gimbal.link.v1.Link/Open" => std::future::pending().await,
                    "/gimbal.v1.Messages/Ack" => Ok(Status::not_found("nobody").into_http()),
                    _ => Ok(http::Response::new(Body::empty())),
                }
            })
        }
    }

    fn bounds(calls_max: usize, deadline_ms: u64) -> LiveLimits {
        let call_deadline = Duration::from_millis(deadline_ms);
        LiveLimits::new(Limits { calls_max, call_deadline, ..Limits::default() })
    }

    async fn call(layer: &CallLayer, path: &str, id: Option<&str>) -> http::Response<Body> {
        let mut request = http::Request::new(Body::empty());
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = path.parse().unwrap();
        if let Some(id) = id {
            request.headers_mut().insert(REQUEST_ID, id.parse().unwrap());
        }
        layer.layer(Handler).call(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_call_and_is_counted() {
        let metrics = Arc::new(Metrics::new());
        let layer = CallLayer::new(Arc::clone(&metrics), 4, bounds(9, 60_000), Web::default());
        let response = call(&layer, "/gimbal.v1.Messages/Send", None).await;
        assert_eq!(response.headers()["grpc-status"], "13");
        assert_eq!(metrics.call_panics.get(), 1);
        let response = call(&layer, "/gimbal.v1.Messages/Ack", Some("mine")).await;
        assert_eq!(
            (&response.headers()["grpc-status"], &response.headers()[REQUEST_ID]),
            (&"5".parse().unwrap(), &"mine".parse().unwrap())
        );
        let response = call(&layer, "/made/up", Some(&"x".repeat(200))).await;
        assert_eq!(response.headers()[REQUEST_ID], "4-1", "a long id is replaced");
        let mut page = String::new();
        metrics.render(&mut page);
        assert!(page.contains("grpc_calls_total{method=\"other\",code=\"OK\"} 1"), "{page}");
        assert!(
            page.contains("grpc_calls_total{method=\"gimbal.v1.Messages/Ack\",code=\"NOT_FOUND\"} 1"),
            "{page}"
        );
    }

    #[tokio::test]
    async fn calls_are_bounded_in_number_and_time_and_a_link_in_neither() {
        let metrics = Arc::new(Metrics::new());
        let layer = CallLayer::new(Arc::clone(&metrics), 4, bounds(1, 50), Web::default());
        let mut link = Box::pin(call(&layer, "/gimbal.link.v1.Link/Open", None));
        let mut stuck = Box::pin(call(&layer, "/gimbal.v1.Messages/Sync", None));
        let refused = tokio::select! {
            biased;
            _ = &mut link => panic!("a link goes on"),
            _ = &mut stuck => panic!("it takes its time"),
            refused = call(&layer, "/gimbal.v1.Messages/Ack", None) => refused,
        };
        assert_eq!(refused.headers()["grpc-status"], "8", "no place");
        let cut = tokio::select! {
            _ = &mut link => panic!("a link has no deadline"),
            cut = stuck => cut,
        };
        assert_eq!(cut.headers()["grpc-status"], "4");
        let next = call(&layer, "/gimbal.v1.Messages/Ack", None).await;
        assert_eq!(next.headers()["grpc-status"], "5", "its place is free again");
    }
}
