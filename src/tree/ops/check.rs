//! Comparing the state with the pool, the kernel's tables, the mounts and the loop devices.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::dm::{DeviceMapper, DeviceStatus, TableKind};
use crate::kernel::DeviceNumber;
use crate::loopdev::LoopControl;
use crate::thin;
use crate::thin::{PoolMode, PoolStatus, ThinId, ThinTable};
use crate::tree::names::Names;
use crate::tree::state::graph::Graph;
use crate::tree::state::identity::{self, Relation};
use crate::tree::state::journal::State;
use crate::tree::state::record::{Removed, Snapshot};
use crate::tree::{DeviceProblem, Finding, PoolSource, SnapshotId, SnapshotTree, mount_table};
use crate::tree::{Error, Result};

impl SnapshotTree {
    /// Compares the state with the system, and explains each difference. An empty list: no difference.
    ///
    /// What other calls are doing meanwhile can look like a difference. While another program holds the pool's metadata
    /// snapshot, which is a finding, the pool's volumes are not compared.
    ///
    /// # Errors
    /// Only what keeps it from looking.
    pub fn check(&self) -> Result<Vec<Finding>> {
        self.check_open()?;
        self.compare().map_err(|error| self.closed_or(error))
    }

    fn compare(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        self.check_pool(&mut findings)?;
        match self.check_volumes(&mut findings) {
            // Each is a finding already.
            Err(
                Error::Thin(thin::Error::PoolMode { .. }) | Error::Thin(thin::Error::MetadataSnapHeld { .. }),
            ) if !findings.is_empty() => {}
            result => result?,
        }
        self.check_devices(&mut findings)?;
        self.check_nodes(&mut findings)?;
        self.check_files(&mut findings)?;
        Ok(findings)
    }

    fn check_pool(&self, findings: &mut Vec<Finding>) -> Result<()> {
        let status = self.pool.thin.status()?;
        findings.extend(self.store.read_state(|state| pool_findings(&status, state)));
        if let PoolStatus::Usage(usage) = status
            && usage.held_metadata_root.is_some()
            && !self.pool.hold().is_left()
            && self.pool.thin.is_held_elsewhere()?
        {
            findings.push(Finding::MetadataSnapHeld);
        }
        Ok(())
    }

    fn check_volumes(&self, findings: &mut Vec<Finding>) -> Result<()> {
        if !self.work.has_thread() {
            self.store.read(|graph| findings.extend(graph.removed.iter().map(deferred)));
        }
        self.store.read(|graph| {
            findings.extend(graph.orphans.iter().map(|&thin_id| Finding::Orphan { thin_id }));
        });
        let abandoned = self.store.abandoned();
        findings.extend(abandoned.into_iter().map(|thin_id| Finding::Unfinished { thin_id }));
        let there = self.pool.read_metadata(|metadata| Ok(metadata.device_ids()?))?;
        let there: BTreeSet<ThinId> = there.into_iter().collect();
        let shared = self.store.is_shared();
        self.store.read(|graph| {
            let base = graph.base.iter().map(|base| (None, base.thin_id));
            let snapshots = graph.snapshots.iter();
            let listed = base.chain(snapshots.map(|(id, snapshot)| (Some(id.clone()), snapshot.thin_id)));
            let missing = listed.filter(|(_, thin_id)| !there.contains(thin_id));
            findings.extend(missing.map(|(id, thin_id)| Finding::MissingVolume { id, thin_id }));
            let window: BTreeSet<ThinId> = graph.ids.ids().collect();
            let unknown = there.iter().filter(|id| !graph.uses(**id));
            findings.extend(unknown.map(|&thin_id| Finding::UnknownVolume {
                thin_id,
                own: !shared && window.contains(&thin_id),
            }));
        });
        Ok(())
    }

    fn check_devices(&self, findings: &mut Vec<Finding>) -> Result<()> {
        let mounts = mount_table::mounts(&*self.options.kernel)?;
        let known = self.store.read(Graph::by_thin_id);
        let mut active = BTreeMap::new();
        for (status, thin_id) in self.pool.active_devices()? {
            match known.get(&thin_id) {
                None => self.store.read(|graph| match graph.removed.get_key_value(&thin_id) {
                    // The tree's thread cannot delete it as long as it is open.
                    Some(removed) if self.work.has_thread() => findings.push(deferred(removed)),
                    Some(_) => {}
                    // Being written; or reported as unfinished.
                    None if graph.making(thin_id).is_some() => {}
                    None => findings.push(Finding::UnknownDevice { device: status.name, thin_id }),
                }),
                Some((id, snapshot)) => match self.check_device(id, snapshot, &status, findings) {
                    // Deactivated since it was listed.
                    Err(error) if error.errno() == Some(Errno::ENXIO) => {}
                    result => {
                        result?;
                        active.insert(id.clone(), status.number);
                    }
                },
            }
        }
        let mut own = vec![false; mounts.len()];
        for (id, view) in self.live.views() {
            if view.device.is_some() && !view.removal_deferred && !active.contains_key(&id) {
                findings.push(Finding::DeviceGone { id: id.clone() });
            }
            if let Some((target, mount)) = view.mounted {
                match mounts.iter().position(|line| line.is(mount)) {
                    Some(at) => own[at] = true,
                    None => findings.push(Finding::NotMounted { id, target }),
                }
            }
        }
        for (id, number) in active {
            let others = mounts.iter().zip(&own).filter(|(line, own)| line.device == number && !**own);
            findings.extend(
                others.map(|(line, _)| Finding::AlsoMounted { id: id.clone(), target: line.target.clone() }),
            );
        }
        Ok(())
    }

    fn check_device(
        &self,
        id: &SnapshotId,
        snapshot: &Snapshot,
        status: &DeviceStatus,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let read_only = snapshot.sealed.is_some() || self.live.view(id).read_only;
        let (pool, names) = (self.pool.thin.number(), &self.pool.names);
        let snapshot = (id, snapshot);
        findings.extend(device_findings(self.pool.dm(), names, pool, snapshot, status, Some(read_only))?);
        Ok(())
    }

    fn check_nodes(&self, findings: &mut Vec<Finding>) -> Result<()> {
        let stale = self.pool.stale_nodes()?;
        findings.extend(stale.into_iter().map(|name| Finding::StaleNode { name }));
        Ok(())
    }

    fn check_files(&self, findings: &mut Vec<Finding>) -> Result<()> {
        let record = self.store.read_state(|state| state.pool.clone());
        if record.source != PoolSource::LoopFiles {
            return Ok(());
        }
        let control = LoopControl::with_kernel(self.options.kernel.clone())?;
        let (table, _) = self.pool.thin.table()?;
        let (data, metadata) = ((table.data, record.data_size), (table.metadata, record.metadata_size));
        for (name, (number, recorded)) in [("data", data), ("metadata", metadata)] {
            let path = self.root.pool_path().join(name);
            let file = self.root.pool_file(name);
            let device = file.as_ref().ok().map_or(Ok(None), |file| control.find(file))?;
            let (Ok(file), Some(device)) = (file, device.filter(|device| device.number() == number)) else {
                findings.push(Finding::NotBound { path });
                continue;
            };
            let status = self.options.kernel.files().file_status(file.as_fd());
            let size = status.map_err(Error::io("stat", &path))?.size;
            // A loop device keeps its size until LOOP_SET_CAPACITY.
            let expected = device.size()?.max(recorded);
            if size < expected {
                findings.push(Finding::Truncated { path, size, expected });
            }
        }
        Ok(())
    }
}

/// What is wrong with the device of a snapshot, which is to be read-only or not, if that is known.
pub(super) fn device_findings(
    dm: &DeviceMapper,
    names: &Names,
    pool: DeviceNumber,
    (id, snapshot): (&SnapshotId, &Snapshot),
    status: &DeviceStatus,
    read_only: Option<bool>,
) -> Result<Vec<Finding>> {
    let lines = dm.table(&status.name, TableKind::Live)?;
    let mut findings = Vec::new();
    let mut wrong = |problem| {
        findings.push(Finding::WrongDevice { id: id.clone(), device: status.name, problem });
    };
    if status.is_suspended() {
        wrong(DeviceProblem::Suspended);
    }
    if status.name != names.name(id.as_str())? {
        wrong(DeviceProblem::Name);
    }
    if read_only.is_some_and(|expected| expected != status.is_read_only()) {
        wrong(DeviceProblem::Mode { read_only: status.is_read_only() });
    }
    let expected = ThinTable { pool, id: snapshot.thin_id, external_origin: None };
    let right = matches!(&lines[..], [line]
        if line.target_type.as_str() == "thin"
            && line.length == snapshot.size.sectors()
            && line.text.parse::<ThinTable>().is_ok_and(|table| table == expected));
    if !right {
        let found = lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        wrong(DeviceProblem::Table { found });
    }
    Ok(findings)
}

/// What the status of the pool shows, compared with the state.
pub(super) fn pool_findings(status: &PoolStatus, state: &State) -> Vec<Finding> {
    let PoolStatus::Usage(usage) = status else {
        return vec![Finding::Pool { mode: status.mode(), needs_check: false }];
    };
    let mut findings = Vec::new();
    let (mode, needs_check) = (usage.mode, usage.needs_check);
    if mode != PoolMode::ReadWrite || needs_check {
        findings.push(Finding::Pool { mode, needs_check });
    }
    let pool = usage.transaction_id;
    let relation = identity::compare(state, pool, "");
    if !(state.pool.source.is_shared() || matches!(relation, Ok(Relation::Same | Relation::Behind))) {
        findings.push(Finding::Generation { state: identity::transaction_id(state), pool });
    }
    findings
}

fn deferred((&thin_id, removed): (&ThinId, &Removed)) -> Finding {
    Finding::Deferred { id: removed.id.clone(), thin_id }
}
