//! The `dmsetup` program, as scripts and containerd run it. It keeps no record of what it made.

use std::process::Command;
use std::sync::Arc;

use crate::arena::Arena;
use crate::base::Base;
use crate::contender::{Contender, Volume};
use crate::pool::{BASE, Pool};
use crate::{Result, run};

pub struct Dmsetup(Arc<Pool>);

/// Its share of the ids of the pool.
const FIRST: u32 = 2_000_000;

impl Dmsetup {
    pub fn new(pool: &Arc<Pool>) -> Self {
        Self(pool.clone())
    }

    fn message(&self, text: &str) -> Result<()> {
        run(Command::new("dmsetup").args(["message", &self.0.name.to_string(), "0", text]))
    }
}

fn name(id: u32) -> String {
    format!("dmsetup-{id}")
}

impl Contender for Dmsetup {
    fn name(&self) -> &'static str {
        "dmsetup"
    }

    fn prepare(&mut self, _: &Arena, _: &Base) -> Result<()> {
        Ok(())
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        self.message(&format!("create_snap {} {BASE}", FIRST + id))
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        let table = format!("0 {} thin {} {}", self.0.base.size / 512, self.0.number, FIRST + id);
        run(Command::new("dmsetup").args(["create", &name(id), "--table", &table]))?;
        Volume::open(format!("/dev/mapper/{}", name(id)).as_ref())
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        run(Command::new("dmsetup").args(["remove", &name(id)]))
    }

    fn delete(&self, id: u32) -> Result<()> {
        self.message(&format!("delete {}", FIRST + id))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
