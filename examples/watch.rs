//! A storage tool on tokio: it writes to a snapshot, and extends the pool when the kernel says that space runs short.
//!
//! As root on a kernel with dm-thin: `cargo run --example watch /var/lib/watch`.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dm_thin::thin::{ExtendRule, Extension, PoolEvent};
use dm_thin::tree::{Filesystem, Options, Parent, PoolWatcher, SnapshotTree};
use dm_thin::units::Bytes;
use tokio::io::unix::AsyncFd;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let root = std::env::args().nth(1).ok_or("usage: watch DIRECTORY")?;
    run(Path::new(&root), Options::new())
}

/// The story, in an empty or new directory; at the end it is gone.
pub fn run(root: &Path, options: Options) -> Result {
    let rule = ExtendRule { threshold: 70, step: 50, maximum: Bytes::gib(1) };
    let options = options.filesystem(Filesystem::None).data_size(Bytes::mib(64)).base_size(Bytes::mib(256));
    let tree = Arc::new(SnapshotTree::open(root, options.auto_extend(rule))?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let extended = runtime.block_on(work(&tree))?;
    println!("the pool was extended {extended} times");
    assert!(extended > 0);
    Ok(std::fs::remove_dir_all(root)?)
}

async fn work(tree: &Arc<SnapshotTree>) -> Result<u32> {
    // A watcher has one descriptor, which is open as long as the watcher is there.
    #[allow(deprecated)]
    let events = AsyncFd::new(tree.watch_owned()?)?;
    let events = tokio::spawn(watch(events));
    let tree_of_writer = tree.clone();
    // What waits for the kernel has a thread.
    tokio::task::spawn_blocking(move || write(&tree_of_writer)).await??;
    tree.remove("volume")?;
    // With the tree the pool goes, and with the pool the events end.
    let tree_to_close = tree.clone();
    tokio::task::spawn_blocking(move || tree_to_close.close()).await??;
    events.await?
}

/// Counts how often the pool was extended.
async fn watch(mut watcher: AsyncFd<PoolWatcher>) -> Result<u32> {
    let mut count = 0;
    loop {
        let mut ready = watcher.readable_mut().await?;
        while let Some(news) = ready.get_inner_mut().next_within(Duration::ZERO)? {
            println!("{news:?}");
            count +=
                u32::from(news.extended.is_some_and(|extended| matches!(extended.data, Extension::To(_))));
            if news.event == PoolEvent::Removed {
                return Ok(count);
            }
        }
        ready.clear_ready();
    }
}

/// Writes more than the pool has at first.
fn write(tree: &SnapshotTree) -> Result {
    tree.add("volume", Parent::Base)?;
    let device = OpenOptions::new().write(true).open(tree.activate("volume")?)?;
    let piece = vec![7; 1 << 20];
    for at in 0..128 {
        device.write_all_at(&piece, at << 20)?;
        device.sync_data()?;
    }
    drop(device);
    Ok(tree.deactivate("volume")?)
}
