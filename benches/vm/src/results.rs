//! What was measured, and the file that it is kept in.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::contenders::bare;
use crate::stats::{percentile, ratios};

/// What belongs together: the contenders of one step under the same conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    pub step: String,
    pub storage: String,
    pub base: String,
    /// How many other snapshots there are.
    pub snapshots: u32,
    pub threads: u32,
}

impl Case {
    /// The same conditions, whatever the step.
    pub fn group(&self) -> Self {
        Self { step: String::new(), ..self.clone() }
    }
}

type Contenders = Vec<(&'static str, Vec<f64>)>;

/// Samples while they are taken, in microseconds, in the order of the iterations.
#[derive(Default)]
pub struct Results {
    cases: Vec<(Case, Contenders)>,
    notes: Vec<String>,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    #[serde(flatten)]
    pub case: Case,
    pub contender: String,
    pub n: usize,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    /// Against the bare ioctls in the same case; of those, of what they have no counterpart, and of a single sample: none.
    pub ratio: Option<Ratio>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ratio {
    pub p50: f64,
    pub p99: f64,
    /// Of each iteration's pair: the 10th, 50th and 90th percentile. Not where threads ran at once.
    pub paired: Option<[f64; 3]>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub kernel: String,
    pub machine: String,
    pub command: String,
    pub notes: Vec<String>,
    pub rows: Vec<Row>,
}

impl Report {
    /// Adds what another run measured.
    pub fn append(&mut self, other: Self) -> Result<()> {
        if (&self.kernel, &self.machine) != (&other.kernel, &other.machine) {
            return Err(format!("measured on {} and on {}", self.machine, other.machine).into());
        }
        self.command = format!("{}; {}", self.command, other.command);
        self.notes.extend(other.notes);
        self.rows.extend(other.rows);
        Ok(())
    }
}

impl Results {
    pub fn add(&mut self, case: &Case, contender: &'static str, micros: f64) {
        let at = self.cases.iter().position(|(known, _)| known == case).unwrap_or_else(|| {
            self.cases.push((case.clone(), Vec::new()));
            self.cases.len() - 1
        });
        let contenders = &mut self.cases[at].1;
        match contenders.iter_mut().find(|(name, _)| *name == contender) {
            Some((_, samples)) => samples.push(micros),
            None => contenders.push((contender, vec![micros])),
        }
    }

    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            eprintln!("  {note}");
            self.notes.push(note);
        }
    }

    pub fn leave_out(&mut self, contender: &str, why: &str) {
        self.note(format!("{contender}: not measured, {why}"));
    }

    pub fn report(mut self, kernel: String, machine: String, command: String) -> Report {
        // What is under the same conditions together, in the order of their first appearance.
        let groups: Vec<Case> = self.cases.iter().map(|(case, _)| case.group()).collect();
        self.cases.sort_by_key(|(case, _)| groups.iter().position(|group| *group == case.group()));
        let mut rows = Vec::new();
        for (case, contenders) in self.cases {
            let bare =
                contenders.iter().find(|(name, _)| *name == bare::NAME).map(|(_, samples)| samples.clone());
            for (contender, samples) in contenders {
                let beside = bare.as_ref().filter(|_| contender != bare::NAME);
                let ratio = beside.map(|beside| Ratio {
                    p50: percentile(&samples, 50.0) / percentile(beside, 50.0),
                    p99: percentile(&samples, 99.0) / percentile(beside, 99.0),
                    paired: (case.threads == 1 || case.step.ends_with(WALL)).then(|| {
                        let ratios = ratios(&samples, beside);
                        [10.0, 50.0, 90.0].map(|percent| percentile(&ratios, percent))
                    }),
                });
                let [p50_us, p90_us, p99_us] =
                    [50.0, 90.0, 99.0].map(|percent| percentile(&samples, percent));
                let contender = contender.to_owned();
                rows.push(Row {
                    case: case.clone(),
                    contender,
                    n: samples.len(),
                    p50_us,
                    p90_us,
                    p99_us,
                    ratio,
                });
            }
        }
        Report { kernel, machine, command, notes: self.notes, rows }
    }
}

/// How a step is called that is the time of a round by its operations.
pub const WALL: &str = ", wall time by operation";

#[cfg(test)]
mod tests {
    use super::*;

    fn case(step: &str, threads: u32) -> Case {
        let (storage, base) = ("disks".to_owned(), "64 MiB".to_owned());
        Case { step: step.to_owned(), storage, base, snapshots: 0, threads }
    }

    #[test]
    fn ratios_are_to_the_bare_ioctls_of_the_same_case() {
        let mut results = Results::default();
        for micros in [10.0, 20.0, 40.0] {
            results.add(&case("add", 1), bare::NAME, micros);
            results.add(&case("add", 1), "other", micros * 3.0);
        }
        results.add(&case("add", 8), "other", 7.0);
        results.add(&case("remove", 1), bare::NAME, 5.0);
        let report = results.report(String::new(), String::new(), String::new());
        let lines: Vec<_> =
            report.rows.iter().map(|row| (row.case.step.as_str(), row.contender.as_str(), row.n)).collect();
        // Cases of the same conditions stand together.
        assert_eq!(
            lines,
            [("add", bare::NAME, 3), ("add", "other", 3), ("remove", bare::NAME, 1), ("add", "other", 1)]
        );
        let ratio = report.rows[1].ratio.as_ref().unwrap();
        assert_eq!((ratio.p50, ratio.p99, ratio.paired), (3.0, 3.0, Some([3.0; 3])));
        assert!(report.rows[0].ratio.is_none() && report.rows[3].ratio.is_none());
    }

    #[test]
    fn latencies_of_threads_are_not_paired() {
        let mut results = Results::default();
        for contender in [bare::NAME, "other"] {
            results.add(&case("add", 8), contender, 1.0);
            results.add(&case(&format!("add{WALL}"), 8), contender, 1.0);
        }
        let report = results.report(String::new(), String::new(), String::new());
        let paired = |row: usize| report.rows[row].ratio.as_ref().unwrap().paired;
        assert_eq!((paired(1), paired(3)), (None, Some([1.0; 3])));
    }
}
