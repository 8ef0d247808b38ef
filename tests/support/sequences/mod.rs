//! Sequences of calls: raw requests, right and wrong, to `/dev/mapper/control`, to loop and to block
//! devices. On the model alone it must stay sane (the fuzz target `sequences`); the kernel suite runs the
//! same sequences on the model and on the real kernel, and compares.

#![allow(dead_code, unreachable_pub)]

mod answer;
pub mod choose;
mod encode;
pub mod machine;
pub mod plan;
pub mod risk;
mod show;
pub mod source;

use dm_thin::model::{ModelKernel, ModelOptions};

use machine::Machine;
use source::Source;

/// Longer ones find nothing that shorter ones do not.
const LONGEST: usize = 200;

pub fn model(interface_minor: u32) -> ModelKernel {
    let wait_limit = std::time::Duration::ZERO;
    ModelKernel::with_options(ModelOptions { interface_minor, wait_limit, ..ModelOptions::default() })
}

fn look(machine: &mut Machine<'_>, last: &plan::Op) {
    for line in machine.picture() {
        assert!(line.starts_with("Ok") || line.starts_with("poll"), "{line} after {last:?}");
    }
}

/// Run the sequence that the bytes choose on a model: no panic, no device that cannot be asked about, and
/// everything can be taken down.
pub fn fuzz(bytes: &[u8]) {
    let mut source = Source::Bytes(bytes);
    let directory = tempfile::TempDir::new().unwrap();
    let kernel = model(source.pick(&[48, 47, 44, 36, 27]));
    let mut machine = Machine::new(&kernel, directory.path());
    for op in choose::prelude(&mut source) {
        machine.run(&op);
    }
    for n in 0..LONGEST {
        if source.is_empty() {
            break;
        }
        let op = choose::next(&mut source);
        // Cycles of tables could not be taken down, as with a real kernel.
        if !risk::is_risky(&mut machine, &op) {
            machine.run(&op);
        }
        // Not after each: that would be most of the time.
        if n % 8 == 0 {
            look(&mut machine, &op);
        }
    }
    machine.tear_down().unwrap();
    drop(machine);
    assert!(kernel.is_clean(), "{:?}", kernel.leftovers());
}
