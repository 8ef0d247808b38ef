//! The ioctls bare: an encoded request, `ioctl(2)`, and nothing around it. No node is made: devtmpfs makes `/dev/dm-N`.

use std::path::{Path, PathBuf};

use dm_thin::dm::wire::{Command, Payload, Request, Response};
use dm_thin::dm::{DmFlags, DmName, DmUuid, TargetSpec, TargetType};
use dm_thin::kernel::{Access, Arg, DeviceFile, DeviceNumber, Kernel, RealKernel};
use dm_thin::units::Sectors;

use crate::Result;

pub struct Mapper {
    control: DeviceFile,
}

impl Mapper {
    pub fn open() -> Result<Self> {
        let control = RealKernel.open(Path::new("/dev/mapper/control"), Access::READ_WRITE);
        Ok(Self { control: control.map_err(|errno| format!("/dev/mapper/control: {errno}"))? })
    }

    fn send(&self, request: &Request<'_>) -> Result<DeviceNumber> {
        let mut buffer = [0; 512];
        request.encode(&mut buffer).map_err(|error| format!("{error:?}"))?;
        let ioctl = request.command().ioctl;
        RealKernel
            .ioctl(&self.control, ioctl, Arg::Bytes(&mut buffer))
            .map_err(|errno| format!("{}: {errno}", ioctl.name()))?;
        Ok(Response::decode(&buffer)?.number())
    }

    /// DEV_CREATE, TABLE_LOAD, resume.
    pub fn activate(&self, name: &DmName, length: u64, target: &str, parameters: &str) -> Result<PathBuf> {
        let uuid = DmUuid::format(format_args!("BENCH-{name}"))?;
        let number = self.send(&Request::create(name, Some(&uuid), None))?;
        self.load(name, length, target, parameters)?;
        self.resume(name)?;
        Ok(format!("/dev/dm-{}", number.minor).into())
    }

    pub fn load(&self, name: &DmName, length: u64, target: &str, parameters: &str) -> Result<()> {
        let target_type = TargetType::new(target)?;
        let line = TargetSpec {
            start: Sectors(0),
            length: Sectors(length / 512),
            target_type,
            parameters: &parameters,
        };
        self.send(&Request::on(Command::TABLE_LOAD, name.into()).payload(Payload::Table(&[line])))?;
        Ok(())
    }

    pub fn suspend(&self, name: &DmName) -> Result<()> {
        self.send(&Request::on(Command::DEV_SUSPEND, name.into()).flags(DmFlags::SUSPEND))?;
        Ok(())
    }

    pub fn resume(&self, name: &DmName) -> Result<()> {
        self.send(&Request::on(Command::DEV_SUSPEND, name.into()))?;
        Ok(())
    }

    pub fn remove(&self, name: &DmName) -> Result<()> {
        self.send(&Request::on(Command::DEV_REMOVE, name.into()))?;
        Ok(())
    }

    pub fn message(&self, name: &DmName, text: std::fmt::Arguments<'_>) -> Result<()> {
        let payload = Payload::Message { sector: Sectors(0), text: &text };
        self.send(&Request::on(Command::TARGET_MSG, name.into()).payload(payload))?;
        Ok(())
    }
}
