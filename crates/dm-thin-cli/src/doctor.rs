//! What this machine lacks, and what managers that died left on it.

use std::path::Path;
use std::sync::Arc;

use dm_thin::dm::{DeviceMapper, DmId, TargetType};
use serde_json::json;

use crate::failure::Result;
use crate::output::Output;
use crate::place;

/// Something that was looked at: whether it is well, what was found, and what mends it.
#[derive(Debug)]
struct Look {
    what: String,
    well: bool,
    found: String,
    mend: &'static str,
}

fn program(name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/sbin", "/sbin"]);
    places.map(|place| format!("{place}/{name}")).find(|path| Path::new(path).is_file())
}

pub fn doctor(output: &Output) -> Result<u8> {
    let mut looks = Vec::new();
    let mut look = |what: &str, well: bool, found: String, mend: &'static str| {
        looks.push(Look { what: what.to_owned(), well, found, mend });
    };
    let dm = DeviceMapper::open();
    let found = dm.as_ref().map_or_else(ToString::to_string, |dm| format!("interface {}", dm.version()));
    look("device mapper", dm.is_ok(), found, "run as root; modprobe dm_mod");
    if let Ok(dm) = &dm {
        for (name, target) in [("thin-pool", TargetType::THIN_POOL), ("thin", TargetType::THIN)] {
            let version = dm.target_version(target);
            let found = version.as_ref().map_or_else(ToString::to_string, |found| found.version.to_string());
            look(&format!("target {name}"), version.is_ok(), found, "modprobe dm_thin_pool");
        }
    }
    let loops = Path::new("/dev/loop-control").exists();
    look("loop devices", loops, if loops { "there" } else { "missing" }.to_owned(), "modprobe loop");
    for (name, mend) in [
        ("mkfs.ext4", "apt install e2fsprogs"),
        ("mkfs.xfs", "apt install xfsprogs (for trees with XFS)"),
        ("thin_check", "apt install thin-provisioning-tools (to clear needs_check)"),
        ("thin_repair", "apt install thin-provisioning-tools (for repair-metadata)"),
    ] {
        let path = program(name);
        look(name, path.is_some(), path.unwrap_or_else(|| "not installed".to_owned()), mend);
    }
    let expedited = std::fs::read_to_string("/sys/kernel/rcu_expedited").unwrap_or_default();
    let is = expedited.trim() == "1";
    let mend = "echo 1 > /sys/kernel/rcu_expedited makes activations faster, and costs all CPUs an interrupt each time";
    // A choice, and no defect.
    look("rcu_expedited", true, if is { "on" } else { "off" }.to_owned(), mend);
    if let Ok(dm) = dm {
        let dm = Arc::new(dm);
        for device in dm.list()? {
            let uuid = device.uuid.map(|uuid| uuid.to_string()).unwrap_or_default();
            let Some((tree, _)) = place::parse_uuid(&uuid) else { continue };
            let suspended = dm.find(DmId::Number(device.number))?.is_some_and(|status| status.is_suspended());
            if suspended {
                let found = format!("suspended; it belongs to tree {tree}");
                look(&device.name.to_string(), false, found, "dm-thin --root DIR check (an open resumes it)");
            }
        }
    }
    let ill = looks.iter().filter(|look| !look.well).count();
    let rows = looks.iter().map(|look| {
        let mend = if look.well && look.what != "rcu_expedited" { "" } else { look.mend };
        vec![
            if look.well { "ok" } else { "!!" }.to_owned(),
            look.what.clone(),
            look.found.clone(),
            mend.to_owned(),
        ]
    });
    let json = looks
        .iter()
        .map(|look| json!({ "what": look.what, "ok": look.well, "found": look.found, "mend": look.mend }));
    output.rows("machine", &["", "WHAT", "FOUND", "WHAT MENDS IT"], &[], rows.collect(), json.collect())?;
    Ok(u8::from(ill > 0))
}
