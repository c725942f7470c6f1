//! 7 closing, 10 the rest.

use super::*;

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

fn closed(code: u16, reason: &[u8]) -> Heard {
    Heard::Close(Some(code), reason.to_vec())
}

pub(super) fn cases() -> Vec<Case> {
    let hello = || text("Hello World!");
    let told = heard_text("Hello World!");
    let fails = |violation| Heard::Fails(violation);
    let (most, too_many) = ([b'*'; 123], [b'*'; 124]);
    let hair = text(vec![b'A'; 65_536]);
    let mut cases = vec![
        Case::new("7.1.1", &[hello(), close(1000, b"")], &[told.clone(), closed(1000, b"")]),
        Case::new("7.1.2", &[close(1000, b""), close(1000, b"")], &[closed(1000, b"")]),
        Case::new("7.1.3", &[close(1000, b""), frame(FIN | PING, b"")], &[closed(1000, b"")]),
        Case::new("7.1.4", &[close(1000, b""), hello()], &[closed(1000, b"")]),
        Case::new(
            "7.1.5",
            &[frame(TEXT, b"fragment1"), close(1000, b""), frame(FIN | CONTINUATION, b"fragment2")],
            &[closed(1000, b"")],
        ),
        Case::new(
            "7.1.6",
            &[binary(&[b'B'; 262_144]), hello(), close(1000, b""), frame(FIN | PING, b"")],
            &[Heard::Binary(vec![b'B'; 262_144]), told, closed(1000, b"")],
        ),
        Case::new("7.3.1", &[frame(FIN | CLOSE, b"")], &[Heard::Close(None, Vec::new())]),
        Case::new("7.3.2", &[frame(FIN | CLOSE, b"a")], &[fails(Violation::ShortClose)]),
        Case::new("7.3.3", &[close(1000, b"")], &[closed(1000, b"")]),
        Case::new("7.3.4", &[close(1000, b"Hello World!")], &[closed(1000, b"Hello World!")]),
        Case::new("7.3.5", &[close(1000, &most)], &[closed(1000, &most)]),
        Case::new("7.3.6", &[close(1000, &too_many)], &[fails(Violation::LongControl)]),
        Case::new("7.5.1", &[close(1000, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80")], &[fails(Violation::NotUtf8)]),
        Case::new("7.5.2", &[close(1000, b"\xce\xba\xe1\xbd")], &[fails(Violation::NotUtf8)]),
        Case::new("7.5.3", &[close(1000, "κόσμε".as_bytes())], &[closed(1000, "κόσμε".as_bytes())]),
        Case::new("10.1.1", &[hair], &[Heard::Text(vec![b'A'; 65_536])]),
    ];
    let good = [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4307, 4999,
    ];
    for code in good {
        cases.push(Case::new(format!("7.7.{code}"), &[close(code, b"bye")], &[closed(code, b"bye")]));
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        let id = format!("7.9.{code}");
        cases.push(Case::new(id, &[close(code, b"")], &[fails(Violation::BadCloseCode)]));
    }
    cases
}
