//! The corpora of the fuzz targets, through their very checks.

#[path = "../fuzz/src/edge_rules.rs"]
mod edge_rules;
#[path = "../../gateway/fuzz/src/replay.rs"]
mod replay;
#[path = "../fuzz/src/store_rules.rs"]
mod store_rules;
#[path = "../fuzz/src/token_rules.rs"]
mod token_rules;

use replay::replay;

#[test]
fn corpus_of_store_passes() {
    replay("fuzz/corpus/store", store_rules::check_store);
}

#[test]
fn corpus_of_token_passes() {
    replay("fuzz/corpus/token", token_rules::check_token);
}

#[test]
fn corpus_of_edge_passes() {
    replay("fuzz/corpus/edge", edge_rules::check_edge);
}
