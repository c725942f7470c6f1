//! gRPC-Web by hand over HTTP/1.1, as a browser sends it.

use gimbal_rpc::v1;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use super::rig::{Rig, config, keyed, why};

const PAGE: &str = "https://app.example";

struct Answer {
    status: u16,
    /// In small letters.
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn has(&self, line: &str) -> bool {
        self.head.lines().any(|found| found.trim_end() == line)
    }

    /// The message, if there is one, and the trailers.
    fn parts(&self) -> (Option<&[u8]>, String) {
        let (mut message, mut trailers, mut rest) = (None, String::new(), &self.body[..]);
        while let [kind, a, b, c, d, more @ ..] = rest {
            let (part, after) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            match kind {
                0 => message = Some(part),
                0x80 => trailers = String::from_utf8(part.to_vec()).unwrap(),
                other => panic!("a frame of kind {other}"),
            }
            rest = after;
        }
        (message, trailers)
    }
}

/// One request on a connection of its own; `None`: no answer.
async fn ask(rig: &Rig, request: &str, body: &[u8]) -> Option<Answer> {
    let mut socket = TcpStream::connect(rig.server.grpc_address()).await.unwrap();
    let length = body.len();
    let head = format!("{request}Host: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    socket.write_all(&[head.as_bytes(), body].concat()).await.ok()?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.ok()?;
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..end].to_vec()).ok()?.to_lowercase();
    let status = head.strip_prefix("http/1.1 ")?.get(..3)?.parse().ok()?;
    let body = &answer[end + 4..];
    let body = if head.contains("chunked") { unchunked(body) } else { body.to_vec() };
    Some(Answer { status, head, body })
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|part| part == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
}

fn post(method: &str, origin: &str) -> String {
    format!(
        "POST /gimbal.v1.{method} HTTP/1.1\r\nOrigin: {origin}\r\n\
         Content-Type: application/grpc-web+proto\r\nX-Grpc-Web: 1\r\n"
    )
}

fn framed(message: &impl prost::Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    framed.extend(bytes);
    framed
}

async fn rig(dir: &std::path::Path) -> Rig {
    Rig::with(gimbal_control::Config { cors_origins: vec![PAGE.into()], ..config(dir) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_signs_in_and_reads_its_mailbox_and_what_it_may_not_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let sign_in = v1::SignInRequest { phone_number: "1".into(), code: "x".into(), device: None };
    let answer = ask(&rig, &post("Accounts/SignIn", PAGE), &framed(&sign_in)).await.unwrap();
    assert!(answer.status == 200 && answer.has("access-control-allow-origin: https://app.example"));
    let (message, trailers) = answer.parts();
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
    let signed_in = v1::SignInReply::decode(message.unwrap()).unwrap();

    let sync = format!(
        "{}user_id: {}\r\ndevice_id: {}\r\ntoken: {}\r\n",
        post("Messages/Sync", PAGE),
        signed_in.user_id,
        signed_in.device_id,
        signed_in.token
    );
    let answer = ask(&rig, &sync, &framed(&v1::SyncRequest::default())).await.unwrap();
    assert!(v1::SyncReply::decode(answer.parts().0.unwrap()).is_ok());

    let answer = ask(&rig, &post("Messages/Sync", PAGE), &framed(&v1::SyncRequest::default())).await.unwrap();
    let told = format!("{}\n{}", answer.head, answer.parts().1);
    assert!(told.contains("gimbal-reason: not_signed_in") || told.contains("gimbal-reason:not_signed_in"));
    assert!(answer.has("access-control-allow-origin: https://app.example"), "the page may read the refusal");
    let stats = rig.admin().stats(keyed("dev", v1::StatsRequest {})).await;
    assert!(stats.is_ok(), "HTTP/2 beside it");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_is_answered_for_listed_pages_and_the_clients_services_alone() {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig(dir.path()).await;
    let preflight = |path: &str, origin: &str| {
        format!(
            "OPTIONS {path} HTTP/1.1\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: content-type,x-grpc-web,token\r\n"
        )
    };
    let send = "/gimbal.v1.Messages/Send";
    let granted = ask(&rig, &preflight(send, PAGE), &[]).await.unwrap();
    assert_eq!(granted.status, 204);
    for line in [
        "access-control-allow-origin: https://app.example",
        "access-control-allow-methods: post",
        "vary: origin",
    ] {
        assert!(granted.has(line), "{line} is not in {}", granted.head);
    }
    let allowed =
        granted.head.lines().find(|line| line.starts_with("access-control-allow-headers:")).unwrap();
    assert!(allowed.contains("token") && !allowed.contains("authorization"), "keys are not for browsers");
    for (path, origin) in [
        (send, "https://evil.example"),
        (send, "https://app.example.evil.example"),
        (send, "null"),
        ("/gimbal.v1.Admin/Stats", PAGE),
        ("/gimbal.v1.Rooms/Publish", PAGE),
        ("/gimbal.link.v1.Link/Open", PAGE),
    ] {
        let refused = ask(&rig, &preflight(path, origin), &[]).await.unwrap();
        assert!(refused.status == 403 && !refused.head.contains("access-control"), "{path} {origin}");
    }
    let stats = format!("{}Authorization: Bearer dev\r\n", post("Admin/Stats", PAGE));
    assert_eq!(ask(&rig, &stats, &framed(&v1::StatsRequest {})).await.unwrap().status, 403);
    let pageless = "POST /gimbal.v1.Admin/Stats HTTP/1.1\r\nAuthorization: Bearer dev\r\n";
    assert_eq!(ask(&rig, pageless, &framed(&v1::StatsRequest {})).await.unwrap().status, 403, "over HTTP/1");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_pages_no_http_1_is_spoken_and_a_page_over_http_2_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let sign_in = framed(&v1::SignInRequest::default());
    assert!(
        ask(&rig, &post("Accounts/SignIn", PAGE), &sign_in).await.is_none_or(|answer| answer.status != 200)
    );
    let mut request = tonic::Request::new(v1::SignInRequest::default());
    request.metadata_mut().insert("origin", PAGE.parse().unwrap());
    let refused = rig.accounts().sign_in(request).await.unwrap_err();
    assert_eq!((refused.code(), why(&refused).0), (Code::PermissionDenied, ""));
    rig.stop().await;
}
