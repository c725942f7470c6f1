//! 5 fragments.

use super::*;

fn first(payload: &str) -> Vec<u8> {
    frame(TEXT, payload.as_bytes())
}

fn more(payload: &str) -> Vec<u8> {
    frame(CONTINUATION, payload.as_bytes())
}

fn last(payload: &str) -> Vec<u8> {
    frame(FIN | CONTINUATION, payload.as_bytes())
}

fn ping(payload: &str) -> Vec<u8> {
    frame(FIN | PING, payload.as_bytes())
}

fn pinged(payload: &str) -> Heard {
    Heard::Ping(payload.as_bytes().to_vec())
}

pub(super) fn cases() -> Vec<Case> {
    let nothing = Heard::Fails(Violation::NothingToContinue);
    let interleaved = Heard::Fails(Violation::Interleaved);
    let split = Heard::Fails(Violation::SplitControl);
    let both = heard_text("fragment1fragment2");
    let mut cases = vec![
        Case::new("5.1", &[frame(PING, b"fragment1"), last("fragment2")], std::slice::from_ref(&split)),
        Case::new("5.2", &[frame(PONG, b"fragment1"), last("fragment2")], &[split]),
        Case::new("5.3", &[first("fragment1"), last("fragment2")], std::slice::from_ref(&both)),
        Case::new("5.4", &[first("fragment1"), last("fragment2")], std::slice::from_ref(&both)),
        Case::new("5.5", &[first("fragment1"), last("fragment2")], std::slice::from_ref(&both)),
        Case::new(
            "5.6",
            &[first("fragment1"), ping("ping payload"), last("fragment2")],
            &[pinged("ping payload"), both.clone()],
        ),
        Case::new(
            "5.7",
            &[first("fragment1"), ping("ping payload"), last("fragment2")],
            &[pinged("ping payload"), both.clone()],
        ),
        Case::new(
            "5.8",
            &[first("fragment1"), ping("ping payload"), last("fragment2")],
            &[pinged("ping payload"), both],
        ),
        Case::new(
            "5.15",
            &[first("fragment1"), last("fragment2"), more("fragment3"), text("fragment4")],
            &[heard_text("fragment1fragment2"), nothing.clone()],
        ),
        Case::new("5.18", &[first("fragment1"), text("fragment2")], std::slice::from_ref(&interleaved)),
        Case::new("5.21", &[first(""), more(""), last("")], &[heard_text("")]),
        Case::new("5.22", &[first(""), more("middle"), last("")], &[heard_text("middle")]),
        Case::new("5.23", &[frame(BINARY, b"a"), frame(TEXT, b"b")], std::slice::from_ref(&interleaved)),
        Case::new("5.24", &[first("a"), binary(b"b")], &[interleaved]),
    ];
    cases.extend(continuations_of_nothing(&nothing));
    cases.extend(pings_within());
    cases
}

/// 5.9 to 5.14, 5.16, 5.17: a continuation where no message was begun, first or after another message, final or not.
fn continuations_of_nothing(nothing: &Heard) -> Vec<Case> {
    let told = heard_text("Hello, world!");
    let mut cases = Vec::new();
    for (id, begin) in [("5.9", last("x")), ("5.12", more("x"))] {
        cases.push(Case::new(id, &[begin.clone(), text("Hello, world!")], std::slice::from_ref(nothing)));
        let after = [text("Hello, world!"), begin];
        cases.push(Case::new(format!("{id}.after"), &after, &[told.clone(), nothing.clone()]));
    }
    for (id, begin) in [("5.10", last("x")), ("5.11", last("x")), ("5.13", more("x")), ("5.14", more("x"))] {
        cases.push(Case::new(id, &[begin, text("Hello, world!")], std::slice::from_ref(nothing)));
    }
    for (id, begin) in [("5.16", more("fragment1")), ("5.17", last("fragment1"))] {
        let twice = [begin.clone(), first("fragment2"), last("fragment3")].concat();
        cases.push(Case::new(id, &[twice.clone(), twice], std::slice::from_ref(nothing)));
    }
    cases
}

/// 5.19, 5.20: pings between many fragments of two messages, of either kind.
fn pings_within() -> Vec<Case> {
    let mut cases = Vec::new();
    for (id, opcode) in [("5.19", TEXT), ("5.20", TEXT), ("5.25", BINARY)] {
        let frames = [
            frame(opcode, b"fragment1"),
            more("fragment2"),
            ping("pongme 1!"),
            more("fragment3"),
            ping("pongme 2!"),
            more("fragment4"),
            frame(FIN | PONG, b"nobody asked"),
            last("fragment5"),
            text("and on"),
        ];
        let whole: Vec<u8> = b"fragment1fragment2fragment3fragment4fragment5".to_vec();
        let message = if opcode == TEXT { Heard::Text(whole) } else { Heard::Binary(whole) };
        let pong = Heard::Pong(b"nobody asked".to_vec());
        let heard = [pinged("pongme 1!"), pinged("pongme 2!"), pong, message, heard_text("and on")];
        cases.push(Case::new(id, &frames, &heard));
    }
    // A client may leave in the middle of a message.
    let frames = [first("begun"), frame(FIN | CLOSE, &1001u16.to_be_bytes()), last("never heard")];
    cases.push(Case::new("5.26", &frames, &[Heard::Close(Some(1001), Vec::new())]));
    cases
}
