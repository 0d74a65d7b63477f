//! What is printed.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use crate::{faults::Fault, options::Options, recovery::Recovered};

/// How one fault ended.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) fault: Fault,
    /// Tasks that were leased when it struck.
    pub(crate) leased: usize,
    /// Or what has not recovered.
    pub(crate) took: Result<Recovered, Vec<String>>,
}

/// Everything that is told.
pub(crate) struct Report {
    options: Options,
    recoveries: Vec<Recovery>,
    /// Name, value, and whether it has to be zero.
    figures: Vec<(String, String)>,
    checks: Vec<(String, Vec<String>)>,
    failures: Vec<String>,
}

impl Report {
    pub(crate) fn new(options: Options) -> Self {
        let (recoveries, figures, checks) = (Vec::new(), Vec::new(), Vec::new());
        Self { options, recoveries, figures, checks, failures: Vec::new() }
    }

    /// A fault has been recovered from, or not.
    pub(crate) fn recovery(&mut self, recovery: Recovery) {
        let name = recovery.fault.name();
        let (bound, words) = recovery.fault.bound();
        match &recovery.took {
            Ok(Recovered { took, last }) => {
                let late = if *took > bound {
                    format!("  TOO LATE; last was {}", last.join("; "))
                } else {
                    String::new()
                };
                println!(
                    "{name:<30} {:>4} leased  whole after {:>5.1} s  (at most {words}: {:.1} s){late}",
                    recovery.leased,
                    took.as_secs_f64(),
                    bound.as_secs_f64()
                );
            }
            Err(left) => println!("{name:<30} NOT RECOVERED: {}", left.join("; ")),
        }
        self.recoveries.push(recovery);
    }

    /// A figure that is only told.
    pub(crate) fn figure(&mut self, name: &str, value: impl ToString) {
        self.figures.push((name.to_owned(), value.to_string()));
    }

    /// A figure that has to be zero: the count of what was found.
    pub(crate) fn must_be_none(&mut self, name: &str, found: Vec<String>) {
        self.checks.push((name.to_owned(), found));
    }

    /// Something that ends the run.
    pub(crate) fn failed(&mut self, why: String) {
        self.failures.push(why);
    }

    /// The tables and the closing line.
    pub(crate) fn print(&self) {
        println!("\nseed {}", self.options.seed);
        for (name, value) in &self.figures {
            println!("{name:<44} {value}");
        }
        for (name, found) in &self.checks {
            println!("{name:<44} {}", found.len());
            for one in found.iter().take(10) {
                println!("    {one}");
            }
        }
        println!("\n{:<30} {:>5} {:>9} {:>9}   at most", "fault", "times", "median", "worst");
        for (fault, times) in self.by_fault() {
            let (bound, words) = fault.bound();
            let (median, worst) = match times.as_slice() {
                [] => ("-".to_owned(), "-".to_owned()),
                all => (seconds(all[all.len() / 2]), seconds(all[all.len() - 1])),
            };
            let times = self.recoveries.iter().filter(|r| r.fault == fault).count();
            println!(
                "{:<30} {times:>5} {median:>9} {worst:>9}   {} ({words})",
                fault.name(),
                seconds(bound)
            );
        }
        for why in &self.failures {
            println!("FAILED: {why}");
        }
        println!("\n{}", closing_line(self.passed(), self.off(), 0));
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.off() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Times of each fault, the shortest first.
    fn by_fault(&self) -> BTreeMap<Fault, Vec<Duration>> {
        let mut by_fault: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
        for recovery in &self.recoveries {
            let times = by_fault.entry(recovery.fault).or_default();
            times.extend(recovery.took.as_ref().ok().map(|recovered| recovered.took));
            times.sort_unstable();
        }
        by_fault
    }

    fn off(&self) -> usize {
        let late = self.recoveries.iter().filter(|r| !is_in_time(r)).count();
        let broken = self.checks.iter().filter(|(_, found)| !found.is_empty()).count();
        late + broken + self.failures.len()
    }

    fn passed(&self) -> usize {
        let in_time = self.recoveries.iter().filter(|r| is_in_time(r)).count();
        in_time + self.checks.iter().filter(|(_, found)| found.is_empty()).count()
    }
}

fn is_in_time(recovery: &Recovery) -> bool {
    recovery.took.as_ref().is_ok_and(|recovered| recovered.took <= recovery.fault.bound().0)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// In the form of `cargo test`.
pub(crate) fn closing_line(passed: usize, failed: usize, filtered_out: usize) -> String {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    format!(
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered_out} filtered out"
    )
}
