//! udev and its cookies.

use super::*;
use crate::dm::targets::{ErrorTarget, Target};

fn with_udev() -> Arc<ModelKernel> {
    Arc::new(ModelKernel::with_options(ModelOptions { udev: true, ..ModelOptions::default() }))
}

/// A device comes, is renamed and goes, where udev makes the nodes.
fn come_and_go(kernel: &Arc<ModelKernel>) -> Result<()> {
    let dm = DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::Auto)?;
    assert!(dm.waits_for_udev());
    let line = ErrorTarget.over(Sectors(0), Sectors(8));
    let uuid = "DMTHIN-test".parse()?;
    let status = dm.create_active(&name("a"), &uuid, &[line], DmFlags::empty())?;
    dm.rename(&name("a"), &name("b"))?;
    if let Ok(number) = kernel.block_device(&dm.node_path(&name("b"))) {
        assert_eq!(number, status.number);
    }
    dm.remove(&name("b"))
}

#[test]
fn udev_makes_nodes_and_counts_cookies_down() {
    let whole = with_udev();
    come_and_go(&whole).unwrap();
    assert!(whole.is_clean(), "{:?}", whole.leftovers());
    let counted = |name| whole.log().iter().filter(|call| call.name == name).count();
    // The creation makes no event, and the first table of a device does.
    assert_eq!((counted("semget"), counted("semctl"), counted("mknod"), counted("unlink")), (3, 3, 0, 0));
    // A process that is killed at any call leaves at most one semaphore, which the next one sweeps.
    let mut swept = 0;
    for n in 1..=whole.calls() {
        let kernel = with_udev();
        kernel.cut_at(n);
        drop(come_and_go(&kernel));
        assert!(kernel.is_cut(), "call {n}");
        kernel.heal();
        let dm = DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::Auto).unwrap();
        for device in dm.list().unwrap() {
            dm.remove(&device.name).unwrap();
        }
        let left = kernel.leftovers();
        assert!(left.len() <= 1, "call {n}: {left:?}");
        swept += left.len();
        come_and_go(&kernel).unwrap();
        assert!(kernel.is_clean(), "call {n}: {:?}", kernel.leftovers());
    }
    assert!(swept > 0);
}

#[test]
fn without_a_semaphore_udev_is_not_used() {
    let kernel = with_udev();
    come_and_go(&kernel).unwrap();
    let first = kernel.log().iter().position(|call| call.name == "semget").unwrap() as u64 + 1;
    let full = with_udev();
    full.fail_at(first, Errno::ENOSPC);
    come_and_go(&full).unwrap();
    assert!(full.is_clean(), "{:?}", full.leftovers());
}
