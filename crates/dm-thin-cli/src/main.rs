//! `dm-thin`: looks at trees of thin snapshots, and changes them.

use std::process::ExitCode;

fn main() -> ExitCode {
    dm_thin_cli::main()
}
