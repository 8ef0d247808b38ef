//! The holders of a snapshot.

use crate::dm::DmName;
use crate::tree::SnapshotTree;
use crate::tree::holders::holder::Holder;
use crate::tree::holders::of_device;
use crate::tree::{Error, Result};

impl SnapshotTree {
    /// Who has the device of a snapshot open, or files of the file system on it, as far as this process can see. All of
    /// `/proc` is read for it. [`Error::Busy`] and [`Error::MountInUse`] tell the same.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`].
    pub fn holders(&self, id: impl AsRef<str>) -> Result<Vec<Holder>> {
        let id = id.as_ref();
        self.check_open()?;
        let id = self.get(id)?.id;
        let number = self.slots().get(&id).and_then(|slot| slot.view().device).map(|(_, number)| number);
        Ok(number.map(|number| of_device(&*self.options.kernel, number)).unwrap_or_default())
    }

    /// Adds to an error that a device is busy which snapshot's it is, and who has it open.
    pub(in crate::tree) fn with_holders(&self, id: Option<&str>, mut error: Error) -> Error {
        if let Error::Busy { snapshot, device, holders, .. } = &mut error
            && holders.is_empty()
        {
            *snapshot = id.map(str::to_owned);
            let name = DmName::new(device);
            let found = name.and_then(|name| self.pool.device_mapper().find(&name));
            // Without an answer the error is as true as before.
            if let Ok(Some(status)) = found {
                *holders = of_device(&*self.options.kernel, status.number);
            }
        }
        error
    }
}
