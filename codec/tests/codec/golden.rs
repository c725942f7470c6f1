//! Examples as bytes: those of `docs/protocol.md`, which a client's author reads, and the edges in `golden/edges.md`.
//!
//! An example is a fenced block `hex NAME`. Its first line is the packet, each further line that begins with a capital
//! letter is the message inside the one above, both in protobuf text format; the other lines are the whole frame in
//! hexadecimal. `golden/independent.py` made the bytes from the text with Google's protobuf library and
//! `proto/wire.proto`; here they go through this crate. After the name, `accepted` marks bytes that are valid but not
//! what an encoder writes, and `refused REASON` bytes that close the connection with that reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gimbal_codec::limits::FRAME_BYTES_MAX_DOWN;
use gimbal_codec::{CloseReason, Command, DecodeError, Packet};

use crate::checks::frames_of;
use crate::text::{describe, packet};

struct Example {
    name: String,
    marks: Vec<String>,
    lines: Vec<String>,
    frame: Vec<u8>,
}

impl Example {
    fn is(&self, mark: &str) -> bool {
        self.marks.iter().any(|other| other == mark)
    }
}

fn examples(file: &str) -> Vec<Example> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let document = fs::read_to_string(&path).unwrap();
    let mut blocks = document.split("\n```hex ");
    blocks.next();
    blocks.map(|block| parse(block.split("\n```").next().unwrap())).collect()
}

fn parse(block: &str) -> Example {
    let mut all = block.lines();
    let mut marks = all.next().unwrap().split_whitespace().map(str::to_owned);
    let name = marks.next().expect("an example has a name");
    let (words, hex): (Vec<&str>, Vec<&str>) = all
        .partition(|line| line.starts_with("packet") || line.starts_with(|c: char| c.is_ascii_uppercase()));
    let frame = hex.iter().flat_map(|line| line.split_whitespace()).map(|byte| {
        assert_eq!(byte.len(), 2, "{name}: two digits each");
        u8::from_str_radix(byte, 16).unwrap()
    });
    Example {
        frame: frame.collect(),
        lines: words.into_iter().map(str::to_owned).collect(),
        marks: marks.collect(),
        name,
    }
}

/// The one packet that the frame holds.
fn packet_bytes(example: &Example) -> Result<Vec<u8>, DecodeError> {
    let (mut frames, end) = frames_of([&example.frame[..]], FRAME_BYTES_MAX_DOWN);
    assert_eq!(end?, 0, "{}: the frame is whole", example.name);
    assert_eq!(frames.len(), 1, "{}", example.name);
    Ok(frames.remove(0))
}

fn check(example: &Example) -> Result<(), DecodeError> {
    let name = &example.name;
    let body = packet_bytes(example)?;
    let decoded = Packet::decode(&body)?;
    let is_exact = !example.is("accepted");
    let mut lines = example.lines.iter();
    let mut bytes = decoded.content;
    let head = packet(&decoded, example.lines.len() == 1);
    assert_eq!(format!("packet {head}").trim_end(), lines.next().unwrap(), "{name}");
    if is_exact {
        assert_eq!(decoded.to_frame()[..], example.frame[..], "{name}");
    }
    for line in lines {
        let kind = line.split(' ').next().unwrap();
        let described = describe(kind, bytes)?;
        assert_eq!(format!("{kind} {}", described.text).trim_end(), line, "{name}");
        if is_exact {
            assert_eq!(described.encoded, bytes, "{name}: {kind}");
        }
        bytes = described.inner;
    }
    Ok(())
}

fn check_all(file: &str) -> Vec<Example> {
    let examples = examples(file);
    for example in &examples {
        match (check(example), example.is("refused")) {
            (result, false) => assert_eq!(result, Ok(()), "{}", example.name),
            (Ok(()), true) => panic!("{} should be refused", example.name),
            (Err(error), true) => {
                assert!(example.is(error.close_reason().text()), "{}: {error}", example.name)
            }
        }
    }
    let names: BTreeSet<_> = examples.iter().map(|example| &example.name).collect();
    assert_eq!(names.len(), examples.len(), "names are unique");
    examples
}

#[test]
fn documented_examples_are_what_the_codec_reads_and_writes() {
    let examples = check_all("../docs/protocol.md");
    for &command in Command::ALL {
        let word = format!("command: {}", command.number());
        let is_shown = |example: &Example| {
            example.lines[0]
                .split_once(&word)
                .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(' '))
        };
        assert!(examples.iter().any(is_shown), "{command:?} has an example");
    }
}

#[test]
fn edges_of_the_format_are_read_and_written_as_protobuf_says() {
    check_all("tests/golden/edges.md");
}

#[test]
fn every_close_reason_and_reply_code_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    let document = fs::read_to_string(path).unwrap();
    for &reason in CloseReason::ALL {
        let row = format!("| {} | `{}` |", reason.code(), reason.text());
        assert!(document.contains(&row), "{row}");
    }
    let codes = include_str!("../../src/code.rs");
    for line in codes.lines().filter(|line| line.starts_with("pub const ")) {
        let (name, value) = line["pub const ".len()..].split_once(": i32 = ").unwrap();
        let row = format!("| {} | `{}` |", value.trim_end_matches(';'), name);
        assert!(document.contains(&row), "{row}");
    }
}
