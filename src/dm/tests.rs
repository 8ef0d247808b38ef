//! The driver's methods against a kernel whose answers are scripted.

use nix::errno::Errno;

use super::fake::{Fake, answer, put};
use super::*;
use crate::Error;
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
    assert_eq!(devices[9_999].event_nr, Some(9_999));
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
fn a_list_without_end_is_given_up() {
    let fake = Fake::new(47, |_, bytes| {
        put(bytes, 28, 1 << 8);
        Ok(0)
    });
    assert!(
        matches!(fake.mapper().list(), Err(Error::AnswerTooLarge { capacity, .. }) if capacity == 64 << 20)
    );
}

#[test]
fn what_changes_something_is_never_sent_twice() {
    let fake = Fake::new(47, |_, bytes| {
        put(bytes, 28, 1 << 8);
        Ok(0)
    });
    let (dm, pool) = (fake.mapper(), name("pool"));
    let result = dm.message((&pool).into(), Sectors(0), &"create_thin 1");
    assert!(matches!(result, Err(Error::AnswerTooLarge { .. })));
    assert!(dm.create(&pool, None).is_err());
    assert_eq!(fake.log(), ["DM_TARGET_MSG", "DM_DEV_CREATE"]);
}

#[test]
fn a_message_is_carried_by_less_than_512_bytes() {
    let fake = Fake::new(47, |_, _| Ok(0));
    fake.mapper()
        .message((&name(&"p".repeat(127))).into(), Sectors(0), &"create_snap 16777215 16777214")
        .unwrap();
    assert!(fake.last().len() < 512);
}

#[test]
fn a_long_message_takes_a_larger_buffer() {
    let fake = Fake::new(47, |_, _| Ok(0));
    let text = "x".repeat(20_000);
    fake.mapper().message((&name("pool")).into(), Sectors(0), &text).unwrap();
    assert_eq!(fake.log().len(), 1);
    assert_eq!(&fake.last()[320..20_321], [text.as_bytes(), b"\0"].concat());
}

#[test]
fn a_text_with_a_nul_is_refused_before_the_kernel_sees_it() {
    let fake = Fake::new(47, |_, _| Ok(0));
    let pool = name("pool");
    let error = fake.mapper().message((&pool).into(), Sectors(0), &"delete 1\0").unwrap_err();
    assert_eq!(error.to_string(), r"DM_TARGET_MSG: delete 1\0: a NUL byte inside");
    assert!(fake.log().is_empty());
}

#[test]
fn an_old_kernel_is_not_asked_for_what_it_does_not_know() {
    let fake = Fake::new(26, |_, _| Ok(0));
    let error = fake.mapper().remove_deferred(&name("pool")).unwrap_err();
    assert_eq!(error.to_string(), "DM_DEV_REMOVE needs device-mapper interface 4.27, the kernel has 4.26.0");
    assert!(fake.log().is_empty());
}

#[test]
fn a_refusal_says_what_was_asked_of_whom() {
    let fake = Fake::new(47, |_, _| Err(Errno::ENODATA));
    let error = fake.mapper().message((&name("pool")).into(), Sectors(0), &"delete 1").unwrap_err();
    assert_eq!(error.to_string(), format!("DM_TARGET_MSG on pool (delete 1): {}", Errno::ENODATA));
    assert!(error.is_not_found());
}
