//! The demonstration chat of `gimbal serve --dev`: a page of plain modules, and where it finds us.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Redirect,
    routing::get,
};
use gimbal_control::config::Config as Control;
use gimbal_gateway::server::Server;

/// What the page may load and where it may connect: its own files, and any host, since the gateway has a port of its own.
const POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'self'; connect-src 'self' http: https: ws: wss:; img-src data:");

macro_rules! files {
    ($($name:literal is $kind:literal),* $(,)?) => {
        [$(($name, $kind, include_str!(concat!("../../web/chat/", $name)))),*]
    };
}

/// Name, kind and text.
const FILES: [(&str, &str, &str); 6] = files![
    "index.html" is "text/html; charset=utf-8",
    "style.css" is "text/css; charset=utf-8",
    "chat.js" is "text/javascript; charset=utf-8",
    "session.js" is "text/javascript; charset=utf-8",
    "rpc.js" is "text/javascript; charset=utf-8",
    "wire.js" is "text/javascript; charset=utf-8",
];

/// Where the page finds the server: known once everything listens.
pub(super) type Ports = Arc<OnceLock<String>>;

/// Lets the page, which comes from the HTTP listener, call by gRPC-Web.
pub(super) fn admit(control: &mut Control) {
    let scheme = if control.tls.certificate.is_some() && control.tls.http { "https" } else { "http" };
    let (address, port) = (control.http_listen, control.http_listen.port());
    for origin in [format!("{scheme}://{address}"), format!("{scheme}://localhost:{port}")] {
        if !control.cors_origins.contains(&origin) {
            control.cors_origins.push(origin);
        }
    }
}

/// Everything below `/chat/`.
pub(super) fn router(ports: Ports) -> Router {
    let root = Router::new().route("/chat", get(|| async { Redirect::permanent("/chat/") }));
    let files = FILES.into_iter().fold(root, |router, (name, kind, text)| {
        let path = if name == "index.html" { "/chat/".to_owned() } else { format!("/chat/{name}") };
        router.route(&path, get(move || async move { (head(kind), text) }))
    });
    files.route("/chat/chat.json", get(tell)).with_state(ports)
}

/// `gateway` and `control` listen.
pub(super) fn found(ports: &Ports, gateway: &Server, grpc_port: u16, path: &str) {
    let websocket = gateway.websocket_addr().map_or(0, |address| address.port());
    let known = serde_json::json!({ "websocket": websocket, "path": path, "grpc": grpc_port });
    let _ = ports.set(known.to_string()); // once is enough
}

async fn tell(State(ports): State<Ports>) -> Result<([(HeaderName, HeaderValue); 3], String), StatusCode> {
    let known = ports.get().ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    Ok((head("application/json"), known.clone()))
}

/// A file changes with the server, so none is kept unasked.
fn head(kind: &'static str) -> [(HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ]
}
