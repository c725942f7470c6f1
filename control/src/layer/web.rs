//! Browsers: which pages may call the clients' services (the fetch standard's CORS), and that they call no others.

use tonic::{
    body::Body,
    codegen::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header},
};

/// Services that a page may call; its calls bring a device's token, never a key.
const SERVICES: [&str; 4] =
    ["/gimbal.v1.Accounts/", "/gimbal.v1.Messages/", "/gimbal.v1.Friends/", "/gimbal.v1.Groups/"];
/// What its requests may carry beside what is always allowed. Not `authorization`: keys are not for browsers.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "content-type,x-grpc-web,x-user-agent,grpc-timeout,user_id,device_id,token,request_id",
);
/// What it may read of answers.
const ANSWER_HEADERS: HeaderValue = HeaderValue::from_static(
    "grpc-status,grpc-message,gimbal-reason,gimbal-field,gimbal-retry-after-ms,request_id",
);
/// How long a browser remembers the answer to a preflight, in seconds; browsers cap it at two hours or less.
const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");

/// The pages' origins; none: no page may call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Web {
    origins: Vec<HeaderValue>,
}

/// What is to be done with a request.
pub(super) enum Access {
    /// Go on; the answer carries the origin, if there is one.
    Granted(Option<HeaderValue>),
    /// Answered here.
    Answered(Response<Body>),
}

impl Web {
    /// Pages of `origins` may call: scheme, host and port, exactly as browsers say them.
    pub(crate) fn new(origins: Vec<HeaderValue>) -> Self {
        Self { origins }
    }

    /// Whether any page may.
    pub(crate) fn is_open(&self) -> bool {
        !self.origins.is_empty()
    }

    /// Over HTTP/1 and from pages only the clients' services are called.
    pub(super) fn admit(&self, request: &Request<Body>) -> Access {
        let origin = request.headers().get(header::ORIGIN);
        let is_plain = request.version() == Version::HTTP_2 && origin.is_none();
        if is_plain {
            return Access::Granted(None);
        }
        if !SERVICES.iter().any(|service| request.uri().path().starts_with(service)) {
            return Access::Answered(answer(StatusCode::FORBIDDEN));
        }
        let Some(origin) = origin else { return Access::Granted(None) };
        if !self.origins.contains(origin) {
            return Access::Answered(answer(StatusCode::FORBIDDEN));
        }
        if request.method() != Method::OPTIONS {
            return Access::Granted(Some(origin.clone()));
        }
        let mut response = answer(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        allow(headers, origin.clone());
        Access::Answered(response)
    }
}

/// Lets the page of `origin` read an answer.
pub(super) fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

fn answer(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
