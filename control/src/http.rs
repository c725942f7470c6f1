//! The HTTP listener: is it alive, is it ready, what does it count.

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use hyper::{Request, body::Incoming};
use tokio::net::TcpListener;
use tonic::codegen::Service as _;

use crate::{
    front::{self, Bounds, Count, Front, tls::Tls},
    metrics::Metrics,
    plane::Plane,
};

/// Appends more metrics, in the text format of OpenMetrics without its end mark, to the page.
pub type ExtraMetrics = Arc<dyn Fn(&mut String) + Send + Sync>;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const END_MARK: &str = "# EOF\n";

/// A head that is not complete by then ends its connection, also one that waits for its next request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A page that is not read by then is not read; who comes often connects again.
const LIFE: Duration = Duration::from_secs(300);

/// Serves small pages to few scrapers, balancers and people, at most `connections_max` at a time, until `stop`; then ends
/// the connections in order. Dropping the future cuts them. `count` is told of what is refused.
pub async fn serve_pages(
    listener: TcpListener,
    pages: Router,
    connections_max: usize,
    count: Count,
    stop: impl Future<Output = ()>,
) {
    let bounds = Arc::new(ArcSwap::from_pointee(page_bounds(connections_max)));
    serve_pages_over(listener, pages, bounds, None, count, stop).await;
}

/// Of a listener of pages.
pub(crate) fn page_bounds(connections_max: usize) -> Bounds {
    Bounds {
        connections_max,
        // A stranger must not keep the balancer away.
        per_address_max: connections_max.div_ceil(4),
        first_bytes: HEAD_DEADLINE,
        life: Some(LIFE),
    }
}

/// As [`serve_pages`], with TLS if there is any, and bounds that may change.
pub(crate) async fn serve_pages_over(
    listener: TcpListener,
    pages: Router,
    bounds: Arc<ArcSwap<Bounds>>,
    tls: Option<Tls>,
    count: Count,
    stop: impl Future<Output = ()>,
) {
    let http = front::http_builder(HEAD_DEADLINE).http1_only();
    let respond = move |request: Request<Incoming>| {
        let mut pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.call(request).await.unwrap_or_else(|never| match never {})) }
    };
    Front { listener, bounds, http, tls, count }.serve(respond, stop).await;
}

/// What the handlers read.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) plane: Arc<Plane>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) extra: Arc<OnceLock<ExtraMetrics>>,
}

pub(crate) fn router(pages: Pages) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(pages)
}

/// Ready means: a write sent now can succeed. Gateways are told for the reader's sake and do not decide.
async fn ready(State(pages): State<Pages>) -> Response {
    let readiness = pages.plane.readiness();
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = |good| if good { "ok" } else { "failed" };
    let text = format!(
        "store {}\nserving {}\ngateways {}\n",
        word(readiness.store),
        if readiness.serving { "yes" } else { "no" },
        readiness.gateways
    );
    (status, text).into_response()
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let mut page = String::with_capacity(16 << 10);
    pages.metrics.render(&mut page);
    if let Some(extra) = pages.extra.get() {
        extra(&mut page);
    }
    // Whatever was appended may have brought an end mark of its own.
    let mut page = page.replace(END_MARK, "");
    page.push_str(END_MARK);
    ([(header::CONTENT_TYPE, OPENMETRICS)], page).into_response()
}
