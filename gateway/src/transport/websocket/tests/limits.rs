//! 9 limits: long messages, and messages that are longer than allowed.

use super::*;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

pub(super) fn cases() -> Vec<Case> {
    [long_messages(), many_fragments(), bounds()].into_iter().flatten().collect()
}

/// 9.1, 9.2: whole messages of either kind.
fn long_messages() -> Vec<Case> {
    let mut cases = Vec::new();
    for (number, size) in (1..).zip([64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB]) {
        let (letters, bytes) = (vec![b'*'; size], vec![0xfe; size]);
        let heard = [heard_text(&letters)];
        cases.push(Case::new(format!("9.1.{number}"), &[text(&letters)], &heard).with_max(16 * MIB));
        let heard = [Heard::Binary(bytes.clone())];
        cases.push(Case::new(format!("9.2.{number}"), &[binary(&bytes)], &heard).with_max(16 * MIB));
    }
    cases
}

/// 9.3 to 9.8: a message of 4 MiB in fragments of each size, and of 1 MiB in small ones.
fn many_fragments() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB];
    for (group, opcode, total) in [(3, TEXT, 4 * MIB), (4, BINARY, 4 * MIB), (5, TEXT, MIB), (6, BINARY, MIB)]
    {
        for (number, size) in (1..).zip(sizes).filter(|(_, size)| *size <= total) {
            let payload = vec![b'*'; total];
            let mut bytes: Vec<u8> = Vec::with_capacity(total * 3 / 2);
            for (at, part) in payload.chunks(size).enumerate() {
                let opcode = if at == 0 { opcode } else { CONTINUATION };
                let is_last = (at + 1) * size >= total;
                bytes.extend(frame(if is_last { FIN | opcode } else { opcode }, part));
            }
            let heard = if opcode == TEXT { Heard::Text(payload) } else { Heard::Binary(payload) };
            cases.push(Case::new(format!("9.{group}.{number}"), &[bytes], &[heard]).with_max(4 * MIB));
        }
    }
    cases
}

/// A message at the bound is heard; one byte more is refused with the head that says so, before any of it is kept.
fn bounds() -> Vec<Case> {
    let long = Heard::Fails(Violation::TooLong);
    let mut cases = Vec::new();
    for (number, max) in (1..).zip([1, 125, 126, 1024, 65_535, 65_536]) {
        let id = |kind: &str| format!("9.9.{number}.{kind}");
        let (at, over) = (vec![7; max], vec![7; max + 1]);
        cases.push(Case::new(id("at"), &[binary(&at)], &[Heard::Binary(at.clone())]).with_max(max));
        let only_head = [head(FIN | BINARY, max + 1)];
        cases.push(Case::new(id("head"), &only_head, std::slice::from_ref(&long)).with_max(max));
        cases.push(Case::new(id("over"), &[binary(&over)], std::slice::from_ref(&long)).with_max(max));
        let parts = [frame(BINARY, &at), frame(FIN | CONTINUATION, b"x")];
        cases.push(Case::new(id("parts"), &parts, std::slice::from_ref(&long)).with_max(max));
        let whole = [frame(BINARY, &at), frame(FIN | CONTINUATION, b"")];
        cases.push(Case::new(id("whole"), &whole, &[Heard::Binary(at)]).with_max(max));
    }
    let endless = head(FIN | BINARY, usize::MAX >> 1);
    cases.push(Case::new("9.10.1", &[endless], std::slice::from_ref(&long)));
    let endless = [frame(BINARY, b"x"), head(CONTINUATION, usize::MAX >> 1)];
    cases.push(Case::new("9.10.2", &endless, &[long]));
    // Control frames have their own bound.
    let ping = frame(FIN | PING, &[9; 125]);
    cases.push(Case::new("9.10.3", &[ping], &[Heard::Ping(vec![9; 125])]).with_max(1));
    cases
}
