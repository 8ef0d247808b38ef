//! What was done, by whom, and what came of it: counted by kind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use dm_thin::tree::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Calls of the trees' users.
    Operations,
    /// Power cuts, killed processes, failed calls and lost answers, by the call that they struck.
    Faults,
    /// What was done to a tree, or beside it, by somebody else.
    Neighbour,
    /// Errors that the trees' users got.
    Refusals,
    /// What the trees' own checks found after the neighbour.
    Findings,
    /// How often each promise was looked at.
    Checks,
}

#[derive(Debug, Default)]
pub struct Numbers {
    kinds: Mutex<BTreeMap<Group, BTreeMap<String, u64>>>,
    /// Each event is printed.
    told: bool,
}

impl Numbers {
    pub fn new(told: bool) -> Self {
        Self { told, ..Self::default() }
    }

    /// Tells what happens, when a simulation is replayed.
    pub fn tell(&self, event: impl FnOnce() -> String) {
        if self.told {
            println!("{}", event());
        }
    }

    pub fn count(&self, group: Group, kind: impl Into<String>) {
        *self.kinds.lock().unwrap().entry(group).or_default().entry(kind.into()).or_default() += 1;
    }

    pub fn refused(&self, error: &Error) {
        self.count(Group::Refusals, kind_of(error));
    }

    pub fn total(&self, group: Group) -> u64 {
        self.kinds.lock().unwrap().get(&group).map_or(0, |kinds| kinds.values().sum())
    }
}

/// The variant, with the errno where there is one.
fn kind_of(error: &Error) -> String {
    if let Error::Receive { source, .. } = error {
        return format!("Receive {}", kind_of(source));
    }
    let text = format!("{error:?}");
    // Without the floors that it came through.
    let text = ["Thin(", "Dm(", "Loop("]
        .iter()
        .fold(&text[..], |text, floor| text.strip_prefix(floor).unwrap_or(text));
    let variant: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
    error.errno().map_or(variant.clone(), |errno| format!("{variant} {errno:?}"))
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (group, kinds) in &*self.kinds.lock().unwrap() {
            let mut kinds: Vec<_> = kinds.iter().map(|(kind, count)| (*count, kind)).collect();
            kinds.sort_by(|one, other| other.cmp(one));
            let total: u64 = kinds.iter().map(|(count, _)| count).sum();
            let kinds: Vec<_> = kinds.iter().map(|(count, kind)| format!("{kind} {count}")).collect();
            writeln!(f, "{group:?}: {total} of {} kinds: {}", kinds.len(), kinds.join(", "))?;
        }
        Ok(())
    }
}
