//! Replays what the fuzzers kept: `fuzz/corpus/<target>/`, and `fuzz/crashes/<target>/` for inputs that
//! once found something.

mod support;

use std::fs;
use std::path::Path;

#[test]
fn the_kept_corpus_is_clean() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (target, fuzz) in support::TARGETS {
        let mut count = 0;
        for kind in ["corpus", "crashes"] {
            let Ok(files) = fs::read_dir(root.join(kind).join(target)) else { continue };
            for file in files {
                let path = file.unwrap().path();
                println!("{}", path.display());
                fuzz(&fs::read(&path).unwrap());
                count += 1;
            }
        }
        // A published package is without `fuzz/`.
        assert!(count > 0 || !root.exists(), "no corpus for {target}");
    }
}
