//! The code of the protocol files in `proto`, as tonic-prost-build makes it: see `tests/generated.rs`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// `containerd.types`.
pub mod types {
    include!("generated/containerd.types.rs");
}

mod containerd {
    pub mod types {
        pub use super::super::types::*;
    }
    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                include!("generated/containerd.services.snapshots.v1.rs");
            }
        }
    }
}

/// `containerd.services.snapshots.v1`.
pub use containerd::services::snapshots::v1 as snapshots;
