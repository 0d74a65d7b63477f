//! Where PostgreSQL's server binaries are on this machine.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::ClusterError;

/// What has to be in a folder for it to count.
const NEEDED: [&str; 4] = ["postgres", "initdb", "pg_ctl", "psql"];

/// Folders that hold one folder a version, each with the binaries below it: Debian, RPM (PGDG), Homebrew on Apple
/// silicon, on Intel and on Linux, Postgres.app.
const INSTALLATIONS: [(&str, &str); 6] = [
    ("/usr/lib/postgresql", "bin"),
    ("/usr", "bin"),
    ("/opt/homebrew/opt", "bin"),
    ("/usr/local/opt", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "bin"),
];

/// One installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    /// The folder that holds them.
    pub(super) dir: PathBuf,
    /// 15 for 15.18.
    pub(super) major: u32,
}

impl Binaries {
    /// Finds them: `PG_BIN` alone when it is set; else the newest installation, or with `wanted` the newest of that
    /// major version, or the newest at all when there is none.
    pub(super) async fn find(wanted: Option<u32>) -> Result<Self, ClusterError> {
        if let Some(dir) = std::env::var_os("PG_BIN").filter(|v| !v.is_empty()) {
            let dir = PathBuf::from(dir);
            return Self::inspect(&dir).await.ok_or(ClusterError::NotBinaries { dir });
        }
        let mut found = Vec::new();
        for dir in candidates().await {
            found.extend(Self::inspect(&dir).await);
        }
        let best = found
            .iter()
            .filter(|b| Some(b.major) == wanted)
            .chain(&found)
            .max_by_key(|b| (Some(b.major) == wanted, b.major));
        best.cloned().ok_or(ClusterError::NoBinaries)
    }

    /// The path of one of them.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Asks the server in `dir` for its version; `None` when something is missing or does not answer.
    async fn inspect(dir: &Path) -> Option<Self> {
        if !NEEDED.iter().all(|name| dir.join(name).is_file()) {
            return None;
        }
        let output = Command::new(dir.join("postgres")).arg("--version").output().await.ok()?;
        let major = parse_major(std::str::from_utf8(&output.stdout).ok()?)?;
        Some(Self { dir: dir.to_owned(), major })
    }
}

/// Every folder worth a look, none twice.
async fn candidates() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for (root, below) in INSTALLATIONS {
        let Ok(entries) = std::fs::read_dir(root) else { continue };
        dirs.extend(entries.flatten().map(|entry| entry.path().join(below)));
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output().await
        && let Ok(dir) = std::str::from_utf8(&output.stdout)
        && !dir.trim().is_empty()
    {
        dirs.push(PathBuf::from(dir.trim()));
    }
    for dir in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        // A link in the PATH leads to where its siblings are.
        if let Ok(real) = dir.join("pg_ctl").canonicalize() {
            dirs.extend(real.parent().map(Path::to_owned));
        }
    }
    dirs.sort_unstable();
    dirs.dedup();
    dirs
}

/// 15 from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`; also from `18beta1`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_versions() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("mysqld 8"), None);
    }

    #[tokio::test]
    async fn an_empty_folder_is_no_installation() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Binaries::inspect(dir.path()).await, None);
    }
}
