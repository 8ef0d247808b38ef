//! A process that dies while it makes a tree on a raw device: the next open needs no force.

use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use dm_thin::thin::LabelledDevice;
use dm_thin::tree::files::RealDir;
use dm_thin::tree::{Filesystem, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::{Bench, dm};
use crate::dying::{Died, Dying, End, Life};

const DISK: &str = "/dev/vdb";

fn wipe() {
    crate::bench::wipe(Path::new(DISK));
}

fn options() -> Options {
    let source = PoolSource::Device { path: DISK.into() };
    let options = Options::new().base_size(Bytes::mib(16)).filesystem(Filesystem::None);
    options.pool_source(source).background_threads(false)
}

#[test]
fn a_crash_at_every_call_needs_no_force() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<Died>() {
            loud(info)
        }
    }));
    for after in [false, true] {
        for calls in 0.. {
            let bench = Bench::new();
            wipe();
            std::fs::create_dir(bench.root()).unwrap();
            let life = Life::new(End::Panic, after);
            life.ends_in(calls);
            let dir = Dying(RealDir::open(bench.root()).unwrap(), life);
            let dying = options().state_dir(Arc::new(dir));
            let life = || SnapshotTree::open(bench.root(), dying).unwrap().close().unwrap();
            let survived = match catch_unwind(AssertUnwindSafe(life)) {
                Err(payload) if !payload.is::<Died>() => resume_unwind(payload),
                made => made.is_ok(),
            };
            // A label that nobody knows is what would need force.
            let label = LabelledDevice::open(dm(), DISK).map(|device| device.label());
            let tree = SnapshotTree::open(bench.root(), options());
            let tree = tree.unwrap_or_else(|error| panic!("call {calls}, {label:?}: {error}"));
            tree.add("a", Parent::Base).unwrap();
            assert_eq!(tree.check().unwrap(), [], "call {calls}");
            let uuid = LabelledDevice::open(dm(), DISK).unwrap().label().uuid;
            assert!(label.is_err() || label.is_ok_and(|label| label.uuid == uuid), "call {calls}");
            tree.close().unwrap();
            bench.audit();
            if survived {
                println!("{calls} calls");
                break;
            }
        }
    }
    // A copy of the label that the crash did not come to write is there now.
    let mut copies = [[0; 4096]; 2];
    let disk = std::fs::File::open(Path::new(DISK)).unwrap();
    disk.read_exact_at(&mut copies[0], 0).unwrap();
    disk.read_exact_at(&mut copies[1], (1 << 20) - 4096).unwrap();
    assert!(copies[0] == copies[1]);
    wipe();
}
