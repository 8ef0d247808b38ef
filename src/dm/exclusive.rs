//! One operation at a time on one device, in this process.
//!
//! The kernel's integrity measurement (dm-ima.c) changes a device's measured name and tables without a lock: a
//! load, clear, rename, resume or removal of a device beside another one of these can crash the machine. Two
//! suspends or table swaps at once can answer EINVAL. And what is done to a node after the ioctl must not be done
//! to the node of the name's next owner.
//!
//! A device is addressed by name, by uuid or by number, so that two operations may be about one device without
//! looking so. What is certain is compared; only if that does not settle it the newcomer asks for its device's
//! status. Without a rival nothing is asked.

use std::sync::Arc;

use super::DeviceMapper;
use super::claims::{Claim, Exclusive, Machine, Operation, table, wait};
use crate::dm::Result;

impl DeviceMapper {
    fn machine(&self) -> Machine {
        if self.is_real() { 0 } else { Arc::as_ptr(self.kernel()).cast::<()>() as usize }
    }

    /// Waits until no other operation on the device is under way.
    pub(crate) fn exclusive(&self, claim: impl Into<Claim>) -> Exclusive {
        let (asked, machine) = (claim.into(), self.machine());
        let mut claim = asked;
        let mut table = table();
        loop {
            let rivals = || table.operations.iter().filter(|operation| operation.machine == machine);
            if rivals().any(|rival| claim.is(&rival.claim) == Some(true)) {
                table = wait(table);
                claim = asked;
            } else if rivals().any(|rival| claim.is(&rival.claim).is_none()) {
                if claim.resolved {
                    // Both are what they are: not the same.
                    break;
                }
                let ended = table.ended;
                drop(table);
                let resolved = self.resolve(asked);
                table = super::claims::table();
                claim = match resolved {
                    Ok(resolved) if table.ended == ended => resolved,
                    Err(_) if table.ended == ended => {
                        // Unknown: wait for all other operations.
                        table = wait(table);
                        asked
                    }
                    _ => asked,
                };
            } else {
                break;
            }
        }
        let ticket = table.next_ticket;
        table.next_ticket += 1;
        table.operations.push(Operation { ticket, machine, claim });
        Exclusive { ticket, machine }
    }

    fn resolve(&self, claim: Claim) -> Result<Claim> {
        let found = claim.id().map_or(Ok(None), |id| self.find(id))?;
        let resolved = found.map_or(claim, |device| Claim {
            uuid: device.uuid,
            number: Some(device.number),
            name_is_certain: true,
            names: [Some(device.name), claim.names.into_iter().flatten().find(|name| *name != device.name)],
            ..claim
        });
        Ok(Claim { resolved: true, ..resolved })
    }
}
