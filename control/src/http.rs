//! The HTTP listener: is it alive, is it ready, what does it count.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{metrics::Metrics, plane::Plane};

/// Appends more metrics, in the text format of OpenMetrics without its end mark, to the page.
pub type ExtraMetrics = Arc<dyn Fn(&mut String) + Send + Sync>;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const END_MARK: &str = "# EOF\n";

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
