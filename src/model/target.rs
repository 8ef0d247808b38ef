//! Tables and targets of mapped devices.

use crate::kernel::DeviceNumber;
use crate::model::pool::{Features, Mode};

/// Target types and their versions, in the order in which the kernel lists them.
pub(super) const TARGETS: [(&str, [u32; 3]); 5] = [
    ("thin", [1, 23, 0]),
    ("thin-pool", [1, 23, 0]),
    ("zero", [1, 2, 0]),
    ("linear", [1, 4, 0]),
    ("error", [1, 6, 0]),
];

#[derive(Debug)]
pub(super) struct Table {
    pub(super) read_only: bool,
    pub(super) targets: Vec<Target>,
}

#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Error,
    Linear { device: DeviceNumber, offset: u64 },
    Thin { pool: DeviceNumber, id: u32, origin: Option<DeviceNumber> },
    ThinPool(ThinPool),
    Zero,
}

/// A line of a thin-pool table. The pool itself outlives it.
#[derive(Debug, Clone)]
pub(super) struct ThinPool {
    pub(super) metadata: DeviceNumber,
    pub(super) data: DeviceNumber,
    pub(super) low_water: u64,
    pub(super) requested: Features,
    /// What the pool's mode becomes at the next resume.
    pub(super) mode: Mode,
}

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Linear { .. } => "linear",
            Self::Thin { .. } => "thin",
            Self::ThinPool(_) => "thin-pool",
            Self::Zero => "zero",
        }
    }
}

impl Table {
    pub(super) fn thin_pool(&self) -> Option<&Target> {
        self.targets.iter().find(|target| matches!(target.kind, Kind::ThinPool(_)))
    }

    /// The devices used, in the kernel's order: the one opened last comes first.
    pub(super) fn dependencies(&self) -> Vec<DeviceNumber> {
        let mut opened = Vec::new();
        for target in &self.targets {
            match &target.kind {
                Kind::Linear { device, .. } => opened.push(*device),
                Kind::Thin { pool, origin, .. } => opened.extend(origin.iter().chain([pool])),
                Kind::ThinPool(pool) => opened.extend([pool.metadata, pool.data]),
                Kind::Error | Kind::Zero => {}
            }
        }
        let mut unique = Vec::new();
        for device in opened {
            if !unique.contains(&device) {
                unique.insert(0, device);
            }
        }
        unique
    }

    pub(super) fn uses(&self, number: DeviceNumber) -> bool {
        self.targets.iter().any(|target| match &target.kind {
            Kind::Linear { device, .. } => *device == number,
            Kind::Thin { pool, origin, .. } => *pool == number || *origin == Some(number),
            Kind::ThinPool(pool) => pool.metadata == number || pool.data == number,
            Kind::Error | Kind::Zero => false,
        })
    }

    /// Whether a device that it uses is opened for writing.
    pub(super) fn writes(&self, number: DeviceNumber) -> bool {
        self.targets.iter().any(|target| match &target.kind {
            Kind::Linear { device, .. } => !self.read_only && *device == number,
            Kind::Thin { pool, .. } => !self.read_only && *pool == number,
            Kind::ThinPool(pool) => {
                pool.data == number || pool.metadata == number && !pool.requested.read_only
            }
            Kind::Error | Kind::Zero => false,
        })
    }
}
