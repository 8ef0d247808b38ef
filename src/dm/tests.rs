//! The driver's methods against a kernel whose answers are scripted.

use nix::errno::Errno;

use super::fake::{Fake, answer, put};
use super::*;
use crate::dm::Error;
use crate::units::Sectors;

fn name(text: &str) -> DmName {
    DmName::new(text).unwrap()
}

fn listed(n: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in 0..n {
        let start = bytes.len();
        bytes.extend((u64::from(i & 0xff) | 253 << 8 | u64::from(i & !0xff) << 12).to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(format!("docker-8:1-7077897-{i:064x}\0").bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([i.to_ne_bytes(), 2u32.to_ne_bytes()].concat());
        if i + 1 < n {
            let next = u32::try_from(bytes.len() - start).unwrap();
            put(&mut bytes, start + 8, next);
        }
    }
    bytes
}

#[test]
fn a_list_grows_until_it_fits() {
    let payload = listed(10_000);
    let len = payload.len();
    let fake = Fake::new(47, move |_, bytes| {
        answer(bytes, &payload);
        Ok(0)
    });
    let devices = fake.mapper().list().unwrap();
    assert_eq!(devices.len(), 10_000);
    assert_eq!(devices[9_999].event_nr, Some(EventNr(9_999)));
    let requests = fake.requests.lock().unwrap();
    let sizes: Vec<_> = requests.iter().map(|(_, bytes)| bytes.len()).collect();
    assert!(sizes.windows(2).all(|pair| pair[1] == pair[0] * 2), "{sizes:?}");
    assert!(*sizes.last().unwrap() >= len);
    // Encoded afresh: apart from data_size the same request each time.
    for (_, bytes) in requests.iter() {
        assert_eq!(bytes[16..480], requests[0].1[16..480]);
    }
}

#[test]
fn a_list_that_never_fits_is_an_error() {
    let fake = Fake::new(47, |_, bytes| {
        put(bytes, 28, 1 << 8);
        Ok(0)
    });
    assert!(
        matches!(fake.mapper().list(), Err(Error::AnswerTooLarge { capacity, .. }) if capacity == 64 << 20)
    );
}

#[test]
fn state_changing_requests_are_never_reissued() {
    let fake = Fake::new(47, |_, bytes| {
        put(bytes, 28, 1 << 8);
        Ok(0)
    });
    let (dm, pool) = (fake.mapper(), name("pool"));
    let result = dm.message(&pool, Sectors(0), &"create_thin 1");
    assert!(matches!(result, Err(Error::AnswerTooLarge { .. })));
    assert!(dm.create(&pool, None).is_err());
    assert_eq!(fake.log(), ["DM_TARGET_MSG", "DM_DEV_CREATE"]);
}

#[test]
fn a_message_takes_less_than_512_bytes() {
    let fake = Fake::new(47, |_, _| Ok(0));
    fake.mapper().message(&name(&"p".repeat(127)), Sectors(0), &"create_snap 16777215 16777214").unwrap();
    assert!(fake.last().len() < 512);
}

#[test]
fn a_long_message_takes_a_larger_buffer() {
    let fake = Fake::new(47, |_, _| Ok(0));
    let text = "x".repeat(20_000);
    fake.mapper().message(&name("pool"), Sectors(0), &text).unwrap();
    assert_eq!(fake.log().len(), 1);
    assert_eq!(&fake.last()[320..20_321], [text.as_bytes(), b"\0"].concat());
}

#[test]
fn a_text_with_a_nul_is_refused_before_the_kernel_sees_it() {
    let fake = Fake::new(47, |_, _| Ok(0));
    let pool = name("pool");
    let error = fake.mapper().message(&pool, Sectors(0), &"delete 1\0").unwrap_err();
    assert_eq!(error.to_string(), r"DM_TARGET_MSG: delete 1\0: a NUL byte inside");
    assert!(fake.log().is_empty());
}

#[test]
fn requests_newer_than_the_kernel_are_refused() {
    let fake = Fake::new(26, |_, _| Ok(0));
    let error = fake.mapper().remove_deferred(&name("pool")).unwrap_err();
    assert_eq!(error.to_string(), "DM_DEV_REMOVE needs device-mapper interface 4.27, the kernel has 4.26.0");
    assert!(fake.log().is_empty());
}

#[test]
fn an_ioctl_error_names_the_request_and_the_device() {
    let fake = Fake::new(47, |_, _| Err(Errno::ENODATA));
    let error = fake.mapper().message(&name("pool"), Sectors(0), &"delete 1").unwrap_err();
    assert_eq!(error.to_string(), format!("DM_TARGET_MSG on pool (delete 1): {}", Errno::ENODATA));
    assert!(error.is_not_found());
}

#[test]
fn uuids_are_asked_for_where_the_kernel_has_them() {
    for (minor, flags) in [(44, 0), (45, 1u32 << 14)] {
        let fake = Fake::new(minor, |_, bytes| {
            answer(bytes, &[]);
            Ok(0)
        });
        assert_eq!(fake.mapper().list().unwrap(), []);
        assert_eq!(fake.last()[28..32], flags.to_ne_bytes());
    }
}

#[test]
fn a_list_by_prefix_sends_name_and_uuid() {
    let fake = Fake::new(45, |_, bytes| {
        answer(bytes, &[]);
        Ok(0)
    });
    let prefixes = (name("docker-"), DmUuid::new("DMTHIN-").unwrap());
    fake.mapper().list_matching(Some(&prefixes.0), Some(&prefixes.1)).unwrap();
    let request = fake.last();
    assert_eq!((&request[48..56], &request[176..184]), (&b"docker-\0"[..], &b"DMTHIN-\0"[..]));
    let old = Fake::new(44, |_, _| Ok(0)).mapper().list_matching(None, Some(&prefixes.1));
    assert!(matches!(old, Err(Error::TooOld { needed: 45, .. })));
}

#[test]
fn secure_data_is_flagged_and_never_printed() {
    let fake = Fake::new(47, |_, _| Err(Errno::EINVAL));
    let (dm, crypt) = (fake.mapper(), name("crypt"));
    let error = dm.message_secure((&crypt).into(), Sectors(0), &"key set 0123").unwrap_err();
    assert_eq!(error.to_string(), format!("DM_TARGET_MSG on crypt (secure data): {}", Errno::EINVAL));
    assert_eq!(fake.last()[28..32], (1u32 << 15).to_ne_bytes());
    let line = TargetSpec {
        start: Sectors(0),
        length: Sectors(8),
        target_type: TargetType::new("crypt").unwrap(),
        parameters: &"aes 0123 0 7:0 0",
    };
    let flags = DmFlags::SECURE_DATA | DmFlags::READONLY | DmFlags::NOFLUSH;
    let error = dm.load_table(&crypt, &[line], flags).unwrap_err();
    assert!(!error.to_string().contains("0123"));
    assert_eq!(fake.last()[28..32], (1u32 << 15 | 1).to_ne_bytes());
    let error = dm.message_secure((&crypt).into(), Sectors(0), &"key set 0123\0").unwrap_err();
    assert!(!error.to_string().contains("0123"));

    // Nor is the answer to a question that may have one.
    let fake = Fake::new(47, |_, bytes| {
        put(bytes, 20, 1);
        let mut payload = vec![0; 40];
        put(&mut payload, 20, 64);
        payload[24..29].copy_from_slice(b"crypt");
        payload.extend(b"aes 0123 \xff\0");
        answer(bytes, &payload);
        Ok(0)
    });
    let error = fake.mapper().table(&crypt, TableKind::Live).unwrap_err();
    assert_eq!(error.to_string(), r#"malformed table status: "secure data""#);
    let error = fake.mapper().ima_measurement(&crypt, TableKind::Live).unwrap_err();
    assert!(error.to_string().contains("0123"), "not asked for as a secret");
}

#[test]
fn wait_sends_the_event_number_and_returns_the_status() {
    let fake = Fake::new(47, |_, bytes| {
        bytes[48..52].copy_from_slice(b"pool");
        put(bytes, 32, 8);
        put(bytes, 20, 1);
        let mut payload = vec![0; 40];
        put(&mut payload, 20, 48);
        payload[24..28].copy_from_slice(b"zero");
        payload.extend(b"\0");
        answer(bytes, &payload);
        Ok(0)
    });
    let (status, lines) = fake.mapper().wait((&name("pool")).into(), EventNr(7), DmFlags::NOFLUSH).unwrap();
    assert_eq!((status.event_nr, lines.len()), (EventNr(8), 1));
    assert_eq!(fake.last()[32..36], 7u32.to_ne_bytes());
}

#[test]
fn rename_takes_the_number_from_its_answer() {
    let fake = Fake::new(47, |_, bytes| {
        put(bytes, 40, 0xfd03);
        Ok(0)
    });
    fake.mapper().rename(&name("a"), &name("b")).unwrap();
    assert_eq!(fake.log(), ["DM_DEV_RENAME"]);
    fake.mapper().set_uuid(&name("b"), &DmUuid::new("U").unwrap()).unwrap();
    assert_eq!(fake.last()[28..32], (1u32 << 14).to_ne_bytes());
    assert_eq!(&fake.last()[312..315], b"U\0\0");
}

#[test]
fn remove_all_returns_what_is_left() {
    let payload = listed(2);
    let mut lists = 0;
    let fake = Fake::new(47, move |request, bytes| {
        match request.name() {
            "DM_LIST_DEVICES" => {
                lists += 1;
                if lists == 1 {
                    answer(bytes, &payload);
                } else {
                    answer(bytes, &listed(1));
                }
            }
            // The kernel answers data_size 0, so that nothing of the buffer changes.
            "DM_REMOVE_ALL" => assert_eq!(bytes[28..32], (1u32 << 17).to_ne_bytes()),
            other => panic!("{other}"),
        }
        Ok(0)
    });
    let left = fake.mapper().remove_all(DmFlags::DEFERRED_REMOVE | DmFlags::READONLY).unwrap();
    assert_eq!(left.len(), 1);
}

#[test]
fn the_node_of_a_device_with_a_reserved_name_is_left_alone() {
    // An interface without event numbers: behind the name is nothing.
    let mut lists = vec![Vec::new(), listed(1)];
    let name = lists[1][12..].iter().position(|&byte| byte == 0).unwrap();
    lists[1][12..12 + name].fill(0);
    lists[1][12..19].copy_from_slice(b"control");
    let fake = Fake::new(36, move |request, bytes| {
        if request.name() == "DM_LIST_DEVICES" {
            answer(bytes, &lists.pop().unwrap());
        }
        Ok(0)
    });
    assert_eq!(fake.mapper().remove_all(DmFlags::empty()).unwrap(), []);
    assert_eq!(*fake.removed.lock().unwrap(), Vec::<std::path::PathBuf>::new());
    let control = DmName::of_kernel(b"control").unwrap();
    let node = fake.mapper().ensure_node(&control, crate::kernel::DeviceNumber { major: 253, minor: 0 });
    assert!(matches!(node, Err(Error::InvalidName { .. })));
}

#[test]
fn paths_are_probed_through_the_device_itself() {
    let fake = Fake::new(50, |_, bytes| {
        if !bytes.is_empty() {
            bytes[48..50].copy_from_slice(b"mp");
        }
        Ok(0)
    });
    fake.mapper().probe_paths(&name("mp")).unwrap();
    assert_eq!(fake.log(), ["DM_DEV_STATUS", "DM_MPATH_PROBE_PATHS"]);
    let old = Fake::new(49, |_, _| Ok(0)).mapper().probe_paths(&name("mp"));
    assert!(matches!(old, Err(Error::TooOld { needed: 50, .. })));
}

#[test]
fn an_interrupted_resume_is_sent_again() {
    let mut interruptions = 2;
    let fake = Fake::new(47, move |_, _| match interruptions {
        0 => Ok(0),
        _ => {
            interruptions -= 1;
            Err(Errno::EINTR)
        }
    });
    fake.mapper().resume(&name("volume")).unwrap();
    assert_eq!(fake.log(), ["DM_DEV_SUSPEND"; 3]);
}

#[test]
fn an_unresponsive_udev_is_waited_for_once() {
    let fake = Fake::new(47, |_, bytes| {
        put(bytes, 28, 1 << 13);
        Ok(0)
    });
    let dm = DeviceMapper::with_kernel(fake.clone(), UdevPolicy::Cookie).unwrap();
    let cookie = |fake: &Fake| u32::from_ne_bytes(fake.last()[32..36].try_into().unwrap());
    dm.resume(&name("volume")).unwrap();
    assert_ne!(cookie(&fake) & 0xffff, 0);
    assert!(!dm.waits_for_udev());
    dm.resume(&name("volume")).unwrap();
    // udev, late or not, still does not probe the device.
    assert_eq!(cookie(&fake), 0x6e_0000);
}

#[test]
fn a_missing_target_names_its_module() {
    let dm = Fake::new(47, |_, _| Err(Errno::EINVAL)).mapper();
    for (target, module) in [("thin-pool", "dm-thin-pool"), ("thin", "dm-thin-pool"), ("zero", "dm-zero")] {
        let error = dm.target_version(TargetType::new(target).unwrap()).unwrap_err();
        let text = format!("the kernel has no device-mapper target {target}; load the module {module}");
        assert_eq!(error.to_string(), text);
    }
}
