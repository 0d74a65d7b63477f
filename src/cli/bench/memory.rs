//! Memory in use, as on a server that has been up for days.
//!
//! A database writes new pages all the time: its log, its tables. On a server that has been up for a while each of them takes
//! the place of a page of some file that nobody has asked for since. On one that has just been started, or whose hypervisor
//! takes free memory back, it is a page that nobody has ever touched, and the hypervisor has to find one first. Where this was
//! built, writing 8 KiB took 18 µs instead of 1.6 once 2 GB had been written: the last stretch of a scenario was measured on
//! another machine than its first.
//!
//! What is taken back is whole blocks of free pages, 2 MiB here. So pages that lie side by side in memory must not be given up one
//! after the other, as those of a file would be that was read from its begin to its end.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;

/// What the system gives memory in.
const PAGE: u64 = 4096;
/// So many pages are read without a look at whether the run is to end.
const PIECE: usize = 1 << 16;
/// Pages of the file from one that is read to the next: those between come to lie elsewhere.
const STRIDE: u64 = 1024;
/// The system takes pages back while its memory is filled, to have some at hand.
const PASSES: usize = 4;
/// Less than this part of all is not worth another pass.
const SPARE: u64 = 32;

/// Pages of a file that has a length and nothing else: the system keeps what was read of it until it needs the memory.
#[derive(Debug)]
pub(super) struct Memory(Arc<File>);

impl Memory {
    /// With a file in `dir` that has no name there, so it goes when this process does.
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        let file = tempfile::tempfile_in(dir)
            .with_context(|| format!("cannot create a file in {}", dir.display()))?;
        Ok(Self(Arc::new(file)))
    }

    /// Uses what is free now. Does nothing where that cannot be told, which is so beyond Linux.
    pub(super) async fn fill(&self) -> anyhow::Result<()> {
        for _ in 0..PASSES {
            let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let bytes = |name| bytes(&meminfo, name).unwrap_or(0);
            let (all, free) = (bytes("MemTotal:"), bytes("MemFree:"));
            if free <= all / SPARE {
                break;
            }
            let begin = self.0.metadata()?.len();
            let end = begin + free / PAGE * PAGE;
            self.0.set_len(end)?;
            // What is used twice is kept in the order of the second time.
            for stride in [STRIDE, 1] {
                for first in 0..stride {
                    let mut at = begin + first * PAGE;
                    while at < end {
                        let file = Arc::clone(&self.0);
                        let reading = move || read(&file, at..end, stride);
                        at = tokio::task::spawn_blocking(reading).await??;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Bytes by `/proc/meminfo` (in KiB, proc(5)).
fn bytes(meminfo: &str, name: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Reads a page of so many, some of them. Where the next one is.
fn read(file: &File, range: Range<u64>, stride: u64) -> io::Result<u64> {
    let mut page = [0; PAGE as usize];
    let mut at = range.start;
    for _ in 0..PIECE {
        if at >= range.end {
            break;
        }
        file.read_at(&mut page, at)?;
        at += stride * PAGE;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_and_what_is_free() {
        let meminfo =
            "MemTotal:       24684452 kB\nMemFree:         2107764 kB\nMemAvailable: 1 kB\n";
        assert_eq!(bytes(meminfo, "MemFree:"), Some(2_158_350_336));
        assert_eq!(bytes(meminfo, "MemTotal:"), Some(25_276_878_848));
        assert_eq!(bytes("MemTotal: 1 kB\n", "MemFree:"), None);
    }
}
