//! `dm-thin-snapshotter`: serves containerd with snapshots of a thin pool.

use std::process::ExitCode;

use clap::Parser;
use dm_thin_snapshotter::config::Arguments;
use dm_thin_snapshotter::server;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// What libraries log, unless `--log` says something else of them.
const QUIET: &str = "h2=info,hyper_util=info,tonic=info";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The frames of HTTP/2 are logged only if they are asked for by name.
    let filter = match EnvFilter::try_new(format!("{QUIET},{}", arguments.log)) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("--log {}: {error}", arguments.log);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let trees = match arguments.trees() {
        Ok(trees) => trees,
        Err(error) => {
            error!("{error}");
            return ExitCode::from(2);
        }
    };
    let ended = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let ended = runtime.block_on(server::run(trees));
        // For calls that run, and for a tree that is still being opened.
        runtime.shutdown_timeout(server::END_TIMEOUT);
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}
