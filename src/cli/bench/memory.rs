//! Memory in use, as on a server that has been up for days.
//!
//! A database writes new pages all the time: its log, its tables. On a server that has been up for a while each of them takes
//! the place of a page of some file that nobody has asked for since. On one that has just been started, or whose hypervisor
//! takes free memory back, it is a page that nobody has ever touched, and the hypervisor has to find one first. Where this was
//! built, writing 8 KiB took 18 µs instead of 1.6 once 2 GB had been written: the last stretch of a scenario was measured on
//! another machine than its first.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;

/// So much is read without a look at whether the run is to end.
const PIECE: u64 = 256 << 20;
/// And so much by one call.
const CALL: usize = 1 << 20;

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
        let free = fs::read_to_string("/proc/meminfo").ok().and_then(|text| free(&text));
        let (mut at, mut left) = (self.0.metadata()?.len(), free.unwrap_or(0));
        self.0.set_len(at + left)?;
        while left > 0 {
            let (file, piece) = (Arc::clone(&self.0), left.min(PIECE));
            tokio::task::spawn_blocking(move || read(&file, at, piece)).await??;
            (at, left) = (at + piece, left - piece);
        }
        Ok(())
    }
}

/// Bytes of memory that nothing uses, by `/proc/meminfo` (in KiB, proc(5)).
fn free(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

fn read(file: &File, from: u64, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CALL];
    let mut at = from;
    while at < from + length {
        match file.read_at(&mut buffer, at)? {
            0 => break,
            read => at += read as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free() {
        let meminfo =
            "MemTotal:       24684452 kB\nMemFree:         2107764 kB\nMemAvailable: 1 kB\n";
        assert_eq!(free(meminfo), Some(2_158_350_336));
        assert_eq!(free("MemTotal: 1 kB\n"), None);
    }
}
