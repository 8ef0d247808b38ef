//! The fuzz target's kept inputs, as they are and changed.

mod support;

use std::path::Path;

use proptest::prelude::*;

fn corpus() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let files = ["corpus", "crashes"].map(|kind| std::fs::read_dir(root.join(kind).join("docker")));
    let inputs: Vec<_> = files
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    // A published package is without `fuzz/`.
    assert!(!inputs.is_empty() || !root.exists(), "no corpus");
    inputs
}

#[test]
fn the_kept_corpus_is_clean() {
    corpus().iter().for_each(|input| support::fuzz(input));
}

#[test]
fn changed_inputs_are_clean() {
    let mut inputs = corpus();
    inputs.push(Vec::new());
    let input = prop::sample::select(inputs);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    let config = ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((mut input, changes) in (input, changes))| {
        for (at, byte) in changes {
            if !input.is_empty() {
                let at = at.index(input.len());
                input[at] = byte;
            }
        }
        support::fuzz(&input);
    });
}
