//! 2 pings and pongs.

use super::*;

pub(super) fn cases() -> Vec<Case> {
    let ping = |payload: &[u8]| frame(FIN | PING, payload);
    let pong = |payload: &[u8]| frame(FIN | PONG, payload);
    let pinged = |payload: &[u8]| Heard::Ping(payload.to_vec());
    let ponged = |payload: &[u8]| Heard::Pong(payload.to_vec());
    let long = Heard::Fails(Violation::LongControl);
    let bytes = [0, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0, 0xff];
    let ten: Vec<_> = (0..10).map(|number| format!("payload-{number}")).collect();
    let pings = || ten.iter().map(|payload| ping(payload.as_bytes())).collect::<Vec<_>>();
    let all_pinged: Vec<_> = ten.iter().map(|payload| pinged(payload.as_bytes())).collect();
    let mut cases = vec![
        Case::new("2.1", &[ping(b"")], &[pinged(b"")]),
        Case::new("2.2", &[ping(b"Hello, world!")], &[pinged(b"Hello, world!")]),
        Case::new("2.3", &[ping(&bytes)], &[pinged(&bytes)]),
        Case::new("2.4", &[ping(&[0xfe; 125])], &[pinged(&[0xfe; 125])]),
        Case::new("2.5", &[ping(&[0xfe; 126])], std::slice::from_ref(&long)),
        Case::new("2.6", &[ping(&[0xfe; 125]), ping(b"")], &[pinged(&[0xfe; 125]), pinged(b"")]),
        Case::new("2.7", &[pong(b"")], &[ponged(b"")]),
        Case::new("2.8", &[pong(b"unsolicited")], &[ponged(b"unsolicited")]),
        Case::new("2.9", &[pong(b"unsolicited"), ping(b"x")], &[ponged(b"unsolicited"), pinged(b"x")]),
        Case::new("2.10", &pings(), &all_pinged),
        Case::new("2.11", &pings(), &all_pinged),
    ];
    for opcode in [CLOSE, PING, PONG] {
        for (number, length) in [126, 127, 65_535, 65_536].into_iter().enumerate() {
            let id = format!("2.12.{opcode}.{number}");
            cases.push(Case::new(id, &[head(FIN | opcode, length)], std::slice::from_ref(&long)));
        }
        let split = [Heard::Fails(Violation::SplitControl)];
        cases.push(Case::new(format!("2.13.{opcode}"), &[frame(opcode, b"part")], &split));
    }
    cases
}
