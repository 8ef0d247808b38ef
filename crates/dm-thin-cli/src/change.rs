//! Commands that change a tree, and those that need its lock to read.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dm_thin::tree::{
    AddOptions, Consistency, DeviceOptions, Finding, Labels, MountOptions, Options, Parent, PoolSource,
    RemoveOptions, SnapshotTree,
};
use serde_json::json;

use crate::cli::{Add, Destroys, Init};
use crate::failure::{Failure, Result};
use crate::output::{Output, confirm, line, note};
use crate::place;

/// `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(&str, &str)> {
    text.split_once('=').ok_or_else(|| Failure::usage(format!("label {text:?}: not KEY=VALUE")))
}

pub fn parse_labels(texts: &[String]) -> Result<Labels> {
    let mut labels = Labels::new();
    for text in texts {
        let (key, value) = pair(text)?;
        labels.set(key, value)?;
    }
    Ok(labels)
}

fn of(parent: Option<&str>) -> Parent<'_> {
    parent.map_or(Parent::Base, Parent::Snapshot)
}

pub fn init(output: &Output, root: &Path, init: Init) -> Result<()> {
    if place::check_tree(root).is_ok() {
        return Err(Failure::new(format!("there is a tree in {} already", root.display())));
    }
    let mut options = Options::new().background_threads(false);
    if let Some(size) = init.data_size {
        options = options.data_size(size);
    }
    if let Some(size) = init.metadata_size {
        options = options.metadata_size(size);
    }
    if let Some(size) = init.base_size {
        options = options.base_size(size);
    }
    if let Some(filesystem) = &init.filesystem {
        options = options.filesystem(match filesystem.as_str() {
            "ext4" => dm_thin::tree::Filesystem::Ext4,
            "xfs" => dm_thin::tree::Filesystem::Xfs,
            "none" => dm_thin::tree::Filesystem::None,
            other => return Err(Failure::usage(format!("filesystem {other:?}: not ext4, xfs or none"))),
        });
    }
    match (init.device, init.data, init.metadata) {
        (Some(path), ..) => options = options.pool_source(PoolSource::Device { path }),
        (None, Some(data), Some(metadata)) => {
            options = options.pool_source(PoolSource::Devices { data, metadata });
        }
        _ => {}
    }
    let tree = SnapshotTree::open(root, options)?;
    let text = format!("made tree {} in {}", tree.uuid(), root.display());
    output.done(&text, "tree", json!({ "uuid": tree.uuid().to_string(), "root": root }))
}

pub fn add(output: &Output, root: &Path, add: &Add) -> Result<()> {
    let tree = place::open(root)?;
    let consistency = if add.crash_consistent { Consistency::Crash } else { Consistency::Filesystem };
    let mut options = AddOptions::new().labels(parse_labels(&add.labels)?).consistency(consistency);
    if let Some(size) = add.size {
        options = options.size(size);
    }
    let parent = of(add.of.as_deref());
    if !add.activate {
        tree.add_with(&add.id, parent, &options)?;
        return output.done("", "added", json!({ "id": add.id }));
    }
    let device = tree.add_activated(&add.id, parent, &options)?;
    output.done(&device.display().to_string(), "added", json!({ "id": add.id, "device": device }))
}

pub fn remove(
    output: &Output,
    root: &Path,
    ids: &[String],
    no_children: bool,
    destroys: &Destroys,
) -> Result<()> {
    if destroys.dry_run {
        let tree = place::look(root)?;
        let infos = ids.iter().map(|id| place::find(&tree, id)).collect::<Result<Vec<_>>>()?;
        let told = infos.iter().map(|it| format!("would remove {} ({})", it.id, output.size(it.size)));
        return output.done(&told.collect::<Vec<_>>().join("\n"), "would_remove", json!(ids));
    }
    confirm(&format!("Remove {}?", ids.join(", ")), destroys.yes)?;
    let tree = place::open(root)?;
    let options = RemoveOptions::new().refuse_children(no_children).background(false);
    for id in ids {
        let _ = tree.remove_with(id, &options)?;
    }
    output.done("", "removed", json!(ids))
}

pub fn label(output: &Output, root: &Path, id: &str, changes: &[String]) -> Result<()> {
    let labels = if changes.is_empty() {
        place::find(&place::look(root)?, id)?.labels
    } else {
        let changes = changes.iter().map(|change| pair(change)).collect::<Result<Vec<_>>>()?;
        place::open(root)?.change_labels(id, |labels| {
            for (key, value) in changes {
                match value {
                    "" => drop(labels.remove(key)),
                    value => labels.set(key, value)?,
                }
            }
            Ok(labels.clone())
        })?
    };
    let fields = labels.iter().map(|(key, value)| (key, value.to_owned())).collect();
    output.fields("labels", fields, json!(labels.iter().collect::<BTreeMap<_, _>>()))
}

pub fn commit(output: &Output, root: &Path, id: &str, to: &str, labels: &[String]) -> Result<()> {
    let labels = parse_labels(labels)?;
    let uuid = place::open(root)?.commit(id, to, labels)?.to_string();
    output.done(&uuid, "sealed", json!({ "id": to, "uuid": uuid }))
}

pub fn seal(output: &Output, root: &Path, id: &str) -> Result<()> {
    let uuid = place::open(root)?.seal(id)?.to_string();
    output.done(&uuid, "sealed", json!({ "id": id, "uuid": uuid }))
}

pub fn mount(root: &Path, id: &str, target: &Path, read_only: bool, options: Option<&str>) -> Result<()> {
    let options = MountOptions::new().read_only(read_only).options(options.unwrap_or_default());
    Ok(place::open(root)?.mount_with(id, target, &options)?)
}

pub fn activate(output: &Output, root: &Path, id: &str, read_only: bool) -> Result<()> {
    let device = place::open(root)?.activate_with(id, &DeviceOptions::new().read_only(read_only))?;
    let json = json!({ "id": id, "device": device.path(), "number": device.number().to_string() });
    output.done(&device.path().display().to_string(), "active", json)
}

pub fn ready(root: &Path, parent: Option<&str>, count: usize) -> Result<()> {
    let tree = place::open(root)?;
    tree.keep_ready(of(parent), count)?;
    Ok(tree.refill_ready()?)
}

/// How severe a finding is, what to do about it, and the exit status that it gives.
fn judge(finding: &Finding) -> (&'static str, &'static str, u8) {
    let advice = match finding {
        Finding::UnknownVolume { own: false, .. } => {
            return ("note", "it belongs to another user of the pool", 0);
        }
        Finding::MetadataSnapHeld => "if no program reads it: dmsetup message POOL 0 release_metadata_snap",
        Finding::NotBound { .. } => "another program bound or replaced it: dm-thin close, then open it again",
        Finding::Pool { .. } => "grow the pool or remove snapshots; needs_check is cleared by the next open",
        Finding::MissingVolume { .. } => "its data is lost: remove it",
        Finding::Truncated { .. } => "a part of the pool is lost: restore the file",
        Finding::AlsoMounted { .. } => "another program mounted it: unmount it there",
        Finding::Generation { .. } => {
            "state and pool are of different times: see Options::accept_older_state"
        }
        _ => return ("repairable", "dm-thin repair", 1),
    };
    ("damage", advice, 2)
}

/// Prints what was found; the exit status.
fn report(output: &Output, what: &str, findings: &[Finding]) -> Result<u8> {
    let (mut rows, mut json, mut status) = (Vec::new(), Vec::new(), 0);
    for finding in findings {
        let (severity, advice, code) = judge(finding);
        status = status.max(code);
        rows.push(vec![severity.to_owned(), finding.to_string(), advice.to_owned()]);
        json.push(json!({ "severity": severity, "what": finding.to_string(), "advice": advice }));
    }
    if rows.is_empty() && !output.json {
        line("nothing found")?;
    } else {
        output.rows(what, &["SEVERITY", "WHAT", "WHAT TO DO"], &[], rows, json.into())?;
    }
    Ok(status)
}

/// Without the lock only what needs none is compared.
pub fn check(output: &Output, root: &Path) -> Result<u8> {
    let findings = match place::open(root) {
        Ok(tree) => {
            for found in tree.recovered().iter().filter(|found| found.is_repair()) {
                note(&format!("on opening: {found}"));
            }
            tree.check()?
        }
        Err(failure) if failure.locked => {
            note(&format!("{}: only the pool and the devices are compared", failure.message));
            place::look(root)?.check()?
        }
        Err(failure) => return Err(failure),
    };
    report(output, "findings", &findings)
}

pub fn repair(output: &Output, root: &Path, destroys: &Destroys) -> Result<u8> {
    let tree = place::open(root)?;
    if destroys.dry_run {
        return report(output, "findings", &tree.check()?);
    }
    confirm("Repair what `dm-thin check` finds?", destroys.yes)?;
    let repair = tree.repair()?;
    if !output.json {
        repair.healed.iter().try_for_each(|finding| line(&format!("repaired: {finding}")))?;
    }
    report(output, "left", &repair.left)
}

pub fn repair_metadata(output: &Output, root: &Path, restore: bool, destroys: &Destroys) -> Result<()> {
    place::check_tree(root)?;
    let options = Options::new();
    if restore {
        confirm("Put the damaged metadata back?", destroys.yes)?;
        return Ok(SnapshotTree::restore_metadata(root, &options)?);
    }
    let repair = SnapshotTree::repair_metadata(root, &options)?;
    let lost: Vec<_> = repair.lost.iter().map(ToString::to_string).collect();
    let reduced: Vec<_> = repair
        .reduced
        .iter()
        .map(|it| json!({ "id": it.id.as_str(), "before": it.before.0, "now": it.now.0 }))
        .collect();
    let json =
        json!({ "lost": lost, "base_is_lost": repair.base_is_lost, "reduced": reduced, "file": repair.file });
    if output.json {
        output.object("metadata", json)?;
    } else {
        lost.iter().try_for_each(|id| line(&format!("lost: {id}")))?;
        for it in &repair.reduced {
            line(&format!(
                "lost a part: {} ({} of {} left)",
                it.id,
                output.size(it.now),
                output.size(it.before)
            ))?;
        }
        if repair.base_is_lost {
            line("lost: the base")?;
        }
        if lost.is_empty() && repair.reduced.is_empty() && !repair.base_is_lost {
            line("nothing is lost")?;
        }
    }
    if destroys.dry_run {
        return Ok(());
    }
    confirm("Replace the pool's metadata? `repair-metadata --restore` takes that back.", destroys.yes)?;
    Ok(repair.apply()?)
}

/// Deactivates everything.
pub fn close(root: &Path) -> Result<()> {
    Ok(place::open(root)?.close_within(Duration::from_secs(60))?)
}

/// How much data an image has.
pub fn image_size(path: &Path) -> Result<dm_thin::units::Bytes> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.file_type().is_block_device() {
        return Ok(dm_thin::units::Bytes(found.len()));
    }
    use std::io::Seek;
    let mut file = std::fs::File::open(path).map_err(failed)?;
    Ok(dm_thin::units::Bytes(file.seek(std::io::SeekFrom::End(0)).map_err(failed)?))
}
