//! Tar archives: of a directory, and of a device where it can be mounted.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use dm_thin::Errno;
use dm_thin_docker::{Error, tar_rootfs};
use support::with_filesystem;

fn make(directory: &Path) {
    let root = directory.join("rootfs");
    fs::create_dir_all(root.join("etc/empty")).unwrap();
    fs::write(root.join("etc/hostname"), "web\n").unwrap();
    fs::write(root.join("etc/large"), vec![7; 300_000]).unwrap();
    fs::hard_link(root.join("etc/large"), root.join("etc/same")).unwrap();
    fs::write(root.join("x".repeat(120)), "long name").unwrap();
    symlink("/etc/hostname", root.join("link")).unwrap();
    fs::set_permissions(root.join("etc/hostname"), fs::Permissions::from_mode(0o4755)).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    fs::write(directory.join("id"), "beside the root").unwrap();
}

/// Name → type, mode, link, content.
fn entries(archive: &[u8]) -> BTreeMap<String, (u8, u32, String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let link =
            entry.link_name().unwrap().map(|link| link.to_str().unwrap().to_owned()).unwrap_or_default();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        (name, (entry.header().entry_type().as_byte(), entry.header().mode().unwrap(), link, content))
    });
    entries.collect()
}

fn check(archive: &[u8]) {
    let entries = entries(archive);
    let names: Vec<_> = entries.keys().map(|name| if name.len() > 100 { "x…" } else { name }).collect();
    let expected = ["etc", "etc/empty", "etc/hostname", "etc/large", "etc/same", "fifo", "link", "x…"];
    assert_eq!(names, expected);
    assert_eq!(entries["etc/hostname"], (b'0', 0o4755, String::new(), b"web\n".to_vec()));
    assert_eq!(entries["etc/large"].3, vec![7; 300_000]);
    assert_eq!((entries["etc/same"].0, entries["etc/same"].2.as_str()), (b'1', "etc/large"));
    assert_eq!((entries["link"].0, entries["link"].2.as_str()), (b'2', "/etc/hostname"));
    assert_eq!((entries["etc"].0, entries["fifo"].0), (b'5', b'6'));
}

#[test]
fn an_archive_has_what_is_below_rootfs() {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path());
    let mut archive = Vec::new();
    assert_eq!(tar_rootfs(directory.path(), &mut archive).unwrap(), 8);
    check(&archive);
    let mut again = Vec::new();
    tar_rootfs(directory.path(), &mut again).unwrap();
    assert!(again == archive, "the same each time");
    // `rootfs` itself is not followed.
    let other = tempfile::tempdir().unwrap();
    symlink(directory.path().join("rootfs"), other.path().join("rootfs")).unwrap();
    assert!(tar_rootfs(other.path(), Vec::new()).is_err());
}

/// Where it is permitted; elsewhere the error says that it is not.
#[test]
fn a_device_is_archived_or_refused_for_want_of_root() {
    let content = tempfile::tempdir().unwrap();
    make(content.path());
    let (fixture, _) = with_filesystem(content.path(), "mkfs.ext4");
    let (store, out) = (fixture.store(), tempfile::tempdir().unwrap());
    let path = out.path().join("web.tar");
    let left = |expected: usize| assert_eq!(fs::read_dir(out.path()).unwrap().count(), expected);
    match store.export_tar(store.find("web").unwrap(), &path) {
        Ok(archived) => {
            assert_eq!((archived.entries, archived.consistent), (8, true));
            check(&fs::read(&path).unwrap());
            left(1);
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!mounts.contains("/dev/loop"), "{mounts}");
        }
        Err(error) => {
            let permitted = matches!(error, Error::NotPermitted { .. } | Error::Loop { .. });
            assert!(permitted, "{error}");
            println!("not tried: {error}");
            return left(0);
        }
    }
    let error = store.export_tar(store.find("base").unwrap(), out.path().join("base.tar")).unwrap_err();
    assert!(matches!(error, Error::NoFilesystem { .. }), "{error}");
    let content = tempfile::tempdir().unwrap();
    let (fixture, _) = with_filesystem(content.path(), "mkfs.ext4");
    let store = fixture.store();
    let error = store.export_tar(store.find("web").unwrap(), out.path().join("web2.tar")).unwrap_err();
    assert!(matches!(error, Error::NoRootfs { .. }), "{error}");
    left(1);
}

/// All of a host's XFS file systems are of one UUID, the base device's.
#[test]
fn a_device_with_xfs_is_archived_or_refused() {
    let content = tempfile::tempdir().unwrap();
    make(content.path());
    let (fixture, _) = with_filesystem(content.path(), "mkfs.xfs");
    let (store, out) = (fixture.store(), tempfile::tempdir().unwrap());
    let path = out.path().join("web.tar");
    match store.export_tar(store.find("web").unwrap(), &path) {
        Ok(archived) => {
            assert_eq!((archived.entries, archived.consistent), (1, true));
            assert_eq!(entries(&fs::read(&path).unwrap())["hostname"].3, b"web\n");
        }
        Err(Error::NotPermitted { .. } | Error::Loop { .. } | Error::Mount { errno: Errno::ENODEV, .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn attributes_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path());
    let file = directory.path().join("rootfs/etc/hostname");
    if xattr::set(&file, "user.note", b"kept").is_err() {
        return println!("no extended attributes in {}", file.display());
    }
    let mut bytes = Vec::new();
    tar_rootfs(directory.path(), &mut bytes).unwrap();
    check(&bytes);
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = entries.find(|entry| entry.path().unwrap().ends_with("hostname")).unwrap();
    let mut records = entry.pax_extensions().unwrap().unwrap().map(Result::unwrap);
    assert!(
        records
            .any(|it| (it.key_bytes(), it.value_bytes()) == (&b"SCHILY.xattr.user.note"[..], &b"kept"[..]))
    );
}

#[test]
fn a_raw_image_is_the_file_system_that_was_made() {
    let content = tempfile::tempdir().unwrap();
    make(content.path());
    let (fixture, size) = with_filesystem(content.path(), "mkfs.ext4");
    let (store, out) = (fixture.store(), tempfile::tempdir().unwrap());
    let path = out.path().join("web.img");
    assert_eq!(store.export_raw_to(store.find("web").unwrap(), &path).unwrap().size.0, size);
    let fsck = std::process::Command::new("e2fsck").arg("-fn").arg(&path).output().unwrap();
    assert!(fsck.status.success(), "{fsck:?}");
    // Without Docker's files the size is the file system's.
    fixture.remove(&format!("devicemapper/metadata/{}", support::hash('c')));
    let store = fixture.store();
    let stranded = store.find("thin-5").unwrap();
    assert_eq!(store.export_raw_to(stranded, out.path().join("stranded.img")).unwrap().size.0, size);
}
