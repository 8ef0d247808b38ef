use std::io;

use super::*;
use crate::kernel::IoctlError;

#[test]
fn what_a_lower_floor_says_is_kept() {
    let refused =
        IoctlError { ioctl: "DM_DEV_CREATE", device: "a".to_owned(), detail: None, errno: Errno::EBUSY };
    let text = refused.to_string();
    let error = Error::from(dm::Error::from(Box::new(refused)));
    assert!(error.is_busy() && !error.is_not_found());
    assert_eq!((error.errno(), error.to_string()), (Some(Errno::EBUSY), text.clone()));
    let error = io::Error::from(error);
    assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::ResourceBusy, text));
    assert!(error.get_ref().is_some_and(|inner| inner.is::<Error>()));
}

#[test]
fn conditions_without_an_errno_have_a_kind() {
    let kind = |error| io::Error::from(error).kind();
    let id = || "a".to_owned();
    assert_eq!(kind(Error::UnknownSnapshot { id: id() }), io::ErrorKind::NotFound);
    assert_eq!(kind(Error::SnapshotExists { id: id() }), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(Error::Mounted { id: id(), target: "/mnt".into() }), io::ErrorKind::ResourceBusy);
    assert_eq!(kind(Error::from("1x".parse::<Bytes>().unwrap_err())), io::ErrorKind::InvalidInput);
    assert_eq!(kind(Error::StateUnknown), io::ErrorKind::Other);
}
