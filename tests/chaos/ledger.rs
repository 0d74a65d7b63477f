//! What CLIs and workers write down themselves, a line at a time; survives their death.

use std::{
    fs,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex},
};

use uuid::Uuid;

/// One start of work on a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// The ledger's name: `cli`, or a worker's.
    pub(crate) by: String,
    pub(crate) task_id: Uuid,
    pub(crate) attempt: i32,
    pub(crate) lease: i64,
    pub(crate) pid: u32,
}

/// All ledgers of a run.
#[derive(Debug, Default)]
pub(crate) struct Ledgers {
    pub(crate) starts: Vec<Start>,
    /// Receipts that were answered with 200: task and lease.
    pub(crate) accepted: Vec<(Uuid, i64)>,
    /// What should not have been answered.
    pub(crate) odd: Vec<String>,
}

impl Ledgers {
    /// Reads a folder.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains('.') {
                continue;
            }
            for line in fs::read_to_string(entry.path())?.lines() {
                all.take(&name, line).ok_or_else(|| anyhow::anyhow!("{name}: `{line}`"))?;
            }
        }
        Ok(all)
    }

    fn take(&mut self, by: &str, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        match words.next()? {
            "start" => self.starts.push(Start {
                by: by.to_owned(),
                task_id: words.next()?.parse().ok()?,
                attempt: words.next()?.parse().ok()?,
                lease: words.next()?.parse().ok()?,
                pid: words.next()?.parse().ok()?,
            }),
            "accepted" => {
                self.accepted.push((words.next()?.parse().ok()?, words.next()?.parse().ok()?));
            }
            "odd" => self.odd.push(format!("{by}: {line}")),
            _ => return None,
        }
        Some(())
    }
}

/// A ledger that is written.
#[derive(Debug, Clone)]
pub(crate) struct Book(Arc<Mutex<fs::File>>);

impl Book {
    pub(crate) fn open(path: &Path) -> Self {
        let file = fs::File::options().create(true).append(true).open(path).unwrap();
        Self(Arc::new(Mutex::new(file)))
    }

    /// Adds a line, in one write.
    pub(crate) fn write(&self, line: &str) {
        self.0.lock().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
