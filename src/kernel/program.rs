//! Programs: found, and run to their end.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nix::errno::Errno;

use super::error::errno;

/// Runs a program in the C locale and without input.
pub(super) fn run(program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
    let mut command = Command::new(find(program)?);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(errno)
}

/// A program in PATH, or where such programs are when PATH is a user's. Elements of PATH that are empty or relative are
/// passed over: they would mean the current directory.
pub(super) fn find(program: &str) -> Result<PathBuf, Errno> {
    search(program, &std::env::var_os("PATH").unwrap_or_default()).ok_or(Errno::ENOENT)
}

fn search(program: &str, path: &OsStr) -> Option<PathBuf> {
    let directories = std::env::split_paths(path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut paths =
        directories.filter(|directory| directory.is_absolute()).map(|directory| directory.join(program));
    paths.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn programs_are_not_looked_for_in_the_current_directory() {
        // The working directory of a test is the package, which has that file.
        for path in ["", ":", ".", "./src:.", "src/.."] {
            assert_eq!(search("Cargo.toml", path.as_ref()), None, "{path:?}");
        }
        let package = env!("CARGO_MANIFEST_DIR");
        assert_eq!(search("Cargo.toml", package.as_ref()), Some(Path::new(package).join("Cargo.toml")));
    }
}
