//! What moby's devicemapper driver had: its storage options as text, and the status in the layout of `docker info`.

mod status;
mod storage_opts;
