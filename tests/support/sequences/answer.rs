//! Answers in words: all of their bytes, but device numbers by what they stand for, and without what may
//! differ between two kernels that agree.

use dm_thin::Errno;
use dm_thin::abi::dm::{dm_ioctl, dm_target_spec};
use dm_thin::abi::loopdev::{loop_info, loop_info64};
use dm_thin::dm::DmFlags;
use dm_thin::kernel::DeviceNumber;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::machine::{Machine, outcome};
use super::plan::{Ask, DEPS, LIST, MESSAGE, TABLE_STATUS, TARGET_VERSION, VERSIONS, WAIT};

pub fn header(bytes: &[u8]) -> dm_ioctl {
    dm_ioctl::read_from_prefix(bytes).unwrap().0
}

pub fn bytes_of<T: IntoBytes + FromBytes + Immutable>(value: &mut T) -> &mut [u8] {
    value.as_mut_bytes()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

fn word(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |&word| usize::try_from(u32::from_ne_bytes(word)).unwrap())
}

/// An answer, or what became of the request's bytes where there is none.
pub fn describe(
    machine: &Machine<'_>,
    ask: &Ask,
    result: Result<u32, Errno>,
    request: &[u8],
    answer: &[u8],
) -> String {
    let words = outcome(result);
    // The patch level is nobody's business.
    let version = answer.first_chunk::<8>().unwrap();
    let version = (word(version, 0), word(version, 4));
    if request[12..] == answer[12..] {
        return format!("{words} {version:?} and nothing else");
    }
    let wiped = answer[12..].iter().all(|&byte| byte == 0);
    if result.is_err() {
        return format!("{words} {version:?} {}", if wiped { "wiped" } else { "something written" });
    }
    let header = header(answer);
    let size = usize::try_from(header.data_size).unwrap();
    let dev = match header.dev {
        0 => "-".to_owned(),
        dev => machine.symbol(DeviceNumber::from_huge(dev)),
    };
    let rest = &answer[size.min(answer.len())..];
    let untouched = rest == &request[answer.len() - rest.len()..] || rest.iter().all(|&byte| byte == 0);
    let payload = answer.get(312..size).unwrap_or_default();
    format!(
        "{words} {version:?} start {} targets {} open {} {:?} event {} dev {dev} name {:?} uuid {:?}{} {}",
        header.data_start,
        header.target_count,
        header.open_count,
        DmFlags::from_bits_retain(header.flags),
        header.event_nr,
        text(&header.name),
        text(&header.uuid),
        if untouched { "" } else { " and beyond its size" },
        payload_words(machine, ask, &header, payload),
    )
}

fn payload_words(machine: &Machine<'_>, ask: &Ask, header: &dm_ioctl, payload: &[u8]) -> String {
    if payload.is_empty() {
        return format!("size {}", header.data_size);
    }
    match ask.command {
        LIST => records(machine, payload).join("; "),
        DEPS => {
            let numbers =
                payload[8..].chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()));
            let numbers = numbers.map(|dev| machine.symbol(DeviceNumber::from_huge(dev)));
            format!("size {} {} {:?}", header.data_size, word(payload, 0), numbers.collect::<Vec<_>>())
        }
        TABLE_STATUS | WAIT => lines(machine, ask, payload).join("; "),
        // Versions differ from kernel to kernel.
        VERSIONS => "versions".to_owned(),
        TARGET_VERSION => {
            format!("size {} next {} {}", header.data_size, word(payload, 0), text(&payload[16..]))
        }
        MESSAGE => format!("size {} {:?}", header.data_size, text(payload)),
        _ => format!("{payload:?}"),
    }
}

/// Others' devices are nothing to look at, let alone to remove. Those of ours with an odd name are ours, and
/// those with the rest of a name, which a rename from the middle of its text gives.
fn is_ours(machine: &Machine<'_>, name: &[u8], dev: u64) -> bool {
    let odd = [&b"control"[..], b".", b".."].contains(&name);
    let part = name.windows(4).any(|part| part == b"diff");
    machine.created.contains(&DeviceNumber::from_huge(dev)) && (odd || part)
}

/// Names and device numbers of the machine's devices in a list.
pub fn listed(machine: &Machine<'_>, answer: &[u8]) -> Vec<(Vec<u8>, DeviceNumber)> {
    let size = usize::try_from(header(answer).data_size).unwrap().min(answer.len());
    let (mut rest, mut found) = (answer.get(312..size).unwrap_or_default(), Vec::new());
    while rest.len() > 12 {
        let (dev, next) = (u64::from_ne_bytes(*rest.first_chunk().unwrap()), word(rest, 8));
        let name = rest[12..].split(|&byte| byte == 0).next().unwrap_or_default();
        if is_ours(machine, name, dev) {
            found.push((name.to_vec(), DeviceNumber::from_huge(dev)));
        }
        rest = if next == 0 { &[] } else { &rest[next..] };
    }
    found
}

fn records(machine: &Machine<'_>, payload: &[u8]) -> Vec<String> {
    let (mut rest, mut found) = (payload, Vec::new());
    while rest.len() > 12 {
        let (dev, next) = (u64::from_ne_bytes(*rest.first_chunk().unwrap()), word(rest, 8));
        let name = text(&rest[12..]);
        if is_ours(machine, name.as_bytes(), dev) {
            let tail = (12 + name.len() + 1).next_multiple_of(8);
            let (event, flags) = (word(rest, tail), word(rest, tail + 4));
            let uuid = if flags & 1 == 1 { text(&rest[tail + 8..]) } else { String::new() };
            let dev = machine.symbol(DeviceNumber::from_huge(dev));
            found.push(format!("{dev} {name} next {next} event {event} flags {flags} {uuid}"));
        }
        rest = if next == 0 { &[] } else { &rest[next..] };
    }
    found
}

fn lines(machine: &Machine<'_>, ask: &Ask, payload: &[u8]) -> Vec<String> {
    let (mut at, mut lines) = (0, Vec::new());
    while let Some(rest) = payload.get(at..)
        && rest.len() > size_of::<dm_target_spec>()
    {
        let (spec, parameters) = dm_target_spec::read_from_prefix(rest).unwrap();
        let (target, parameters) = (text(&spec.target_type), text(parameters));
        let is_table = ask.flags.contains(DmFlags::STATUS_TABLE);
        let words = parameters.split(' ').enumerate().map(|(n, word)| match word.parse() {
            Ok(number) => machine.symbol(number),
            Err(_) if target == "thin-pool" && !is_table => pool_status_word(n, word),
            Err(_) => word.to_owned(),
        });
        let words = words.collect::<Vec<_>>().join(" ");
        lines.push(format!("{} {} {} {target} [{words}]", spec.sector_start, spec.length, spec.status));
        let next = usize::try_from(spec.next).unwrap();
        if next <= at {
            lines.push(format!("next {next}"));
            break;
        }
        at = next;
    }
    lines
}

/// How many metadata blocks are used, and where in the metadata a root lies, is the real kernel's
/// business: the model puts its trees elsewhere.
fn pool_status_word(n: usize, word: &str) -> String {
    match (n, word.split_once('/')) {
        (1, Some((_, total))) => format!("some/{total}"),
        (3, _) if word != "-" => "held".to_owned(),
        _ => word.to_owned(),
    }
}

pub fn loop_status(machine: &Machine<'_>, slot: usize, info: &loop_info64) -> String {
    format!(
        "file {:?} offset {} limit {} number {} encryption {} {} flags {:#x} name {:?}",
        machine.file_of(info.lo_inode),
        info.lo_offset,
        info.lo_sizelimit,
        info.lo_number == machine.loops[slot],
        info.lo_encrypt_type,
        info.lo_encrypt_key_size,
        info.lo_flags,
        text(&info.lo_file_name),
    )
}

pub fn old_loop_status(machine: &Machine<'_>, slot: usize, info: &loop_info) -> String {
    #[allow(clippy::useless_conversion)] // narrower on 32-bit machines
    let inode = u64::from(info.lo_inode);
    format!(
        "file {:?} offset {} number {} encryption {} {} flags {:#x} name {:?}",
        machine.file_of(inode),
        info.lo_offset,
        u32::try_from(info.lo_number) == Ok(machine.loops[slot]),
        info.lo_encrypt_type,
        info.lo_encrypt_key_size,
        info.lo_flags,
        text(&info.lo_name),
    )
}

/// What TABLE_DEPS says.
pub fn dependencies(answer: &[u8]) -> Vec<DeviceNumber> {
    let size = usize::try_from(header(answer).data_size).unwrap().min(answer.len());
    let numbers = answer.get(320..size).unwrap_or_default().chunks_exact(8);
    numbers.map(|bytes| DeviceNumber::from_huge(u64::from_ne_bytes(bytes.try_into().unwrap()))).collect()
}
