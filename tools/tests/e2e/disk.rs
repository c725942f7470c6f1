//! What a start finds on disk: made by writing to the store while no server runs.

use std::path::Path;

use gimbal_codec::{CloseReason, code};
use gimbal_control::{
    log::Record,
    partition::Partition,
    store::{
        Store as _, Table, View as _,
        key::{Meta, OfDevice},
        rocks::{RocksOptions, RocksStore, SCHEMA},
        value::{MetaNumber, TokenRecord, Value as _},
    },
};

use crate::{
    harness::{Api, Client, Server, client::Refused},
    start::Attempt,
};

fn write(
    data: &Path,
    partition: Partition,
    table: Table,
    key: &[u8],
    change: impl FnOnce(Option<Vec<u8>>) -> Vec<u8>,
) {
    let store = RocksStore::open(data, RocksOptions::default()).unwrap();
    let mut record = Record::default();
    record.put(table, key, &change(store.get(table, key).unwrap()));
    store.apply(&[(partition, record)]).unwrap();
}

#[test]
fn data_of_a_newer_version_is_refused_and_left_as_it_is() {
    let attempt = Attempt::new();
    let newer = |_| MetaNumber { value: SCHEMA + 1 }.to_bytes();
    write(&attempt.data(), Partition::META, Table::Meta, &Meta::Schema.key(), newer);
    for _ in 0..2 {
        attempt.fails(&attempt.data(), &["newer", &(SCHEMA + 1).to_string()]);
    }
}

#[test]
fn an_expired_token_signs_nobody_in() {
    let mut server = Server::start();
    let device = Api::connect(server.grpc).device();
    Client::online(server.tcp, &device).heartbeat();
    server.terminate();
    assert!(server.wait().success());
    let key = OfDevice::Token.key(device.user, device.device);
    write(&server.data(), Partition::of_user(device.user), Table::Device, &key, |value| {
        let mut record = TokenRecord::from_bytes(&value.expect("a token")).unwrap();
        record.token.as_mut().expect("valid").expires_at_ms = 1;
        record.to_bytes()
    });
    server.launch();
    let mut client = Client::connect(server.tcp);
    assert_eq!(client.sign_in(&device, Some(0)), Err(Refused(code::NOT_SIGNED_IN)));
    assert_eq!(client.closed(), CloseReason::SignInFailed.code());
    assert!(Api::connect(server.grpc).sync(&device, 0).is_err());
}
