//! What happened to a message, as an administrator asks for it.

use gimbal_rpc::link::{Caller, Down, Tag, Up};
use gimbal_rpc::v1;
use tonic::Code;

use super::calls::{attached, caller};
use super::rig::{Rig, WAIT, keyed, why};

async fn trace(rig: &Rig, request: v1::TraceRequest) -> Result<v1::TraceReply, tonic::Status> {
    rig.admin().trace(keyed("dev", request)).await.map(tonic::Response::into_inner)
}

fn of(message_id: u64) -> v1::TraceRequest {
    v1::TraceRequest { message_id, ..Default::default() }
}

/// Of the only mailbox's only device.
async fn device(rig: &Rig, message: u64) -> v1::TracedDevice {
    let mut reply = trace(rig, of(message)).await.unwrap();
    reply.mailboxes.pop().unwrap().devices.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_followed_from_its_commit_to_its_ack_over_link_and_grpc() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let (anna, ben) = (rig.person("1").await, rig.person("2").await);
    let send = |id| v1::SendRequest {
        client_message_id: id,
        to_user: ben.user,
        command: 7,
        content: "text".into(),
        to_group: 0,
    };
    let missed = rig.messages().send(anna.call(send(1))).await.unwrap().into_inner().message_id;
    assert_eq!(device(&rig, missed).await.outcome, "not_online");

    let gateway = rig.gateway(9);
    let attach = attached(&gateway, &ben, 1).await;
    let ben_calls: Caller = caller(&ben, 1, attach);
    let live = rig.messages().send(anna.call(send(2))).await.unwrap().into_inner().message_id;
    assert!(matches!(gateway.next().await, Down::Deliver { .. }));
    let pushed = device(&rig, live).await;
    assert_eq!((pushed.outcome.as_str(), pushed.pushes[0].gateway_id), ("pushed", 9));

    let sync =
        Up::Sync { caller: ben_calls, tag: Tag::default(), after: gimbal_codec::Seq::new(0), limit: 1 };
    gateway.submit(vec![sync]);
    assert!(matches!(gateway.next().await, Down::SyncDone { .. }));
    // The page is noted just after it was given.
    let answered = async {
        while device(&rig, missed).await.outcome != "answered" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, answered).await.expect("noted in time");
    assert_eq!(device(&rig, live).await.outcome, "pushed", "the page ended before it");

    rig.messages().ack(ben.call(v1::AckRequest { seq: 1 })).await.unwrap();
    let acked = device(&rig, missed).await;
    assert!(acked.outcome == "acked" && acked.acked_at_ms > 0 && acked.answered_at_ms > 0, "{acked:?}");
    rig.messages().sync(ben.call(v1::SyncRequest { after: 2, limit: 0 })).await.unwrap();
    assert_eq!(device(&rig, live).await.outcome, "passed");

    let reply = trace(&rig, v1::TraceRequest { user_id: ben.user, ..of(live) }).await.unwrap();
    assert_eq!((reply.from_user, reply.content_bytes, reply.mailboxes[0].seq), (anna.user, 4, 2));
    assert!(reply.created_at_ms > 0 && reply.since_ms > 0 && reply.mailboxes[0].released_at_ms > 0);
    let (_, page) = rig.http("/metrics").await;
    assert!(page.contains("gimbal_control_trace_bytes 320"), "five records so far");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_makes_no_sense_or_is_nobodys_to_ask_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let anna = rig.person("1").await;
    let cases = [
        (of(0), Code::InvalidArgument, ("bad_request", "message_id")),
        (v1::TraceRequest { page_size: 201, ..of(1) }, Code::InvalidArgument, ("bad_request", "page_size")),
        (
            v1::TraceRequest { page_token: "x".into(), ..of(1) },
            Code::InvalidArgument,
            ("bad_request", "page_token"),
        ),
        (of(u64::MAX), Code::NotFound, ("not_traced", "")),
        (v1::TraceRequest { user_id: anna.user, ..of(1) }, Code::NotFound, ("not_traced", "")),
        (v1::TraceRequest { user_id: u64::MAX, ..of(1) }, Code::NotFound, ("user_not_found", "")),
    ];
    for (request, code, reason) in cases {
        let refused = trace(&rig, request.clone()).await.unwrap_err();
        assert_eq!((refused.code(), why(&refused)), (code, reason), "{request:?}");
    }
    let refused = rig.admin().trace(anna.call(of(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    rig.stop().await;
}
