//! What the kernel's log says after a crash.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use dm_thin::thin::ThinId;
use dm_thin::tree::files::RealDir;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};

use crate::bench::{Bench, small};
use crate::dying::{Dying, End, Life};
use crate::spy::Spy;

/// What the kernel's log gets from now on.
struct KernelLog(File);

impl KernelLog {
    fn new() -> Self {
        let mut file =
            File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg").unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        Self(file)
    }

    /// The thin target's complaints since this was last asked.
    fn complaints(&mut self) -> Vec<String> {
        let (mut lines, mut record) = (Vec::new(), [0; 8192]);
        loop {
            match self.0.read(&mut record) {
                Ok(len) => lines.push(String::from_utf8_lossy(&record[..len]).trim_end().to_owned()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
        lines.retain(|line| line.contains("device-mapper: thin") && line.contains("failed"));
        lines
    }
}

fn options() -> Options {
    small().filesystem(Filesystem::None)
}

/// Removes a snapshot and makes one, and dies at each of the calls for that, before it or after it.
#[test]
fn recovery_logs_no_failed_deletion() {
    let bench = Bench::new();
    let mut log = KernelLog::new();
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    tree.add("image", Parent::Base).unwrap();
    // That there would be one is seen at a deletion of what is not there.
    assert!(tree.pool().delete(ThinId::new(4000).unwrap()).unwrap_err().is_not_found());
    assert!(log.complaints()[0].contains("Deletion of thin device 4000 failed"));
    drop(tree);
    for after in [false, true] {
        for calls in 0.. {
            let life = Life::new(End::Errors, after);
            let kernel = Spy { life: Some(life.clone()), ..Spy::default() };
            let dir = Dying(RealDir::open(bench.root()).unwrap(), life.clone());
            let dying = options().kernel(Arc::new(kernel)).state_dir(Arc::new(dir));
            let tree = SnapshotTree::open(bench.root(), dying).unwrap();
            tree.add("old", Parent::Snapshot("image")).unwrap();
            life.ends_in(calls);
            let done = tree.remove("old").and_then(|()| tree.add("new", Parent::Snapshot("image")));
            drop(tree);
            let tree = SnapshotTree::open(bench.root(), options()).unwrap();
            assert_eq!(tree.check().unwrap(), [], "call {calls}");
            for id in ["old", "new"] {
                if tree.contains(id) {
                    tree.remove(id).unwrap();
                }
            }
            drop(tree);
            assert_eq!(log.complaints(), [""; 0], "call {calls}, after it: {after}");
            if done.is_ok() {
                assert!(calls > 6, "{calls} calls");
                break;
            }
        }
    }
    SnapshotTree::open(bench.root(), options()).unwrap().close().unwrap();
}
