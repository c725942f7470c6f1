//! Tokens that others have issued, on every way in: signed ones, and those that a service answers for.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gimbal_codec::{CloseReason, DeviceId, UserId, code};
use gimbal_control::{
    Config,
    config::{Algorithm, Auth, ExternalConfig, ExternalKind, JwtConfig, SubjectKind},
};
use gimbal_rpc::{
    gim::{
        AuthReply, AuthRequest,
        user_int_service_server::{UserIntService, UserIntServiceServer},
    },
    link::{Caller, Down, Up},
    v1::{
        self,
        authenticator_server::{Authenticator, AuthenticatorServer},
    },
};
use rcgen::ExtendedKeyUsagePurpose;
use ring::hmac;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    codegen::http,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::rig::{Gateway, Person, Rig, config, keyed, session, why};
use super::tls::Authority;

const SECRET: &str = "a secret that an issuer shares with us";
const DEVICE: u64 = 1 << 40;

/// A token by [`SECRET`], good for a century.
fn token(claims: Value) -> String {
    token_by(SECRET, claims)
}

fn token_by(secret: &str, mut claims: Value) -> String {
    for (name, value) in
        [("aud", json!("gimbal")), ("iat", json!(1_700_000_000)), ("exp", json!(4_000_000_000_u64))]
    {
        claims.as_object_mut().unwrap().entry(name).or_insert(value);
    }
    let [header, claims] =
        [json!({"alg": "HS256", "typ": "JWT"}), claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())))
}

fn jwt(dir: &Path, user_claim_is: SubjectKind) -> (Config, PathBuf) {
    let path = dir.join("jwt.key");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    let jwt = JwtConfig {
        algorithms: vec![Algorithm::Hs256],
        key_file: Some(path.clone()),
        audience: Some("gimbal".into()),
        reload_interval: Duration::from_millis(100),
        user_claim_is,
        ..JwtConfig::default()
    };
    (Config { auth: Auth { jwt, ..Auth::default() }, ..config(dir) }, path)
}

fn person(user: u64, device: u64, token: String) -> Person {
    Person { user, device, token }
}

/// What came of a sign-in: the user, or a reply code.
async fn sign_in(gateway: &Gateway, person: &Person, index: u32) -> Result<u64, i32> {
    gateway.submit(vec![person.sign_in(session(index))]);
    answered(gateway, index).await
}

async fn answered(gateway: &Gateway, index: u32) -> Result<u64, i32> {
    loop {
        match gateway.next().await {
            Down::SignedIn { session: of, grant, .. } if of == session(index) => return Ok(grant.user.get()),
            Down::SignInRefused { session: of, refusal } if of == session(index) => return Err(refusal.code),
            _ => {}
        }
    }
}

async fn sync(rig: &Rig, person: &Person) -> Result<u64, (Code, String)> {
    let synced = rig.messages().sync(person.call(v1::SyncRequest::default())).await;
    synced.map(|page| page.into_inner().latest).map_err(|status| (status.code(), why(&status).0.to_owned()))
}

fn refused<T>(code: Code, reason: &str) -> Result<T, (Code, String)> {
    Err((code, reason.to_owned()))
}

async fn metric(rig: &Rig, line: &str) -> u64 {
    let page = rig.http("/metrics").await.1;
    let value = page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    value.unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_token_opens_the_link_and_grpc_and_makes_user_and_device() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = jwt(dir.path(), SubjectKind::Decimal);
    let rig = Rig::with(config).await;
    let gateway = rig.gateway(1);
    let anna = person(0, DEVICE, token(json!({"sub": "77"})));
    assert_eq!(sign_in(&gateway, &anna, 1).await, Ok(77));
    let ben = person(0, 0, token(json!({"sub": 78, "device": "9"})));
    assert_eq!(sync(&rig, &ben).await, Ok(0));
    let send =
        v1::SendRequest { client_message_id: 1, to_user: 77, command: 1, content: "hi".into(), to_group: 0 };
    let sent = rig.messages().send(ben.call(send)).await.unwrap().into_inner();
    assert_eq!(sent.seq, 1);
    let Down::Deliver { body, .. } = gateway.next().await else { panic!("no delivery") };
    assert_eq!((body.from_user.get(), body.from_device.get()), (78, 9));
    let acked = rig.messages().ack(anna.call(v1::AckRequest { seq: 1 })).await.unwrap();
    assert_eq!(acked.into_inner().seq, 1);
    // Tokens of ours go on beside those.
    let carl = rig.person("1").await;
    assert_eq!(sync(&rig, &carl).await, Ok(0));
    let hostile = [
        person(78, DEVICE, anna.token.clone()),
        person(0, 0, anna.token.clone()),
        person(0, 5, anna.token.clone()),
        person(0, 10, ben.token.clone()),
        person(0, 9, anna.token.clone()),
        person(0, carl.device, anna.token.clone()),
        person(0, DEVICE, token_by("another secret of more than 32 bytes", json!({"sub": "77"}))),
        person(0, DEVICE, token(json!({"sub": "77", "exp": 1_700_000_001}))),
        person(0, DEVICE, token(json!({"sub": "77", "aud": "other"}))),
        person(0, DEVICE, format!("{}x", anna.token)),
        person(0, DEVICE, "..".into()),
        person(carl.user, carl.device, "0".repeat(64)),
    ];
    for (at, person) in hostile.iter().enumerate() {
        let code = sign_in(&gateway, person, 100 + at as u32).await.expect_err("refused");
        assert!([code::NOT_SIGNED_IN, code::DEVICE_NOT_FOUND].contains(&code), "{at}: {code}");
        let (code, reason) = sync(&rig, person).await.expect_err("refused");
        assert!([Code::Unauthenticated, Code::NotFound].contains(&code), "{at}: {code} {reason}");
    }
    let of = |outcome| format!("gimbal_control_auth_checks_total{{kind=\"jwt\",outcome=\"{outcome}\"}}");
    for (outcome, expected) in [("signature", 2), ("expired", 2), ("audience", 2), ("mismatch", 4)] {
        assert!(metric(&rig, &of(outcome)).await >= expected, "{outcome}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_name_is_the_same_user_after_a_restart_and_beside_others() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = jwt(dir.path(), SubjectKind::Mapped);
    let anna = person(0, DEVICE, token(json!({"sub": "anna@example", "iss": "one"})));
    let ben = person(0, DEVICE + 1, token(json!({"sub": "anna@example", "iss": "two"})));
    let rig = Rig::with(config.clone()).await;
    let user = sign_in(&rig.gateway(1), &anna, 1).await.unwrap();
    rig.stop().await;
    let rig = Rig::with(config).await;
    let phone = rig.person("1").await;
    let gateway = rig.gateway(1);
    assert_eq!(sign_in(&gateway, &anna, 1).await, Ok(user));
    let other = sign_in(&gateway, &ben, 2).await.unwrap();
    assert!(other != user && phone.user != user && phone.user != other);
    assert_eq!(sign_in(&gateway, &person(user, DEVICE, anna.token.clone()), 3).await, Ok(user));
    let lies = person(other, DEVICE, anna.token.clone());
    assert_eq!(sign_in(&gateway, &lies, 4).await, Err(code::NOT_SIGNED_IN));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_closed_and_never_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = jwt(dir.path(), SubjectKind::Decimal);
    let rig = Rig::with(config).await;
    let gateway = rig.gateway(1);
    let anna = person(0, DEVICE, token(json!({"sub": "77"})));
    sign_in(&gateway, &anna, 1).await.unwrap();
    let own = rig.person("1").await;
    let revoke =
        |user_id, before_ms| v1::RevokeTokensRequest { user_id, before_ms, idempotency_key: String::new() };
    let mut accounts = rig.accounts();
    let without = accounts.revoke_tokens(revoke(77, 0)).await.unwrap_err();
    assert_eq!(without.code(), Code::Unauthenticated);
    let revoked = accounts.revoke_tokens(keyed("dev", revoke(77, 0))).await.unwrap().into_inner();
    let kick = gateway.next().await;
    assert!(matches!(kick, Down::Kick { reason: CloseReason::TokenRevoked, .. }), "{kick:?}");
    assert_eq!(sign_in(&gateway, &anna, 2).await, Err(code::NOT_SIGNED_IN), "replayed");
    assert_eq!(sync(&rig, &anna).await, refused(Code::Unauthenticated, "not_signed_in"));
    let since = revoked.before_ms / 1000 + 1;
    let again = person(0, DEVICE, token(json!({"sub": "77", "iat": since})));
    assert_eq!(sign_in(&gateway, &again, 3).await, Ok(77));
    assert_eq!(sync(&rig, &again).await, Ok(0));
    let all = accounts.revoke_tokens(keyed("dev", revoke(own.user, 0))).await.unwrap().into_inner();
    assert_eq!(all.devices, 1);
    assert_eq!(sync(&rig, &own).await, refused(Code::Unauthenticated, "not_signed_in"));
    let future = accounts.revoke_tokens(keyed("dev", revoke(77, i64::MAX))).await.unwrap_err();
    assert_eq!(why(&future), ("bad_request", "before_ms"));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_under_way_and_a_broken_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (config, path) = jwt(dir.path(), SubjectKind::Decimal);
    let rig = Rig::with(config).await;
    let reloads = |outcome| format!("gimbal_control_auth_key_reloads_total{{reason=\"{outcome}\"}}");
    let old = person(0, DEVICE, token(json!({"sub": "77"})));
    let next = "the secret that comes after the first one";
    let new = person(0, DEVICE, token_by(next, json!({"sub": "77"})));
    std::fs::write(&path, "short\n").unwrap();
    while metric(&rig, &reloads("broken")).await == 0 {
        assert_eq!(sync(&rig, &old).await, Ok(0));
    }
    assert_eq!(sync(&rig, &old).await, Ok(0), "the old key counts on");
    assert!(sync(&rig, &new).await.is_err());
    std::fs::write(&path, format!("{next}\n")).unwrap();
    while sync(&rig, &new).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(sync(&rig, &old).await.is_err(), "nobody is let in by a key that was taken away");
    assert_eq!(metric(&rig, &reloads("new")).await, 1);
    rig.stop().await;
}

/// Answers for accounts as the test tells it.
#[derive(Default)]
struct Service {
    /// By token.
    answers: Mutex<HashMap<String, Result<v1::AuthenticateReply, Code>>>,
    calls: AtomicU64,
    /// While set, nothing is answered.
    stuck: Mutex<Option<Arc<Notify>>>,
}

impl Service {
    fn say(&self, token: &str, answer: Result<v1::AuthenticateReply, Code>) {
        self.answers.lock().unwrap().insert(token.to_owned(), answer);
    }

    async fn answer(&self, token: &str) -> Result<v1::AuthenticateReply, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let stuck = self.stuck.lock().unwrap().clone();
        if let Some(stuck) = stuck {
            stuck.notified().await;
        }
        let answer = self.answers.lock().unwrap().get(token).cloned();
        answer.unwrap_or(Err(Code::Unauthenticated)).map_err(|code| Status::new(code, "no"))
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Serving(Arc<Service>);

#[tonic::async_trait]
impl Authenticator for Serving {
    async fn authenticate(
        &self,
        request: Request<v1::AuthenticateRequest>,
    ) -> Result<Response<v1::AuthenticateReply>, Status> {
        self.0.answer(&request.into_inner().token).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl UserIntService for Serving {
    async fn auth(&self, request: Request<AuthRequest>) -> Result<Response<AuthReply>, Status> {
        let AuthRequest { user_id, device_id, token } = request.into_inner();
        let reply = self.0.answer(&format!("{user_id}/{device_id}/{token}")).await;
        reply.map(|_| Response::new(AuthReply {}))
    }
}

/// gim's own number in place of UNAUTHENTICATED, as its server sends it.
#[derive(Clone)]
struct GimCodes<S>(S);

#[derive(Clone)]
struct GimLayer;

impl<S> tower_layer::Layer<S> for GimLayer {
    type Service = GimCodes<S>;

    fn layer(&self, inner: S) -> GimCodes<S> {
        GimCodes(inner)
    }
}

impl<S> tonic::codegen::Service<http::Request<Body>> for GimCodes<S>
where
    S: tonic::codegen::Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_gim = request.uri().path().starts_with("/business.");
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            if is_gim && response.headers().get("grpc-status").is_some_and(|status| status == "16") {
                response.headers_mut().insert("grpc-status", http::HeaderValue::from_static("10000"));
            }
            Ok(response)
        })
    }
}

/// A service on a port of its own.
async fn serve(service: &Arc<Service>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, serve_on(listener, service))
}

fn serve_on(listener: TcpListener, service: &Arc<Service>) -> tokio::task::JoinHandle<()> {
    let serving = Serving(Arc::clone(service));
    let router = Server::builder()
        .layer(GimLayer)
        .add_service(AuthenticatorServer::new(serving.clone()))
        .add_service(UserIntServiceServer::new(serving));
    tokio::spawn(async move { router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() })
}

fn external(dir: &Path, external: ExternalConfig) -> Config {
    Config { auth: Auth { external, ..Auth::default() }, ..config(dir) }
}

fn about(user_id: u64, device_id: u64) -> v1::AuthenticateReply {
    v1::AuthenticateReply { user_id, device_id, expires_at_ms: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_asked_over_tls_by_its_authority_and_by_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let service = Arc::new(Service::default());
    service.say("good", Ok(about(0, 0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    let serving = AuthenticatorServer::new(Serving(Arc::clone(&service)));
    let router = Server::builder().tls_config(tls).unwrap().add_service(serving);
    let _serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    let ca = dir.path().join("ca.pem");
    let config = |name: &str| {
        let config = ExternalConfig {
            url: Some(url.clone()),
            ca: Some(ca.clone()),
            timeout: Duration::from_secs(10),
            ..ExternalConfig::default()
        };
        external(&dir.path().join(name), config)
    };
    let refused = |name| config(name).check(true).err().unwrap().to_string();
    assert!(refused("none").contains("auth.external.ca: cannot read"), "{}", refused("none"));
    std::fs::write(&ca, "no certificate").unwrap();
    assert!(refused("none").contains("holds no certificate"), "{}", refused("none"));
    for (pem, expected) in [(&other.pem, Err(code::UNAVAILABLE)), (&authority.pem, Ok(7))] {
        std::fs::write(&ca, pem).unwrap();
        let rig = Rig::with(config("data")).await;
        let gateway = rig.gateway(1);
        assert_eq!(sign_in(&gateway, &person(7, 8, "good".into()), 0).await, expected);
        assert_eq!(service.calls(), u64::from(expected.is_ok()), "no token goes to whom we do not know");
        drop(gateway);
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_answers_for_its_own_accounts_and_only_a_yes_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let service = Arc::new(Service::default());
    let (url, _serving) = serve(&service).await;
    let rig =
        Rig::with(external(dir.path(), ExternalConfig { url: Some(url), ..ExternalConfig::default() })).await;
    let gateway = rig.gateway(1);
    service.say("good", Ok(about(0, 0)));
    service.say("knows", Ok(about(55, 56)));
    let anna = person(7, 8, "good".into());
    for index in 0..3 {
        assert_eq!(sign_in(&gateway, &anna, index).await, Ok(7));
    }
    assert_eq!(sync(&rig, &anna).await, Ok(0));
    assert_eq!(service.calls(), 1, "asked once");
    assert_eq!(
        sign_in(&gateway, &person(7, 9, "good".into()), 4).await,
        Ok(7),
        "of another device it knows nothing"
    );
    assert_eq!(service.calls(), 2);
    assert_eq!(sign_in(&gateway, &person(0, 0, "knows".into()), 5).await, Ok(55));
    for _ in 0..2 {
        assert_eq!(sign_in(&gateway, &person(7, 8, "bad".into()), 6).await, Err(code::NOT_SIGNED_IN));
    }
    assert_eq!(service.calls(), 5, "a no is asked for again");
    // It lies: about somebody else, about nobody, about what is over.
    service.say("other", Ok(about(9, 8)));
    service.say("nobody", Ok(about(0, 0)));
    service.say("over", Ok(v1::AuthenticateReply { expires_at_ms: 1, ..about(0, 0) }));
    service.say("huge", Ok(about(u64::MAX, 8)));
    assert_eq!(sign_in(&gateway, &person(7, 8, "other".into()), 7).await, Err(code::NOT_SIGNED_IN));
    assert_eq!(sign_in(&gateway, &person(0, 0, "nobody".into()), 8).await, Err(code::UNAVAILABLE));
    assert_eq!(sign_in(&gateway, &person(7, 8, "over".into()), 9).await, Err(code::NOT_SIGNED_IN));
    assert_eq!(sign_in(&gateway, &person(0, 8, "huge".into()), 10).await, Err(code::UNAVAILABLE));
    // A revocation counts for what was remembered, and the service is asked anew.
    let revoke = v1::RevokeTokensRequest { user_id: 7, ..v1::RevokeTokensRequest::default() };
    rig.accounts().revoke_tokens(keyed("dev", revoke)).await.unwrap();
    service.say("good", Err(Code::PermissionDenied));
    assert_eq!(sign_in(&gateway, &anna, 11).await, Err(code::NOT_SIGNED_IN));
    // Nobody gets a token here meanwhile.
    let elsewhere = (Code::FailedPrecondition, "accounts_elsewhere");
    let by_phone = v1::SignInRequest { phone_number: "1".into(), ..v1::SignInRequest::default() };
    let status = rig.accounts().sign_in(by_phone).await.unwrap_err();
    assert_eq!((status.code(), why(&status).0), elsewhere);
    let status =
        rig.accounts().register_device(keyed("dev", v1::RegisterDeviceRequest::default())).await.unwrap_err();
    assert_eq!((status.code(), why(&status).0), elsewhere);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gims_service_is_asked_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let service = Arc::new(Service::default());
    let (url, _serving) = serve(&service).await;
    let config = ExternalConfig { url: Some(url), kind: ExternalKind::Gim, ..ExternalConfig::default() };
    let rig = Rig::with(external(dir.path(), config)).await;
    let gateway = rig.gateway(1);
    service.say("7/8/good", Ok(about(0, 0)));
    assert_eq!(sign_in(&gateway, &person(7, 8, "good".into()), 1).await, Ok(7));
    assert_eq!(
        sign_in(&gateway, &person(7, 9, "good".into()), 2).await,
        Err(code::NOT_SIGNED_IN),
        "status 10000 is a no"
    );
    assert_eq!(service.calls(), 2);
    assert_eq!(sign_in(&gateway, &person(0, 8, "good".into()), 3).await, Err(code::NOT_SIGNED_IN));
    assert_eq!(service.calls(), 2, "gim's service is not asked about nobody");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_does_not_answer_opens_nothing_and_is_left_alone_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let service = Arc::new(Service::default());
    service.say("good", Ok(about(0, 0)));
    let (url, serving) = serve(&service).await;
    let address = url.trim_start_matches("http://").to_owned();
    let config = ExternalConfig {
        url: Some(url),
        timeout: Duration::from_millis(300),
        breaker_failures: 3,
        breaker_pause: Duration::from_millis(200),
        cache_ttl: Duration::ZERO,
        ..ExternalConfig::default()
    };
    let rig = Rig::with(external(dir.path(), config)).await;
    let gateway = rig.gateway(1);
    let anna = person(7, 8, "good".into());
    // A busy machine may take longer than the service is given.
    let mut tries = 0;
    while sign_in(&gateway, &anna, 1).await != Ok(7) {
        tries += 1;
        assert!(tries < 100, "the service answers");
    }
    let before = service.calls();
    // Slow: every sign-in is refused as one that may be repeated, most without a question.
    *service.stuck.lock().unwrap() = Some(Arc::new(Notify::new()));
    for index in 2..22 {
        assert_eq!(sign_in(&gateway, &anna, index).await, Err(code::UNAVAILABLE));
        assert_eq!(sync(&rig, &anna).await, refused(Code::Unavailable, "auth_unavailable"));
    }
    assert!(service.calls() - before < 40, "{} calls", service.calls());
    let left_alone = "gimbal_control_auth_checks_total{kind=\"external\",outcome=\"left_alone\"}";
    assert!(metric(&rig, left_alone).await > 0);
    assert_eq!(metric(&rig, "gimbal_control_auth_breaker_open").await, 1);
    // Back again, though not the same process.
    *service.stuck.lock().unwrap() = None;
    serving.abort();
    let _ = serving.await;
    assert_eq!(sign_in(&gateway, &anna, 30).await, Err(code::UNAVAILABLE), "gone");
    let _serving = serve_on(TcpListener::bind(&address).await.unwrap(), &service);
    let mut index = 31;
    while sign_in(&gateway, &anna, index).await != Ok(7) {
        index += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metric(&rig, "gimbal_control_auth_breaker_open").await, 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_went_while_its_token_was_checked_does_not_unseat_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let service = Arc::new(Service::default());
    let (url, _serving) = serve(&service).await;
    let config = ExternalConfig {
        url: Some(url),
        timeout: Duration::from_secs(10),
        cache_ttl: Duration::ZERO,
        ..ExternalConfig::default()
    };
    let rig = Rig::with(external(dir.path(), config)).await;
    let gateway = rig.gateway(1);
    service.say("good", Ok(about(0, 0)));
    let anna = person(7, 8, "good".into());
    let stuck = Arc::new(Notify::new());
    *service.stuck.lock().unwrap() = Some(Arc::clone(&stuck));
    gateway.submit(vec![anna.sign_in(session(1))]);
    while service.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    *service.stuck.lock().unwrap() = None;
    let gone = |index| {
        let (user, device) = (UserId::new(7), DeviceId::new(8));
        Up::Detach { caller: Caller { session: session(index), attach: Default::default(), user, device } }
    };
    gateway.submit(vec![gone(1)]);
    assert_eq!(sign_in(&gateway, &anna, 2).await, Ok(7));
    stuck.notify_waiters();
    // Also when both come in one batch.
    gateway.submit(vec![anna.sign_in(session(3)), gone(3)]);
    while service.calls() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mark = person(70, 80, "good".into());
    assert_eq!(sign_in(&gateway, &mark, 4).await, Ok(70), "nothing of session 1 or 3 came before this");
    let all = rig.admin().list_sessions(keyed("dev", v1::ListSessionsRequest::default())).await.unwrap();
    let sessions: Vec<(u64, String)> =
        all.into_inner().sessions.into_iter().map(|session| (session.user_id, session.session)).collect();
    assert_eq!(sessions, [(7, session(2).to_string()), (70, session(4).to_string())]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_are_bounded_and_who_finds_no_place_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let service = Arc::new(Service::default());
    let (url, _serving) = serve(&service).await;
    let mut config = external(
        dir.path(),
        ExternalConfig { url: Some(url), timeout: Duration::from_secs(10), ..ExternalConfig::default() },
    );
    config.auth.checks_max = 16;
    let rig = Rig::with(config).await;
    let gateway = rig.gateway(1);
    service.say("good", Ok(about(0, 0)));
    let stuck = Arc::new(Notify::new());
    *service.stuck.lock().unwrap() = Some(Arc::clone(&stuck));
    gateway.submit((1..=16).map(|n| person(7, u64::from(n), "good".into()).sign_in(session(n))).collect());
    while service.calls() < 16 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(sign_in(&gateway, &person(7, 99, "good".into()), 99).await, Err(code::BUSY));
    *service.stuck.lock().unwrap() = None;
    stuck.notify_waiters();
    for _ in 1..=16 {
        assert!(matches!(gateway.next().await, Down::SignedIn { .. }));
    }
    rig.stop().await;
}
