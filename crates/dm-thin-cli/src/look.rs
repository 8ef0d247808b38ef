//! Commands that only look, and take no lock.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use dm_thin::abi::dm::DmFlags;
use dm_thin::dm::{DeviceMapper, DmId, DmName, TargetType};
use dm_thin::kernel::{DeviceNumber, Kernel, RealKernel};
use dm_thin::thin::{PoolStatus, PoolUsage, ThinPool, ThinStatus};
use dm_thin::tree::{Lineage, ReadOnlyTree, SnapshotInfo};
use dm_thin::units::{Blocks, Bytes, Sectors};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use crate::cli::{Ls, Sort};
use crate::failure::{Failure, Result};
use crate::output::{Output, age, line, seconds};
use crate::place;

/// What the kernel says of a snapshot that is active.
#[derive(Debug, Clone, Copy)]
pub struct InUse {
    /// How much it maps, shared or not.
    mapped: Bytes,
    /// How often its device is open, mounts included.
    open: u32,
}

/// What a snapshot's device says in one call, if it is active; deactivated meanwhile, it is not known.
fn device_in_use(dm: &DeviceMapper, info: &SnapshotInfo) -> Option<InUse> {
    let name: DmName = info.device.as_ref()?.file_name()?.to_str()?.parse().ok()?;
    let (status, lines) = dm.table_status(&name, DmFlags::empty()).ok()?;
    match lines.first().filter(|line| line.target_type == TargetType::THIN)?.text.parse().ok()? {
        ThinStatus::Mapped { mapped, .. } => Some(InUse { mapped: mapped.bytes(), open: status.open_count }),
        _ => None,
    }
}

/// The snapshots that are active.
pub fn in_use(tree: &ReadOnlyTree) -> BTreeMap<String, InUse> {
    let Ok(dm) = DeviceMapper::open() else { return BTreeMap::new() };
    let list = tree.list().into_iter();
    list.filter_map(|info| Some((info.id.to_string(), device_in_use(&dm, &info)?))).collect()
}

pub fn parent(lineage: &Lineage) -> String {
    match lineage {
        Lineage::Base => "(base)".to_owned(),
        Lineage::Removed(id) => format!("({id}, removed)"),
        Lineage::Snapshot(id) => id.to_string(),
    }
}

fn state(info: &SnapshotInfo) -> &'static str {
    match (&info.mounted, &info.device, info.sealed) {
        (Some(_), ..) => "mounted",
        (None, Some(_), _) => "active",
        (None, None, Some(_)) => "sealed",
        (None, None, None) => "inactive",
    }
}

fn labels(info: &SnapshotInfo) -> String {
    let labels: Vec<_> = info.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.join(",")
}

pub fn snapshot_json(info: &SnapshotInfo, in_use: Option<InUse>, exclusive: Option<Bytes>) -> Value {
    let (kind, of) = match &info.parent {
        Lineage::Snapshot(id) => ("snapshot", Some(id.to_string())),
        Lineage::Removed(id) => ("removed", Some(id.to_string())),
        _ => ("base", None),
    };
    json!({
        "id": info.id.as_str(),
        "thin_id": info.thin_id.get(),
        "parent": { "kind": kind, "id": of },
        "size": info.size.0,
        "mapped": in_use.map(|it| it.mapped.0),
        "open": in_use.map(|it| it.open),
        "exclusive": exclusive.map(|it| it.0),
        "state": state(info),
        "sealed": info.sealed.map(|uuid| uuid.to_string()),
        "device": info.device,
        "number": info.number.map(|number| number.to_string()),
        "mounted": info.mounted,
        "created": seconds(info.created),
        "labels": info.labels.iter().collect::<BTreeMap<_, _>>(),
    })
}

pub fn ls(output: &Output, root: &Path, options: &Ls) -> Result<()> {
    let tree = place::look(root)?;
    let mut list = tree.list();
    if let Some(label) = &options.label {
        let (key, value) = crate::change::pair(label)?;
        list.retain(|info| info.labels.get(key) == Some(value));
    }
    match options.sort {
        Sort::Id => list.sort_by(|one, other| one.id.cmp(&other.id)),
        Sort::Age => list.sort_by_key(|info| std::cmp::Reverse(info.created)),
        Sort::Size => list.sort_by_key(|info| std::cmp::Reverse(info.size)),
    }
    let in_use = in_use(&tree);
    let in_use = |info: &SnapshotInfo| in_use.get(info.id.as_str()).copied();
    // What a snapshot has alone stands in the pool's metadata, which is its manager's.
    let usage = if options.exclusive { place::open(root)?.usage()? } else { Vec::new() };
    let usage: BTreeMap<_, _> = usage.into_iter().map(|it| (it.id, it.exclusive)).collect();
    let mut columns = vec!["ID", "PARENT", "SIZE", "MAPPED"];
    columns.extend(options.exclusive.then_some("EXCL"));
    columns.extend(["STATE", "OPEN", "MOUNT", "AGE"]);
    if options.long {
        columns.extend(["THIN-ID", "DEVICE", "SEALED", "LABELS"]);
    }
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = list.iter().map(|info| {
        let used = in_use(info);
        let mut row = vec![
            info.id.to_string(),
            parent(&info.parent),
            output.size(info.size),
            output.size_or(used.map(|it| it.mapped)),
        ];
        row.extend(options.exclusive.then(|| output.size_or(usage.get(&info.id).copied())));
        row.extend([
            state(info).to_owned(),
            text(used.map(|it| it.open.to_string())),
            text(info.mounted.as_ref().map(|mount| mount.display().to_string())),
            age(info.created),
        ]);
        if options.long {
            row.extend([
                info.thin_id.to_string(),
                text(info.number.map(|number| number.to_string())),
                text(info.sealed.map(|uuid| uuid.to_string())),
                labels(info),
            ]);
        }
        row
    });
    let json =
        list.iter().map(|info| snapshot_json(info, in_use(info), usage.get(&info.id).copied())).collect();
    let right = ["SIZE", "MAPPED", "EXCL", "OPEN", "AGE", "THIN-ID"];
    output.rows("snapshots", &columns, &right, rows.collect(), json)
}

pub fn tree(output: &Output, root: &Path) -> Result<()> {
    let tree = place::look(root)?;
    if output.json {
        let nodes = tree.walk().into_iter().map(
            |node| json!({ "id": node.id.as_str(), "parent": parent(&node.parent), "depth": node.depth }),
        );
        return output.object("tree", nodes.collect());
    }
    line(tree.to_text().trim_end())
}

pub fn info(output: &Output, root: &Path, id: &str) -> Result<()> {
    let tree = place::look(root)?;
    let info = place::find(&tree, id)?;
    let in_use = DeviceMapper::open().ok().and_then(|dm| device_in_use(&dm, &info));
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let children = tree
        .walk()
        .iter()
        .filter(|node| matches!(&node.parent, Lineage::Snapshot(of) if of.as_str() == id))
        .count();
    let fields = vec![
        ("id", info.id.to_string()),
        ("parent", parent(&info.parent)),
        ("children", children.to_string()),
        ("size", output.size(info.size)),
        ("mapped", output.size_or(in_use.map(|it| it.mapped))),
        ("open", text(in_use.map(|it| it.open.to_string()))),
        ("state", state(&info).to_owned()),
        ("device", text(info.device.as_ref().map(|device| device.display().to_string()))),
        ("number", text(info.number.map(|number| number.to_string()))),
        ("mount", text(info.mounted.as_ref().map(|mount| mount.display().to_string()))),
        ("thin device", info.thin_id.to_string()),
        ("sealed", text(info.sealed.map(|uuid| uuid.to_string()))),
        ("age", age(info.created)),
        ("labels", labels(&info)),
    ];
    output.fields("snapshot", fields, snapshot_json(&info, in_use, None))
}

pub fn holders(output: &Output, root: &Path, id: &str) -> Result<()> {
    let tree = place::look(root)?;
    place::find(&tree, id)?;
    let holders = tree.holders(id).unwrap_or_default();
    let rows = holders.iter().map(|holder| vec![holder.to_string()]).collect();
    let json = holders.iter().map(|holder| json!(holder.to_string())).collect();
    output.rows("holders", &["HOLDER"], &[], rows, json)
}

/// Of so many, used so many.
fn percent(used: Blocks, total: Blocks) -> String {
    format!("{:.1}%", if total.0 == 0 { 0.0 } else { used.0 as f64 * 100.0 / total.0 as f64 })
}

fn usage(status: &PoolStatus) -> Option<&PoolUsage> {
    if let PoolStatus::Usage(usage) = status { Some(usage) } else { None }
}

pub fn df(output: &Output, root: &Path) -> Result<()> {
    let tree = place::look(root)?;
    let pool = place::pool(&tree)?;
    let (name, status) = (pool.name(), pool.status()?);
    let usage = usage(&status).ok_or_else(|| Failure::new(format!("the pool {name} has failed")))?;
    let block = pool.table()?.0.block_size;
    let metadata_block = Bytes::kib(4).sectors();
    let row = |what: &str, total: Blocks, used: Blocks, block: Sectors| {
        let free = Blocks(total.0 - used.0.min(total.0));
        let amounts = [total, used, free].map(|blocks| output.size(blocks.bytes(block)));
        [&[what.to_owned()], &amounts[..], &[percent(used, total)]].concat()
    };
    let mut rows = vec![
        row("data", usage.total_data, usage.used_data, block),
        row("metadata", usage.total_metadata, usage.used_metadata, metadata_block),
    ];
    // Loop files take their space when it is written to.
    let below = statvfs(root).ok().map(|it| {
        let bytes = |blocks| blocks * it.fragment_size();
        [bytes(it.blocks()), bytes(it.blocks() - it.blocks_free()), bytes(it.blocks_available())]
    });
    if let Some([size, used, free]) = below {
        let amounts = [size, used, free].map(|amount| output.size(Bytes(amount)));
        rows.push([&["below".to_owned()], &amounts[..], &[percent(Blocks(used), Blocks(size))]].concat());
    }
    let bytes = |blocks: Blocks, block: Sectors| blocks.bytes(block).0;
    let json = json!({
        "pool": name.to_string(),
        "mode": usage.mode.to_string(),
        "needs_check": usage.needs_check,
        "data": { "total": bytes(usage.total_data, block), "used": bytes(usage.used_data, block) },
        "metadata": {
            "total": bytes(usage.total_metadata, metadata_block),
            "used": bytes(usage.used_metadata, metadata_block),
        },
        "below": below.map(|[total, used, free]| json!({ "total": total, "used": used, "free": free })),
    });
    output.rows(
        "space",
        &["SPACE", "SIZE", "USED", "FREE", "USE%"],
        &["SIZE", "USED", "FREE", "USE%"],
        rows,
        json,
    )?;
    if !output.json && (usage.needs_check || !usage.mode.is_sound()) {
        line(&format!("the pool is {}{}", usage.mode, if usage.needs_check { ", needs_check" } else { "" }))?;
    }
    Ok(())
}

pub fn trees(output: &Output) -> Result<()> {
    let dm = Arc::new(DeviceMapper::open()?);
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    for tree in place::trees(&dm)? {
        let looked = tree.root.as_deref().and_then(|root| place::look(root).ok());
        let status = ThinPool::open(dm.clone(), &tree.pool).and_then(|pool| pool.status());
        let used = status.as_ref().ok().and_then(usage);
        let percent = |of: fn(&PoolUsage) -> (Blocks, Blocks)| {
            used.map_or("-".to_owned(), |usage| percent(of(usage).0, of(usage).1))
        };
        let mode = status.as_ref().map_or("?".to_owned(), |status| status.mode().to_string());
        let manager = looked.as_ref().and_then(ReadOnlyTree::manager);
        let root = tree.root.as_ref().map_or("?".to_owned(), |root| root.display().to_string());
        rows.push(vec![
            root,
            tree.uuid.to_string(),
            tree.pool.to_string(),
            mode.clone(),
            percent(|usage| (usage.used_data, usage.total_data)),
            percent(|usage| (usage.used_metadata, usage.total_metadata)),
            looked.as_ref().map_or("?".to_owned(), |looked| looked.list().len().to_string()),
            manager.map_or("-".to_owned(), |manager| manager.to_string()),
        ]);
        json.push(json!({
            "root": tree.root,
            "uuid": tree.uuid.to_string(),
            "pool": tree.pool.to_string(),
            "mode": mode,
            "snapshots": looked.as_ref().map(|looked| looked.list().len()),
            "held_by": manager.map(|manager| json!({ "pid": manager.pid, "command": manager.command })),
        }));
    }
    let columns = ["ROOT", "UUID", "POOL", "MODE", "DATA%", "META%", "SNAPS", "HELD-BY"];
    output.rows("trees", &columns, &["DATA%", "META%", "SNAPS"], rows, json.into())
}

pub fn which(output: &Output, device: &str) -> Result<()> {
    let dm = Arc::new(DeviceMapper::open()?);
    let number = match device.parse::<DeviceNumber>() {
        Ok(number) => number,
        Err(_) => {
            let found = RealKernel.block_device(Path::new(device));
            found.map_err(|errno| Failure::new(format!("{device}: {errno}")))?
        }
    };
    let none = || Failure::new(format!("{device} belongs to no tree"));
    let status = dm.find(DmId::Number(number))?.ok_or_else(none)?;
    let uuid = status.uuid.map(|uuid| uuid.to_string()).unwrap_or_default();
    let (tree, what) = place::parse_uuid(&uuid).ok_or_else(none)?;
    let root = place::trees(&dm)?.into_iter().find(|found| found.uuid == tree).and_then(|found| found.root);
    let snapshot = root.as_deref().and_then(|root| {
        let list = place::look(root).ok()?.list();
        list.into_iter().find(|info| info.thin_id.to_string() == what).map(|info| info.id.to_string())
    });
    let shown = root.as_ref().map_or("?".to_owned(), |root| root.display().to_string());
    let fields = vec![
        ("root", shown),
        ("tree", tree.to_string()),
        ("snapshot", snapshot.clone().unwrap_or_else(|| format!("- ({what})"))),
        ("name", status.name.to_string()),
    ];
    let json = json!({
        "root": root, "tree": tree.to_string(), "snapshot": snapshot, "part": what, "name": status.name.to_string(),
    });
    output.fields("device", fields, json)
}
