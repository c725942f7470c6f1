//! Health and metrics of a gateway that runs apart from control.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    routing::get,
};
use gimbal_control::http::serve_pages;
use gimbal_gateway::server::Server;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// A scrape under way may take so long when the process stops.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// Connections of the pages at a time.
const CONNECTIONS_MAX: usize = 256;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Pages {
    gateway: Arc<Server>,
    registry: Arc<Registry>,
    is_stopping: Arc<AtomicBool>,
}

/// The running listener.
pub(super) struct Http {
    pub(super) address: SocketAddr,
    is_stopping: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

/// Binds before anything else starts, so that a busy port is told at once.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("edge.http_listen: cannot listen on {address}"))
}

impl Http {
    pub(super) fn start(listener: TcpListener, gateway: Arc<Server>) -> Result<Self> {
        let address = listener.local_addr()?;
        let is_stopping = Arc::new(AtomicBool::new(false));
        let registry = Arc::new(super::registry(&gateway.metrics()));
        let pages = Pages { gateway, registry, is_stopping: Arc::clone(&is_stopping) };
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(pages);
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let serving = tokio::spawn(async move {
            let until = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            let count = Arc::new(|reason| tracing::debug!(reason, "a page was not served"));
            serve_pages(listener, router, CONNECTIONS_MAX, count, until).await;
        });
        Ok(Self { address, is_stopping, stop, serving })
    }

    /// Readiness fails, then the listener ends and lets go of the gateway.
    pub(super) async fn stop(self) {
        let Self { is_stopping, stop, mut serving, .. } = self;
        is_stopping.store(true, Ordering::SeqCst);
        stop.send_replace(true);
        if tokio::time::timeout(STOP_DEADLINE, &mut serving).await.is_err() {
            serving.abort();
            let _ = serving.await;
        }
    }
}

async fn ready(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    match pages.gateway.is_ready() && !pages.is_stopping.load(Ordering::SeqCst) {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "a shard or the link to control is down\n"),
    }
}

async fn metrics(State(pages): State<Pages>) -> ([(header::HeaderName, &'static str); 1], String) {
    let mut page = String::with_capacity(16 << 10);
    super::render(&pages.registry, &mut page);
    ([(header::CONTENT_TYPE, OPENMETRICS)], page)
}
