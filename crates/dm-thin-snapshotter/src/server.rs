//! The process: sockets, the service manager, the end.

use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dm_thin::thin;
use dm_thin::tree::{PoolEvent, SnapshotTree};
use listenfd::ListenFd;
use nix::sys::stat::{Mode, umask};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::config::TreeConfig;
use crate::generated::snapshots::snapshots_server::SnapshotsServer;
use crate::service::{Opening, Service};
use crate::snapshots::Snapshots;

/// How long each step of the end takes at most: calls in flight and clients that do not hang up are waited for, volumes of removed
/// snapshots are deleted, and calls whose clients are gone, and a tree that is being opened, are waited for.
pub const END_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two attempts at an extension of the pool.
const EXTENSION_PAUSE: Duration = Duration::from_secs(5);

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Serves the trees until SIGTERM or SIGINT.
///
/// # Errors
/// A socket that cannot be bound, a tree that cannot be opened, a server that failed, a state that could not be written:
/// the service manager starts the process again.
pub async fn run(trees: Vec<TreeConfig>) -> Result {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut listed = ListenFd::from_env();
    let listeners = (0..listed.len()).filter_map(|number| listed.take_unix_listener(number).transpose());
    let mut inherited = listeners.collect::<io::Result<Vec<_>>>()?;
    // Before the trees, so that a socket in use is an error at once, and clients can wait.
    let sockets = trees.iter().map(|tree| socket(&mut inherited, tree)).collect::<Result<Vec<_>>>()?;
    if let Some(unknown) = inherited.first() {
        let address = unknown.local_addr()?;
        return Err(format!("the service manager's socket {address:?} is no tree's address").into());
    }
    let (end, ending) = watch::channel(());
    let unavailable = Arc::new(Notify::new());
    let mut servers = JoinSet::new();
    let mut openings = Vec::new();
    for (config, socket) in trees.into_iter().zip(sockets) {
        let (opening, service) = Service::opening(unavailable.clone());
        servers.spawn(serve(socket, service, ending.clone())?);
        openings.push((config, opening));
    }
    let manager = std::env::var_os("NOTIFY_SOCKET");
    let mut served = Vec::new();
    let run = async {
        open_all(openings, &ending, &mut served).await?;
        notify(manager.as_deref(), "READY=1");
        tokio::select! {
            () = unavailable.notified() => Err("the state could not be written; a restart finds what is on disk".into()),
            server = servers.join_next() => server.map_or(Ok(()), |server| Ok(server??)),
        }
    };
    let ended = tokio::select! {
        ended = run => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    notify(manager.as_deref(), "STOPPING=1");
    drop(end);
    let finish = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(END_TIMEOUT, finish).await.is_err() {
        warn!("clients did not hang up");
    }
    let end = Instant::now() + END_TIMEOUT;
    tokio::task::spawn_blocking(move || {
        served.into_iter().for_each(|(config, snapshots)| close(&config, &snapshots, end));
    })
    .await?;
    ended
}

/// Answers connections from now on, and calls when the tree is open: containerd gives up a connection that is not answered
/// within a second, and fails its calls.
fn serve(
    socket: UnixListener,
    service: Service,
    mut ending: watch::Receiver<()>,
) -> io::Result<impl Future<Output = std::result::Result<(), tonic::transport::Error>> + Send> {
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(socket)?);
    let ended = async move { drop(ending.changed().await) };
    Ok(Server::builder()
        .add_service(SnapshotsServer::new(service))
        .serve_with_incoming_shutdown(incoming, ended))
}

/// Opens the trees, and adds each to those that are `served`.
async fn open_all(
    openings: Vec<(TreeConfig, Opening)>,
    ending: &watch::Receiver<()>,
    served: &mut Vec<(TreeConfig, Arc<Snapshots>)>,
) -> Result {
    for (config, opening) in openings {
        let root = config.root.display().to_string();
        let snapshots = Arc::new(open(config.clone()).await.map_err(|error| format!("{root}: {error}"))?);
        info!(root, address = %config.address.display(), "serving");
        tokio::spawn(watch_pool(snapshots.tree().clone(), ending.clone()));
        opening.opened(snapshots.clone());
        served.push((config, snapshots));
    }
    Ok(())
}

async fn open(config: TreeConfig) -> Result<Snapshots> {
    let opened = tokio::task::spawn_blocking(move || {
        let tree = SnapshotTree::open(&config.root, config.options())?;
        tree.recovered().iter().for_each(|recovered| info!("{recovered}"));
        Snapshots::new(tree, config.ready, config.max_data_size)
    });
    Ok(opened.await??)
}

/// Extends the pool when it is low on space, if it is configured to, and logs what happens to it.
async fn watch_pool(tree: Arc<SnapshotTree>, mut ending: watch::Receiver<()>) {
    let root = tree.root().display().to_string();
    // The watcher has one descriptor, which is open as long as the watcher is there.
    #[allow(deprecated)]
    let register = |watcher| Ok(AsyncFd::new(watcher)?);
    let mut watcher = match tree.watch_owned().map_err(Into::into).and_then(register) {
        Ok(watcher) => watcher,
        Err(error) => {
            let error: Box<dyn Error + Send + Sync> = error;
            return warn!(root, %error, "the pool is not watched");
        }
    };
    // An extension failed, and the pool does not tell again that it needs one.
    let mut is_short = false;
    loop {
        match tokio::task::block_in_place(|| watcher.get_mut().next_within(Duration::ZERO)) {
            Ok(Some(PoolEvent { event: thin::PoolEvent::Removed, .. })) => return,
            Ok(Some(PoolEvent { event, extended, .. })) => {
                warn!(root, ?extended, "the pool: {event}");
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                warn!(root, %error, "the pool");
                is_short = true;
            }
        }
        tokio::select! {
            ready = watcher.readable(), if !is_short => drop(ready.map(|mut ready| ready.clear_ready())),
            () = tokio::time::sleep(EXTENSION_PAUSE), if is_short => {
                is_short = tokio::task::block_in_place(|| tree.extend_pool()).is_err();
            }
            _ = ending.changed() => return,
        }
    }
}

/// Without this everything stays active, and the next start takes it over.
fn close(config: &TreeConfig, snapshots: &Snapshots, end: Instant) {
    if config.deactivate_on_exit
        && let Err(error) = snapshots.tree().close_within(end.saturating_duration_since(Instant::now()))
    {
        warn!(root = %config.root.display(), %error, "not all is deactivated");
    }
    if !config.deactivate_on_exit {
        info!(root = %config.root.display(), "ended; devices stay active");
    }
}

/// The socket of a tree: the service manager's if it has one of that address, else a new one.
fn socket(inherited: &mut Vec<UnixListener>, config: &TreeConfig) -> Result<UnixListener> {
    let is_it = |listener: &UnixListener| {
        listener.local_addr().is_ok_and(|address| address.as_pathname() == Some(&config.address))
    };
    if let Some(number) = inherited.iter().position(is_it) {
        let listener = inherited.swap_remove(number);
        listener.set_nonblocking(true)?;
        return Ok(listener);
    }
    if let Some(directory) = config.socket_directory() {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(directory)?;
    }
    let listener = bind(&config.address).map_err(|error| format!("{}: {error}", config.address.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Binds a socket that only its owner can connect to. One that nobody listens on is replaced.
fn bind(address: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(address) {
        Ok(found) if found.file_type().is_socket() => match UnixStream::connect(address) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(address)?,
            Err(error) => return Err(error),
        },
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "not a socket")),
        Err(_) => {}
    }
    let previous = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(address);
    umask(previous);
    bound
}

/// Tells the service manager, if there is one, as sd_notify(3) does.
fn notify(manager: Option<&OsStr>, state: &str) {
    let Some(address) = manager else { return };
    let send = || {
        let socket = UnixDatagram::unbound()?;
        let address = match address.to_str().and_then(|address| address.strip_prefix('@')) {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        socket.send_to_addr(state.as_bytes(), &address)
    };
    if let Err(error) = send() {
        warn!(%error, "the service manager cannot be told {state}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_socket_of_the_service_manager_is_the_one_of_that_address() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join("run").join(name);
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let mut inherited: Vec<_> =
            ["a", "b"].iter().map(|name| UnixListener::bind(path(name)).unwrap()).collect();
        let tree = |name: &str| {
            let text = format!("[[tree]]\nroot = \"/r\"\naddress = {:?}", path(name));
            crate::config::parse(&text).unwrap().remove(0)
        };
        for (name, left) in [("b", 1), ("c", 1), ("a", 0)] {
            let found = socket(&mut inherited, &tree(name)).unwrap();
            assert_eq!(found.local_addr().unwrap().as_pathname(), Some(&*path(name)));
            assert_eq!(inherited.len(), left, "{name}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_answered_before_the_tree_is_open() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let ((_opening, service), (_end, ending)) = (Service::opening(Arc::default()), watch::channel(()));
        let server = tokio::spawn(serve(listener, service, ending).unwrap());
        let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
        // The preface of HTTP/2, with empty settings; its answer begins with settings (type 4), too.
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut header = [0; 9];
        let answer = tokio::time::timeout(Duration::from_secs(10), client.read_exact(&mut header)).await;
        answer.expect("no answer").unwrap();
        assert_eq!(header[3], 4);
        server.abort();
    }

    #[test]
    fn the_service_manager_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("dm-thin-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let managers = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&abstract_address).unwrap()),
        ];
        for (address, socket) in managers {
            notify(Some(&address), "READY=1");
            let mut said = [0; 16];
            let length = socket.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"READY=1");
        }
        notify(None, "READY=1");
        notify(Some(OsStr::new("/nowhere/at/all")), "READY=1");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        drop(bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }
}
