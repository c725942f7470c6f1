//! Every input that fuzzing found worth keeping, through the very checks of the fuzz targets.

use std::fs;
use std::path::Path;

use crate::checks;

fn replay(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has inputs", dir.display());
    for file in files {
        println!("{}", file.display());
        check(&fs::read(&file).unwrap());
    }
}

#[test]
fn corpus_of_decode_passes() {
    replay("decode", checks::decode);
}

#[test]
fn corpus_of_split_passes() {
    replay("split", checks::split);
}

#[test]
fn corpus_of_round_trip_passes() {
    replay("round_trip", checks::round_trip);
}
