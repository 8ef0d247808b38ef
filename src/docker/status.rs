//! A tree's status as `docker info` shows it.

use std::fmt;

use crate::tree::{SpaceStatus, TreeStatus};
use crate::units::Bytes;

impl fmt::Display for TreeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Pool Name: {}", self.pool_name)?;
        writeln!(f, "Pool Blocksize: {}", Human(self.block_size))?;
        writeln!(f, "Base Device Size: {}", Human(self.base_size))?;
        writeln!(f, "Backing Filesystem: {}", self.filesystem.kernel_name().unwrap_or("none"))?;
        let spaces = [("Data", &self.data), ("Metadata", &self.metadata)];
        let spaces = || spaces.iter().filter_map(|(kind, space)| Some((kind, space.as_ref()?)));
        for (kind, SpaceStatus { device, .. }) in spaces() {
            writeln!(f, "{kind} file: {}", device.display())?;
        }
        for (kind, space) in spaces() {
            writeln!(f, "{kind} Space Used: {}", Human(space.used))?;
            writeln!(f, "{kind} Space Total: {}", Human(space.total))?;
            writeln!(f, "{kind} Space Available: {}", Human(space.available))?;
        }
        writeln!(f, "Thin Pool Minimum Free Space: {}", Human(self.min_free))?;
        writeln!(f, "Udev Sync Supported: {}", self.udev_sync)?;
        writeln!(f, "Deferred Removal Enabled: {}", self.deferred_removal)?;
        writeln!(f, "Deferred Deletion Enabled: {}", self.deferred_deletion)?;
        writeln!(f, "Deferred Deleted Device Count: {}", self.deferred)?;
        for (kind, space) in spaces() {
            if let Some(file) = &space.loop_file {
                writeln!(f, "{kind} loop file: {}", file.display())?;
            }
        }
        writeln!(f, "Library Version: {}", self.version)?;
        writeln!(f, "Snapshots: {}", self.snapshots)?;
        writeln!(f, "Orphaned Volumes: {}", self.orphans)?;
        write!(f, "Pool Status: {}", self.pool)
    }
}

/// An amount in the decimal unit that suits it, with four digits: `107.4 GB`.
struct Human(Bytes);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u128::from(self.0.0);
        let (mut unit, mut scale) = (0, 1u128);
        while bytes / scale >= 1000 && unit < 6 {
            (unit, scale) = (unit + 1, scale * 1000);
        }
        let mut digits = match bytes / scale {
            0..10 => 3usize,
            10..100 => 2,
            _ => 1,
        };
        let mut tens = 10u128.pow(u32::try_from(digits).unwrap_or(0));
        let mut rounded = (bytes * tens + scale / 2) / scale;
        while digits > 0 && rounded % 10 == 0 {
            (digits, tens, rounded) = (digits - 1, tens / 10, rounded / 10);
        }
        let unit = ["B", "kB", "MB", "GB", "TB", "PB", "EB"][unit];
        match digits {
            0 => write!(f, "{rounded} {unit}"),
            digits => write!(f, "{}.{:0digits$} {unit}", rounded / tens, rounded % tens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thin::PoolStatus;
    use crate::tree::Filesystem;

    #[test]
    fn amounts_of_dockers_readme() {
        for (bytes, text) in [
            (65_536, "65.54 kB"),
            (107_374_182_400, "107.4 GB"),
            (2_536_000_000, "2.536 GB"),
            (7_930_000, "7.93 MB"),
            (2_147_483_648, "2.147 GB"),
            (2_140_000_000, "2.14 GB"),
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1 kB"),
            (999_999, "1000 kB"),
            (u64::MAX, "18.45 EB"),
        ] {
            assert_eq!(Human(Bytes(bytes)).to_string(), text);
        }
    }

    #[test]
    fn the_layout_is_dockers() {
        let space = |device: &str, file: &str| SpaceStatus {
            device: device.into(),
            loop_file: Some(file.into()),
            used: Bytes(1000),
            total: Bytes(3000),
            available: Bytes(1500),
        };
        let status = TreeStatus {
            pool_name: "docker-253:1-17538953-pool".parse().unwrap(),
            block_size: Bytes::kib(64),
            base_size: Bytes::gib(10),
            filesystem: Filesystem::Ext4,
            data: Some(space("/dev/loop4", "/root/pool/data")),
            metadata: Some(space("/dev/loop5", "/root/pool/metadata")),
            min_free: Bytes(300),
            udev_sync: true,
            rcu_expedited: None,
            deferred_removal: false,
            deferred_deletion: true,
            deferred: 2,
            ready: Vec::new(),
            kept_active: None,
            snapshots: 3,
            orphans: 1,
            pool: PoolStatus::Fail,
            version: "0.1.0 (device mapper 4.48.0)".into(),
        };
        let text = "\
Pool Name: docker-253:1-17538953-pool
Pool Blocksize: 65.54 kB
Base Device Size: 10.74 GB
Backing Filesystem: ext4
Data file: /dev/loop4
Metadata file: /dev/loop5
Data Space Used: 1 kB
Data Space Total: 3 kB
Data Space Available: 1.5 kB
Metadata Space Used: 1 kB
Metadata Space Total: 3 kB
Metadata Space Available: 1.5 kB
Thin Pool Minimum Free Space: 300 B
Udev Sync Supported: true
Deferred Removal Enabled: false
Deferred Deletion Enabled: true
Deferred Deleted Device Count: 2
Data loop file: /root/pool/data
Metadata loop file: /root/pool/metadata
Library Version: 0.1.0 (device mapper 4.48.0)
Snapshots: 3
Orphaned Volumes: 1
Pool Status: Fail";
        assert_eq!(status.to_string(), text);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["data"]["available"], 1500);
    }
}
