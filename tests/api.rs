//! The public interface, as rustdoc lists it: no type of `libc` or `nix` but `Errno`, and no bare
//! integer but those that are listed here, each for a reason. And all of it, a line for each item, in
//! `tests/support/public-api.txt`: a change of the interface is a line in a diff. `DM_THIN_UPDATE_API=1` writes it anew.
//!
//! `cargo test --test api` asks for it; a plain `cargo test` leaves it out, since all is documented anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Bare integers that are right: the item (`*` for the rest), and why no type of this crate fits.
const NUMBERS: &[(&str, &str)] = &[
    ("Arg::Value", "an ioctl's argument as the kernel gets it"),
    ("BlockSource::*", "numbers of metadata blocks"),
    ("Bookmark::time", "the pool's time"),
    ("Bytes::*", "the numbers that amounts are made of"),
    ("Change::*", "numbers of blocks"),
    ("Command::minor", "the interface's minor version; the major one is always 4"),
    ("Counts::*", "counts"),
    ("Damage::*", "what a block has, and what it should have"),
    ("DeviceOptions::mode", "std::os::unix::fs::PermissionsExt::mode()"),
    ("DeviceOptions::owner", "std::os::unix::fs::chown()"),
    ("DeviceShares::*", "percent"),
    ("DeviceNumber::*", "the numbers that it is made of, and its encoding"),
    ("DeviceStatus::open_count", "a count"),
    ("DeviceStatus::target_count", "a count"),
    ("Directory::inode", "std::os::unix::fs::MetadataExt::ino()"),
    ("Directory::simulated", "std::os::unix::fs::MetadataExt::ino()"),
    ("DmVersion::*", "the numbers that it is made of"),
    ("Error::Busy::open_count", "a count"),
    ("Error::Forked::pid", "std::process::id()"),
    ("Error::NoFreeLoopDevice::tried", "a count"),
    ("Error::PoolOlderThanState::*", "generations"),
    ("Error::TooOld::needed", "the interface's minor version"),
    ("ExtendRule::step", "percent"),
    ("ExtendRule::threshold", "percent"),
    ("FileStatus::inode", "std::os::unix::fs::MetadataExt::ino()"),
    ("FileStatus::mode", "std::os::unix::fs::PermissionsExt::mode()"),
    ("FileStatus::owner", "std::os::unix::fs::MetadataExt::uid()"),
    ("Files::make_directory", "std::os::unix::fs::PermissionsExt::mode()"),
    ("Files::make_file", "std::os::unix::fs::PermissionsExt::mode()"),
    ("Finding::*", "numbers of metadata blocks, and reference counts"),
    ("Geometry::*", "cylinders, heads, and sectors of a track: not those of a device"),
    ("Kernel::abandoned_semaphores", "half of a key of semget(2)"),
    ("Kernel::create_semaphore", "a key of semget(2)"),
    ("Kernel::ioctl", "what ioctl(2) returns"),
    ("Kernel::process_info", "std::process::id()"),
    ("Kernel::process_ids", "std::process::id()"),
    ("Kernel::read_at", "pread(2)"),
    ("Kernel::set_node_mode", "std::os::unix::fs::PermissionsExt::mode()"),
    ("Kernel::set_node_owner", "std::os::unix::fs::chown()"),
    ("Kernel::write_at", "pwrite(2)"),
    ("Label::generation", "a count of the writes"),
    ("LoopStatus::backing_inode", "std::os::unix::fs::MetadataExt::ino()"),
    ("Mapping::*", "numbers of blocks, and the pool's time"),
    ("Metadata::*", "numbers of blocks, and the pool's time"),
    ("MetadataError::*", "numbers of metadata blocks, and the pool's time"),
    ("MinFree::Percent", "percent"),
    ("Metrics::*", "counts"),
    ("MountId::*", "as mountinfo and statx(2) tell them"),
    ("Options::xfs_nospace_max_retries", "what goes into the file of that name in sysfs"),
    ("ProcessName::pid", "std::process::id()"),
    ("ProcessInfo::mount_namespace", "std::os::unix::fs::MetadataExt::ino()"),
    ("Report::*", "counts"),
    ("Request::minor", "the interface's minor version"),
    ("Request::since", "the interface's minor version"),
    ("RootProblem::WritableByOthers::mode", "std::os::unix::fs::PermissionsExt::mode()"),
    ("RootProblem::WrongOwner::uid", "std::os::unix::fs::MetadataExt::uid()"),
    ("Semaphore::of_id", "what semget(2) returns"),
    ("SpaceGuard::max_messages", "a count"),
    ("StateAge::Generation::*", "generations"),
    ("StateFile::*", "offsets and lengths as std::fs::File takes them"),
    ("StreamError::*", "numbers of records, and values that are unknown"),
    ("StreamSummary::volumes", "a count"),
    ("Superblock::held_root", "the number of a metadata block"),
    ("Superblock::time", "the pool's time"),
    ("ThinDevice::creation_time", "the pool's time"),
    ("ThinDevice::snapshotted_time", "the pool's time"),
    ("ThinId::*", "the number that it is made of"),
    ("UsedFile::inode", "std::os::unix::fs::MetadataExt::ino()"),
];

/// Whose numbers are the kernel's own (the raw structures), or are no interface to a kernel.
const RAW: &[&str] = &["src/abi/", "src/model/", "src/thin/metadata/format.rs"];

#[test]
fn the_public_interface_has_types() {
    let listing = listing();
    let mut api = Api { listing: &listing, seen: BTreeSet::new(), types: 0, found: Vec::new() };
    api.module(&listing["root"]);

    let mut wrong = Vec::new();
    let mut used = BTreeMap::new();
    for Found { item, what, raw } in &api.found {
        match what {
            What::Foreign(path) if path == "nix::errno::consts::Errno" => {
                *used.entry("Errno").or_default() += 1
            }
            What::Foreign(path) => wrong.push(format!("{item}: {path}")),
            What::Integer(_) if *raw => {}
            What::Integer(name) => match NUMBERS.iter().find(|(pattern, _)| matches(pattern, item)) {
                Some((pattern, _)) => *used.entry(*pattern).or_insert(0) += 1,
                None => wrong.push(format!("{item}: {name}")),
            },
        }
    }
    // A list that nothing uses allows what is not there any more; or nothing was found at all.
    let patterns = NUMBERS.iter().map(|(pattern, _)| *pattern).chain(["Errno"]);
    wrong.extend(patterns.filter(|name| !used.contains_key(name)).map(|name| format!("{name}: not found")));
    println!("{} types looked at, {} integers and Errnos allowed", api.types, used.values().sum::<i32>());
    assert!(wrong.is_empty(), "in the public interface:\n{}", wrong.join("\n"));
}

#[test]
fn enums_are_non_exhaustive_or_say_that_they_are_complete() {
    let listing = listing();
    let items = listing["index"].as_object().unwrap().values();
    let enums = items.filter(|item| item["crate_id"] == 0 && item["inner"]["enum"].is_object());
    let open = enums.filter(|item| {
        let exhaustive = !item["attrs"].to_string().contains("non_exhaustive");
        exhaustive && item["visibility"] == "public" && !item["docs"].to_string().contains("Complete:")
    });
    let open: Vec<_> = open.map(|item| item["name"].to_string()).collect();
    assert!(open.is_empty(), "neither non_exhaustive nor documented as complete: {open:?}");
}

#[test]
fn the_public_interface_is_the_one_listed() {
    let api = public_api::Builder::from_rustdoc_json(rustdoc())
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .expect("a format of rustdoc that public-api knows");
    let now = api.items().map(|item| format!("{item}\n")).collect::<String>();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/public-api.txt");
    if std::env::var_os("DM_THIN_UPDATE_API").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let listed = std::fs::read_to_string(&path).unwrap_or_default();
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (listed.lines().collect(), now.lines().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    let added = new.difference(&old).map(|line| format!("+ {line}"));
    let changes: Vec<_> = gone.chain(added).collect();
    assert!(
        listed == now,
        "the interface differs from {}; DM_THIN_UPDATE_API=1 accepts it:\n{}",
        path.display(),
        changes.join("\n")
    );
}

fn matches(pattern: &str, item: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == item, |prefix| item.starts_with(prefix))
}

/// rustdoc's JSON, for which a stable toolchain has to be told that it may be unstable.
fn listing() -> Value {
    serde_json::from_slice(&std::fs::read(rustdoc()).expect("what rustdoc wrote")).expect("JSON")
}

fn rustdoc() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/api");
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["rustdoc", "--locked", "--quiet", "--lib", "--all-features", "--target-dir"])
        .arg(&target)
        .args(["--", "-Zunstable-options", "--output-format=json"])
        .status();
    assert!(status.expect("cargo").success(), "cargo rustdoc failed");
    target.join("doc/dm_thin.json")
}

struct Found {
    item: String,
    what: What,
    raw: bool,
}

enum What {
    Integer(String),
    /// By its path.
    Foreign(String),
}

struct Api<'a> {
    listing: &'a Value,
    seen: BTreeSet<String>,
    types: usize,
    found: Vec<Found>,
}

impl<'a> Api<'a> {
    fn item(&self, id: &Value) -> Option<(&'a Value, &'a str, &'a Value)> {
        let item = &self.listing["index"][id.to_string()];
        let (kind, inner) = item["inner"].as_object()?.iter().next()?;
        (item["crate_id"] == 0).then_some((item, kind.as_str(), inner))
    }

    fn module(&mut self, id: &Value) {
        let Some((item, kind, inner)) = self.item(id) else { return };
        let name = item["name"].as_str().unwrap_or_default();
        match kind {
            "module" => list(&inner["items"]).for_each(|id| self.module(id)),
            "use" if !inner["id"].is_null() => self.module(&inner["id"]),
            _ if !self.seen.insert(id.to_string()) => {}
            "struct" | "enum" | "trait" | "union" => {
                let file = item["span"]["filename"].as_str().unwrap_or_default();
                let raw = RAW.iter().any(|directory| file.starts_with(directory));
                self.members(name, inner, raw);
            }
            _ => self.types(name, inner, RAW.iter().any(|directory| starts(item, directory))),
        }
    }

    /// Fields, variants, methods and the like.
    fn members(&mut self, name: &str, inner: &Value, raw: bool) {
        // A newtype's number is what it gives a type to.
        list(&inner["kind"]["tuple"]).for_each(|id| self.member(name, id, true));
        let fields = list(&inner["kind"]["plain"]["fields"]);
        for id in fields.chain(list(&inner["items"])).chain(list(&inner["variants"])) {
            self.member(name, id, raw);
        }
        for id in list(&inner["impls"]) {
            let Some((_, _, inner)) = self.item(id) else { continue };
            // A trait of this crate is looked at where it is defined; blanket impls are no one's.
            let ours = |of: &Value| self.listing["paths"][of["id"].to_string()]["crate_id"] == 0;
            if inner["blanket_impl"].is_null() && (inner["trait"].is_null() || !ours(&inner["trait"])) {
                self.types(name, &inner["trait"], true);
                list(&inner["items"]).for_each(|id| self.member(name, id, raw));
            }
        }
    }

    fn member(&mut self, of: &str, id: &Value, raw: bool) {
        let Some((item, kind, inner)) = self.item(id) else { return };
        let name = format!("{of}::{}", item["name"].as_str().unwrap_or_default());
        if kind == "variant" {
            list(&inner["kind"]["struct"]["fields"]).for_each(|id| self.member(&name, id, raw));
            for id in list(&inner["kind"]["tuple"]) {
                if let Some((_, _, field)) = self.item(id) {
                    self.types(&name, field, raw);
                }
            }
        } else {
            self.types(&name, inner, raw);
        }
    }

    /// Every type that is named, however deep.
    fn types(&mut self, item: &str, value: &Value, raw: bool) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| self.types(item, value, raw)),
            Value::Object(fields) => {
                let of = |what| Found { item: item.to_owned(), what, raw };
                if let Some(Value::String(primitive)) = fields.get("primitive") {
                    self.types += 1;
                    // `usize` counts what is in memory.
                    let integers =
                        ["u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64", "i128", "isize"];
                    if integers.contains(&primitive.as_str()) {
                        self.found.push(of(What::Integer(primitive.clone())));
                    }
                } else if let (Some(_), Some(id)) = (fields.get("path"), fields.get("id")) {
                    self.types += 1;
                    let path = &self.listing["paths"][id.to_string()];
                    let krate = &self.listing["external_crates"][path["crate_id"].to_string()]["name"];
                    if krate == "nix" || krate == "libc" {
                        let names: Vec<_> = list(&path["path"]).filter_map(Value::as_str).collect();
                        self.found.push(of(What::Foreign(names.join("::"))));
                    }
                }
                if !is_bytes(fields) {
                    fields.values().for_each(|value| self.types(item, value, raw));
                }
            }
            _ => {}
        }
    }
}

/// `[u8]`, `[u8; N]`, `Vec<u8>`.
fn is_bytes(fields: &serde_json::Map<String, Value>) -> bool {
    let byte = |value: &Value| value["primitive"] == "u8";
    fields.get("slice").is_some_and(byte)
        || fields.get("array").is_some_and(|array| byte(&array["type"]))
        || fields.get("resolved_path").is_some_and(|path| {
            path["path"] == "Vec" && byte(&path["args"]["angle_bracketed"]["args"][0]["type"])
        })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn starts(item: &Value, directory: &str) -> bool {
    item["span"]["filename"].as_str().is_some_and(|file| file.starts_with(directory))
}
