//! The fuzz targets without a fuzzer: mutations of the kept corpus, the same in every run. Stands in for
//! cargo-fuzz where there is no nightly toolchain (`fuzz/run`); a moment of it is part of the ordinary tests.

#[path = "sim/rng.rs"]
#[allow(dead_code, unreachable_pub)]
mod rng;
mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rng::Rng;

impl Rng {
    fn byte(&mut self) -> u8 {
        self.below(256).to_le_bytes()[0]
    }

    /// A few changes, as a fuzzer makes them.
    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(6) {
            let at = self.below(input.len() + 1);
            match self.below(6) {
                0 => input.truncate(at),
                1 => input.insert(at, self.byte()),
                2 => input.extend((0..self.below(40)).map(|_| self.byte()).collect::<Vec<_>>()),
                3 => input.extend(other.get(self.below(other.len() + 1)..).unwrap_or_default()),
                n => {
                    let byte =
                        if n == 4 { self.byte() } else { [0, 1, 7, 8, 0x7f, 0x80, 0xff][self.below(7)] };
                    if let Some(changed) = input.get_mut(at) {
                        *changed = byte;
                    }
                }
            }
        }
        input.truncate(4096);
    }
}

#[test]
fn mutated_inputs() {
    let seconds = std::env::var("DM_THIN_FUZZ_SECONDS").map(|text| text.parse().expect("a number"));
    let time = seconds.map_or(Duration::from_millis(300), Duration::from_secs);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, fuzz) in support::TARGETS {
        let files = fs::read_dir(corpus.join(target)).into_iter().flatten();
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        let mut inputs: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        inputs.push(Vec::new());
        let (mut rng, mut count, end) = (Rng::new(1), 0u64, Instant::now() + time);
        while Instant::now() < end {
            let mut input = inputs[rng.below(inputs.len())].clone();
            let other = &inputs[rng.below(inputs.len())];
            rng.mutate(&mut input, other);
            let outcome = std::panic::catch_unwind(|| fuzz(&input));
            assert!(outcome.is_ok(), "{target}: this input found something: {input:?}");
            count += 1;
        }
        println!("{target}: {count} inputs in {time:?}");
    }
}
