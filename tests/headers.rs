//! `src/abi` against the kernel's headers, both ways: what they define is here, with the same value,
//! or is left out for a reason; and nothing is here that they do not have.
//!
//! Runs with `DM_THIN_CHECK_HEADERS=1` (see `build.rs`) and prints how much was compared.
#![cfg(dm_thin_headers)]

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use bitflags::Flags;
use dm_thin::abi::block::*;
use dm_thin::abi::dm::*;
use dm_thin::abi::loopdev::*;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::dm::wire::Command;

/// What a header defines.
struct Header {
    name: &'static str,
    constants: &'static [(&'static str, Value)],
    structs: &'static [Struct],
}

/// Name, size, fields with their offsets.
type Struct = (&'static str, usize, &'static [(&'static str, usize)]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Number(i64),
    Text(&'static str),
}

include!(concat!(env!("OUT_DIR"), "/headers.rs"));

/// What the headers have and this crate does not, on purpose.
const LEFT_OUT: &[(&str, &str)] = &[
    ("DM_VERSION_MINOR", "the header's age; each command asks for the minor version that it needs"),
    ("DM_VERSION_PATCHLEVEL", "the header's age"),
    ("DM_VERSION_EXTRA", "the header's age"),
    ("LO_CRYPT_*", "loop encryption is gone from the kernel since 5.16; the fields stay zero"),
    ("MAX_LO_CRYPT", "as LO_CRYPT_*"),
    ("BLK*", "only the block device requests that this crate uses are here"),
    ("MS_*", "only the mount flags that this crate gives to its callers are here"),
    ("MNT_*", "only the unmount flags that this crate uses are here"),
    ("UMOUNT_*", "only the unmount flags that this crate uses are here"),
];

/// What came into the header after a version of it that may be installed: the interface's minor.
const NEWER: &[(&str, i64)] = &[("DM_MPATH_PROBE_PATHS", 50), ("DM_MPATH_PROBE_PATHS_CMD", 50)];

/// Why this crate does not have it.
fn left_out(name: &str) -> Option<&'static str> {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    };
    LEFT_OUT.iter().find(|(pattern, _)| matches(pattern)).map(|(_, reason)| *reason)
}

/// Every constant of this crate, by the header's name.
fn ours(header: &str) -> BTreeMap<String, Value> {
    let mut ours = BTreeMap::new();
    let mut number = |name: String, value: u64| {
        let value = Value::Number(value.try_into().unwrap());
        assert!(ours.insert(name.clone(), value).is_none(), "{name} twice");
    };
    macro_rules! numbers {
        ($($name:ident),* $(,)?) => { $(number(stringify!($name).into(), $name as u64);)* };
    }
    match header {
        "linux/dm-ioctl.h" => {
            numbers!(
                DM_MAX_TYPE_NAME,
                DM_NAME_LEN,
                DM_UUID_LEN,
                DM_IOCTL,
                DM_VERSION_MAJOR,
                DM_NAME_LIST_FLAG_HAS_UUID,
                DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID,
            );
            let commands = Command::ALL.iter().map(|command| command.ioctl);
            for ioctl in commands.chain([DM_MPATH_PROBE_PATHS]) {
                number(ioctl.name().into(), ioctl.code().into());
                number(format!("{}_CMD", ioctl.name()), (ioctl.code() & 0xff).into());
            }
            for flag in DmFlags::FLAGS.iter().filter(|flag| flag.is_named()) {
                let name = match flag.name() {
                    "DEFERRED_REMOVE" => "DM_DEFERRED_REMOVE".into(),
                    name => format!("DM_{name}_FLAG"),
                };
                number(name, flag.value().bits().into());
            }
            ours.insert("DM_DIR".into(), Value::Text(DM_DIR));
            ours.insert("DM_CONTROL_NODE".into(), Value::Text(DM_CONTROL_NODE));
        }
        "linux/loop.h" => {
            numbers!(LO_NAME_SIZE, LO_KEY_SIZE);
            let requests = [
                LOOP_SET_FD,
                LOOP_CLR_FD,
                LOOP_SET_STATUS,
                LOOP_GET_STATUS,
                LOOP_SET_STATUS64,
                LOOP_GET_STATUS64,
                LOOP_CHANGE_FD,
                LOOP_SET_CAPACITY,
                LOOP_SET_DIRECT_IO,
                LOOP_SET_BLOCK_SIZE,
                LOOP_CONFIGURE,
                LOOP_CTL_ADD,
                LOOP_CTL_REMOVE,
                LOOP_CTL_GET_FREE,
            ];
            for ioctl in requests {
                number(ioctl.name().into(), ioctl.code().into());
            }
            for flag in LoopFlags::FLAGS.iter().filter(|flag| flag.is_named()) {
                number(format!("LO_FLAGS_{}", flag.name()), flag.value().bits().into());
            }
            let sets = [
                ("LOOP_SET_STATUS_SETTABLE_FLAGS", LOOP_SET_STATUS_SETTABLE_FLAGS),
                ("LOOP_SET_STATUS_CLEARABLE_FLAGS", LOOP_SET_STATUS_CLEARABLE_FLAGS),
                ("LOOP_CONFIGURE_SETTABLE_FLAGS", LOOP_CONFIGURE_SETTABLE_FLAGS),
            ];
            for (name, flags) in sets {
                number(name.into(), flags.bits().into());
            }
        }
        "linux/fs.h" => {
            let requests = [BLKROGET, BLKFLSBUF, BLKSSZGET, BLKDISCARD, BLKPBSZGET, BLKZEROOUT, BLKGETSIZE64];
            for ioctl in requests {
                number(ioctl.name().into(), ioctl.code().into());
            }
        }
        "linux/mount.h" => {
            for flag in MountFlags::FLAGS.iter().filter(|flag| flag.is_named()) {
                number(format!("MS_{}", flag.name()), flag.value().bits().into());
            }
        }
        "sys/mount.h" => {
            number("MNT_DETACH".into(), UnmountFlags::DETACH.bits().into());
            number("UMOUNT_NOFOLLOW".into(), UnmountFlags::NOFOLLOW.bits().into());
            assert_eq!(UnmountFlags::all().bits().count_ones(), 2, "an unmount flag that is not compared");
        }
        _ => panic!("{header}"),
    }
    ours
}

/// Size and field offsets of a structure; `+ name` is the flexible array behind it.
macro_rules! layout {
    ($name:ident { $($field:ident),* $(,)? } $(+ $tail:ident)?) => {
        (
            stringify!($name),
            size_of::<$name>(),
            vec![
                $((stringify!($field), offset_of!($name, $field)),)*
                $((stringify!($tail), size_of::<$name>()),)?
            ],
        )
    };
}

type OurStruct = (&'static str, usize, Vec<(&'static str, usize)>);

fn our_structs() -> Vec<OurStruct> {
    vec![
        layout!(dm_ioctl {
            version,
            data_size,
            data_start,
            target_count,
            open_count,
            flags,
            event_nr,
            padding,
            dev,
            name,
            uuid,
            data,
        }),
        layout!(dm_target_spec { sector_start, length, status, next, target_type }),
        layout!(dm_target_deps { count, padding } + dev),
        layout!(dm_name_list { dev, next } + name),
        layout!(dm_target_versions { next, version } + name),
        layout!(dm_target_msg { sector } + message),
        layout!(loop_info {
            lo_number,
            lo_device,
            lo_inode,
            lo_rdevice,
            lo_offset,
            lo_encrypt_type,
            lo_encrypt_key_size,
            lo_flags,
            lo_name,
            lo_encrypt_key,
            lo_init,
            reserved,
        }),
        layout!(loop_info64 {
            lo_device,
            lo_inode,
            lo_rdevice,
            lo_offset,
            lo_sizelimit,
            lo_number,
            lo_encrypt_type,
            lo_encrypt_key_size,
            lo_flags,
            lo_file_name,
            lo_crypt_name,
            lo_encrypt_key,
            lo_init,
        }),
        layout!(loop_config { fd, block_size, info, reserved }),
    ]
}

#[test]
fn every_constant_is_the_headers() {
    let mut wrong = Vec::new();
    for header in HEADERS {
        let mut ours = ours(header.name);
        let (mut compared, mut skipped, mut newer) = (0, Vec::new(), Vec::new());
        let minor = header.constants.iter().find(|(name, _)| *name == "DM_VERSION_MINOR");
        for (name, value) in header.constants {
            match (ours.remove(*name), left_out(name)) {
                (Some(our), _) if our == *value => compared += 1,
                (Some(our), _) => {
                    wrong.push(format!("{name}: {our:x?} here, {value:x?} in <{}>", header.name))
                }
                (None, Some(_)) => skipped.push(*name),
                (None, None) => wrong.push(format!("{name} of <{}> is not here", header.name)),
            }
        }
        for name in ours.into_keys() {
            let since = NEWER.iter().find(|(newer, _)| *newer == name);
            match (since, minor) {
                (Some((_, since)), Some((_, Value::Number(minor)))) if minor < since => newer.push(name),
                _ => wrong.push(format!("{name} is not in <{}>", header.name)),
            }
        }
        println!("<{}>: {compared} constants and request codes compared", header.name);
        println!("    left out: {}", skipped.join(" "));
        if let (false, Some((_, Value::Number(minor)))) = (newer.is_empty(), minor) {
            println!("    newer than the header (4.{minor}): {}", newer.join(" "));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_structure_is_the_headers() {
    let mut ours = our_structs();
    let (mut fields_compared, mut structs_compared) = (0, 0);
    let mut left = Vec::new();
    for (name, size, fields) in HEADERS.iter().flat_map(|header| header.structs) {
        let Some(at) = ours.iter().position(|our| our.0 == *name) else {
            assert!(left_out(name).is_some(), "struct {name} is not here");
            left.push(*name);
            continue;
        };
        let (_, our_size, our_fields) = ours.remove(at);
        // The flexible array of this one lies in its tail padding: here it ends before that.
        let size = if *name == "dm_name_list" { fields.last().unwrap().1 } else { *size };
        assert_eq!(our_size, size, "size of {name}");
        for ((our, our_offset), (field, offset)) in our_fields.iter().zip(*fields) {
            assert_eq!(*our, field.trim_start_matches('_'), "a field of {name}");
            assert_eq!(our_offset, offset, "offset of {name}.{field}");
            fields_compared += 1;
        }
        assert_eq!(our_fields.len(), fields.len(), "number of fields of {name}");
        structs_compared += 1;
    }
    assert!(ours.is_empty(), "not in the headers: {ours:?}");
    println!(
        "{structs_compared} structures with {fields_compared} fields compared; left out: {}",
        left.join(" ")
    );
}
