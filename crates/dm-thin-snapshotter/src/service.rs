//! The calls as a gRPC service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost_types::Timestamp;
use tokio::sync::{Notify, watch};
use tonic::{Code, Request, Response, Status};
use tracing::{debug, warn};

use crate::generated::snapshots as api;
use crate::generated::snapshots::snapshots_server::Snapshots as Calls;
use crate::generated::types;
use crate::record::{Info, Kind};
use crate::snapshots::{Mount, Snapshots};

/// As many infos are in one message of a list.
const LIST_CHUNK: usize = 100;

/// containerd's service `Snapshots`. Each call runs on a thread of its own.
#[derive(Debug, Clone)]
pub struct Service {
    /// `None` until the tree is open.
    snapshots: watch::Receiver<Option<Arc<Snapshots>>>,
    unavailable: Arc<Notify>,
}

/// The part of a [`Service`] that opens its tree. Dropped before, it fails the calls that wait.
#[derive(Debug)]
pub struct Opening(watch::Sender<Option<Arc<Snapshots>>>);

impl Opening {
    /// Serves these snapshots.
    pub fn opened(self, snapshots: Arc<Snapshots>) {
        self.0.send_replace(Some(snapshots));
    }
}

impl Service {
    /// Serves these snapshots; `unavailable` as in [`opening`](Self::opening).
    pub fn new(snapshots: Arc<Snapshots>, unavailable: Arc<Notify>) -> Self {
        let (opening, service) = Self::opening(unavailable);
        opening.opened(snapshots);
        service
    }

    /// A service whose calls wait until its tree is open. `unavailable` is notified when a call is answered by UNAVAILABLE, as
    /// all after it are: a write of the state failed, and only another open finds what is on disk.
    pub fn opening(unavailable: Arc<Notify>) -> (Opening, Self) {
        let (sender, snapshots) = watch::channel(None);
        (Opening(sender), Self { snapshots, unavailable })
    }

    async fn snapshots(&self) -> Result<Arc<Snapshots>, Status> {
        let mut snapshots = self.snapshots.clone();
        let open = snapshots.wait_for(Option::is_some).await.ok().and_then(|open| open.clone());
        open.ok_or_else(|| Status::unavailable("the tree could not be opened"))
    }

    /// A call goes on if its caller does not wait any more.
    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        key: String,
        call: impl FnOnce(&Snapshots, &str) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshots = self.snapshots().await?;
        let logged = move || {
            let begun = Instant::now();
            let result = call(&snapshots, &key);
            let elapsed = begun.elapsed();
            match &result {
                Ok(_) => debug!(key, ?elapsed, "{name}"),
                Err(status) if is_expected(status) => {
                    debug!(key, ?elapsed, error = status.message(), "{name}")
                }
                Err(status) => warn!(key, ?elapsed, error = status.message(), "{name}"),
            }
            result
        };
        let result = tokio::task::spawn_blocking(logged).await;
        let result = result.unwrap_or_else(|error| Err(Status::internal(error.to_string())));
        result.inspect_err(|status| {
            if status.code() == Code::Unavailable {
                self.unavailable.notify_one();
            }
        })
    }
}

/// Errors that containerd makes in the course of things.
fn is_expected(status: &Status) -> bool {
    use Code::{AlreadyExists, FailedPrecondition, NotFound};
    matches!(status.code(), AlreadyExists | FailedPrecondition | NotFound)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Calls for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Answer<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let prepare = move |snapshots: &Snapshots, key: &str| snapshots.prepare(key, &parent, labels);
        let mounts = self.call("prepare", key, prepare).await?;
        Ok(Response::new(api::PrepareSnapshotResponse {
            mounts: mounts.into_iter().map(Into::into).collect(),
        }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let view = move |snapshots: &Snapshots, key: &str| snapshots.view(key, &parent, labels);
        let mounts = self.call("view", key, view).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: mounts.into_iter().map(Into::into).collect() }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let api::MountsRequest { key, .. } = request.into_inner();
        let mounts = move |snapshots: &Snapshots, key: &str| snapshots.mounts(key);
        let mounts = self.call("mounts", key, mounts).await?;
        Ok(Response::new(api::MountsResponse { mounts: mounts.into_iter().map(Into::into).collect() }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let commit = move |snapshots: &Snapshots, key: &str| snapshots.commit(&name, key, &parent, labels);
        self.call("commit", key, commit).await.map(Response::new)
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let api::RemoveSnapshotRequest { key, .. } = request.into_inner();
        let remove = move |snapshots: &Snapshots, key: &str| snapshots.remove(key);
        self.call("remove", key, remove).await.map(Response::new)
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let info = self.snapshots().await?.stat(&request.into_inner().key)?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info.into()) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Answer<api::UpdateSnapshotResponse> {
        let api::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let api::Info { name, labels, .. } = info.unwrap_or_default();
        let paths = update_mask.unwrap_or_default().paths;
        let update = move |snapshots: &Snapshots, name: &str| snapshots.update(name, &labels, &paths);
        let info = self.call("update", name, update).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info.into()) }))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let infos = self.snapshots().await?.list(&request.into_inner().filters)?;
        let chunks = infos.chunks(LIST_CHUNK).map(|infos| {
            Ok(api::ListSnapshotsResponse { info: infos.iter().cloned().map(Into::into).collect() })
        });
        Ok(Response::new(tokio_stream::iter(chunks.collect::<Vec<_>>())))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let api::UsageRequest { key, .. } = request.into_inner();
        let usage = move |snapshots: &Snapshots, key: &str| snapshots.usage(key);
        let size = i64::try_from(self.call("usage", key, usage).await?.0).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size, inodes: 0 }))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Answer<()> {
        self.call("cleanup", String::new(), |snapshots, _| snapshots.cleanup()).await.map(Response::new)
    }
}

impl From<Mount> for types::Mount {
    fn from(Mount { filesystem, source, options }: Mount) -> Self {
        Self { r#type: filesystem.to_owned(), source, target: String::new(), options }
    }
}

impl From<Info> for api::Info {
    fn from(Info { key, kind, parent, created, updated, labels }: Info) -> Self {
        let kind = match kind {
            Kind::View => api::Kind::View,
            Kind::Active => api::Kind::Active,
            Kind::Committed => api::Kind::Committed,
        };
        let (created_at, updated_at) = (Some(timestamp(created)), Some(timestamp(updated)));
        Self { name: key, parent, kind: kind.into(), created_at, updated_at, labels }
    }
}

fn timestamp(nanoseconds: u64) -> Timestamp {
    let since = Duration::from_nanos(nanoseconds);
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default() }
}
