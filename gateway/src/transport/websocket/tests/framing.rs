//! 1 framing, 3 reserved bits, 4 opcodes; M masks and lengths.

use super::*;

pub(super) fn cases() -> Vec<Case> {
    [sizes(), reserved_bits(), opcodes(), masks_and_lengths()].into_iter().flatten().collect()
}

/// Messages around every change of the length's form. The last of each kind arrives in pieces, as all do here.
fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (number, size) in [0, 125, 126, 127, 128, 65_535, 65_536, 65_537].into_iter().enumerate() {
        let (letters, bytes) = (vec![b'*'; size], vec![0xfe; size]);
        let id = |group: &str| format!("1.{group}.{}", number + 1);
        cases.push(Case::new(id("1"), &[text(&letters)], &[heard_text(&letters)]));
        cases.push(Case::new(id("2"), &[binary(&bytes)], &[Heard::Binary(bytes.clone())]));
    }
    cases
}

/// No extension is agreed on, so each of them is refused, whatever came before and whatever carries it.
fn reserved_bits() -> Vec<Case> {
    let fails = Heard::Fails(Violation::ReservedBit);
    let hello = || text("Hello, world!");
    let told = heard_text("Hello, world!");
    let ping = || frame(FIN | PING, b"");
    let mut cases = vec![
        Case::new("3.1", &[frame(FIN | 0x40 | TEXT, b"small")], std::slice::from_ref(&fails)),
        Case::new("3.2", &[hello(), frame(FIN | 0x20 | TEXT, b"x"), ping()], &[told.clone(), fails.clone()]),
        Case::new("3.3", &[hello(), frame(FIN | 0x30 | TEXT, b"x"), ping()], &[told.clone(), fails.clone()]),
        Case::new("3.4", &[hello(), frame(FIN | 0x40 | TEXT, b"x"), ping()], &[told, fails.clone()]),
        Case::new("3.5", &[frame(FIN | 0x50 | BINARY, &[7; 8])], std::slice::from_ref(&fails)),
        Case::new("3.6", &[frame(FIN | 0x60 | PING, b"")], std::slice::from_ref(&fails)),
        Case::new("3.7", &[frame(FIN | 0x70 | CLOSE, b"")], std::slice::from_ref(&fails)),
    ];
    for opcode in [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG] {
        for bits in 1..8 {
            let id = format!("3.8.{opcode}.{bits}");
            cases.push(Case::new(
                id,
                &[frame(FIN | (bits << 4) | opcode, b"")],
                std::slice::from_ref(&fails),
            ));
        }
    }
    cases
}

/// All opcodes that mean nothing, alone and after a message.
fn opcodes() -> Vec<Case> {
    let fails = Heard::Fails(Violation::ReservedOpcode);
    let mut cases = Vec::new();
    for (group, opcodes) in [(1, 3..8u8), (2, 11..16)] {
        for opcode in opcodes {
            for (case, payload) in [&b""[..], b"reserved opcode payload"].into_iter().enumerate() {
                let bad = || frame(FIN | opcode, payload);
                let id = |kind| format!("4.{group}.{opcode}.{case}.{kind}");
                cases.push(Case::new(id("alone"), &[bad()], std::slice::from_ref(&fails)));
                let after = [text("Hello"), bad(), frame(FIN | PING, b"")];
                cases.push(Case::new(id("after"), &after, &[heard_text("Hello"), fails.clone()]));
            }
        }
    }
    cases
}

fn masks_and_lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for opcode in [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG] {
        let fails = [Heard::Fails(Violation::NotMasked)];
        cases.push(Case::new(format!("M.1.{opcode}"), &[vec![FIN | opcode, 0]], &fails));
        cases.push(Case::new(format!("M.2.{opcode}"), &[vec![FIN | opcode, 5, 1, 2, 3, 4, 5]], &fails));
    }
    // A mask of zeros is a mask.
    let zeros = vec![FIN | BINARY, 0x82, 0, 0, 0, 0, 8, 9];
    cases.push(Case::new("M.3", &[zeros], &[Heard::Binary(vec![8, 9])]));
    let bad = [Heard::Fails(Violation::BadLength)];
    for (number, length) in [0u16, 1, 125].into_iter().enumerate() {
        let bytes = [&[FIN | BINARY, 0xfe][..], &length.to_be_bytes(), &MASK].concat();
        cases.push(Case::new(format!("M.4.{number}"), &[bytes], &bad));
    }
    for (number, length) in [0u64, 125, 126, 0xffff, 1 << 63, u64::MAX].into_iter().enumerate() {
        let bytes = [&[FIN | BINARY, 0xff][..], &length.to_be_bytes(), &MASK].concat();
        cases.push(Case::new(format!("M.5.{number}"), &[bytes], &bad));
    }
    cases
}
