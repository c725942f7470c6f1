//! A listener's connections: bounded in number and by address, in the time to their first bytes, in what their calls may be
//! cut off and left unread; carried over HTTP/1 or HTTP/2, and ended in order.

mod guarded;
mod peer;
pub(crate) mod tls;

use std::{
    collections::HashMap,
    error::Error as StdError,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::clock;
use guarded::Guarded;
pub(crate) use peer::{Asked, Peer, Reading};
use tls::Tls;

/// How long accepting waits when the system gives no connection (no descriptor, as a rule).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a connection's calls are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Past its life a connection takes no more requests, and ends when its answers are read or this is over.
const LIFE_GRACE: Duration = Duration::from_secs(5);
/// Largest head of a request, over HTTP/1 and HTTP/2.
pub(crate) const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Header fields of a request over HTTP/1.
const HEADERS_MAX: usize = 64;

/// Counts something refused or cut, by its reason.
pub type Count = Arc<dyn Fn(&'static str) + Send + Sync>;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at a time.
    pub(crate) connections_max: usize,
    /// The same from one address.
    pub(crate) per_address_max: usize,
    /// To the first bytes of the first request, and for each head over HTTP/1.
    pub(crate) first_bytes: Duration,
    /// After it a connection is ended; `None`: it may last.
    pub(crate) life: Option<Duration>,
}

/// A listener with its bounds.
pub(crate) struct Front {
    pub(crate) listener: TcpListener,
    /// They may be others later, for connections that come then.
    pub(crate) bounds: Arc<ArcSwap<Bounds>>,
    pub(crate) http: auto::Builder<TokioExecutor>,
    /// `None`: plain text.
    pub(crate) tls: Option<Tls>,
    pub(crate) count: Count,
}

impl Front {
    /// Answers requests with `respond` until `stop`, then ends the connections in order: what is under way is finished.
    /// Dropping the future cuts them.
    pub(crate) async fn serve<R, F, B>(self, respond: R, stop: impl Future<Output = ()>)
    where
        R: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<B>, std::convert::Infallible>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { listener, bounds, http, tls, count } = self;
        let places = Arc::new(Places { taken: Mutex::default(), bounds: Arc::clone(&bounds) });
        let shared = Arc::new(Shared { bounds, http, tls, count });
        let (ending, ended) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    (shared.count)("accept_failed");
                    tracing::debug!(%error, "no connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match places.take(address.ip()) {
                Err(reason) => (shared.count)(reason),
                Ok(place) => {
                    let (shared, respond, mut ended) = (Arc::clone(&shared), respond.clone(), ended.clone());
                    connections.spawn(async move {
                        let ended = async move { drop(ended.wait_for(|ended| *ended).await) };
                        shared.carry(socket, address, respond, ended).await;
                        drop(place);
                    });
                }
            }
        }
        drop(listener);
        ending.send_replace(true);
        while connections.join_next().await.is_some() {}
    }
}

struct Shared {
    bounds: Arc<ArcSwap<Bounds>>,
    http: auto::Builder<TokioExecutor>,
    tls: Option<Tls>,
    count: Count,
}

impl Shared {
    /// One connection from its first byte to its end.
    async fn carry<R, F, B>(
        &self,
        socket: TcpStream,
        address: SocketAddr,
        respond: R,
        ended: impl Future<Output = ()>,
    ) where
        R: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<B>, std::convert::Infallible>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a connection without TCP_NODELAY");
        }
        match &self.tls {
            None => self.converse(socket, Peer::new(address, None), respond, ended).await,
            Some(tls) => match tls.accept(socket, self.bounds.load().first_bytes).await {
                Ok((stream, role)) => {
                    self.converse(stream, Peer::new(address, role), respond, ended).await;
                }
                Err(reason) => (self.count)(reason),
            },
        }
    }

    /// What is said once there is a stream.
    async fn converse<I, R, F, B>(&self, stream: I, peer: Peer, respond: R, ended: impl Future<Output = ()>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        R: Fn(Request<Incoming>) -> F + Send + 'static,
        F: Future<Output = Result<Response<B>, std::convert::Infallible>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let of_calls = peer.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(of_calls.clone());
            respond(request)
        });
        let Bounds { first_bytes, life, .. } = **self.bounds.load();
        let io = TokioIo::new(Guarded::new(stream, first_bytes));
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let life = life.unwrap_or(Duration::MAX);
        let (mut ended, mut life, mut is_ending) = (pin!(ended), pin!(sleep(life)), false);
        loop {
            tokio::select! {
                result = &mut connection => {
                    if let Err(error) = result {
                        self.count_end(&*error);
                    }
                    return;
                }
                () = &mut ended, if !is_ending => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut life => {
                    if is_ending {
                        (self.count)("connection_outlived");
                        return;
                    }
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                    life.as_mut().reset(tokio::time::Instant::now() + LIFE_GRACE);
                }
                _ = looks.tick() => peer.look(clock::now()),
                reason = peer.is_cut() => {
                    (self.count)(reason);
                    return;
                }
            }
        }
    }

    /// A peer that leaves is nothing to count; one that is too slow, or breaks the protocol, is.
    fn count_end(&self, error: &(dyn StdError + Send + Sync + 'static)) {
        let reason = end_reason(error);
        tracing::debug!(%error, reason, "a connection ended");
        if let Some(reason) = reason {
            (self.count)(reason);
        }
    }
}

fn end_reason(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    let mut reason = None;
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return (error.kind() == io::ErrorKind::TimedOut).then_some("first_bytes_late");
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return match error.get_io() {
                Some(error) => end_reason(error),
                None if error.reason() == Some(h2::Reason::NO_ERROR) => None,
                None => Some("protocol_error"),
            };
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            reason = match error {
                error if error.is_timeout() => Some("head_late"),
                error if error.is_parse() => Some("protocol_error"),
                _ => None,
            };
        }
        next = error.source();
    }
    reason
}

/// Returns when the flag is raised or its owner is gone.
pub(crate) async fn raised(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|raised| *raised).await;
}

/// How requests are read; both protocols are bounded alike.
pub(crate) fn http_builder(head_deadline: Duration) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head_deadline)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX as usize);
    http.http2().timer(TokioTimer::new()).max_header_list_size(HEAD_BYTES_MAX);
    http
}

/// Who may still come.
struct Places {
    bounds: Arc<ArcSwap<Bounds>>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    /// A place for a connection from `address`, or why there is none.
    fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, &'static str> {
        let bounds = self.bounds.load();
        let mut taken = self.taken();
        if taken.all >= bounds.connections_max {
            return Err("connections_full");
        }
        let count = taken.by_address.get(&address).copied().unwrap_or_default();
        if count >= bounds.per_address_max {
            return Err("connections_per_address");
        }
        taken.all += 1;
        taken.by_address.insert(address, count + 1);
        Ok(Place { places: Arc::clone(self), address })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place; dropping it frees it.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tonic::codegen::Service as _;

    use super::*;

    type Counted = Arc<Mutex<Vec<&'static str>>>;

    /// Pages within `bounds`, and what is counted.
    async fn pages(bounds: Bounds) -> (SocketAddr, Counted, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "x".repeat(16 << 20) }));
        let respond = move |request| {
            let mut router = router.clone();
            async move { Ok(router.call(request).await.unwrap()) }
        };
        let counted = Counted::default();
        let of_front = Arc::clone(&counted);
        let count: Count = Arc::new(move |reason| of_front.lock().unwrap().push(reason));
        let http = http_builder(Duration::from_millis(50)).http1_only();
        let bounds = Arc::new(ArcSwap::from_pointee(bounds));
        let front = Front { listener, bounds, http, tls: None, count };
        (address, counted, tokio::spawn(front.serve(respond, std::future::pending())))
    }

    fn bounds() -> Bounds {
        Bounds { connections_max: 9, per_address_max: 9, first_bytes: Duration::from_millis(50), life: None }
    }

    #[tokio::test]
    async fn a_head_that_comes_slowly_ends_its_connection_and_so_does_waiting_for_the_next() {
        let (address, counted, _serving) = pages(bounds()).await;
        let begins: [&[u8]; 3] =
            [b"", b"GET / HTTP/1.1\r\nHost: test\r\nSlow: ", b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n"];
        for begin in begins {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(begin).await.unwrap();
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer).await;
        }
        let counted = counted.lock().unwrap().clone();
        let is_late = |reason: &&str| matches!(*reason, "first_bytes_late" | "head_late");
        assert!(counted.len() >= 2 && counted.iter().all(is_late), "{counted:?}");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let (address, _counted, _serving) = pages(bounds()).await;
        let long = format!("GET / HTTP/1.1\r\nLong: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX as usize));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        for head in [long, many] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let _ = socket.write_all(head.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_page_that_is_not_read_outlives_nothing() {
        let (address, counted, _serving) =
            pages(Bounds { life: Some(Duration::from_millis(50)), ..bounds() }).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
        while counted.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(*counted.lock().unwrap(), ["connection_outlived"]);
    }

    #[test]
    fn places_are_bounded_in_all_and_by_address_and_leave_nothing_behind() {
        let bounds = |connections_max| Bounds { connections_max, per_address_max: 2, ..bounds() };
        let live = Arc::new(ArcSwap::from_pointee(bounds(3)));
        let places = Arc::new(Places { bounds: Arc::clone(&live), taken: Mutex::default() });
        let [one, two] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        let mut held = vec![places.take(one).ok().unwrap(), places.take(one).ok().unwrap()];
        assert_eq!(places.take(one).err(), Some("connections_per_address"));
        held.push(places.take(two).ok().unwrap());
        assert_eq!(places.take(two).err(), Some("connections_full"));
        live.store(Arc::new(bounds(4)));
        held.push(places.take(two).ok().unwrap());
        live.store(Arc::new(bounds(1)));
        held.truncate(1);
        assert_eq!(places.take(two).err(), Some("connections_full"), "what is there stays, and counts");
        held.clear();
        assert!(places.taken().by_address.is_empty());
        assert!(places.take(one).is_ok());
    }
}
