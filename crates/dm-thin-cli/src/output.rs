//! What is printed: tables for people, tabs for scripts, JSON for programs.

use std::io::{IsTerminal, Write};
use std::time::SystemTime;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use dm_thin::units::Bytes;
use serde_json::{Value, json};

use crate::cli::Format;
use crate::failure::{Failure, Result};

/// The version of what `--json` prints: fields are added to it; what would change one raises it.
pub const JSON_VERSION: u32 = 1;

#[derive(Debug)]
pub struct Output {
    pub json: bool,
    bytes: bool,
    no_header: bool,
}

impl Output {
    pub fn new(format: &Format) -> Self {
        Self { json: format.json, bytes: format.bytes, no_header: format.no_header }
    }

    /// An amount.
    pub fn size(&self, size: Bytes) -> String {
        if self.bytes { size.0.to_string() } else { format!("{size:#}") }
    }

    /// An amount that may not be known.
    pub fn size_or(&self, size: Option<Bytes>) -> String {
        size.map_or("-".to_owned(), |size| self.size(size))
    }

    /// Prints rows, of which the columns named in `right` are aligned to the right; or `what` of the JSON object.
    pub fn rows(
        &self,
        what: &str,
        columns: &[&str],
        right: &[&str],
        rows: Vec<Vec<String>>,
        json: Value,
    ) -> Result<()> {
        if self.json {
            return self.object(what, json);
        }
        if self.no_header {
            return rows.iter().try_for_each(|row| line(&row.join("\t")));
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.to_vec());
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if right.contains(&columns[at]) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.add_rows(rows);
        table.lines().try_for_each(|text| line(text.trim_end()))
    }

    /// Prints names and values, a line each; or `what` of the JSON object.
    pub fn fields(&self, what: &str, fields: Vec<(&str, String)>, json: Value) -> Result<()> {
        if self.json {
            return self.object(what, json);
        }
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        fields.iter().try_for_each(|(name, value)| match self.no_header {
            true => line(&format!("{name}\t{value}")),
            false => line(&format!("{name:width$}  {value}")),
        })
    }

    /// Prints a result that is one line for people.
    pub fn done(&self, text: &str, what: &str, json: Value) -> Result<()> {
        if self.json {
            self.object(what, json)
        } else if text.is_empty() {
            Ok(())
        } else {
            line(text)
        }
    }

    pub fn object(&self, what: &str, value: Value) -> Result<()> {
        line(&json!({ "version": JSON_VERSION, what: value }).to_string())
    }
}

/// Prints a line. That nobody reads it any more is no error: the command does what it was asked for.
pub fn line(text: &str) -> Result<()> {
    line_for_reader(text).map(drop)
}

/// The same; whether somebody reads it.
pub fn line_for_reader(text: &str) -> Result<bool> {
    match writeln!(anstream::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).map_err(Failure::new),
    }
}

/// Tells what is done meanwhile, and what was noticed: people only.
pub fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// How long ago, in its largest unit.
pub fn age(time: Option<SystemTime>) -> String {
    let Some(age) = time.and_then(|time| time.elapsed().ok()) else { return "-".to_owned() };
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Seconds since 1970.
pub fn seconds(time: Option<SystemTime>) -> Option<u64> {
    time?.duration_since(SystemTime::UNIX_EPOCH).ok().map(|time| time.as_secs())
}

/// Asks before something is destroyed. Where nobody can answer, only `yes` goes on.
pub fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question} --yes says so")));
    }
    let _ = write!(anstream::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Failure::new)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::usage("not confirmed: nothing was done")),
    }
}
