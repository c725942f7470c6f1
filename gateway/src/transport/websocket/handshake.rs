//! The request that opens a WebSocket (RFC 6455, section 4.2), and its answer.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use httparse::{EMPTY_HEADER, Header, Status};
use sha1::{Digest as _, Sha1};

use super::super::form::http;
use super::REQUEST_BYTES_MAX;

/// Most headers of a request; browsers send some twenty.
const HEADERS_MAX: usize = 64;

/// Appended to the client's key (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Bytes behind a client's key (RFC 6455, 4.1).
const KEY_BYTES: usize = 16;

/// The one subprotocol we speak.
const SUBPROTOCOL: &str = "gimbal";

const END: &[u8] = b"\r\n\r\n";

/// The end of a key need not be padded with zero bits: only its length counts.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Whose requests are granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Policy {
    /// The only path, with its slash.
    pub(crate) path: String,
    /// Origins of web pages that may connect beside those of the host that is asked for; `*`: all.
    pub(crate) origins: Vec<String>,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $label:literal, $text:literal;)*) => {
        /// Why a request is not granted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub(crate) enum Refusal { $($(#[$doc])* $name,)* }

        impl Refusal {
            /// Every reason, in the order of its number.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// The label of its metric.
            pub(crate) const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            const fn status(self) -> &'static str {
                match self { $(Self::$name => $status,)* }
            }

            const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

refusals! {
    /// Not HTTP/1.1.
    BadRequest = "400 Bad Request", "bad_request", "not an HTTP/1.1 request";
    /// More than [`REQUEST_BYTES_MAX`] or [`HEADERS_MAX`].
    TooLarge = "431 Request Header Fields Too Large", "too_large", "the request is too long";
    /// Not GET.
    BadMethod = "405 Method Not Allowed", "bad_method", "only GET";
    /// Another path.
    NotFound = "404 Not Found", "not_found", "nothing here";
    /// None, or several.
    BadHost = "400 Bad Request", "bad_host", "one Host header is needed";
    /// With a body.
    HasBody = "400 Bad Request", "has_body", "a request with a body";
    /// Does not ask to become a WebSocket.
    NotUpgrade = "426 Upgrade Required", "not_upgrade", "this is for WebSocket clients";
    /// Not version 13.
    BadVersion = "426 Upgrade Required", "bad_version", "only WebSocket version 13";
    /// Not one key of 16 bytes.
    BadKey = "400 Bad Request", "bad_key", "one Sec-WebSocket-Key of 16 bytes is needed";
    /// A web page that may not.
    BadOrigin = "403 Forbidden", "bad_origin", "this origin is not allowed";
}

impl Refusal {
    /// The whole answer.
    pub(crate) fn answer(self) -> Vec<u8> {
        let headers = match self {
            Self::BadMethod => "Allow: GET\r\n",
            Self::NotUpgrade | Self::BadVersion => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        };
        http(self.status(), headers, self.text())
    }
}

/// The beginning of a request.
#[derive(Debug, Default)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        size_of_val(self) + self.bytes.capacity()
    }
}

/// What a request comes to.
#[derive(Debug)]
pub(super) enum Head {
    /// The answer that grants it.
    Granted(Vec<u8>),
    Refused(Refusal),
}

/// Reads on to the end of the request: what it comes to, and how many bytes of `chunk` belong to it. `None`: all of it
/// does, and more is to come.
pub(super) fn take(
    request: &mut Option<Box<Request>>,
    chunk: &[u8],
    policy: &Policy,
) -> Option<(Head, usize)> {
    if request.is_none() {
        if let Some(end) = end_of(chunk, 0) {
            return Some((judge(&chunk[..end], policy), end));
        }
        if chunk.is_empty() {
            return None;
        }
    }
    let known = &mut request.get_or_insert_default().bytes;
    let before = known.len();
    known.extend_from_slice(&chunk[..chunk.len().min(REQUEST_BYTES_MAX + 1 - before)]);
    if let Some(end) = end_of(known, before) {
        return Some((judge(&known[..end], policy), end - before));
    }
    let refusal = if !may_be_http(known) {
        Refusal::BadRequest
    } else if known.len() > REQUEST_BYTES_MAX {
        Refusal::TooLarge
    } else {
        return None;
    };
    Some((Head::Refused(refusal), chunk.len()))
}

/// Where the request ends; nothing ends in the first `seen` bytes.
fn end_of(bytes: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(END.len() - 1);
    let at = bytes[from..].windows(END.len()).position(|window| window == END)?;
    Some(from + at + END.len())
}

/// Whether a method and a space stand, or may come to stand, at its start: so that other protocols are told at once.
fn may_be_http(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    method <= 7 && (method == bytes.len() || (method > 0 && bytes[method] == b' '))
}

fn judge(request: &[u8], policy: &Policy) -> Head {
    if !may_be_http(request) {
        return Head::Refused(Refusal::BadRequest);
    }
    if request.len() > REQUEST_BYTES_MAX {
        return Head::Refused(Refusal::TooLarge);
    }
    match grant(request, policy) {
        Ok(answer) => Head::Granted(answer),
        Err(refusal) => Head::Refused(refusal),
    }
}

fn grant(bytes: &[u8], policy: &Policy) -> Result<Vec<u8>, Refusal> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Complete(_)) if request.version == Some(1) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        _ => return Err(Refusal::BadRequest),
    }
    if request.method != Some("GET") {
        return Err(Refusal::BadMethod);
    }
    let target = request.path.unwrap_or_default();
    if target.split('?').next() != Some(&policy.path) {
        return Err(Refusal::NotFound);
    }
    let headers = Headers(request.headers);
    let host = headers.only("host").filter(|host| !host.is_empty()).ok_or(Refusal::BadHost)?;
    if headers.all("content-length").any(|length| length != b"0") || headers.has("transfer-encoding") {
        return Err(Refusal::HasBody);
    }
    if !headers.has_token("upgrade", "websocket") || !headers.has_token("connection", "upgrade") {
        return Err(Refusal::NotUpgrade);
    }
    if headers.only("sec-websocket-version") != Some(b"13") {
        return Err(Refusal::BadVersion);
    }
    let key = headers.only("sec-websocket-key").filter(|key| is_key(key)).ok_or(Refusal::BadKey)?;
    if headers.has("origin") && !headers.only("origin").is_some_and(|origin| policy.allows(origin, host)) {
        return Err(Refusal::BadOrigin);
    }
    let subprotocol = match headers.has_token("sec-websocket-protocol", SUBPROTOCOL) {
        true => format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"),
        false => String::new(),
    };
    let accept = BASE64.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{subprotocol}\r\n"
    )
    .into_bytes())
}

fn is_key(key: &[u8]) -> bool {
    let mut decoded = [0; KEY_BYTES + 2];
    key.len() == 24 && BASE64.decode_slice(key, &mut decoded) == Ok(KEY_BYTES)
}

impl Policy {
    /// Whether a page from `origin` may connect to `host`. A browser sends both; other programs can say what they like.
    fn allows(&self, origin: &[u8], host: &[u8]) -> bool {
        let is_listed = |listed: &String| listed == "*" || listed.as_bytes().eq_ignore_ascii_case(origin);
        self.origins.iter().any(is_listed)
            || authority_of(origin).is_some_and(|own| name_of(own).eq_ignore_ascii_case(name_of(host)))
    }
}

/// `host[:port]` of `scheme://host[:port]`.
fn authority_of(origin: &[u8]) -> Option<&[u8]> {
    let at = origin.windows(3).position(|window| window == b"://")?;
    Some(&origin[at + 3..])
}

/// The host without its port; an IPv6 address keeps its brackets.
fn name_of(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|byte| matches!(byte, b':' | b']')) {
        Some(colon) if authority[colon] == b':' => &authority[..colon],
        _ => authority,
    }
}

struct Headers<'a>(&'a [Header<'a>]);

impl<'a> Headers<'a> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        let named = self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii())
    }

    fn has(&self, name: &'static str) -> bool {
        self.all(name).next().is_some()
    }

    /// The value, if the header is there once.
    fn only(&self, name: &'static str) -> Option<&'a [u8]> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// Whether a list, which may be spread over several headers, holds `token` in any case.
    fn has_token(&self, name: &'static str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }
}
