//! The command `dm-thin`: looks at trees of thin snapshots, and changes them. `dm-thin --help` explains it; this library is
//! its inside, and no interface for other programs: that is the crate `dm-thin`.

mod change;
mod cli;
mod docker;
mod doctor;
mod failure;
mod look;
mod output;
mod place;
mod streams;

use std::path::Path;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{CommandFactory, Parser};
use serde_json::json;

use cli::{Cli, Command};
use failure::Result;
use output::Output;

/// What can be typed: for the manual and the completions, which `tests/generated.rs` makes of it.
pub fn arguments() -> clap::Command {
    Cli::command()
}

/// Runs the command with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(&cli.format);
    match run(cli, &output) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let red = Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
            output::note(&format!("{red}error:{red:#} {}", failure.message));
            if let Some(hint) = &failure.hint {
                output::note(&format!("  {hint}"));
            }
            ExitCode::from(failure.code)
        }
    }
}

/// The exit status.
fn run(cli: Cli, output: &Output) -> Result<u8> {
    match &cli.command {
        Command::Trees => return look::trees(output).map(|()| 0),
        Command::Which { device } => return look::which(output, device).map(|()| 0),
        Command::Doctor => return doctor::doctor(output),
        Command::Docker(command) => return docker::run(output, &cli, command).map(|()| 0),
        _ => {}
    }
    let root = place::root(&cli)?;
    let root = root.as_path();
    match cli.command {
        Command::Trees | Command::Which { .. } | Command::Doctor | Command::Docker(_) => Ok(()),
        Command::Ls(options) => look::ls(output, root, &options),
        Command::Tree => look::tree(output, root),
        Command::Df => look::df(output, root),
        Command::Info { id } => look::info(output, root, &id),
        Command::Holders { id } => look::holders(output, root, &id),
        Command::Check => return change::check(output, root),
        Command::Repair(destroys) => return change::repair(output, root, &destroys),
        Command::Init(init) => change::init(output, root, init),
        Command::Add(add) => change::add(output, root, &add),
        Command::Rm { ids, no_children, destroys } => {
            change::remove(output, root, &ids, no_children, &destroys)
        }
        Command::Mv { id, to } => Ok(place::open(root)?.rename(id, to)?),
        Command::Label { id, changes } => change::label(output, root, &id, &changes),
        Command::Commit { id, to, labels } => change::commit(output, root, &id, &to, &labels),
        Command::Seal { id } => change::seal(output, root, &id),
        Command::Unseal { id } => Ok(place::open(root)?.unseal(id)?),
        Command::Mount { id, target, read_only, options } => {
            change::mount(root, &id, &target, read_only, options.as_deref())
        }
        Command::Umount { id } => Ok(place::open(root)?.unmount(id)?),
        Command::Activate { id, read_only } => change::activate(output, root, &id, read_only),
        Command::Deactivate { id } => Ok(place::open(root)?.deactivate(id)?),
        Command::Resize { id, size } => Ok(place::open(root)?.resize(id, size)?),
        Command::GrowPool { size } => Ok(place::open(root)?.grow_pool(size)?),
        Command::Ready { count, of } => change::ready(root, of.as_deref(), count),
        Command::Trim { id } => {
            let trimmed = place::open(root)?.trim(id)?;
            output.done(&output.size(trimmed), "trimmed", json!(trimmed.0))
        }
        Command::Diff { from, to } => streams::diff(output, root, &from, &to),
        Command::Send { id, since, recursive, dry_run } => {
            streams::send(output, root, &id, since.as_deref(), recursive, dry_run)
        }
        Command::Receive { id } => streams::receive(output, root, id.as_deref()),
        Command::Import { id, image, size } => streams::import(output, root, &id, &image, size),
        Command::Export { id, image } => streams::export(root, &id, &image),
        Command::Events => events(root),
        Command::Dump => streams::dump(output, root),
        Command::RepairMetadata { restore, destroys } => {
            change::repair_metadata(output, root, restore, &destroys)
        }
        Command::Close => change::close(root),
    }
    .map(|()| 0)
}

/// Prints the pool's events as lines of JSON, until the pool is gone or the command is interrupted.
fn events(root: &Path) -> Result<()> {
    let pool = place::pool(&place::look(root)?)?;
    for event in pool.watch()? {
        let line = json!({ "version": output::JSON_VERSION, "event": event? }).to_string();
        if !output::line_for_reader(&line)? {
            break;
        }
    }
    Ok(())
}
