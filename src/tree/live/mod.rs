//! What is active and mounted now, and what is done to file systems.

pub(in crate::tree) mod active;
pub(in crate::tree) mod base_check;
pub(in crate::tree) mod device;
pub(in crate::tree) mod fs;
pub(in crate::tree) mod init_layer;
pub(in crate::tree) mod mount;
pub(in crate::tree) mod mount_options;
mod mounting;
pub(in crate::tree) mod mounts;
pub(in crate::tree) mod own_data;
pub(in crate::tree) mod ready;
pub(in crate::tree) mod recovered;
pub(in crate::tree) mod snapshots;
pub(in crate::tree) mod volume_file;
pub(in crate::tree) mod work;
