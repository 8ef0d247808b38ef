//! The kernel suite: everything on a real kernel, as root. `tests/vm/run test` runs it in a guest.
//!
//! Where there is no device mapper every test fails: none passes by not running.

#![allow(unreachable_pub)] // in a program of its own, pub means no more than pub(crate)
#![allow(clippy::cast_possible_truncation)] // patterns in test data

mod bench;
mod commands;
mod crash;
#[path = "../../examples/device_mapper.rs"]
mod device_mapper;
mod differential;
mod dm;
mod dying;
mod engine;
mod examples;
mod filesystems;
mod fork;
mod full_disk;
mod identity;
mod large;
#[path = "../../examples/layers.rs"]
mod layers;
#[path = "../../examples/look.rs"]
mod look;
#[path = "../../examples/loop_devices.rs"]
mod loop_devices;
mod loopdev;
mod messages;
mod metadata;
mod mounts;
#[path = "../../examples/network_disk.rs"]
mod network_disk;
mod pains;
#[path = "../../examples/quickstart.rs"]
mod quickstart;
mod ready;
#[path = "../../examples/ready.rs"]
mod ready_example;
mod repair_metadata;
mod rig;
mod sectors;
mod send;
#[path = "../support/sequences/mod.rs"]
mod sequences;
mod source_crash;
mod sources;
mod spy;
mod story;
mod thin_faults;
mod thin_labelled;
mod thin_pool;
mod thin_space;
mod thin_volume;
mod threads;
mod tree;
mod tree_space;
mod trouble;
#[path = "../../examples/watch.rs"]
mod watch;
