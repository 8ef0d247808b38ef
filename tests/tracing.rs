//! What a tree logs with the feature `tracing`.

use std::io;
use std::sync::{Arc, Mutex};

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use tracing_subscriber::fmt::MakeWriter;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn calls_are_logged_and_each_repair_is_a_warning() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    let subscriber = subscriber.without_time().with_writer(log.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let kernel = Arc::new(ModelKernel::new());
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
            let options = options.data_size(Bytes::mib(64)).base_size(Bytes::mib(16)).kernel(kernel.clone());
            SnapshotTree::open(directory.path().join("root"), options.background_threads(false)).unwrap()
        };
        let tree = open();
        assert!(log.take().contains("operation=\"open\""));
        tree.add("a", Parent::Base).unwrap();
        let added = log.take();
        assert_eq!(added.lines().count(), 1, "{added}");
        for part in ["DEBUG", "operation=\"add\"", "id=\"a\"", "micros=", "done"] {
            assert!(added.contains(part), "{added}");
        }
        tree.activate("a").unwrap();
        let device = tree.get("a").unwrap().number.unwrap();
        tree.pool().device_mapper().suspend(device, Default::default()).unwrap();
        log.take();
        tree.remove("none").unwrap_err();
        let refused = log.take();
        assert!(refused.contains("failed") && refused.contains("no snapshot \"none\""), "{refused}");
        drop(tree);
        let tree = open();
        let text = log.take();
        let warnings: Vec<_> = text.lines().filter(|line| line.contains("WARN")).collect();
        let [warning] = &warnings[..] else { panic!("{text}") };
        assert!(warning.ends_with("resumed the suspended device of snapshot a"), "{warning}");
        tree.close().unwrap();
    });
}
