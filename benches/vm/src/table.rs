//! The table for people.

use std::fmt::Write;

use crate::results::{Case, Report};

/// Times in milliseconds; ratios to the bare ioctls.
pub fn render(report: &Report) -> String {
    let mut text = format!("Linux {}; {}\n{}\n", report.kernel, report.machine, report.command);
    let mut last: Option<&Case> = None;
    for row in &report.rows {
        let case = &row.case;
        if last.is_none_or(|last| last.group() != case.group()) {
            let _ = writeln!(
                text,
                "\n{}\n{:<38} {:<34} {:>5} {:>9} {:>9} {:>9} {:>7} {:>7}  paired [p10–p90]",
                conditions(case),
                "step",
                "contender",
                "n",
                "p50 ms",
                "p90 ms",
                "p99 ms",
                "× p50",
                "× p99"
            );
        }
        let step = if last == Some(case) { "" } else { &case.step };
        let _ = write!(
            text,
            "{step:<38} {:<34} {:>5} {:>9.2} {:>9.2} {:>9.2}",
            row.contender,
            row.n,
            row.p50_us / 1e3,
            row.p90_us / 1e3,
            row.p99_us / 1e3
        );
        if let Some(ratio) = &row.ratio {
            let _ = write!(text, " {:>7.2} {:>7.2}", ratio.p50, ratio.p99);
            if let Some([low, middle, high]) = ratio.paired {
                let _ = write!(text, "  {middle:.2} [{low:.2}–{high:.2}]");
            }
        }
        text.push('\n');
        last = Some(case);
    }
    if !report.notes.is_empty() {
        let _ = writeln!(text, "\n{}", report.notes.join("\n"));
    }
    text
}

fn conditions(case: &Case) -> String {
    let Case { storage, base, snapshots, threads, .. } = case;
    let plural = if *threads == 1 { "" } else { "s" };
    format!("{base}, {storage}, {snapshots} other snapshots, {threads} thread{plural}")
}
