//! Streams, images, and what has changed.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::Path;

use dm_thin::tree::{AddOptions, ChangeKind, Progress, ReceiveOptions, SendOptions, Since};
use dm_thin::units::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::{change, look, place};

/// A bar on standard error, if that is a terminal.
fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{bar:40} {binary_bytes:>10} of {binary_total_bytes} {binary_bytes_per_sec} {eta}";
    ProgressBar::new(0)
        .with_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar) -> impl FnMut(Progress) + '_ {
    move |progress| {
        bar.set_length(progress.size.0);
        bar.set_position(progress.offset.0);
    }
}

pub fn diff(output: &Output, root: &Path, from: &str, to: &str) -> Result<()> {
    let tree = place::open(root)?;
    let (mut rows, mut json, mut total) = (Vec::new(), Vec::new(), Bytes(0));
    for range in tree.changed(Since::Snapshot(from), to)? {
        let range = range?;
        let kind = if range.kind == ChangeKind::Data { "data" } else { "hole" };
        total = total + range.length;
        rows.push(vec![range.offset.0.to_string(), output.size(range.length), kind.to_owned()]);
        json.push(json!({ "offset": range.offset.0, "length": range.length.0, "kind": kind }));
    }
    output.rows("changed", &["OFFSET", "LENGTH", "KIND"], &["OFFSET", "LENGTH"], rows, json.into())?;
    if !output.json {
        crate::output::note(&format!("{} have changed", output.size(total)));
    }
    Ok(())
}

pub fn send(
    output: &Output,
    root: &Path,
    id: &str,
    since: Option<&str>,
    recursive: bool,
    dry_run: bool,
) -> Result<()> {
    let tree = place::open(root)?;
    if dry_run {
        let summary = tree.send_size(id, since, SendOptions::new())?;
        return output.done(&output.size(summary.size), "stream", json!({ "size": summary.size.0 }));
    }
    if io::stdout().is_terminal() {
        return Err(Failure::usage("a stream is not for a terminal: send it to a file or a program"));
    }
    let (bar, mut out) = (bar(), BufWriter::new(io::stdout().lock()));
    let options = SendOptions::new().progress(show(&bar));
    if recursive {
        tree.send_tree(id, &mut out, options)?
    } else {
        tree.send(id, since, &mut out, options)?
    };
    bar.finish_and_clear();
    out.flush().map_err(Failure::new)
}

pub fn receive(output: &Output, root: &Path, id: Option<&str>) -> Result<()> {
    if io::stdin().is_terminal() {
        return Err(Failure::usage("a stream is read from standard input: `dm-thin receive < FILE`"));
    }
    let tree = place::open(root)?;
    let bar = bar();
    let mut options = ReceiveOptions::new().progress(show(&bar));
    if let Some(id) = id {
        options = options.name(id);
    }
    let report = tree.receive(BufReader::new(io::stdin().lock()), options)?;
    bar.finish_and_clear();
    let ids: Vec<_> = report.snapshots.iter().map(ToString::to_string).collect();
    output.done(&ids.join("\n"), "received", json!(ids))
}

pub fn import(output: &Output, root: &Path, id: &str, image: &Path, size: Option<Bytes>) -> Result<()> {
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", image.display()));
    let (file, whole) = (File::open(image).map_err(failed)?, change::image_size(image)?);
    let size = size.unwrap_or(Bytes(whole.0.next_multiple_of(512)));
    let bar = bar();
    bar.set_length(whole.0);
    let tree = place::open(root)?;
    tree.import(id, bar.wrap_read(file), size, &AddOptions::new())?;
    bar.finish_and_clear();
    output.done("", "imported", json!({ "id": id, "size": tree.get(id)?.size.0 }))
}

pub fn export(root: &Path, id: &str, image: &Path) -> Result<()> {
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", image.display()));
    let tree = place::open(root)?;
    tree.get(id)?;
    let file = File::create_new(image).map_err(failed)?;
    tree.export(id, &file).inspect_err(|_| {
        // Made by this call; the error is returned.
        let _ = std::fs::remove_file(image);
    })?;
    file.sync_all().map_err(failed)
}

/// The state as the command's JSON: what an operator sends with a report.
pub fn dump(output: &Output, root: &Path) -> Result<()> {
    let tree = place::look(root)?;
    let in_use = look::in_use(&tree);
    let list = tree.list();
    let snapshots =
        list.iter().map(|info| look::snapshot_json(info, in_use.get(info.id.as_str()).copied(), None));
    let mut state = String::new();
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", root.join("state.json").display()));
    File::open(root.join("state.json"))
        .and_then(|mut file| file.read_to_string(&mut state))
        .map_err(failed)?;
    let checkpoint: serde_json::Value = serde_json::from_str(&state).map_err(Failure::new)?;
    let pool =
        tree.pool().map(|(name, status)| json!({ "name": name.to_string(), "status": status.to_string() }));
    output.object(
        "state",
        json!({
            "uuid": tree.uuid().to_string(),
            "pool": pool,
            "snapshots": snapshots.collect::<Vec<_>>(),
            "checkpoint": checkpoint,
        }),
    )
}
