//! Docker directories of every form: what is listed, what is found, what is exported.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use dm_thin::thin::{ThinId, TransactionId};
use dm_thin::units::Bytes;
use dm_thin_docker::{DeviceName, DeviceState, Error, Finding, PoolFiles, Store, TransactionState};
use proptest::prelude::*;
use support::{
    BLOCK, Fixture, LOWER_DIFF, SIZE, UPPER_CHAIN, check, data, device_json, hash, image, name, thin,
};

fn id(number: u32) -> ThinId {
    ThinId::new(number).unwrap()
}

fn state(store: &Store, name: &DeviceName) -> DeviceState {
    store.device(name).unwrap().state
}

fn export(store: &Store, name: &str) -> Result<Vec<u8>, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let result = store.export_raw_to(store.find(name).unwrap(), &path);
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, if result.is_ok() { vec!["image"] } else { vec![] }, "no temporary file is left");
    result.map(|exported| {
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, exported.size.0);
        bytes
    })
}

/// Content, type and times of all files.
fn checksum(path: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let status = path.symlink_metadata().unwrap();
            let content = if status.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if status.is_dir() {
                directories.push(path.clone());
            }
            files.insert(path, (status.mode(), status.mtime(), status.ctime_nsec(), content));
        }
    }
    files
}

#[test]
fn a_clean_directory_is_listed_without_findings() {
    let fixture = Fixture::new();
    let store = fixture.store();
    assert_eq!(store.findings(), []);
    assert_eq!(store.transaction_state(), TransactionState::Clean);
    assert_eq!(store.transaction_id(), Some(TransactionId(5)));
    let pool = store.pool().unwrap();
    assert_eq!((pool.block_size, pool.data_size), (Bytes(BLOCK), Bytes(64 * BLOCK)));
    assert_eq!((pool.data_used, pool.transaction_id), (Bytes(5 * BLOCK), TransactionId(5)));

    let [image] = store.images() else { panic!("{:?}", store.images()) };
    assert_eq!((&image.id, &image.tags[..]), (&hash('d'), &["debian:12".to_owned()][..]));
    assert_eq!(image.layers, [LOWER_DIFF, UPPER_CHAIN]);
    assert_eq!(image.device, Some(name('b')));
    let [container] = store.containers() else { panic!("{:?}", store.containers()) };
    assert_eq!((container.name.as_deref(), container.image.as_deref()), (Some("web"), Some("debian:12")));
    assert_eq!((&container.id, &container.device), (&hash('e'), &Some(name('c'))));

    let init: DeviceName = format!("{}-init", hash('c')).parse().unwrap();
    let expected = [
        (DeviceName::Base, 1, 1, None),
        (name('a'), 2, 2, Some(DeviceName::Base)),
        (name('b'), 3, 3, Some(name('a'))),
        (name('c'), 5, 3, Some(init.clone())),
        (init, 4, 3, Some(name('b'))),
    ];
    assert_eq!(store.devices().count(), expected.len());
    for (device, (name, thin_id, blocks, parent)) in store.devices().zip(expected) {
        assert_eq!((&device.name, device.thin_id, device.state), (&name, Some(id(thin_id)), DeviceState::Ok));
        assert_eq!((device.size, device.mapped), (Some(Bytes(SIZE)), Some(Bytes(blocks * BLOCK))));
        assert_eq!((device.transaction_id, &device.parent), (Some(TransactionId(thin_id.into())), &parent));
    }
}

#[test]
fn devices_are_found_by_name_tag_and_abbreviated_id() {
    let fixture = Fixture::new();
    fixture.write(&format!("devicemapper/metadata/aaaaaaaa{}", &hash('b')[8..]), device_json(9));
    let store = fixture.store();
    let found = |text: &str| store.find(text).map(|device| device.name.clone());
    assert_eq!(found("web").unwrap(), name('c'));
    assert_eq!(found("debian:12").unwrap(), name('b'));
    assert_eq!(found(&hash('e')[..12]).unwrap(), name('c'));
    assert_eq!(found(&format!("sha256:{}", hash('d'))).unwrap(), name('b'));
    assert_eq!(found("cccc").unwrap(), name('c'));
    // As `dm-thin docker ls --all` shows it.
    assert_eq!(found("cccccccccccc-init").unwrap().to_string(), format!("{}-init", hash('c')));
    assert_eq!(found("base").unwrap(), DeviceName::Base);
    assert_eq!(found(&UPPER_CHAIN[..12]).unwrap(), name('b'));
    assert!(matches!(found("aaaa"), Err(Error::Ambiguous { .. })));
    for text in ["ccc", "", "debian", "thin-77", "ffff", "eeee-init", "ccc-init"] {
        assert!(matches!(found(text), Err(Error::NotFound { .. })), "{text}");
    }
}

/// As a power cut leaves a container that Docker has made a moment before: none of these files is synced.
#[test]
fn a_container_whose_mount_files_are_empty_leaves_a_device_that_can_be_exported() {
    let fixture = Fixture::new();
    let files = ["mount-id", "init-id", "parent"]
        .map(|name| format!("image/devicemapper/layerdb/mounts/{}/{name}", hash('e')));
    files.iter().for_each(|file| fixture.write(file, ""));
    let store = fixture.store();
    let empty = files.map(|file| Finding::EmptyFile { file: file.into() });
    let without = [hash('c'), format!("{}-init", hash('c'))]
        .map(|device| Finding::NoOwner { device: device.parse().unwrap() });
    assert_eq!(store.findings(), [&empty[..], &without].concat());
    assert_eq!((store.containers()[0].name.as_deref(), &store.containers()[0].device), (Some("web"), &None));
    assert_eq!(store.find("cccc").unwrap().state, DeviceState::Ok);
}

#[test]
fn an_export_has_every_block_and_holes() {
    let fixture = Fixture::new();
    let store = fixture.store();
    for (name, id) in [("base", 1), ("debian:12", 3), ("web", 5)] {
        let expected = image(&fixture.contents.thins[&id].mappings, SIZE);
        assert!(export(&store, name).unwrap() == expected, "{name}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let exported = store.export_raw_to(store.find("web").unwrap(), &path).unwrap();
    // Of each block two pages are zero.
    assert_eq!(exported.written, Bytes(3 * (BLOCK - 8192)));
    assert!(path.metadata().unwrap().blocks() * 512 <= 3 * BLOCK);
    // A file that is there is not overwritten.
    let again = store.export_raw_to(store.find("base").unwrap(), &path);
    assert!(matches!(again, Err(Error::Write { path: Some(_), .. })));
    assert_eq!(path.metadata().unwrap().len(), SIZE);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    // The old content of a file that is given open is.
    let file = File::options().read(true).write(true).open(&path).unwrap();
    store.export_raw(store.find("base").unwrap(), &file).unwrap();
    assert!(fs::read(&path).unwrap() == image(&fixture.contents.thins[&1].mappings, SIZE));
}

#[test]
fn a_size_that_is_no_multiple_of_the_block_size_is_kept() {
    let fixture = Fixture::new();
    let size = SIZE - BLOCK + 5 * 512;
    fixture.write(
        &format!("devicemapper/metadata/{}", hash('c')),
        device_json(5).replace(&SIZE.to_string(), &size.to_string()),
    );
    let exported = export(&fixture.store(), "web").unwrap();
    assert!(exported == image(&fixture.contents.thins[&5].mappings, size));
}

#[test]
fn a_pool_alone_has_flat_devices() {
    let fixture = Fixture::new();
    let directory = tempfile::tempdir().unwrap();
    for file in ["metadata", "data"] {
        let from = fixture.join("devicemapper/devicemapper").join(file);
        fs::copy(from, directory.path().join(file)).unwrap();
    }
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.findings(), []);
    assert_eq!(store.transaction_state(), TransactionState::Unknown);
    let names: Vec<_> = store.devices().map(|device| device.name.to_string()).collect();
    assert_eq!(names, ["thin-1", "thin-2", "thin-3", "thin-4", "thin-5"]);
    assert!(store.devices().all(|device| device.state == DeviceState::Ok && device.size.is_none()));
    // To the end of the last block that is mapped.
    let expected = image(&fixture.contents.thins[&3].mappings, 5 * BLOCK);
    assert!(export(&store, "thin-3").unwrap() == expected);

    // Both named beside Docker's files without a pool: LVM.
    let pool = PoolFiles { metadata: directory.path().join("metadata"), data: directory.path().join("data") };
    fs::remove_dir_all(fixture.join("devicemapper/devicemapper")).unwrap();
    let store = fixture.store();
    assert_eq!(store.findings(), [Finding::NoPool]);
    assert_eq!((store.devices().count(), store.pool()), (5, None));
    assert!(matches!(store.export_raw_to(store.find("web").unwrap(), "/x"), Err(Error::NoPool { .. })));
    let store = Store::open_with(fixture.path(), &pool).unwrap();
    assert_eq!(store.findings(), []);
    assert!(export(&store, "web").unwrap() == image(&fixture.contents.thins[&5].mappings, SIZE));
    fs::remove_file(&pool.data).unwrap();
    assert!(matches!(Store::open_with(fixture.path(), &pool), Err(Error::Open { .. })));
}

#[test]
fn nothing_to_read_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(directory.path()), Err(Error::NothingFound { .. })));
    assert!(matches!(Store::open(directory.path().join("none")), Err(Error::Open { .. })));
    for file in ["metadata", "data"] {
        fs::write(directory.path().join(file), [0; 8192]).unwrap();
    }
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(&error, Error::Unreadable { .. }), "{error}");
}

#[test]
fn the_file_system_says_the_size_of_a_device_without_one() {
    let mut fixture = Fixture::new();
    fixture.contents.thins.insert(9, thin(&[(0, 9), (2, 10)]));
    fixture.write_pool("devicemapper/devicemapper");
    let pool = File::options().write(true).open(fixture.join("devicemapper/devicemapper/data")).unwrap();
    let mut block = data(9);
    block[1024..2048].fill(0);
    block[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
    block[1024 + 4..][..4].copy_from_slice(&200u32.to_le_bytes());
    block[1024 + 0x18..][..4].copy_from_slice(&2u32.to_le_bytes());
    pool.write_all_at(&block, 9 * BLOCK).unwrap();
    let store = fixture.store();
    assert_eq!(store.findings(), [Finding::Stranded { thin_id: id(9), mapped: Bytes(2 * BLOCK) }]);
    assert_eq!(export(&store, "thin-9").unwrap().len(), 200 * 4096);
    block[..2048].fill(0);
    block[..4].copy_from_slice(b"XFSB");
    block[4..8].copy_from_slice(&4096u32.to_be_bytes());
    block[8..16].copy_from_slice(&100u64.to_be_bytes());
    pool.write_all_at(&block, 9 * BLOCK).unwrap();
    assert_eq!(export(&store, "thin-9").unwrap().len(), 100 * 4096);
}

#[test]
fn a_base_of_another_file_system_is_found() {
    let fixture = Fixture::new();
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let set = format!(r#"{{"next_device_id":6,"BaseDeviceUUID":"{uuid}","BaseDeviceFilesystem":"xfs"}}"#);
    fixture.write("devicemapper/metadata/deviceset-metadata", set);
    let pool = File::options().write(true).open(fixture.join("devicemapper/devicemapper/data")).unwrap();
    let mut block = data(0);
    block[..4].copy_from_slice(b"XFSB");
    block[32..48].copy_from_slice(&[7; 16]);
    pool.write_all_at(&block, 0).unwrap();
    let store = fixture.store();
    let found = uuid::Uuid::from_bytes([7; 16]);
    assert_eq!(store.findings(), [Finding::OtherBase { recorded: uuid.parse().unwrap(), found }]);
    // Another pool's: its devices are not what Docker's files say.
    let path = fixture.join("web.img");
    let error = store.export_raw_to(store.find("web").unwrap(), &path).unwrap_err();
    assert!(matches!(error, Error::OtherBase { .. }) && !path.exists(), "{error}");
    block[32..48].copy_from_slice(uuid.parse::<uuid::Uuid>().unwrap().as_bytes());
    pool.write_all_at(&block, 0).unwrap();
    assert_eq!(fixture.store().findings(), []);
}

#[test]
fn transactions_are_compared_with_the_pool() {
    let mut fixture = Fixture::new();
    let transaction = "devicemapper/metadata/transaction-metadata";
    let write = |fixture: &Fixture, open: u64| {
        let json = format!(r#"{{"open_transaction_id":{open},"device_hash":"{}","device_id":5}}"#, hash('c'));
        fixture.write(transaction, json);
    };
    let (pool, open) = (TransactionId(5), TransactionId);
    write(&fixture, 6);
    let store = fixture.store();
    let interrupted = Finding::Interrupted { device: Some(name('c')), thin_id: 5, open: open(6), pool };
    assert_eq!(store.findings(), [interrupted]);
    assert_eq!(store.transaction_state(), TransactionState::Interrupted);
    assert_eq!(state(&store, &name('c')), DeviceState::Interrupted);
    assert_eq!(state(&store, &name('b')), DeviceState::Ok);
    assert!(export(&store, "web").is_ok());

    write(&fixture, 4);
    let store = fixture.store();
    assert_eq!(store.findings(), [Finding::PoolNewer { open: open(4), pool }]);
    assert_eq!(store.transaction_state(), TransactionState::PoolNewer);
    write(&fixture, 8);
    assert_eq!(fixture.store().findings(), [Finding::PoolOlder { open: open(8), pool }]);

    fixture.write(transaction, "");
    let store = fixture.store();
    assert_eq!(store.findings(), [Finding::EmptyFile { file: transaction.into() }]);
    assert_eq!(store.transaction_state(), TransactionState::Unknown);
    fixture.remove(transaction);
    let store = fixture.store();
    assert_eq!((store.findings(), store.transaction_state()), (&[][..], TransactionState::Unknown));

    // The device is in the pool, its file was not written any more; the next time it is the other way round.
    write(&fixture, 6);
    fixture.remove(&format!("devicemapper/metadata/{}", hash('c')));
    let store = fixture.store();
    assert_eq!(state(&store, &DeviceName::Thin(id(5))), DeviceState::Interrupted);
    fixture.write(&format!("devicemapper/metadata/{}", hash('c')), device_json(5));
    fixture.contents.thins.remove(&5);
    fixture.rewrite_metadata();
    assert_eq!(state(&fixture.store(), &name('c')), DeviceState::Lost);
}

#[test]
fn devices_of_every_state_are_told_apart() {
    let mut fixture = Fixture::new();
    let write = |fixture: &Fixture, digit, json: &str| {
        fixture.write(&format!("devicemapper/metadata/{}", hash(digit)), json);
    };
    let deleted = device_json(6).replace(r#""deleted":false"#, r#""deleted":true"#);
    write(&fixture, '6', &deleted);
    write(&fixture, '7', "");
    write(&fixture, '8', &device_json(8)[..30]);
    write(&fixture, '9', &device_json(9));
    write(&fixture, '0', &device_json(0x100_0000));
    write(&fixture, 'f', &device_json(3));
    write(&fixture, '1', &device_json(8).replace("1048576", "18446744073709551615"));
    fixture.write("devicemapper/metadata/base", device_json(1).replace("true", "false"));
    fixture.write("devicemapper/metadata/.tmp123456", "{");
    fixture.write("devicemapper/metadata/old.migrated", "{");
    fixture.write("devicemapper/metadata/surprise", "{}");
    fixture.contents.thins.extend([6, 7, 8].map(|id| (id, thin(&[(0, u64::from(id))]))));
    fixture.contents.needs_check = true;
    fixture.write_pool("devicemapper/devicemapper");
    let store = fixture.store();
    for (digit, expected) in [
        ('6', DeviceState::Deleted),
        ('7', DeviceState::Unreadable),
        ('8', DeviceState::Unreadable),
        ('9', DeviceState::Lost),
        ('0', DeviceState::Unreadable),
        ('f', DeviceState::Ok),
        ('a', DeviceState::Ok),
    ] {
        assert_eq!(state(&store, &name(digit)), expected, "{digit}");
    }
    assert_eq!(state(&store, &DeviceName::Base), DeviceState::HalfMade);
    assert_eq!(state(&store, &DeviceName::Thin(id(7))), DeviceState::Stranded);
    let path = |digit| PathBuf::from(format!("devicemapper/metadata/{}", hash(digit)));
    for finding in [
        Finding::Deleted { device: name('6') },
        Finding::EmptyFile { file: path('7') },
        Finding::Lost { device: name('9'), thin_id: id(9) },
        Finding::BadValue { file: path('0'), what: "device_id", value: "16777216".to_owned() },
        Finding::BadValue { file: path('1'), what: "size", value: "18446744073709551615".to_owned() },
        Finding::SameThinId { first: name('b'), second: name('f'), thin_id: id(3) },
        Finding::HalfMadeBase,
        Finding::UnknownFile { file: "devicemapper/metadata/surprise".into() },
        Finding::Stranded { thin_id: id(7), mapped: Bytes(BLOCK) },
        Finding::NeedsCheck,
        Finding::NoOwner { device: name('1') },
        Finding::NoOwner { device: name('f') },
    ] {
        assert!(store.findings().contains(&finding), "{finding:?}");
    }
    let bad = |it: &&Finding| matches!(it, Finding::BadJson { file, .. } if *file == path('8'));
    assert_eq!(store.findings().iter().filter(bad).count(), 1);
    assert_eq!(store.findings().len(), 13, "{:#?}", store.findings());
    // What is stranded is whole.
    assert!(export(&store, "thin-7").unwrap() == image(&fixture.contents.thins[&7].mappings, BLOCK));
    assert!(matches!(export(&store, &hash('9')), Err(Error::NoData { state: DeviceState::Lost, .. })));
    assert!(matches!(export(&store, &hash('7')), Err(Error::NoData { state: DeviceState::Unreadable, .. })));
}

#[test]
fn the_single_file_of_old_versions_is_read() {
    let fixture = Fixture::new();
    let devices = ["".to_owned(), hash('a'), hash('b'), hash('c')];
    let ids = [1, 2, 3, 5];
    let entries = devices.iter().zip(ids).map(|(hash, id)| format!(r#""{hash}":{}"#, device_json(id)));
    let mut entries: Vec<_> = entries.collect();
    entries.push(r#""../../etc/passwd":{"device_id":4,"size":1}"#.to_owned());
    entries.push(format!(r#""{}":{{"device_id":"four"}}"#, hash('f')));
    let old = format!(r#"{{"Devices":{{{}}}}}"#, entries.join(","));
    fs::remove_dir_all(fixture.join("devicemapper/metadata")).unwrap();
    fixture.write("devicemapper/devicemapper/json", &old);
    let store = fixture.store();
    for (name, expected) in [DeviceName::Base, name('a'), name('b'), name('c')].iter().zip(ids) {
        let device = store.device(name).unwrap();
        assert_eq!((device.thin_id, device.state), (Some(id(expected)), DeviceState::Ok));
    }
    assert_eq!(state(&store, &name('f')), DeviceState::Unreadable);
    assert_eq!(state(&store, &DeviceName::Thin(id(4))), DeviceState::Stranded);
    assert!(
        store
            .findings()
            .iter()
            .any(|it| matches!(it, Finding::BadValue { value, .. } if value.contains("passwd")))
    );

    // Split half-way: the new files count.
    fixture.write(&format!("devicemapper/metadata/{}", hash('a')), device_json(4));
    let store = fixture.store();
    assert_eq!(store.device(&name('a')).unwrap().thin_id, Some(id(4)));
    assert_eq!(store.device(&name('b')).unwrap().thin_id, Some(id(3)));
}

#[test]
fn layers_that_descend_from_themselves_or_from_nothing_are_found() {
    let fixture = Fixture::new();
    let layer = "image/devicemapper/layerdb/sha256";
    fixture.write(&format!("{layer}/{LOWER_DIFF}/parent"), format!("sha256:{UPPER_CHAIN}\n"));
    fixture.write(&format!("{layer}/{}/parent", hash('7')), format!("sha256:{}", hash('8')));
    fixture.write(&format!("{layer}/{}/cache-id", hash('7')), hash('9'));
    fixture.write(&format!("{layer}/{}/cache-id", hash('6')), "../../../../etc/passwd");
    let store = fixture.store();
    let findings = store.findings();
    assert_eq!(findings.iter().filter(|it| matches!(it, Finding::LayerLoop { .. })).count(), 1);
    assert!(findings.contains(&Finding::MissingParent { layer: hash('7'), parent: hash('8') }));
    let missing = format!("device {}", hash('9'));
    let owner = format!("layer {}", hash('7'));
    assert!(findings.contains(&Finding::MissingReference { owner, missing }));
    assert!(findings.iter().any(|it| matches!(it, Finding::BadValue { what: "cache-id", .. })));
    check(&fixture);

    // Two layers on one device; the upper one comes first.
    let fixture = Fixture::new();
    let top = hash('0');
    fixture.write(&format!("{layer}/{top}/cache-id"), hash('a'));
    fixture.write(&format!("{layer}/{top}/parent"), format!("sha256:{UPPER_CHAIN}"));
    check(&fixture);
    let store = fixture.store();
    let (first, second) = (format!("layer {top}"), format!("layer {LOWER_DIFF}"));
    let looped = store.findings().iter().filter(|it| matches!(it, Finding::DeviceLoop { .. })).count();
    assert_eq!(looped, 1, "{:?}", store.findings());
    assert!(store.findings().contains(&Finding::SameDevice { device: name('a'), first, second }));
}

#[test]
fn nothing_is_followed_out_of_the_directory() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir_in(fixture.path().parent().unwrap()).unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, device_json(2)).unwrap();
    let a = format!("devicemapper/metadata/{}", hash('a'));
    let fifo = format!("devicemapper/metadata/{}", hash('9'));
    let directory = format!("devicemapper/metadata/{}", hash('8'));
    fixture.remove(&a);
    symlink(&secret, fixture.join(&a)).unwrap();
    nix::unistd::mkfifo(&fixture.join(&fifo), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    fs::create_dir(fixture.join(&directory)).unwrap();
    fs::rename(fixture.join("containers"), outside.path().join("containers")).unwrap();
    symlink(outside.path().join("containers"), fixture.join("containers")).unwrap();
    let large = format!("devicemapper/metadata/{}", hash('7'));
    fixture.write(&large, vec![b' '; (1 << 20) + 1]);
    let deep = format!("devicemapper/metadata/{}", hash('6'));
    fixture.write(&deep, "[".repeat(1 << 20));
    let store = fixture.store();
    for file in [a, fifo, directory, "containers".to_owned()] {
        assert!(store.findings().contains(&Finding::NotRegular { file: (&file).into() }), "{file}");
    }
    assert!(store.findings().contains(&Finding::TooLarge { file: large.into(), limit: 1 << 20 }));
    assert!(
        store
            .findings()
            .iter()
            .any(|it| matches!(it, Finding::BadJson { file, .. } if *file == Path::new(&deep)))
    );
    assert_eq!(state(&store, &name('a')), DeviceState::Unreadable);
    assert_eq!(store.containers()[0].name, None);
    assert_eq!(state(&store, &DeviceName::Thin(id(2))), DeviceState::Stranded);

    // The loop files, too.
    let data = fixture.join("devicemapper/devicemapper/data");
    fs::rename(&data, outside.path().join("data")).unwrap();
    symlink(outside.path().join("data"), &data).unwrap();
    assert!(fixture.store().findings().contains(&Finding::NoPool));
    // The caller's own link is followed.
    let link = outside.path().join("docker");
    symlink(fixture.path(), &link).unwrap();
    assert_eq!(Store::open(link).unwrap().devices().count(), 9);
}

#[test]
fn a_data_file_that_is_too_short_is_refused_where_it_matters() {
    let fixture = Fixture::new();
    let data = File::options().write(true).open(fixture.join("devicemapper/devicemapper/data")).unwrap();
    data.set_len(4 * BLOCK + 512).unwrap();
    let store = fixture.store();
    let (expected, found) = (Bytes(64 * BLOCK), Bytes(4 * BLOCK + 512));
    assert_eq!(store.findings(), [Finding::DataTooShort { expected, found }]);
    assert!(export(&store, "debian:12").unwrap() == image(&fixture.contents.thins[&3].mappings, SIZE));
    let error = export(&store, "web").unwrap_err();
    assert!(matches!(error, Error::BeyondData { block: 15, offset: Bytes(327_680), .. }), "{error}");
}

#[test]
fn a_block_beyond_the_device_is_refused() {
    let fixture = Fixture::new();
    let json = device_json(5).replace(&SIZE.to_string(), &(15 * BLOCK).to_string());
    fixture.write(&format!("devicemapper/metadata/{}", hash('c')), json);
    assert!(matches!(export(&fixture.store(), "web"), Err(Error::BeyondDevice { block: 15, .. })));
}

#[test]
fn damaged_metadata_leaves_the_list() {
    let fixture = Fixture::new();
    let metadata = fixture.join("devicemapper/devicemapper/metadata");
    let file = File::options().read(true).write(true).open(&metadata).unwrap();
    file.write_all_at(&[0xff; 64], 256).unwrap();
    let store = fixture.store();
    assert!(matches!(store.findings(), [Finding::PoolUnreadable { .. }]), "{:?}", store.findings());
    assert_eq!((store.devices().count(), store.images().len()), (5, 1));
    assert!(matches!(export(&store, "web"), Err(Error::NoPool { .. })));
}

#[test]
fn reading_leaves_the_directory_as_it_was() {
    let fixture = Fixture::new();
    let before = checksum(fixture.path());
    let store = fixture.store();
    for device in store.devices() {
        export(&store, &device.name.to_string()).unwrap();
    }
    let mut byte = [0];
    File::open(fixture.join("devicemapper/metadata/base")).unwrap().read_exact(&mut byte).unwrap();
    assert!(checksum(fixture.path()) == before);
}

fn files() -> Vec<String> {
    Fixture::files().into_iter().map(|(path, _)| path).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_in_one_file_leave_the_others_listed(
        file in prop::sample::select(files()),
        content in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let fixture = Fixture::new();
        fixture.write(&file, &content);
        check(&fixture);
        let store = fixture.store();
        for (device, digit) in ["a", "b", "c"].iter().zip(['a', 'b', 'c']) {
            if !file.ends_with(&hash(digit)) {
                prop_assert!(store.device(&name(digit)).is_some_and(|it| it.size == Some(Bytes(SIZE))), "{}", device);
            }
        }
        prop_assert_eq!(store.containers().len(), 1);
        prop_assert_eq!(store.images().len(), usize::from(!file.contains("imagedb")));
        prop_assert_ne!(store.findings(), &[][..]);
    }

    #[test]
    fn changed_bytes_in_every_file_are_answered(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let fixture = Fixture::new();
        let files = files();
        for (file, at, byte) in changes {
            let file = file.get(&files);
            let mut content = fs::read(fixture.join(file)).unwrap();
            let at = at.index(content.len());
            content[at] = byte;
            fixture.write(file, content);
        }
        let before = checksum(fixture.path());
        check(&fixture);
        prop_assert!(checksum(fixture.path()) == before);
    }

    #[test]
    fn exports_return_what_was_written(
        blocks in prop::collection::btree_map(0u64..300, 0u64..400, 0..80),
        cut in 0u64..128,
    ) {
        let mut fixture = Fixture::new();
        fixture.contents.data_blocks = 400;
        let blocks: Vec<_> = blocks.into_iter().collect();
        fixture.contents.thins = BTreeMap::from([(5, thin(&blocks))]);
        fixture.write_pool("devicemapper/devicemapper");
        let size = 300 * BLOCK - cut * 512;
        let json = device_json(5).replace(&SIZE.to_string(), &size.to_string());
        fixture.write(&format!("devicemapper/metadata/{}", hash('c')), json);
        let exported = export(&fixture.store(), "web").unwrap();
        prop_assert!(exported == image(&fixture.contents.thins[&5].mappings, size));
    }
}
