//! Docker directories with the metadata of real pools, and the check that the fuzz target makes of them.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::model::image::{Mappings, PoolContents, PoolImage, ThinContents};
use dm_thin::units::Sectors;
use dm_thin_docker::{DeviceName, Store};

pub const BLOCK: u64 = 64 << 10;
pub const SIZE: u64 = 1 << 20;

/// A hash.
pub fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

pub fn name(digit: char) -> DeviceName {
    hash(digit).parse().unwrap()
}

/// A directory with two layers of an image, a container with its init layer, and the base:
///
/// | thin id | device | blocks |
/// |---|---|---|
/// | 1 | base | 0 |
/// | 2 | `a`, lower layer | 0, 3 |
/// | 3 | `b`, upper layer | 0, 3 (own), 4 |
/// | 4 | `c-init` | as `b` |
/// | 5 | `c`, container `web` | 0, 4, 15 |
#[derive(Debug)]
pub struct Fixture {
    directory: tempfile::TempDir,
    pub contents: PoolContents,
}

pub fn thin(blocks: &[(u64, u64)]) -> ThinContents {
    let mappings: Mappings = blocks.iter().map(|(at, data)| (*at, (*data, 0))).collect();
    ThinContents { mappings: Arc::new(mappings), ..ThinContents::default() }
}

/// The data of a data block.
pub fn data(block: u64) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(block % 251 + 1).unwrap(); usize::try_from(BLOCK).unwrap()];
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes[8192..16_384].fill(0);
    bytes
}

/// What a device contains.
pub fn image(mappings: &Mappings, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size.next_multiple_of(BLOCK)).unwrap()];
    for (at, (block, _)) in mappings {
        let at = usize::try_from(at * BLOCK).unwrap();
        bytes[at..].iter_mut().zip(data(*block)).for_each(|(to, from)| *to = from);
    }
    bytes.truncate(usize::try_from(size).unwrap());
    bytes
}

pub fn device_json(id: u32) -> String {
    format!(r#"{{"device_id":{id},"size":{SIZE},"transaction_id":{id},"initialized":true,"deleted":false}}"#)
}

pub const LOWER_DIFF: &str = "1111111111111111111111111111111111111111111111111111111111111111";
pub const UPPER_DIFF: &str = "2222222222222222222222222222222222222222222222222222222222222222";
/// SHA-256 of `sha256:1… sha256:2…`.
pub const UPPER_CHAIN: &str = "9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5";

impl Fixture {
    pub fn new() -> Self {
        // In memory, where that is possible: a fuzzer makes many.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut contents = PoolContents::new(Sectors(128), 64, 64);
        contents.transaction_id = 5;
        contents.thins = BTreeMap::from([
            (1, thin(&[(0, 0)])),
            (2, thin(&[(0, 0), (3, 1)])),
            (3, thin(&[(0, 0), (3, 2), (4, 3)])),
            (4, thin(&[(0, 0), (3, 2), (4, 3)])),
            (5, thin(&[(0, 0), (4, 3), (15, 4)])),
        ]);
        let fixture = Self { directory, contents };
        for (path, text) in Self::files() {
            fixture.write(&path, text);
        }
        fixture.write_pool("devicemapper/devicemapper");
        fixture
    }

    /// All files but the pool's.
    pub fn files() -> Vec<(String, String)> {
        let (a, b, c, image, container) = (hash('a'), hash('b'), hash('c'), hash('d'), hash('e'));
        let mut files = vec![
            (
                "devicemapper/metadata/deviceset-metadata".to_owned(),
                r#"{"next_device_id":6,"BaseDeviceUUID":"","BaseDeviceFilesystem":"ext4"}"#.to_owned(),
            ),
            (
                "devicemapper/metadata/transaction-metadata".to_owned(),
                format!(r#"{{"open_transaction_id":5,"device_hash":"{c}","device_id":5}}"#),
            ),
            ("devicemapper/metadata/base".to_owned(), device_json(1)),
            (format!("devicemapper/metadata/{a}"), device_json(2)),
            (format!("devicemapper/metadata/{b}"), device_json(3)),
            (format!("devicemapper/metadata/{c}-init"), device_json(4)),
            (format!("devicemapper/metadata/{c}"), device_json(5)),
            (
                "image/devicemapper/repositories.json".to_owned(),
                format!(
                    r#"{{"Repositories":{{"debian":{{"debian:12":"sha256:{image}","debian@sha256:{a}":"sha256:{image}"}}}}}}"#
                ),
            ),
            (
                format!("image/devicemapper/imagedb/content/sha256/{image}"),
                format!(
                    r#"{{"architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["sha256:{LOWER_DIFF}","sha256:{UPPER_DIFF}"]}}}}"#
                ),
            ),
            (
                format!("containers/{container}/config.v2.json"),
                format!(
                    r#"{{"ID":"{container}","Name":"/web","Driver":"devicemapper","Image":"sha256:{image}","Config":{{"Image":"debian:12"}}}}"#
                ),
            ),
        ];
        let layer = "image/devicemapper/layerdb/sha256";
        files.push((format!("{layer}/{LOWER_DIFF}/cache-id"), a));
        files.push((format!("{layer}/{UPPER_CHAIN}/cache-id"), b));
        files.push((format!("{layer}/{UPPER_CHAIN}/parent"), format!("sha256:{LOWER_DIFF}")));
        let mount = format!("image/devicemapper/layerdb/mounts/{container}");
        files.push((format!("{mount}/mount-id"), c.clone()));
        files.push((format!("{mount}/init-id"), format!("{c}-init")));
        files.push((format!("{mount}/parent"), format!("sha256:{UPPER_CHAIN}")));
        files
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn remove(&self, path: &str) {
        fs::remove_file(self.join(path)).unwrap();
    }

    /// Writes `metadata` and `data`.
    pub fn write_pool(&self, directory: &str) {
        fs::create_dir_all(self.join(directory)).unwrap();
        write_metadata(&self.contents, &self.join(directory).join("metadata"));
        let file = File::create(self.join(directory).join("data")).unwrap();
        file.set_len(self.contents.data_blocks * BLOCK).unwrap();
        let used = self.contents.thins.values().flat_map(|thin| thin.mappings.values());
        for block in used.map(|(block, _)| *block).collect::<std::collections::BTreeSet<_>>() {
            file.write_all_at(&data(block), block * BLOCK).unwrap();
        }
    }

    /// Replaces the metadata of the loop files.
    pub fn rewrite_metadata(&self) {
        write_metadata(&self.contents, &self.join("devicemapper/devicemapper/metadata"));
    }

    pub fn store(&self) -> Store {
        Store::open(self.path()).unwrap()
    }
}

fn write_metadata(contents: &PoolContents, path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(contents.metadata_blocks * 4096).unwrap();
    for (number, block) in PoolImage::new(contents, None).unwrap().blocks() {
        file.write_all_at(block, number * 4096).unwrap();
    }
}

/// An input is the number of a file of the fixture, the length of its new content in two bytes, that content, and so on.
/// Whatever is in the files: the directory can be opened, the devices of the pool are listed, and what is listed can be
/// looked up, printed, and exported or refused.
pub fn fuzz(mut bytes: &[u8]) {
    let fixture = Fixture::new();
    let mut files = Fixture::files();
    files.push(("devicemapper/devicemapper/json".to_owned(), String::new()));
    while let Some(([file, low, high], rest)) = bytes.split_first_chunk() {
        let (content, rest) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        fixture.write(&files[usize::from(*file) % files.len()].0, content);
        bytes = rest;
    }
    check(&fixture);
}

pub fn check(fixture: &Fixture) {
    let store = fixture.store();
    let ids: std::collections::BTreeSet<_> = store.devices().filter_map(|device| device.thin_id).collect();
    for id in fixture.contents.thins.keys() {
        assert!(ids.iter().any(|thin| thin.get() == *id), "thin device {id} is missing");
    }
    for finding in store.findings() {
        assert!(!finding.to_string().contains(char::is_control), "{finding}");
        serde_json::to_string(finding).unwrap();
    }
    let output = tempfile::tempfile().unwrap();
    for device in store.devices() {
        assert_eq!(store.find(&device.name.to_string()).unwrap(), device);
        // A size that no file can have, or that is too small, is an error.
        if device.size.is_none_or(|size| size.0 <= 1 << 30)
            && let Ok(exported) = store.export_raw(device, &output)
        {
            assert_eq!(output.metadata().unwrap().len(), exported.size.0);
        }
        let mut ancestor = device;
        for _ in store.devices() {
            let Some(parent) = ancestor.parent.as_ref().and_then(|name| store.device(name)) else { break };
            assert_ne!(parent.name, device.name, "a loop");
            ancestor = parent;
        }
    }
    for container in store.containers() {
        let _ = store.find(&container.id);
    }
    serde_json::to_string(&(store.images(), store.containers(), store.layers().collect::<Vec<_>>())).unwrap();
}

/// A file system on thin device 5, made by `mkfs`: of a directory, or XFS of a prototype with that directory's `rootfs`
/// and the file `hostname` in it.
pub fn with_filesystem(content: &Path, mkfs: &str) -> (Fixture, u64) {
    let (image, prototype) =
        (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let mut command = std::process::Command::new(mkfs);
    let size = if mkfs == "mkfs.xfs" {
        let hostname = content.join("rootfs/etc/hostname");
        let text = format!(
            "-\n0 0\nd--755 0 0\nrootfs d--755 0 0\nhostname ---644 0 0 {}\n$\n$\n",
            hostname.display()
        );
        fs::write(prototype.path(), text).unwrap();
        command.arg("-q").arg("-p").arg(prototype.path());
        320u64 << 20
    } else {
        command.args(["-q", "-F", "-d"]).arg(content);
        64 << 20
    };
    image.as_file().set_len(size).unwrap();
    let made = command.arg(image.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let bytes = fs::read(image.path()).unwrap();
    let mut fixture = Fixture::new();
    fixture.contents.data_blocks = 2000;
    let block = usize::try_from(BLOCK).unwrap();
    let zeroes = vec![0; block];
    let used = (0..).zip(bytes.chunks(block)).filter(|(_, block)| *block != zeroes);
    // Not in order.
    let used: Vec<_> =
        used.enumerate().map(|(at, (number, data))| (number, 1999 - at as u64, data)).collect();
    let mappings: Vec<_> = used.iter().map(|(number, to, _)| (*number, *to)).collect();
    fixture.contents.thins.insert(5, thin(&mappings));
    fixture.write_pool("devicemapper/devicemapper");
    let file = File::options().write(true).open(fixture.join("devicemapper/devicemapper/data")).unwrap();
    used.iter().for_each(|(_, to, data)| file.write_all_at(data, to * BLOCK).unwrap());
    let json = device_json(5).replace(&SIZE.to_string(), &size.to_string());
    fixture.write(&format!("devicemapper/metadata/{}", hash('c')), json);
    (fixture, size)
}
