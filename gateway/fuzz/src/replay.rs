//! Every input that fuzzing found worth keeping, for ordinary tests.

use std::{fs, path::Path};

/// Hands each file of `corpus`, which is told from the manifest's folder, to `check`.
pub(crate) fn replay(corpus: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(corpus);
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has inputs", dir.display());
    for file in files {
        println!("{}", file.display());
        check(&fs::read(&file).unwrap());
    }
}
