//! One picture: the tree's steps by the bare ioctls, and the course of everybody.

use std::fmt::Write;

use crate::base::{EXT4, LARGE_FRAGMENTED, SMALL_FRESH};
use crate::contenders::{bare, tree};
use crate::results::{Report, Row};

const WIDTH: f64 = 920.0;
const LABELS: f64 = 236.0;
const LINE: f64 = 26.0;
const OURS: &str = "#1257b0";
const OTHERS: &str = "#6b7682";
const FAINT: &str = "#e3e7eb";
const TEXT: &str = "#1f2730";

/// A logarithmic axis from one value to another.
struct Axis {
    left: f64,
    right: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let share = (value.clamp(self.from, self.to) / self.from).ln() / (self.to / self.from).ln();
        self.left + share * (self.right - self.left)
    }
}

#[derive(Default)]
struct Svg {
    body: String,
    y: f64,
}

impl Svg {
    fn text(&mut self, x: f64, y: f64, style: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), color: &str, width: f64) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" stroke-width=\"{width}\" stroke-linecap=\"round\"/>"
        );
    }

    fn dot(&mut self, x: f64, y: f64, color: &str, filled: bool) {
        let fill = if filled { color } else { "#fff" };
        let _ = writeln!(
            self.body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{fill}\" stroke=\"{color}\" stroke-width=\"2\"/>"
        );
    }

    fn heading(&mut self, title: &str, explanation: &str) {
        self.y += 34.0;
        self.text(24.0, self.y, "font-size=\"17\" font-weight=\"600\"", title);
        self.y += 19.0;
        self.text(24.0, self.y, SMALL, explanation);
        self.y += 26.0;
    }

    fn ticks(&mut self, axis: &Axis, ticks: &[(f64, &str)], height: f64) {
        for (value, label) in ticks.iter().filter(|(value, _)| (axis.from..=axis.to).contains(value)) {
            let x = axis.at(*value);
            self.line((x, self.y - 6.0), (x, self.y + height - 8.0), FAINT, 1.0);
            self.text(x, self.y - 11.0, &format!("{SMALL} text-anchor=\"middle\""), label);
        }
    }
}

const SMALL: &str = "font-size=\"12\" fill=\"#6b7682\"";

/// What the chart shows of the steps, in this order.
const STEPS: [&str; 18] = [
    "add",
    "add, origin active",
    "add, origin mounted",
    "add, origin mounted, crash",
    "activate",
    "activate, lone",
    "add + activate",
    "add + activate, ready",
    "first mount",
    "first mount, ready",
    "second mount",
    "unmount",
    "deactivate",
    "deactivate, lone",
    "remove",
    "remove while active, lone",
    "remove, discarding 1 MiB",
    "add, wall time by operation",
];

pub fn render(report: &Report) -> String {
    let mut svg = Svg { y: 6.0, ..Svg::default() };
    steps(&mut svg, report);
    course(&mut svg, report);
    svg.y += 18.0;
    let machine = format!("Linux {}; {}", report.kernel, report.machine);
    svg.text(24.0, svg.y, SMALL, &machine);
    let height = svg.y + 20.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"13\" fill=\"{TEXT}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#fff\"/>\n{}</svg>\n",
        svg.body
    )
}

fn steps(svg: &mut Svg, report: &Report) {
    let is_shown = |row: &&Row| {
        let case = &row.case;
        case.base == EXT4.name
            && case.storage == "loop files"
            && case.snapshots == 0
            && row.contender == tree::NAME
    };
    let find = |step: &str| {
        let rows = report.rows.iter().filter(is_shown).filter(|row| row.case.step == step);
        let paired = rows.filter_map(|row| Some((row, row.ratio.as_ref()?.paired?)));
        // Of threads the most.
        paired.max_by_key(|(row, _)| row.case.threads)
    };
    let rows: Vec<(&Row, [f64; 3])> = STEPS.iter().filter_map(|step| find(step)).collect();
    if rows.is_empty() {
        return;
    }
    svg.heading(
        "A tree's operation, by the same ioctls sent bare",
        "Median and middle 80 % of the ratios of neighbouring runs; left of 1 the tree is faster. Pool on loop files.",
    );
    let lowest = rows.iter().map(|(_, [low, ..])| *low).fold(0.2, f64::min);
    let axis = Axis { left: LABELS, right: WIDTH - 190.0, from: lowest * 0.9, to: 5.0 };
    let height = LINE * rows.len() as f64;
    let ticks = [
        (0.05, "0.05 ×"),
        (0.1, "0.1 ×"),
        (0.25, "0.25 ×"),
        (0.5, "0.5 ×"),
        (1.0, "1 ×"),
        (2.0, "2 ×"),
        (4.0, "4 ×"),
    ];
    svg.ticks(&axis, &ticks, height);
    svg.text(WIDTH - 24.0, svg.y - 11.0, &format!("{SMALL} text-anchor=\"end\""), "tree / bare, ms");
    svg.line((axis.at(1.0), svg.y - 6.0), (axis.at(1.0), svg.y + height - 8.0), OTHERS, 1.5);
    for (row, [low, middle, high]) in rows {
        let y = svg.y + 8.0;
        let label = match row.case.threads {
            1 => row.case.step.clone(),
            threads => format!("add, {threads} threads"),
        };
        svg.text(LABELS - 14.0, y + 4.0, "text-anchor=\"end\"", &label);
        svg.line((axis.at(low), y), (axis.at(high), y), OURS, 2.5);
        svg.dot(axis.at(middle), y, OURS, true);
        let bare = row.p50_us / row.ratio.as_ref().map_or(1.0, |ratio| ratio.p50);
        let times = format!("{} / {}", short(row.p50_us), short(bare));
        svg.text(
            WIDTH - 122.0,
            y + 4.0,
            "text-anchor=\"end\" font-weight=\"600\"",
            &format!("{middle:.2} ×"),
        );
        svg.text(WIDTH - 24.0, y + 4.0, &format!("{SMALL} text-anchor=\"end\""), &times);
        svg.y += LINE;
    }
}

/// The steps of the course that are shown, each with the fresh small base and the fragmented large one.
const COURSE: [(&str, &str); 2] = [
    ("clone to first write", "from clone to the first durable 4 KiB"),
    ("1,000 random writes", "1,000 random 4 KiB writes, synced"),
];

fn course(svg: &mut Svg, report: &Report) {
    let value = |contender: &str, step: &str, base: &str| {
        let mut rows =
            report.rows.iter().filter(|row| row.case.storage == "loop files" && row.case.snapshots == 0);
        rows.find(|row| row.contender == contender && row.case.step == step && row.case.base == base)
            .map(|row| row.p50_us)
    };
    let mut contenders: Vec<&str> = Vec::new();
    for row in report.rows.iter().filter(|row| row.case.step == COURSE[0].0) {
        if !contenders.contains(&row.contender.as_str()) {
            contenders.push(&row.contender);
        }
    }
    let bases = [SMALL_FRESH.name, LARGE_FRAGMENTED.name];
    let slowest = |contender: &str| {
        let values = bases.iter().filter_map(|base| value(contender, COURSE[0].0, base));
        values.fold(0.0, f64::max)
    };
    contenders.sort_by(|one, other| slowest(one).total_cmp(&slowest(other)));
    if contenders.is_empty() {
        return;
    }
    svg.heading(
        "What people pick instead, in ms (median)",
        &format!("○ base of {}     ● base of {}", bases[0], bases[1]),
    );
    svg.y += 18.0;
    let height = LINE * contenders.len() as f64;
    let width = (WIDTH - LABELS - 40.0) / 2.0;
    let axes = [0.0, 1.0].map(|index| {
        let left = LABELS + index * (width + 16.0);
        Axis { left, right: left + width - 24.0, from: 3e3, to: 6e6 }
    });
    for ((_, title), axis) in COURSE.iter().zip(&axes) {
        svg.text(axis.left, svg.y - 28.0, "font-size=\"13\" font-weight=\"600\"", title);
        svg.ticks(axis, &[(1e4, "10"), (1e5, "100"), (1e6, "1,000")], height);
    }
    for contender in contenders {
        let y = svg.y + 8.0;
        let ours = contender == tree::NAME;
        let color = if ours { OURS } else { OTHERS };
        let weight = if ours { "600" } else { "400" };
        let label = if contender == bare::NAME { "bare ioctls + a durable line" } else { contender };
        svg.text(LABELS - 14.0, y + 4.0, &format!("text-anchor=\"end\" font-weight=\"{weight}\""), label);
        for ((step, _), axis) in COURSE.iter().zip(&axes) {
            let values = bases.map(|base| value(contender, step, base));
            let ends: Vec<f64> = values.iter().flatten().map(|value| axis.at(*value)).collect();
            if let [one, other] = ends[..] {
                svg.line((one, y), (other, y), color, 2.0);
            }
            for (value, filled) in values.into_iter().zip([false, true]) {
                if let Some(value) = value {
                    svg.dot(axis.at(value), y, color, filled);
                }
            }
            let rightmost = ends.iter().copied().fold(f64::NAN, f64::max);
            let text = values.map(|value| value.map_or("–".to_owned(), short)).join(" · ");
            if rightmost.is_finite() {
                svg.text(rightmost + 10.0, y + 4.0, SMALL, &text);
            }
        }
        svg.y += LINE;
    }
}

/// Milliseconds with two or three digits.
fn short(micros: f64) -> String {
    match micros / 1e3 {
        ms if ms < 10.0 => format!("{ms:.1}"),
        ms if ms < 1000.0 => format!("{ms:.0}"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}
