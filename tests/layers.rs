//! Which module may use which: nothing on the ground reaches up.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A module, and what of this crate it may name.
const ALLOWED: &[(&str, &[&str])] =
    &[("abi", &[]), ("sys.rs", &["abi"]), ("units.rs", &[]), ("kernel", &["abi", "kernel", "sys", "units"])];

#[test]
fn the_ground_uses_only_what_is_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (module, allowed) in ALLOWED {
        let mut used = BTreeSet::new();
        names(&src.join(module), &mut used);
        let wrong: Vec<_> = used.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(wrong.is_empty(), "{module} uses {wrong:?}");
        let unused: Vec<_> = allowed.iter().filter(|name| !used.contains(**name)).collect();
        assert!(unused.is_empty(), "{module} does not use {unused:?}");
    }
}

/// What follows `crate::` outside of tests.
fn names(path: &Path, used: &mut BTreeSet<String>) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| names(&entry.unwrap().path(), used));
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    for group in code.split("crate::").skip(1) {
        let group = match group.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default(),
            None => group.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default(),
        };
        used.extend(group.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
    }
}
