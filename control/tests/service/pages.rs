//! Health, reflection, and the HTTP pages.

use std::sync::Arc;

use gimbal_rpc::v1;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::rig::{Rig, keyed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_answer_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut health = HealthClient::new(rig.channel.clone());
    for service in ["", "gimbal.v1.Messages", "gimbal.v1.Admin"] {
        let reply = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(reply.status, 1, "{service:?} serves");
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(rig.channel.clone());
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("a list") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["gimbal.v1.Accounts", "gimbal.v1.Messages", "gimbal.v1.Rooms", "gimbal.v1.Admin"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    drop(answers);
    drop((health, reflection));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_tell_life_readiness_and_figures() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let _gateway = rig.gateway(1);
    rig.admin().stats(keyed("wrong", v1::StatsRequest {})).await.unwrap_err();
    rig.person("1").await;
    rig.server.add_metrics(Arc::new(|page| page.push_str("# TYPE other gauge\nother 1\n# EOF\n")));

    assert_eq!(rig.http("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(rig.http("/readyz").await, (200, "store ok\nserving yes\ngateways 1\n".to_owned()));
    assert_eq!(rig.http("/nothing").await.0, 404);
    let (status, page) = rig.http("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "gimbal_control_grpc_calls_total{method=\"gimbal.v1.Admin/Stats\",code=\"UNAUTHENTICATED\"} 1",
        "gimbal_control_grpc_calls_total{method=\"gimbal.v1.Accounts/SignIn\",code=\"OK\"} 1",
        "gimbal_control_links 1",
        "gimbal_control_store_healthy 1",
        "other 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    check_form(&page);
    rig.stop().await;
}

/// Every line is a comment or `name{labels} number`; every sample follows the type of its family; one end mark.
fn check_form(page: &str) {
    assert!(page.ends_with("# EOF\n"));
    assert_eq!(page.matches("# EOF").count(), 1);
    let mut family = "";
    let mut seen = std::collections::HashSet::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
            assert!(seen.insert(family), "{family} is told twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(family), "{line} under {family}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_carries_its_request_id_back() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut request = keyed("dev", v1::StatsRequest {});
    request.metadata_mut().insert("request_id", "abc-1".parse().unwrap());
    let reply = rig.admin().stats(request).await.unwrap();
    assert_eq!(reply.metadata().get("request_id").unwrap(), "abc-1");
    let reply = rig.admin().stats(keyed("dev", v1::StatsRequest {})).await.unwrap();
    assert!(reply.metadata().contains_key("request_id"), "one is made when the caller has none");
    rig.stop().await;
}
