//! Every link item survives its wire form; what the types cannot hold is refused.

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::link::RoomPlace;

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
}

fn session() -> impl Strategy<Value = SessionKey> {
    any::<u64>().prop_map(SessionKey::from_u64)
}

fn caller() -> impl Strategy<Value = Caller> {
    any::<[u64; 4]>().prop_map(|[session, attach, user, device]| super::caller(session, attach, user, device))
}

fn to() -> impl Strategy<Value = (SessionKey, Attach)> {
    (session(), any::<u64>().prop_map(Attach::new))
}

fn tag() -> impl Strategy<Value = Tag> {
    (bytes(), any::<u64>()).prop_map(|(request_id, seq)| Tag { request_id, seq })
}

fn seq() -> impl Strategy<Value = Seq> {
    any::<u64>().prop_map(Seq::new)
}

fn cursor() -> impl Strategy<Value = Option<Seq>> {
    proptest::option::of(seq())
}

fn refusal() -> impl Strategy<Value = Refusal> {
    (any::<i32>(), "[a-z_ ]{0,20}").prop_map(|(code, message)| Refusal { code, message })
}

fn body() -> impl Strategy<Value = Arc<Body>> {
    (any::<[u64; 3]>(), any::<i32>(), bytes(), any::<i64>()).prop_map(
        |(ids, command, content, created_at_ms)| {
            Arc::new(Body {
                message_id: MessageId::new(ids[0]),
                from_user: UserId::new(ids[1]),
                from_device: DeviceId::new(ids[2]),
                command,
                content,
                created_at_ms,
                group: GroupId::new(ids[0] / 3),
                group_seq: Seq::new(ids[1] / 3),
            })
        },
    )
}

fn signal() -> impl Strategy<Value = Signal> {
    let to = prop_oneof![
        (1..u64::MAX).prop_map(|id| SignalTarget::User(UserId::new(id))),
        (1..u64::MAX).prop_map(|id| SignalTarget::Room(RoomId::new(id))),
    ];
    (any::<[u64; 2]>(), to, any::<i32>(), bytes()).prop_map(|(from, to, command, content)| Signal {
        from_user: UserId::new(from[0]),
        from_device: DeviceId::new(from[1]),
        to,
        command,
        content,
    })
}

fn up() -> impl Strategy<Value = Up> {
    let sign_in = (caller(), bytes(), cursor(), "[0-9.:]{0,21}").prop_map(|(of, token, cursor, peer)| {
        Up::SignIn { session: of.session, user: of.user, device: of.device, token, cursor, peer }
    });
    let to = prop_oneof![
        any::<u64>().prop_map(|id| Recipient::User(UserId::new(id))),
        (1..u64::MAX).prop_map(|id| Recipient::Group(GroupId::new(id))),
    ];
    let send = (caller(), tag(), any::<u64>(), to, any::<i32>(), bytes()).prop_map(
        |(caller, tag, id, to, command, content)| Up::Send {
            caller,
            tag,
            client_message_id: ClientMessageId::new(id),
            to,
            command,
            content,
        },
    );
    prop_oneof![
        sign_in,
        (caller(), cursor(), "[0-9.:]{0,21}").prop_map(|(caller, cursor, peer)| Up::Announce {
            caller,
            cursor,
            peer
        }),
        caller().prop_map(|caller| Up::Detach { caller }),
        send,
        (caller(), tag(), seq(), any::<u32>()).prop_map(|(caller, tag, after, limit)| Up::Sync {
            caller,
            tag,
            after,
            limit
        }),
        (caller(), tag(), seq()).prop_map(|(caller, tag, seq)| Up::Ack { caller, tag, seq }),
        (caller(), tag(), any::<u64>(), any::<i32>(), bytes()).prop_map(
            |(caller, tag, room, command, content)| {
                Up::Publish { caller, tag, room: RoomId::new(room), command, content }
            }
        ),
        (any::<u64>(), any::<u8>(), any::<u32>()).prop_map(|(room, shard, members)| Up::RoomInterest {
            room: RoomId::new(room),
            shard: ShardId(shard),
            members
        }),
        signal().prop_map(Up::Signal),
    ]
}

fn page() -> impl Strategy<Value = Page> {
    (proptest::collection::vec((seq(), body()), 0..4), any::<[u64; 3]>(), any::<bool>()).prop_map(
        |(entries, [end, latest, trimmed], has_more)| Page {
            entries,
            end: Seq::new(end),
            latest: Seq::new(latest),
            has_more,
            trimmed_to: Seq::new(trimmed),
        },
    )
}

fn sent() -> impl Strategy<Value = SendResult> {
    (any::<[u64; 2]>(), any::<i64>(), any::<bool>()).prop_map(|([id, seq], created_at_ms, duplicate)| {
        SendResult { message_id: MessageId::new(id), seq: Seq::new(seq), created_at_ms, duplicate }
    })
}

fn place() -> impl Strategy<Value = RoomPlace> {
    (any::<[u64; 2]>(), any::<i64>()).prop_map(|([epoch, seq], created_at_ms)| RoomPlace {
        epoch,
        seq,
        created_at_ms,
    })
}

fn down() -> impl Strategy<Value = Down> {
    let target = (to(), seq()).prop_map(|((session, attach), seq)| Target { session, attach, seq });
    let done = || (to(), tag());
    prop_oneof![
        (to(), seq(), any::<[u64; 2]>(), any::<i64>()).prop_map(
            |((session, attach), latest, [user, device], expires_at_ms)| {
                let grant = Grant { user: UserId::new(user), device: DeviceId::new(device), expires_at_ms };
                Down::SignedIn { session, attach, latest, grant }
            }
        ),
        (session(), refusal()).prop_map(|(session, refusal)| Down::SignInRefused { session, refusal }),
        (to(), seq()).prop_map(|((session, attach), latest)| Down::Announced { session, attach, latest }),
        (body(), proptest::collection::vec(target, 1..5))
            .prop_map(|(body, targets)| Down::Deliver { body, targets }),
        (done(), proptest::result::maybe_ok(sent(), refusal()))
            .prop_map(|((to, tag), result)| Down::SendDone { to, tag, result }),
        (done(), proptest::result::maybe_ok(page(), refusal()))
            .prop_map(|((to, tag), result)| Down::SyncDone { to, tag, result }),
        (done(), proptest::result::maybe_ok(seq(), refusal()))
            .prop_map(|((to, tag), result)| Down::AckDone { to, tag, result }),
        (done(), proptest::result::maybe_ok(place(), refusal()))
            .prop_map(|((to, tag), result)| Down::PublishDone { to, tag, result }),
        (any::<u64>(), bytes()).prop_map(|(room, frame)| Down::Room { room: RoomId::new(room), frame }),
        (bytes(), any::<u32>()).prop_map(|(frame, per_second)| Down::All { frame, per_second }),
        signal().prop_map(Down::Signal),
        (to(), proptest::sample::select(CloseReason::ALL))
            .prop_map(|((session, attach), reason)| Down::Kick { session, attach, reason }),
    ]
}

proptest! {
    #[test]
    fn every_up_item_survives_the_wire(item in up()) {
        let bytes = pb::Up::from(item.clone()).encode_to_vec();
        let back = Up::try_from(pb::Up::decode(bytes.as_slice()).expect("own bytes parse")).expect("own item converts");
        prop_assert_eq!(back, item);
    }

    #[test]
    fn every_down_item_survives_the_wire(item in down()) {
        let bytes = pb::Down::from(item.clone()).encode_to_vec();
        let back =
            Down::try_from(pb::Down::decode(bytes.as_slice()).expect("own bytes parse")).expect("own item converts");
        prop_assert_eq!(back, item);
    }

    #[test]
    fn foreign_bytes_are_refused_or_converted_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(up) = pb::Up::decode(bytes.as_slice()) {
            let _ = Up::try_from(up);
        }
        if let Ok(down) = pb::Down::decode(bytes.as_slice()) {
            let _ = Down::try_from(down);
        }
    }
}

#[test]
fn a_hello_without_a_gateway_or_with_too_many_shards_is_refused() {
    let hello = Hello { gateway: GatewayId::new(7), epoch: 9, shards: 3 };
    assert_eq!(Hello::try_from(pb::Hello::from(hello)), Ok(hello));
    let nameless = pb::Hello { gateway_id: 0, epoch: 9, shards: 3 };
    assert_eq!(Hello::try_from(nameless), Err(LinkDecodeError::Missing("gateway_id")));
    let wide = pb::Hello { gateway_id: 7, epoch: 9, shards: 256 };
    assert_eq!(Hello::try_from(wide), Err(LinkDecodeError::OutOfRange { field: "shards", value: 256 }));
}

#[test]
fn items_that_lack_a_part_are_refused() {
    assert_eq!(Up::try_from(pb::Up { kind: None }), Err(LinkDecodeError::Missing("kind")));
    let signal = pb::Signal { to_user: 1, room: 1, ..pb::Signal::default() };
    assert!(Signal::try_from(signal).is_err());
    let untagged = pb::Up { kind: Some(pb::up::Kind::Ack(pb::Ack::default())) };
    assert_eq!(Up::try_from(untagged), Err(LinkDecodeError::Missing("tag")));
    let nobody = pb::Deliver { body: Some(pb::Body::default()), targets: Vec::new() };
    let nobody = pb::Down { kind: Some(pb::down::Kind::Deliver(nobody)) };
    assert_eq!(Down::try_from(nobody), Err(LinkDecodeError::Missing("targets")));
    let kick = pb::Down { kind: Some(pb::down::Kind::Kick(pb::Kick { reason: 99, ..pb::Kick::default() })) };
    assert_eq!(Down::try_from(kick), Err(LinkDecodeError::OutOfRange { field: "reason", value: 99 }));
}

#[test]
fn frames_for_sessions_do_not_hold_the_message_they_came_in() {
    let frame = Bytes::from(vec![7; 100]);
    for item in [
        Down::Room { room: RoomId::new(1), frame: frame.clone() },
        Down::All { frame: frame.clone(), per_second: 0 },
    ] {
        let received = Bytes::from(pb::Down::from(item.clone()).encode_to_vec());
        let back = Down::try_from(pb::Down::decode(received.clone()).expect("own bytes parse"));
        assert_eq!(back, Ok(item));
        assert!(received.is_unique(), "only the test holds it");
    }
}
