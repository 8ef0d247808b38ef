//! What TABLE_STATUS says of a target: its parameters, or its status.

use super::pool::{Mode, Pool};
use super::target::Kind;
use super::world::World;

impl World {
    /// A target's parameters, as TABLE_STATUS gives them with STATUS_TABLE.
    pub(super) fn table_text(&self, minor: u32, kind: &Kind) -> String {
        match kind {
            Kind::Error | Kind::Zero => String::new(),
            Kind::Linear { device, offset } => format!("{device} {offset}"),
            Kind::Thin { pool, .. } if self.pool_failed(pool.minor) => "Fail".to_owned(),
            Kind::Thin { pool, id, origin: None } => format!("{pool} {id}"),
            Kind::Thin { pool, id, origin: Some(origin) } => format!("{pool} {id} {origin}"),
            Kind::ThinPool(line) => {
                let block = self.pools.get(&minor).map_or(0, |pool| pool.current.block_sectors());
                let mut text = format!("{} {} {block} {} ", line.metadata, line.data, line.low_water);
                let features = line.requested;
                let words = [
                    (!features.zero_new_blocks, "skip_block_zeroing "),
                    (!features.discard, "ignore_discard "),
                    (!features.discard_passdown, "no_discard_passdown "),
                    (features.read_only, "read_only "),
                    (features.error_if_no_space, "error_if_no_space "),
                ];
                text += &format!("{} ", words.iter().filter(|(set, _)| *set).count());
                words.iter().filter(|(set, _)| *set).for_each(|(_, word)| text += word);
                text
            }
        }
    }

    fn pool_failed(&self, minor: u32) -> bool {
        self.pools.get(&minor).is_none_or(|pool| pool.mode == Mode::Fail)
    }

    /// A target's status.
    pub(super) fn status_text(&self, minor: u32, kind: &Kind) -> String {
        match kind {
            Kind::Error | Kind::Zero | Kind::Linear { .. } => String::new(),
            Kind::ThinPool(_) => self.pools.get(&minor).map_or_else(String::new, Pool::status),
            Kind::Thin { pool, id, .. } => match self.pools.get(&pool.minor) {
                Some(pool) if pool.mode != Mode::Fail => {
                    let block = pool.current.block_sectors();
                    let highest = pool.current.highest(*id).map(|highest| (highest + 1) * block - 1);
                    let highest = highest.map_or_else(|| "-".to_owned(), |sector| sector.to_string());
                    format!("{} {highest}", pool.current.mapped(*id) * block)
                }
                _ => "Fail".to_owned(),
            },
        }
    }
}
