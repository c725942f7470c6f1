//! 6 UTF-8.

use super::*;

const VALID: &str = "Hello-µ@ßöäüàá-UTF-8!!";
/// Eleven bytes: the second letter takes three.
const KOSME: &[u8] = "κ\u{1f79}σμε".as_bytes();

pub(super) fn cases() -> Vec<Case> {
    let mut cases = pieces();
    for (number, group) in (5..).zip(sequences()) {
        for (case, (bytes, is_text)) in (1..).zip(group) {
            let heard = if is_text { heard_text(&bytes) } else { Heard::Fails(Violation::NotUtf8) };
            cases.push(Case::new(
                format!("6.{number}.{case}"),
                &[text(&bytes)],
                std::slice::from_ref(&heard),
            ));
            if bytes.len() > 1 {
                let split = fragments(bytes.chunks(1));
                cases.push(Case::new(format!("6.{number}.{case}.bytewise"), &[split], &[heard]));
            }
        }
    }
    cases
}

/// One text message in a frame for each of `parts`.
fn fragments<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let parts: Vec<_> = parts.collect();
    let end = parts.len() - 1;
    let frames = parts.iter().enumerate().map(|(at, part)| {
        let opcode = if at == 0 { TEXT } else { CONTINUATION };
        frame(if at == end { FIN | opcode } else { opcode }, part)
    });
    frames.collect::<Vec<_>>().concat()
}

/// 6.1 to 6.4: where a text may be cut, and that a bad one is refused with its first bad byte.
fn pieces() -> Vec<Case> {
    let valid = [heard_text(VALID)];
    let fails = [Heard::Fails(Violation::NotUtf8)];
    let bad = [KOSME, b"\xed\xa0\x80edited"].concat();
    let late = [KOSME, b"\xf4\x90\x80\x80edited"].concat();
    let (a, b, c) = (&late[..12], &late[12..13], &late[13..]);
    vec![
        Case::new("6.1.1", &[text("")], &[heard_text("")]),
        Case::new("6.1.2", &[fragments([&b""[..], b"", b""].into_iter())], &[heard_text("")]),
        Case::new("6.1.3", &[fragments([&b""[..], b"middle", b""].into_iter())], &[heard_text("middle")]),
        Case::new("6.2.1", &[text(VALID)], &valid),
        Case::new("6.2.2", &[fragments(VALID.as_bytes().chunks(12))], &valid),
        Case::new("6.2.3", &[fragments(VALID.as_bytes().chunks(1))], &valid),
        Case::new("6.2.4", &[fragments(KOSME.chunks(1))], &[heard_text(KOSME)]),
        Case::new("6.3.1", &[text(&bad)], &fails),
        Case::new("6.3.2", &[fragments(bad.chunks(1))], &fails),
        // No further frame is needed to refuse what cannot become text.
        Case::new("6.4.1", &[frame(TEXT, a), frame(CONTINUATION, b)], &fails),
        Case::new("6.4.2", &[frame(TEXT, &late[..12]), frame(CONTINUATION, &late[12..13])], &fails),
        Case::new("6.4.3", &[frame(TEXT, a), frame(CONTINUATION, b), frame(FIN | CONTINUATION, c)], &fails),
        Case::new("6.4.4", &[text(&late)], &fails),
        // What cannot become text is refused within its frame.
        Case::new("6.4.5", &[frame(TEXT, &late)[..6 + 13].to_vec()], &fails),
        // Binary messages are not text.
        Case::new("6.4.6", &[binary(&bad)], &[Heard::Binary(bad.clone())]),
    ]
}

/// 6.5 to 6.23, after Markus Kuhn's stress test for UTF-8 decoders.
fn sequences() -> Vec<Vec<(Vec<u8>, bool)>> {
    let all = |is_text: bool, list: &[&[u8]]| -> Vec<(Vec<u8>, bool)> {
        list.iter().map(|bytes| (bytes.to_vec(), is_text)).collect()
    };
    let examples: [&[u8]; 5] = [
        b"hello$world",
        b"hello\xc2\xa2world",
        b"hello\xe2\x82\xacworld",
        b"hello\xf0\xa4\xad\xa2world",
        KOSME,
    ];
    let prefixes = (1..=KOSME.len()).map(|end| (KOSME[..end].to_vec(), [2, 5, 7, 9, 11].contains(&end)));
    let boundaries: [&[u8]; 4] = [b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"];
    vec![
        all(true, &examples),
        prefixes.collect(),
        all(true, &[b"\0", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
        all(false, &[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
        all(true, &[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
        all(false, &[b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
        [all(true, &boundaries), all(false, &[b"\xf4\x90\x80\x80"])].concat(),
        continuation_bytes(),
        start_bytes(),
        all(false, &cut_short()),
        vec![(cut_short().concat(), false)],
        all(false, &[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
        all(
            false,
            &[
                b"\xc0\xaf",
                b"\xe0\x80\xaf",
                b"\xf0\x80\x80\xaf",
                b"\xf8\x80\x80\x80\xaf",
                b"\xfc\x80\x80\x80\x80\xaf",
            ],
        ),
        all(
            false,
            &[
                b"\xc1\xbf",
                b"\xe0\x9f\xbf",
                b"\xf0\x8f\xbf\xbf",
                b"\xf8\x87\xbf\xbf\xbf",
                b"\xfc\x83\xbf\xbf\xbf\xbf",
            ],
        ),
        all(
            false,
            &[
                b"\xc0\x80",
                b"\xe0\x80\x80",
                b"\xf0\x80\x80\x80",
                b"\xf8\x80\x80\x80\x80",
                b"\xfc\x80\x80\x80\x80\x80",
            ],
        ),
        all(false, &surrogates()),
        surrogates()
            .into_iter()
            .flat_map(|high| surrogates().map(|low| ([high, low].concat(), false)))
            .collect(),
        not_characters(),
        (0xb9..=0xbf).map(|end| (vec![0xef, 0xbf, end], true)).collect(),
    ]
}

fn continuation_bytes() -> Vec<(Vec<u8>, bool)> {
    let mut cases = vec![(vec![0xbf], false)];
    cases.extend((1..=6).map(|count| ([0x80, 0xbf].into_iter().cycle().take(count).collect(), false)));
    cases.push(((0x80..=0xbf).collect(), false));
    cases
}

fn start_bytes() -> Vec<(Vec<u8>, bool)> {
    let ranges = [0xc0..=0xdfu8, 0xe0..=0xef, 0xf0..=0xf7, 0xf8..=0xfb, 0xfc..=0xfd];
    ranges.into_iter().map(|range| (range.flat_map(|byte| [byte, b' ']).collect(), false)).collect()
}

fn cut_short() -> [&'static [u8]; 10] {
    [
        b"\xc0",
        b"\xe0\x80",
        b"\xf0\x80\x80",
        b"\xf8\x80\x80\x80",
        b"\xfc\x80\x80\x80\x80",
        b"\xdf",
        b"\xef\xbf",
        b"\xf7\xbf\xbf",
        b"\xfb\xbf\xbf\xbf",
        b"\xfd\xbf\xbf\xbf\xbf",
    ]
}

fn surrogates() -> [&'static [u8]; 7] {
    [
        b"\xed\xa0\x80",
        b"\xed\xad\xbf",
        b"\xed\xae\x80",
        b"\xed\xaf\xbf",
        b"\xed\xb0\x80",
        b"\xed\xbe\x80",
        b"\xed\xbf\xbf",
    ]
}

/// Code points that will never be characters are UTF-8 all the same.
fn not_characters() -> Vec<(Vec<u8>, bool)> {
    let points = (0..=16u32).flat_map(|plane| [plane << 16 | 0xfffe, plane << 16 | 0xffff]);
    points.map(|point| (char::from_u32(point).unwrap().to_string().into_bytes(), true)).collect()
}
