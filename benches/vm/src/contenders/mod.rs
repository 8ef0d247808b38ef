//! One file per contender.

pub mod bare;
#[cfg(feature = "devicemapper")]
mod devicemapper;
mod dm_snapshot;
mod dmsetup;
mod files;
mod lvm;
mod overlay;
mod qcow2;
mod reflink;
pub mod tree;

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::arena::Arena;
use crate::base::Base;
use crate::contender::Contender;
use crate::pool::Pool;
use crate::results::Results;
use bare::Bare;
use reflink::{Kind, Reflink};
use tree::Tree;

/// All that run here, bare ioctls and the tree first; `wanted` leaves out the others whose names do not contain one of
/// its words. What cannot run is noted.
pub fn all(
    arena: &Arena,
    base: &Base,
    pool: &Arc<Pool>,
    wanted: &[String],
    results: &mut Results,
) -> Result<Vec<Box<dyn Contender>>> {
    let mut contenders: Vec<Box<dyn Contender>> =
        vec![Box::new(Bare::new(arena, pool, false)?), Box::new(Tree::new(arena, base, false)?)];
    let mut add = |program: Option<&str>, contender: Result<Box<dyn Contender>>| match (program, contender) {
        (Some(program), Ok(contender)) if !is_installed(program) => {
            results.leave_out(contender.name(), &format!("{program} is not installed"));
            Ok(())
        }
        (_, contender) => contender.map(|contender| contenders.push(contender)),
    };
    add(Some("dmsetup"), Ok(Box::new(dmsetup::Dmsetup::new(pool))))?;
    #[cfg(feature = "devicemapper")]
    add(None, Ok(Box::new(devicemapper::Devicemapper::new()?)))?;
    add(Some("mkfs.xfs"), Ok(Box::new(Reflink::new(Kind::Xfs, true)?)))?;
    add(Some("mkfs.xfs"), Ok(Box::new(Reflink::new(Kind::Xfs, false)?)))?;
    add(Some("mkfs.btrfs"), Ok(Box::new(Reflink::new(Kind::Btrfs, true)?)))?;
    add(None, Ok(Box::new(dm_snapshot::DmSnapshot::new()?)))?;
    add(None, Ok(Box::<overlay::Overlay>::default()))?;
    add(Some("qemu-nbd"), Ok(Box::<qcow2::Qcow2>::default()))?;
    add(Some("lvm"), Ok(Box::<lvm::Lvm>::default()))?;
    #[cfg(not(feature = "devicemapper"))]
    results.leave_out(
        "devicemapper crate",
        "built without it (libdevmapper-dev and libclang-dev are not installed)",
    );
    results.leave_out("containerd 1.6, Docker 20.10", "no contender is written for them");
    let is_wanted = |name: &str| {
        [bare::NAME, tree::NAME].contains(&name)
            || wanted.is_empty()
            || wanted.iter().any(|word| name.contains(word.as_str()))
    };
    contenders.retain(|contender| is_wanted(contender.name()));
    Ok(contenders)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(program).exists())
}
