//! What can be sent to, and shared between, threads. It compiles or it does not.

use std::os::fd::AsFd;
use std::sync::Arc;

use dm_thin::dm::{DeviceEvents, DeviceMapper};
use dm_thin::kernel::{DeviceFile, Kernel};
use dm_thin::loopdev::{LoopControl, LoopDevice};
use dm_thin::thin::metadata::Metadata;
use dm_thin::thin::{LabelledDevice, SuspendedVolume, ThinPool, ThinVolume};
use dm_thin::tree::{Options, SnapshotReader, SnapshotTree, SnapshotWriter};
use dm_thin::{dm, loopdev, thin, tree};

#[test]
fn handles_are_send_and_sync() {
    fn both<T: Send + Sync>() {}
    both::<Arc<dyn Kernel>>();
    both::<(DeviceMapper, DeviceEvents, DeviceFile, LoopControl, LoopDevice)>();
    both::<(ThinPool, ThinVolume, SuspendedVolume<'_>, LabelledDevice, Metadata)>();
    both::<(SnapshotTree, Options, SnapshotReader<'_>, SnapshotWriter<'_>)>();
    both::<(
        thin::PoolWatcher,
        tree::PoolWatcher,
        thin::PoolWatcher<&ThinPool>,
        tree::PoolWatcher<&SnapshotTree>,
    )>();
}

#[test]
fn errors_are_errors_of_threads() {
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    error::<dm::Error>();
    error::<loopdev::Error>();
    error::<thin::Error>();
    error::<tree::Error>();
    error::<tree::stream::StreamError>();
    error::<thin::metadata::MetadataError>();
}

#[test]
fn open_handles_have_a_descriptor() {
    fn open<T: AsFd>() {}
    open::<DeviceFile>();
    open::<DeviceMapper>();
    open::<DeviceEvents>();
    open::<LoopDevice>();
    open::<thin::PoolWatcher>();
    open::<tree::PoolWatcher>();
}
