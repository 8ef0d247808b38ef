//! The holders of a snapshot.

use crate::tree::Result;
use crate::tree::SnapshotTree;
use crate::tree::holders::holder::Holder;
use crate::tree::holders::of_device;

impl SnapshotTree {
    /// Who has the device of a snapshot open, or files of the file system on it, as far as this process can see. All of
    /// `/proc` is read for it. [`Error::Busy`](crate::tree::Error::Busy) and
    /// [`Error::MountInUse`](crate::tree::Error::MountInUse) name the same.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::tree::Error::UnknownSnapshot).
    pub fn holders(&self, id: impl AsRef<str>) -> Result<Vec<Holder>> {
        let id = id.as_ref();
        self.check_open()?;
        let id = self.get(id)?.id;
        let number = self.live.view(&id).device.map(|(_, number)| number);
        Ok(number.map(|number| of_device(&*self.options.kernel, number)).unwrap_or_default())
    }
}
