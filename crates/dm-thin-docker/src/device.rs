//! The files of `devicemapper/metadata`, and what they say of the devices.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use dm_thin::thin::{ThinId, TransactionId};
use dm_thin::units::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::Finding;
use crate::directory::{Directory, JSON_LIMIT, LARGE_JSON_LIMIT};

/// The name of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DeviceName {
    /// The device with the empty file system.
    Base,
    /// A layer's or container's: 64 hexadecimal digits, followed by `-init` for the init layer of a container.
    Hash(String),
    /// A device that only the pool knows, by its thin id.
    Thin(ThinId),
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.pad("base"),
            Self::Hash(hash) => f.pad(hash),
            Self::Thin(id) => f.pad(&format!("thin-{id}")),
        }
    }
}

impl FromStr for DeviceName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "base" {
            return Ok(Self::Base);
        }
        if let Some(id) = text.strip_prefix("thin-") {
            return ThinId::new(id.parse().map_err(|_| ())?).map(Self::Thin).map_err(|_| ());
        }
        let hash = text.strip_suffix("-init").unwrap_or(text);
        if is_hash(hash) { Ok(Self::Hash(text.to_owned())) } else { Err(()) }
    }
}

impl Serialize for DeviceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// State of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeviceState {
    /// In Docker's files and in the pool; in Docker's files only, if there is no pool to ask.
    Ok,
    /// Docker has deleted it and not removed it yet.
    Deleted,
    /// Docker's last operation on it was interrupted.
    Interrupted,
    /// The base device, not completed.
    HalfMade,
    /// Its file cannot be read, so its thin id is not known. The device itself is among the stranded ones.
    Unreadable,
    /// In Docker's files, and not in the pool.
    Lost,
    /// In the pool, and not in Docker's files.
    Stranded,
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Deleted => "deleted",
            Self::Interrupted => "interrupted",
            Self::HalfMade => "not completed",
            Self::Unreadable => "metadata unreadable",
            Self::Lost => "not in the pool",
            Self::Stranded => "stranded",
        })
    }
}

/// A device: a whole file system, with the content in its directory `rootfs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Device {
    /// Its name.
    pub name: DeviceName,
    /// Its id in the pool, if that is known.
    pub thin_id: Option<ThinId>,
    /// Its size, if a file of Docker's says it.
    pub size: Option<Bytes>,
    /// Docker's transaction id when it was created.
    pub transaction_id: Option<TransactionId>,
    /// Its state.
    pub state: DeviceState,
    /// Size of what it maps, shared blocks included, if the pool can be read.
    pub mapped: Option<Bytes>,
    /// The device that it was created as a snapshot of. Only `layerdb` knows it.
    pub parent: Option<DeviceName>,
}

/// A device's file.
#[derive(Debug, Deserialize)]
struct DeviceFile {
    device_id: i64,
    size: u64,
    #[serde(default)]
    transaction_id: u64,
    #[serde(default)]
    initialized: bool,
    #[serde(default)]
    deleted: bool,
}

/// `devicemapper/devicemapper/json` of the first versions: all devices.
#[derive(Debug, Deserialize)]
struct OldFile {
    #[serde(rename = "Devices")]
    devices: BTreeMap<String, Value>,
}

/// `deviceset-metadata`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct SetFile {
    #[serde(default, rename = "BaseDeviceUUID")]
    pub(crate) base_uuid: String,
    #[serde(default, rename = "BaseDeviceFilesystem")]
    pub(crate) base_filesystem: String,
}

/// `transaction-metadata`.
#[derive(Debug, Deserialize)]
pub(crate) struct TransactionFile {
    pub(crate) open_transaction_id: u64,
    #[serde(default)]
    pub(crate) device_hash: String,
    #[serde(default)]
    pub(crate) device_id: i64,
}

/// What the devicemapper directory says.
#[derive(Debug, Default)]
pub(crate) struct DeviceFiles {
    pub(crate) devices: BTreeMap<DeviceName, Device>,
    pub(crate) set: SetFile,
    pub(crate) transaction: Option<TransactionFile>,
    /// There is a transaction file that cannot be read, which the driver ignores.
    pub(crate) transaction_unreadable: bool,
    /// Whether one of the files is there.
    pub(crate) any: bool,
}

impl DeviceFiles {
    pub(crate) fn read(root: &Directory, findings: &mut Vec<Finding>) -> Self {
        let mut files = Self::default();
        if let Some(directory) = root.below("devicemapper/metadata", findings) {
            files.any = true;
            for name in directory.names(findings) {
                files.read_one(&directory, &name, findings);
            }
        }
        let old = root.below("devicemapper/devicemapper", findings);
        let old = old.and_then(|directory| {
            let file: OldFile = directory.json("json", LARGE_JSON_LIMIT, findings)?;
            Some((directory.path("json"), file))
        });
        if let Some((path, OldFile { devices })) = old {
            files.any = true;
            for (hash, value) in devices {
                let Some(name) = name_of(&hash) else {
                    findings.push(Finding::bad_value(path.clone(), "name of a device", &hash));
                    continue;
                };
                // The driver splits the old file: what it has written already is newer.
                if files.devices.contains_key(&name) {
                    continue;
                }
                let len = 1; // not an empty file
                let file = serde_json::from_value(value)
                    .map_err(|error| findings.push(Finding::bad_json(path.join(&hash), len, &error)));
                files.add(name, file.ok(), path.join(&hash), findings);
            }
        }
        files
    }

    fn read_one(&mut self, directory: &Directory, name: &str, findings: &mut Vec<Finding>) {
        match name {
            "deviceset-metadata" => {
                self.set = directory.json(name, JSON_LIMIT, findings).unwrap_or_default();
            }
            "transaction-metadata" => {
                self.transaction = directory.json(name, JSON_LIMIT, findings);
                self.transaction_unreadable = self.transaction.is_none();
            }
            // Interrupted writes, and old files that were split.
            _ if name.starts_with(".tmp") || name.ends_with(".migrated") => {}
            _ => match name.parse() {
                Ok(DeviceName::Thin(_)) | Err(()) => {
                    findings.push(Finding::UnknownFile { file: directory.path(name) });
                }
                Ok(device) => {
                    let file = directory.json(name, JSON_LIMIT, findings);
                    self.add(device, file, directory.path(name), findings);
                }
            },
        }
    }

    fn add(
        &mut self,
        name: DeviceName,
        file: Option<DeviceFile>,
        path: PathBuf,
        findings: &mut Vec<Finding>,
    ) {
        let mut device = Device {
            name: name.clone(),
            thin_id: None,
            size: None,
            transaction_id: None,
            state: DeviceState::Unreadable,
            mapped: None,
            parent: None,
        };
        if let Some(file) = file {
            let id = u32::try_from(file.device_id).ok().and_then(|id| ThinId::new(id).ok());
            if id.is_none() {
                findings.push(Finding::bad_value(path.clone(), "device_id", &file.device_id.to_string()));
            }
            device.thin_id = id;
            // No file is larger.
            if i64::try_from(file.size).is_err() {
                findings.push(Finding::bad_value(path, "size", &file.size.to_string()));
            } else if file.size > 0 {
                device.size = Some(Bytes(file.size));
            }
            device.transaction_id = Some(TransactionId(file.transaction_id));
            device.state = match &name {
                _ if id.is_none() => DeviceState::Unreadable,
                _ if file.deleted => DeviceState::Deleted,
                DeviceName::Base if !file.initialized => DeviceState::HalfMade,
                _ => DeviceState::Ok,
            };
            match device.state {
                DeviceState::Deleted => findings.push(Finding::Deleted { device: name.clone() }),
                DeviceState::HalfMade => findings.push(Finding::HalfMadeBase),
                _ => {}
            }
        }
        self.devices.insert(name, device);
    }
}

/// The name of a device by the driver's own hash, which is empty for the base device.
pub(crate) fn name_of(hash: &str) -> Option<DeviceName> {
    match hash {
        "" | "base" => Some(DeviceName::Base),
        hash => hash.parse().ok().filter(|name| matches!(name, DeviceName::Hash(_))),
    }
}

/// Whether a text is 64 hexadecimal digits.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
