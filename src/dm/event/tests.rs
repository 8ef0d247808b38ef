use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use nix::errno::Errno;

use super::*;
use crate::dm::fake::{Fake, answer};

/// Number, name, event number, uuid.
type Device = (u8, &'static str, u32, Option<&'static str>);

/// A device mapper whose list the test changes.
struct System {
    fake: Arc<Fake>,
    devices: Arc<Mutex<Vec<Device>>>,
    /// What happens right after the next list was answered.
    after_list: Arc<Mutex<Vec<Vec<Device>>>>,
    /// Errnos that the next lists fail with.
    failures: Arc<Mutex<Vec<Errno>>>,
    bell: UnixStream,
}

impl System {
    fn new(devices: &[Device]) -> Self {
        let (bell, control) = UnixStream::pair().unwrap();
        control.set_nonblocking(true).unwrap();
        let devices = Arc::new(Mutex::new(devices.to_vec()));
        let after_list = Arc::new(Mutex::<Vec<_>>::default());
        let failures = Arc::new(Mutex::<Vec<_>>::default());
        let shared = (Arc::clone(&devices), Arc::clone(&after_list), Arc::clone(&failures));
        let mut armed = control.try_clone().unwrap();
        let mut ring = bell.try_clone().unwrap();
        let fake = Fake::new(47, move |request, bytes| {
            let (devices, after_list, failures) = &shared;
            match request.name() {
                "DM_DEV_ARM_POLL" => match armed.read(&mut [0; 64]) {
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    Ok(len) => assert!(len > 0),
                },
                "DM_LIST_DEVICES" => {
                    if let Some(errno) = failures.lock().unwrap().pop() {
                        return Err(errno);
                    }
                    answer(bytes, &list(&devices.lock().unwrap()));
                    if let Some(next) = after_list.lock().unwrap().pop() {
                        *devices.lock().unwrap() = next;
                        ring.write_all(b"!").unwrap();
                    }
                }
                other => panic!("{other}"),
            }
            Ok(0)
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        fake.opens([null.into(), control.into()]);
        Self { fake, devices, after_list, failures, bell }
    }

    fn becomes(&mut self, devices: &[Device]) {
        *self.devices.lock().unwrap() = devices.to_vec();
        self.bell.write_all(b"!").unwrap();
    }
}

fn list(devices: &[Device]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (n, (minor, name, event_nr, uuid)) in devices.iter().enumerate() {
        let start = bytes.len();
        bytes.extend((u64::from(*minor) | 253 << 8).to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([name.as_bytes(), b"\0"].concat());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(event_nr.to_ne_bytes());
        bytes.extend(if uuid.is_some() { 1u32 } else { 2 }.to_ne_bytes());
        if let Some(uuid) = uuid {
            bytes.extend([uuid.as_bytes(), b"\0"].concat());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        if n + 1 < devices.len() {
            let next = u32::try_from(bytes.len() - start).unwrap();
            bytes[start + 8..start + 12].copy_from_slice(&next.to_ne_bytes());
        }
    }
    bytes
}

fn told(event: DeviceEvent) -> String {
    match event {
        DeviceEvent::Added(device) => format!("+{}", device.name),
        DeviceEvent::Changed(device) => format!("{}#{}", device.name, device.event_nr.unwrap()),
        DeviceEvent::Removed(device) => format!("-{}", device.name),
    }
}

const SHORT: Duration = Duration::from_millis(5);

#[test]
fn events_reports_every_change() {
    let mut system = System::new(&[(0, "pool", 1, None), (1, "a", 0, Some("A"))]);
    let mut events = system.fake.mapper().events().unwrap();
    assert_eq!(events.devices().count(), 2);
    assert_eq!(events.next_within(SHORT).unwrap(), None);
    // An event, a rename, a new device; a uuid given; then another device in the place of one.
    system.becomes(&[(0, "pool", 2, None), (1, "b", 0, Some("A")), (2, "c", 0, None)]);
    assert_eq!([(); 3].map(|()| told(events.next().unwrap().unwrap())), ["pool#2", "b#0", "+c"]);
    system.becomes(&[(0, "pool", 2, Some("P")), (1, "b", 0, Some("B"))]);
    assert_eq!([(); 4].map(|()| told(events.next().unwrap().unwrap())), ["pool#2", "-b", "-c", "+b"]);
    // The file became ready for something that the list does not show.
    system.becomes(&[(0, "pool", 2, Some("P")), (1, "b", 0, Some("B"))]);
    assert_eq!(events.next_within(SHORT).unwrap(), None);
}

#[test]
fn no_event_is_lost_between_the_list_and_the_poll() {
    let system = System::new(&[(0, "pool", 1, None)]);
    system.after_list.lock().unwrap().push(vec![(0, "pool", 2, None)]);
    let mut events = system.fake.mapper().events().unwrap();
    assert_eq!(told(events.next().unwrap().unwrap()), "pool#2");
    // Armed before each list: that order is what it rests on.
    assert_eq!(system.fake.log(), ["DM_DEV_ARM_POLL", "DM_LIST_DEVICES"].repeat(2));
}

#[test]
fn a_failure_loses_no_event() {
    let mut system = System::new(&[(0, "pool", 1, None)]);
    let mut events = system.fake.mapper().events().unwrap();
    system.failures.lock().unwrap().push(Errno::ENOMEM);
    system.becomes(&[(0, "pool", 2, None)]);
    assert_eq!(events.next().unwrap().unwrap_err().errno(), Some(Errno::ENOMEM));
    // The arming took the readiness away; it looks again all the same.
    let next = events.next_within(Duration::from_secs(5)).unwrap();
    assert_eq!(next.map(told).as_deref(), Some("pool#2"));
}

#[test]
fn events_needs_interface_4_37() {
    let fake = Fake::new(36, |_, _| Ok(0));
    assert!(matches!(fake.mapper().events(), Err(Error::TooOld { needed: 37, .. })));
}
