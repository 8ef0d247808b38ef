//! One request in the kernel's hands, and the answer that grows in the same buffer.

use std::mem::size_of;

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::dm::{DM_IOCTL_MIN_SIZE, DM_NAME_LEN, DM_UUID_LEN, DmFlags, dm_ioctl};

pub(super) const HEADER: usize = size_of::<dm_ioctl>();

#[derive(Debug)]
pub(super) struct Packet {
    pub(super) header: dm_ioctl,
    /// The whole request, header included; its length is `data_size` as it came.
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Packet {
    pub(super) fn new(user: &[u8], size: usize) -> Result<Self, Errno> {
        let (mut header, _) = dm_ioctl::read_from_prefix(user).map_err(|_| Errno::EINVAL)?;
        let request = user.get(..size).ok_or(Errno::EINVAL)?.to_vec();
        header.data_size = least_size();
        Ok(Self { header, request, answer: Vec::new() })
    }

    pub(super) fn flags(&self) -> DmFlags {
        DmFlags::from_bits_retain(self.header.flags)
    }

    pub(super) fn has(&self, flag: DmFlags) -> bool {
        self.flags().contains(flag)
    }

    pub(super) fn set(&mut self, flag: DmFlags, on: bool) {
        let mut flags = self.flags();
        flags.set(flag, on);
        self.header.flags = flags.bits();
    }

    pub(super) fn clear(&mut self, flags: DmFlags) {
        self.set(flags, false);
    }

    /// The name, up to its NUL.
    pub(super) fn name(&self) -> &[u8] {
        until_nul(&self.header.name)
    }

    /// The uuid, up to its NUL.
    pub(super) fn uuid(&self) -> &[u8] {
        until_nul(&self.header.uuid)
    }

    /// The kernel does not refuse a name without an end: it cuts it.
    pub(super) fn terminate(&mut self) {
        self.header.name[DM_NAME_LEN - 1] = 0;
        self.header.uuid[DM_UUID_LEN - 1] = 0;
    }

    /// Writes a device's name and uuid into the header.
    pub(super) fn identify(&mut self, name: &[u8], uuid: &[u8]) {
        self.header.name = [0; DM_NAME_LEN];
        self.header.name[..name.len()].copy_from_slice(name);
        self.header.uuid = [0; DM_UUID_LEN];
        self.header.uuid[..uuid.len()].copy_from_slice(uuid);
    }

    /// Bytes of the request from an offset on; empty beyond its end.
    pub(super) fn request_from(&self, at: usize) -> &[u8] {
        self.request.get(at..).unwrap_or_default()
    }

    /// Where the payload begins. Before the header's end is EINVAL.
    pub(super) fn payload_at(&self) -> Result<usize, Errno> {
        let at = self.header.data_start as usize;
        if at < DM_IOCTL_MIN_SIZE { Err(Errno::EINVAL) } else { Ok(at) }
    }

    /// A string that must end before the request does.
    pub(super) fn text_at(&self, at: usize) -> Result<&[u8], Errno> {
        let bytes = self.request_from(at);
        let end = bytes.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
        Ok(&bytes[..end])
    }

    /// `get_result_buffer`: the answer goes behind the header; how much fits.
    pub(super) fn room(&mut self) -> usize {
        self.header.data_start = offset(HEADER.min(self.request.len()));
        self.request.len().saturating_sub(HEADER)
    }

    /// The answer, if it fits; else BUFFER_FULL.
    pub(super) fn answer_if_fits(&mut self, needed: usize, answer: Vec<u8>) {
        if self.room() < needed {
            self.set(DmFlags::BUFFER_FULL, true);
        } else {
            self.answer(answer);
        }
    }

    pub(super) fn answer(&mut self, answer: Vec<u8>) {
        self.header.data_size = offset(HEADER + answer.len());
        self.answer = answer;
    }

    /// Not even the header goes back.
    pub(super) fn answer_nothing(&mut self) {
        self.header.data_size = 0;
    }

    /// `copy_to_user` of `data_size` bytes.
    pub(super) fn copy_out(&self, user: &mut [u8]) {
        let size = self.header.data_size as usize;
        let bytes = self.header.as_bytes().iter().chain(&self.answer).take(size);
        user.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
    }
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// An offset in a buffer whose size came in 32 bits.
pub(super) fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn least_size() -> u32 {
    offset(DM_IOCTL_MIN_SIZE)
}

/// The next multiple of eight, where the kernel begins a record.
pub(super) fn align(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}
