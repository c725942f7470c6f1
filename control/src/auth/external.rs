//! A service that knows who a device is, asked over gRPC.

use std::{sync::Arc, time::Duration};

use gimbal_codec::{DeviceId, UserId};
use gimbal_rpc::{
    gim::{AuthRequest, user_int_service_client::UserIntServiceClient},
    v1::{self, authenticator_client::AuthenticatorClient},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http,
    transport::{Channel, Endpoint},
};

use super::{Claimed, Said, Shown, Subject, breaker::Breaker, cache::Cache, jwt::Identity, vouched};
use crate::{
    clock,
    config::{ExternalConfig, ExternalKind},
    error::RequestError,
    metrics::Metrics,
};

/// A longer answer is none.
const ANSWER_BYTES_MAX: usize = 8 << 10;
/// gim's code for every token that does not open (its other codes are no answer to a question about a token).
const GIM_UNAUTHORIZED: &str = "10000";

/// The service, with what was learned about it.
pub(super) struct External {
    kind: ExternalKind,
    timeout: Duration,
    channel: Channel,
    cache: Cache,
    breaker: Breaker,
    metrics: Arc<Metrics>,
}

/// What the service said.
enum Answer {
    Yes(Identity),
    No,
}

impl External {
    /// At `endpoint`, to which it connects when it is first asked.
    pub(super) fn new(config: &ExternalConfig, endpoint: &Endpoint, metrics: &Arc<Metrics>) -> Self {
        let channel = endpoint.connect_lazy();
        Self {
            kind: config.kind,
            timeout: config.timeout,
            channel,
            cache: Cache::new(config.cache_ttl, config.cache_entries_max),
            breaker: Breaker::new(config.breaker_failures, config.breaker_pause),
            metrics: Arc::clone(metrics),
        }
    }

    pub(super) fn forget(&self, user: UserId) {
        self.cache.forget(user);
    }

    /// Whom the token is of, as the service says. It is asked only when it must be, and a service that does not answer opens
    /// nothing.
    pub(super) async fn says(&self, claimed: &Claimed, token: &[u8]) -> Said {
        let shown = Shown::new(claimed, token);
        if let Some(identity) = self.cache.get(&shown, clock::now()) {
            return vouched(identity, claimed).map(|vouched| (vouched, "cached"));
        }
        let is_whole = !claimed.user.is_none() && !claimed.device.is_none();
        let text = std::str::from_utf8(token).ok().filter(|_| is_whole || self.kind == ExternalKind::Gimbal);
        let text = text.ok_or((RequestError::NotSignedIn, "malformed"))?;
        if !self.breaker.may_call(clock::now()) {
            return Err((RequestError::AuthUnavailable, "left_alone"));
        }
        // What is vouched for is vouched for as of the question: a revocation during the answer counts.
        let asked_at_ms = clock::now_ms();
        let answer = tokio::time::timeout(self.timeout, self.ask(claimed, text, asked_at_ms)).await;
        let identity = match answer {
            Ok(Ok(answer)) => {
                self.breaker.answered();
                self.metrics.auth_breaker_open.set(0);
                match answer {
                    Answer::Yes(identity) => identity,
                    Answer::No => return Err((RequestError::NotSignedIn, "refused")),
                }
            }
            Ok(Err(outcome)) => return Err(self.failed(outcome)),
            Err(_) => return Err(self.failed("timeout")),
        };
        if clock::now_ms() >= identity.expires_at_ms {
            return Err((RequestError::NotSignedIn, "expired"));
        }
        let vouched = vouched(identity.clone(), claimed)?;
        self.cache.put(shown, identity, clock::now());
        Ok((vouched, "ok"))
    }

    fn failed(&self, outcome: &'static str) -> (RequestError, &'static str) {
        if self.breaker.failed(clock::now()) {
            tracing::warn!(outcome, "the authenticator does not answer and is left alone for a while");
        }
        self.metrics.auth_breaker_open.set(i64::from(self.breaker.is_open()));
        (RequestError::AuthUnavailable, outcome)
    }

    async fn ask(&self, claimed: &Claimed, token: &str, now_ms: i64) -> Result<Answer, &'static str> {
        let answer = match self.kind {
            ExternalKind::Gimbal => self.ask_gimbal(claimed, token, now_ms).await,
            ExternalKind::Gim => self.ask_gim(claimed, token, now_ms).await,
        };
        answer.or_else(|status| match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::NotFound => Ok(Answer::No),
            Code::DeadlineExceeded | Code::Cancelled => Err("timeout"),
            Code::Unavailable => Err("unavailable"),
            Code::OutOfRange => Err("bad_answer"),
            _ => Err("failed"),
        })
    }

    async fn ask_gimbal(&self, claimed: &Claimed, token: &str, now_ms: i64) -> Result<Answer, Status> {
        let mut client =
            AuthenticatorClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = v1::AuthenticateRequest {
            user_id: claimed.user.get(),
            device_id: claimed.device.get(),
            token: token.to_owned(),
            peer: claimed.peer.clone(),
        };
        let reply = client.authenticate(request).await?.into_inner();
        let or = |said: u64, claimed: u64| if said == 0 { claimed } else { said };
        let user = or(reply.user_id, claimed.user.get());
        let device = or(reply.device_id, claimed.device.get());
        if user == 0 || device == 0 || user.max(device) > i64::MAX as u64 {
            return Err(Status::out_of_range("an answer about nobody"));
        }
        Ok(Answer::Yes(Identity {
            user: Subject::Id(UserId::new(user)),
            device: Some(DeviceId::new(device)),
            issued_at_ms: now_ms,
            expires_at_ms: if reply.expires_at_ms == 0 { i64::MAX } else { reply.expires_at_ms },
        }))
    }

    async fn ask_gim(&self, claimed: &Claimed, token: &str, now_ms: i64) -> Result<Answer, Status> {
        let mut client = UserIntServiceClient::new(GimCodes(self.channel.clone()))
            .max_decoding_message_size(ANSWER_BYTES_MAX);
        let (user, device) = (claimed.user, claimed.device);
        let token = token.to_owned();
        client.auth(AuthRequest { user_id: user.get(), device_id: device.get(), token }).await?;
        Ok(Answer::Yes(Identity {
            user: Subject::Id(user),
            device: Some(device),
            issued_at_ms: now_ms,
            expires_at_ms: i64::MAX,
        }))
    }
}

/// gim answers with numbers of its own in `grpc-status`, which a gRPC library reads as "unknown": the one that says no
/// becomes the code that says so.
#[derive(Clone)]
struct GimCodes(Channel);

type Answering =
    std::pin::Pin<Box<dyn Future<Output = Result<http::Response<Body>, tonic::transport::Error>> + Send>>;

impl tonic::codegen::Service<http::Request<Body>> for GimCodes {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        tonic::codegen::Service::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        let answer = tonic::codegen::Service::call(&mut self.0, request);
        Box::pin(async move {
            let mut response = answer.await?;
            let status = response.headers_mut().get_mut("grpc-status");
            if let Some(status) = status.filter(|status| status.as_bytes() == GIM_UNAUTHORIZED.as_bytes()) {
                *status = http::HeaderValue::from(Code::Unauthenticated as i32);
            }
            Ok(response)
        })
    }
}
