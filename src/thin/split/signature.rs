//! What a device carries already, told by its magic bytes. Pure.

use super::label::MAGIC;

/// How much of a device's beginning is looked at.
pub(super) const HEAD: usize = 128 << 10;
/// How much of its end.
pub(super) const TAIL: usize = 4096;

/// Name, offset, bytes. A partition table is looked for last: file systems have boot sectors, too.
const MAGICS: &[(&str, usize, &[u8])] = &[
    ("a dm-thin label", 0, MAGIC),
    ("a dm-thin label", (1 << 20) - 4096, MAGIC),
    ("an ext2, ext3 or ext4 file system", 1080, &[0x53, 0xef]),
    ("an xfs file system", 0, b"XFSB"),
    ("a btrfs file system", 0x1_0040, b"_BHRfS_M"),
    ("a f2fs file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an erofs file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("a squashfs file system", 0, b"hsqs"),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("swap space", 16374, b"SWAPSPACE2"),
    ("swap space", 65526, b"SWAPSPACE2"),
    ("a LUKS header", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    // 27022010, the superblock of thin-pool metadata.
    ("thin-pool metadata", 32, &[0x3a, 0x52, 0x9c, 0x01, 0, 0, 0, 0]),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an MBR partition table or a boot sector", 510, &[0x55, 0xaa]),
];

/// What the first [`HEAD`] bytes, or as many as there are, and the last [`TAIL`] speak of.
pub(super) fn find(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|bytes| bytes.starts_with(magic));
    let found = MAGICS.iter().find(|(_, offset, magic)| at(*offset, magic)).map(|(name, ..)| *name);
    // The copy of a GPT is in the last sector, of 512 bytes or of 4096.
    let backup = || {
        let sectors = [tail.len().checked_sub(512)?, tail.len().checked_sub(4096)?];
        let is_gpt = |&start: &usize| tail[start..].starts_with(b"EFI PART");
        sectors.iter().any(is_gpt).then_some("a GPT partition table (its copy at the end)")
    };
    found.or_else(backup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_where_it_is() {
        for (name, offset, magic) in MAGICS {
            let mut head = vec![0; 1 << 20];
            head[*offset..offset + magic.len()].copy_from_slice(magic);
            assert_eq!(find(&head, &[]), Some(*name));
            // A device that ends before it.
            head.truncate(*offset);
            assert_eq!(find(&head, &[]), None);
        }
        assert_eq!(find(&[0; HEAD], &[0; TAIL]), None);
        let mut tail = [0; TAIL];
        tail[TAIL - 512..][..8].copy_from_slice(b"EFI PART");
        assert!(find(&[0; HEAD], &tail).unwrap().contains("GPT"));
    }
}
