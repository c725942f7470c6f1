//! Any bytes in any pieces.

use proptest::prelude::*;

use super::*;

/// Frames that are mostly in order, with anything in them.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop::sample::select(vec![CONTINUATION, TEXT, BINARY, BINARY, CLOSE, PING, PONG, 3]);
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        any::<String>().prop_map(String::into_bytes),
        Just(Vec::new()),
    ];
    let one = (any::<bool>(), opcode, payload, 0..40u8).prop_map(|(is_final, opcode, payload, oddity)| {
        let first = if is_final || opcode >= 8 { FIN | opcode } else { opcode };
        let mut bytes = frame(if oddity == 0 { first | 0x40 } else { first }, &payload);
        if oddity == 1 {
            bytes.truncate(bytes.len() / 2);
        }
        bytes
    });
    prop::collection::vec(one, 0..12).prop_map(|frames| frames.concat())
}

/// The examples of docs/protocol.md.
#[test]
fn the_examples_of_the_protocol_page_are_what_is_spoken() {
    use gimbal_codec::{CloseReason, Command, Packet, body::Close, frame};

    use super::super::super::form::Form;

    let page = include_str!("../../../../../docs/protocol.md");
    let example = |name: &str| {
        let (_, rest) = page.split_once(&format!("```hex-websocket {name}\n")).unwrap();
        let bytes = rest.split("```").next().unwrap().split_whitespace();
        bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>()
    };
    let packet = Packet { request_id: "10", command: Command::Heartbeat.number(), content: b"tick", seq: 5 };
    let heartbeat = packet.to_frame();
    assert_eq!(play(&example("client"), usize::MAX, 1024), [Heard::Binary(heartbeat[1..].to_vec())]);
    assert_eq!(example("server"), Form::Messages.of(heartbeat));
    let close = frame(Command::Close, "", 0, &Close::new(CloseReason::Draining, 1500));
    assert_eq!(example("server-close"), Form::Messages.of_close(close, CloseReason::Draining, 1500));
}

#[test]
fn the_corpus_of_the_fuzz_target_passes() {
    crate::replay::replay("fuzz/corpus/websocket", check::check_websocket);
}

proptest! {
    #[test]
    fn any_split_of_frames_is_heard_as_the_whole(bytes in frames(), size in 1usize..40) {
        prop_assert_eq!(play(&bytes, size, 300), play(&bytes, usize::MAX, 300));
    }

    #[test]
    fn any_bytes_are_heard_alike_and_hold_no_more_than_arrived(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        size in 1usize..40,
    ) {
        prop_assert_eq!(play(&bytes, size, 300), play(&bytes, usize::MAX, 300));
    }

    #[test]
    fn a_request_and_what_follows_it_may_be_cut_anywhere(
        frames in frames(),
        sizes in prop::collection::vec(1usize..300, 1..6),
        garbage in prop::option::weighted(0.3, prop::collection::vec(any::<u8>(), 0..60)),
    ) {
        let policy = check::policy();
        let mut bytes = garbage.unwrap_or_else(|| check::REQUEST.to_vec());
        bytes.extend(frames);
        let whole = check::conversation(&bytes, &[usize::MAX], &policy);
        prop_assert_eq!(check::conversation(&bytes, &sizes, &policy), whole);
    }
}
