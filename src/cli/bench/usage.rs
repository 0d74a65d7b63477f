//! Who uses the processors: the load, the coordinators, the database. Read from `/proc`, so on Linux only.

use std::fs;

use super::stage::Fleet;

/// Ticks a second in `/proc`, on every Linux of today (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// Seconds of processor time so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) load: f64,
    pub(super) coordinators: f64,
    pub(super) database: f64,
}

impl Usage {
    /// Reads it now; `None` where it cannot be told.
    pub(super) fn read(fleet: &Fleet<'_>) -> Option<Self> {
        let server = fleet.stage().cluster()?.pid()?;
        let (own, children) = times(&fs::read_to_string(format!("/proc/{server}/stat")).ok()?)?;
        // Sessions that have ended count as the server's own.
        let mut database = own + children;
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            if parent(&stat) == Some(server) {
                database += times(&stat)?.0;
            }
        }
        let mut coordinators = 0.0;
        for replica in &fleet.replicas {
            coordinators +=
                times(&fs::read_to_string(format!("/proc/{}/stat", replica.pid)).ok()?)?.0;
        }
        let load = times(&fs::read_to_string("/proc/self/stat").ok()?)?.0;
        Some(Self { load, coordinators, database })
    }

    /// Microseconds for each of so many tasks since `before`: load, coordinators, database.
    pub(super) fn each(&self, before: &Self, tasks: usize) -> [f64; 3] {
        [
            self.load - before.load,
            self.coordinators - before.coordinators,
            self.database - before.database,
        ]
        .map(|seconds| seconds * 1e6 / tasks as f64)
    }
}

/// What follows the name of the program, which may hold anything (proc(5)).
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace()
}

fn parent(stat: &str) -> Option<u32> {
    fields(stat).nth(1)?.parse().ok()
}

/// Seconds of the process, and of its children that have ended.
fn times(stat: &str) -> Option<(f64, f64)> {
    let ticks: Vec<f64> = fields(stat).skip(11).take(4).filter_map(|f| f.parse().ok()).collect();
    let &[user, system, children_user, children_system] = ticks.as_slice() else { return None };
    Some(((user + system) / TICKS, (children_user + children_system) / TICKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc() {
        let stat = "42 (a b) c) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 300 100 20 0 1 0";
        assert_eq!((parent(stat), times(stat)), (Some(7), Some((2.0, 4.0))));
        assert_eq!(times("42 (x) S 7"), None);
    }
}
