//! The directory of Docker's devicemapper driver: what is in it, and out of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use dm_thin::dm::DeviceMapper;
use dm_thin::tree::{Options, PoolSource, SnapshotTree};
use dm_thin_docker::{
    Adopted, Device, DeviceName, DeviceState, Error, Finding, PoolFiles, Store, activate_pool,
    deactivate_pool,
};
use serde_json::json;

use crate::cli::Cli;
use crate::failure::{Failure, Result};
use crate::output::{Output, note};

#[derive(Debug, Subcommand)]
pub enum DockerCommand {
    /// Lists images, containers, and devices that belong to neither
    Ls {
        #[command(flatten)]
        place: Place,
        /// The devices of lower layers and of containers' init layers, too
        #[arg(long, short)]
        all: bool,
    },
    /// Writes the file system of an image, container or device to a new file
    Export {
        #[command(flatten)]
        place: Place,
        /// A container's name, an image's tag, an id or its beginning, `base`, or `thin-` and a thin id
        id: String,
        #[command(flatten)]
        format: ExportFormat,
    },
    /// Makes all devices that are whole snapshots of the tree of --root: copies that share blocks as they did
    Adopt {
        #[command(flatten)]
        place: Place,
        /// Copies nothing: the tree is in Docker's own pool, which is activated; made if it is not there
        #[arg(long)]
        in_place: bool,
        /// The active pool, with --in-place, if it is not on Docker's loop files: that of LVM
        #[arg(long, requires = "in_place", value_name = "NAME")]
        pool: Option<String>,
    },
    /// Activates the pool on Docker's loop files again, for a tree that was adopted in place: after each start of the machine
    Activate {
        /// /var/lib/docker
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Removes the pool that `docker activate` or `docker adopt --in-place` has activated; the tree has to be closed
    Deactivate {
        /// /var/lib/docker
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Place {
    /// /var/lib/docker, a copy of it, or a directory with `metadata` and `data` of a pool
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The pool's metadata, if it is not in DIR: the _tmeta volume of LVM
    #[arg(long, requires = "data", value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// The pool's data, if it is not in DIR: the _tdata volume of LVM
    #[arg(long, requires = "metadata", value_name = "FILE")]
    data: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ExportFormat {
    /// A sparse raw image; the content is in its directory rootfs
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    /// A tar archive of rootfs, for `docker import`: needs root, and mounts a copy
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
}

pub fn run(output: &Output, cli: &Cli, command: &DockerCommand) -> Result<()> {
    match command {
        DockerCommand::Adopt { place, in_place: false, .. } => {
            let (store, tree) = (place.open()?, crate::place::open(&crate::place::root(cli)?)?);
            tell(store.findings());
            adopted(output, |each| store.adopt(&tree, each))
        }
        DockerCommand::Adopt { place, pool, .. } => {
            adopt_in_place(output, place, pool.as_deref(), &crate::place::root(cli)?)
        }
        DockerCommand::Activate { directory } => {
            let pool = activate_pool(directory, &Arc::new(DeviceMapper::open()?))?;
            let name = pool.name().to_string();
            output.done(&name, "pool", json!({ "name": name }))
        }
        DockerCommand::Deactivate { directory } => {
            let was_active = deactivate_pool(directory, &Arc::new(DeviceMapper::open()?))?;
            let text = if was_active { "removed" } else { "not active" };
            output.done(text, "deactivated", json!({ "was_active": was_active }))
        }
        DockerCommand::Ls { place, all } => ls(output, place, *all),
        DockerCommand::Export { place, id, format } => export(output, place, id, format),
    }
}

impl Place {
    fn open(&self) -> Result<Store> {
        let store = match (self.metadata.clone(), self.data.clone()) {
            (Some(metadata), Some(data)) => Store::open_with(&self.directory, &PoolFiles { metadata, data }),
            _ => Store::open(&self.directory),
        };
        Ok(store?)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = match error {
            Error::Tree { source } => return (*source).into(),
            Error::NotFound { .. } | Error::Ambiguous { .. } => "`dm-thin docker ls --all DIR` lists all ids",
            Error::NoPool { .. } => "--metadata and --data name the pool's metadata and data",
            Error::Thin { source } => return (*source).into(),
            Error::NotPermitted { .. } | Error::NoFilesystem { .. } => {
                "--raw needs neither root nor a file system"
            }
            Error::NoData { .. } => {
                "if the pool has it, it is among the stranded devices of `dm-thin docker ls`"
            }
            Error::Metadata { .. } => {
                "thin_repair of thin-provisioning-tools makes new metadata, for --metadata"
            }
            _ => return Self::new(error),
        };
        Self::new(error).hint(hint)
    }
}

fn ls(output: &Output, place: &Place, all: bool) -> Result<()> {
    let store = place.open()?;
    let findings = store.findings();
    if output.json {
        let text = |it: &Finding| json!({ "text": it.to_string(), "details": it });
        return output.object(
            "docker",
            json!({
                "pool": store.pool(),
                "transaction_id": store.transaction_id(),
                "transaction": store.transaction_state(),
                "images": store.images(),
                "layers": store.layers().collect::<Vec<_>>(),
                "containers": store.containers(),
                "devices": store.devices().collect::<Vec<_>>(),
                "findings": findings.iter().map(text).collect::<Vec<_>>(),
            }),
        );
    }
    let (mut rows, mut owned) = (Vec::new(), BTreeSet::new());
    let mut row = |kind: &str, name: &str, id: &str, device: Option<&DeviceName>| {
        let found = device.and_then(|name| store.device(name));
        owned.extend(device.cloned());
        rows.push(cells(output, kind, name, id, found));
    };
    for image in store.images() {
        let tags = image.tags.join(", ");
        row("image", if tags.is_empty() { "-" } else { &tags }, &image.id, image.device.as_ref());
    }
    for container in store.containers() {
        row("container", container.name.as_deref().unwrap_or("-"), &container.id, container.device.as_ref());
    }
    let healthy = |device: &&Device| device.state == DeviceState::Ok;
    let layers = store.layers().filter_map(|layer| layer.device.as_ref());
    let inits = store.containers().iter().filter_map(|container| container.init.as_ref());
    let inner: BTreeSet<_> = layers.chain(inits).chain([&DeviceName::Base]).collect();
    for device in store.devices().filter(|device| !owned.contains(&device.name)) {
        if all || !inner.contains(&device.name) || !healthy(&device) {
            let name = device.name.to_string();
            rows.push(cells(
                output,
                "device",
                if name.len() < 64 { &name } else { "-" },
                &name,
                Some(device),
            ));
        }
    }
    let columns = ["KIND", "NAME", "ID", "THIN ID", "SIZE", "MAPPED", "STATE"];
    output.rows("docker", &columns, &["THIN ID", "SIZE", "MAPPED"], rows, json!(null))?;
    tell(store.findings());
    Ok(())
}

fn tell<'a>(findings: impl IntoIterator<Item = &'a Finding>) {
    for finding in findings {
        note(&format!("found: {finding}"));
    }
}

fn cells(output: &Output, kind: &str, name: &str, id: &str, device: Option<&Device>) -> Vec<String> {
    let id = match id.get(..12) {
        Some(short) if id.ends_with("-init") => format!("{short}-init"),
        Some(short) => short.to_owned(),
        None => "-".to_owned(),
    };
    let thin_id = device.and_then(|device| device.thin_id);
    vec![
        kind.to_owned(),
        name.to_owned(),
        id,
        thin_id.map_or("-".to_owned(), |id| id.to_string()),
        output.size_or(device.and_then(|device| device.size)),
        output.size_or(device.and_then(|device| device.mapped)),
        device.map_or("no device".to_owned(), |device| device.state.to_string()),
    ]
}

fn export(output: &Output, place: &Place, id: &str, format: &ExportFormat) -> Result<()> {
    let store = place.open()?;
    // Findings about other devices are left out.
    let is_of_the_pool = |it: &&Finding| {
        use Finding::{DataTooShort, NeedsCheck, PoolInUse, PoolNewer, PoolOlder};
        matches!(
            it,
            DataTooShort { .. } | NeedsCheck | PoolInUse { .. } | PoolNewer { .. } | PoolOlder { .. }
        )
    };
    tell(store.findings().iter().filter(is_of_the_pool));
    let device = store.find(id)?;
    if device.state != DeviceState::Ok {
        note(&format!("device {} is {}", device.name, device.state));
    }
    if let Some(path) = &format.tar {
        let archived = store.export_tar(device, path)?;
        if !archived.consistent {
            note("its journal could not be read: files that were written last can be incomplete");
        }
        let json =
            json!({ "device": device.name, "entries": archived.entries, "consistent": archived.consistent });
        return output.done(&format!("{} entries", archived.entries), "exported", json);
    }
    let Some(path) = &format.raw else { return Ok(()) };
    let exported = store.export_raw_to(device, path)?;
    let text = format!("{}, {} of it data", output.size(exported.size), output.size(exported.written));
    let json = json!({ "device": device.name, "size": exported.size, "written": exported.written });
    output.done(&text, "exported", json)
}

fn adopt_in_place(output: &Output, place: &Place, pool: Option<&str>, root: &Path) -> Result<()> {
    let store = place.open()?;
    // It may be active because of an earlier call, and LVM's has to be.
    let is_told = |it: &&Finding| {
        !matches!(it, Finding::PoolInUse { .. }) && (pool.is_none() || !matches!(it, Finding::NoPool))
    };
    tell(store.findings().iter().filter(is_told));
    let name = match pool {
        Some(name) => name.to_owned(),
        None => activate_pool(&place.directory, &Arc::new(DeviceMapper::open()?))?.name().to_string(),
    };
    let unknown = || Failure::new("the devices have neither an ext4 nor an XFS file system");
    let options =
        Options::new().background_threads(false).filesystem(store.filesystem().ok_or_else(unknown)?);
    let tree = SnapshotTree::open(root, options.pool_source(PoolSource::Pool { name }))?;
    adopted(output, |each| store.adopt_in_place(&tree, each))
}

/// Runs an adoption, and shows what became of each device.
fn adopted(
    output: &Output,
    adopt: impl FnOnce(&mut dyn FnMut(&Device, &Adopted)) -> dm_thin_docker::Result<()>,
) -> Result<()> {
    let (mut rows, mut json, mut unreadable) = (Vec::new(), Vec::new(), 0);
    let result = adopt(&mut |device, adopted| {
        let (text, written) = match adopted {
            Adopted::Copied { written } => ("copied".to_owned(), Some(*written)),
            Adopted::InPlace => ("adopted".to_owned(), None),
            Adopted::Present => ("present".to_owned(), None),
            Adopted::Unreadable { reason } => {
                unreadable += 1;
                (reason.clone(), None)
            }
            _ => (device.state.to_string(), None),
        };
        rows.push(vec![device.name.to_string(), output.size_or(written), text]);
        json.push(json!({ "device": device.name, "adopted": adopted }));
    });
    // What was done before a failure, too.
    let shown = match result.is_ok() || !rows.is_empty() {
        true => output.rows("adopted", &["DEVICE", "WRITTEN", "STATE"], &["WRITTEN"], rows, json.into()),
        false => Ok(()),
    };
    result?;
    shown?;
    match unreadable {
        0 => Ok(()),
        _ => Err(Failure::new(format!("{unreadable} of the devices cannot be read, and were left out"))),
    }
}
