//! The quickstart, also on kernels that lack this or that.

use std::fs;
use std::sync::Arc;

use dm_thin::Errno;
use dm_thin::abi::loopdev::{LOOP_CONFIGURE, LOOP_CTL_GET_FREE};

use crate::bench::{Bench, small};
use crate::quickstart;
use crate::spy::Spy;

#[test]
fn runs_from_nothing() {
    let bench = Bench::new();
    quickstart::run(&bench.root(), small()).unwrap();
    assert!(!bench.root().exists());
}

#[test]
fn runs_without_loop_control() {
    let bench = Bench::new();
    fs::rename("/dev/loop-control", "/dev/loop-control.away").unwrap();
    let result = quickstart::run(&bench.root(), small());
    fs::rename("/dev/loop-control.away", "/dev/loop-control").unwrap();
    result.unwrap();
}

#[test]
fn runs_on_a_kernel_without_configure_and_get_free() {
    let bench = Bench::new();
    let unknown = &[LOOP_CONFIGURE, LOOP_CTL_GET_FREE];
    for errno in [Errno::ENOTTY, Errno::EINVAL] {
        let kernel = Spy { unknown, errno, ..Spy::default() };
        quickstart::run(&bench.root(), small().kernel(Arc::new(kernel))).unwrap();
    }
}

#[test]
fn runs_with_each_of_them_missing() {
    let bench = Bench::new();
    for unknown in [&[LOOP_CONFIGURE][..], &[LOOP_CTL_GET_FREE]] {
        let kernel = Spy { unknown, errno: Errno::EINVAL, ..Spy::default() };
        quickstart::run(&bench.root(), small().kernel(Arc::new(kernel))).unwrap();
    }
}
