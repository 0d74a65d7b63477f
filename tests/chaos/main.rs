//! Chaos: everything that can be killed is killed, again and again, while tasks go through; then the books are checked.
//!
//! Real processes only. `scripts/chaos` builds the release program and runs this; `cargo test --test chaos` runs it as
//! `--quick`. Shape:
//!
//! | file | does |
//! |---|---|
//! | `options` | flags, also those of `cargo test` |
//! | `supervise` | runs all of it in a process group of its own, and takes down whatever is left, however it ends |
//! | `stage` | what there is: databases, replicas, workers, programs, hosts, and how they are connected |
//! | `process`, `proxy` | one process; the balancer, and lines that can be cut |
//! | `database`, `postgres`, `patroni` | a primary with its standby, or three nodes of Patroni |
//! | `worker` | pull agents over HTTP, as a process of their own: this same binary, called as `worker` |
//! | `load` | creates tasks at a steady rate, and remembers each that was acknowledged |
//! | `faults` | what is done, at random, with a printed seed |
//! | `long_run` | kill -9 of the replica in the middle of a run of 20 s |
//! | `recovery` | what was leased at a fault, and when all of it runs again or has ended |
//! | `ledger` | what CLIs and workers wrote down themselves: starts, accepted receipts |
//! | `reconcile` | the books: tasks, events, receipts, ledgers, stored output |
//! | `report` | the table at the end |

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod database;
mod faults;
mod ledger;
mod load;
mod long_run;
mod options;
mod patroni;
mod postgres;
mod process;
mod proxy;
mod reconcile;
mod recovery;
mod report;
mod run;
mod stage;
mod supervise;
mod support;
mod watch;
mod worker;

use std::process::ExitCode;

use options::Called;

fn main() -> ExitCode {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match Called::parse(std::env::args().skip(1)) {
        Ok(Called::Worker(worker)) => runtime().block_on(worker::run(worker)),
        Ok(Called::Listed) => {
            println!("chaos: test\n\n1 test, 0 benchmarks");
            ExitCode::SUCCESS
        }
        Ok(Called::FilteredOut) => {
            println!("{}", report::closing_line(0, 0, 1));
            ExitCode::SUCCESS
        }
        Ok(Called::Run(options)) => match supervise::dir_of_run() {
            None => supervise::supervise(),
            Some(dir) => runtime().block_on(run::run(options, dir)),
        },
        Err(why) => {
            eprintln!("chaos: {why}\n{}", options::USAGE);
            ExitCode::from(2)
        }
    }
}
