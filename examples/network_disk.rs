//! A pool whose data are on another machine: a network block device, here served by a thread over loopback.
//!
//! As root on a kernel with nbd: `cargo run --example network_disk /dev/nbd0 /var/lib/network`.
//!
//! This is how one outgrows the disks of one machine: volumes stay local block devices with all that a tree does, and
//! the space is elsewhere. **Fencing is not part of it**: two machines that have one pool active destroy it, and neither
//! device mapper nor this crate can see the other machine. Let the server hand out the disk to one client at a
//! time (an nbd export without `--shared`, a persistent reservation, an exclusive lock of rbd), and take it away from a
//! machine that is thought dead before another one gets it.

#![allow(unsafe_code, unreachable_pub)] // ioctls of the nbd driver; an example as a module

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

#[path = "raw_disk.rs"]
pub(crate) mod raw_disk;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const SIZE: u64 = 1 << 30;

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [device, root] = &words[..] else { return Err("usage: network_disk DEVICE DIRECTORY".into()) };
    run(Path::new(device), Path::new(root))
}

/// The story of `raw_disk`, on a disk that a thread serves.
pub fn run(device: &Path, root: &Path) -> Result {
    std::fs::create_dir_all(root)?;
    let store =
        File::options().read(true).write(true).create(true).truncate(true).open(root.join("store"))?;
    store.set_len(SIZE)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    let serving = thread::spawn(move || serve(server, &store));

    // <linux/nbd.h>
    let nbd = File::options().read(true).write(true).open(device)?;
    let control = |request, argument: u64| {
        // SAFETY: none of these requests has a pointer as its argument.
        match unsafe { libc::ioctl(nbd.as_raw_fd(), request, argument) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    control(0xab01, 4096)?; // NBD_SET_BLKSIZE
    control(0xab07, SIZE / 4096)?; // NBD_SET_SIZE_BLOCKS
    control(0xab0a, 1 | 4)?; // NBD_SET_FLAGS: these, and flushes
    control(0xab00, u64::try_from(client.as_raw_fd())?)?; // NBD_SET_SOCK
    thread::scope(|scope| -> Result {
        let connected = scope.spawn(|| control(0xab03, 0)); // NBD_DO_IT, until it is disconnected
        // Before it is connected its size is 0.
        let pid = Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join("pid");
        while !pid.exists() && !connected.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let told = raw_disk::run(device, &root.join("tree"));
        control(0xab08, 0)?; // NBD_DISCONNECT
        connected.join().map_err(|_| "the connection's thread panicked")??;
        told
    })?;
    Ok(serving.join().map_err(|_| "the server panicked")??)
}

/// The server's side of the protocol, after its negotiation.
fn serve(mut client: TcpStream, store: &File) -> std::io::Result<()> {
    loop {
        let mut request = [0; 28];
        client.read_exact(&mut request)?;
        let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| request[at + n]));
        let offset = u64::from(number(16)) << 32 | u64::from(number(20));
        let mut data = vec![0; number(24) as usize];
        match number(4) & 0xffff {
            0 => store.read_exact_at(&mut data, offset)?,
            1 => {
                client.read_exact(&mut data)?;
                store.write_all_at(&data, offset)?;
                data.clear();
            }
            2 => return Ok(()),
            _ => {
                store.sync_data()?;
                data.clear();
            }
        }
        let answer = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &request[8..16], &data].concat();
        client.write_all(&answer)?;
    }
}
