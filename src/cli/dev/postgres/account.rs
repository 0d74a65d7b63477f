//! Who runs the server: PostgreSQL refuses to run as root, so root hands it to an unprivileged account.

use std::path::Path;

use tokio::process::Command;

use super::{ClusterError, io};

/// Tried in this order when run by root.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// The account that owns the data folder and runs every server command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Account {
    /// Whoever runs this program.
    Own,
    /// Another one, because this program is run by root.
    Other { name: &'static str, uid: u32, gid: u32 },
}

impl Account {
    /// This account, or for root the first unprivileged one that exists.
    pub(super) async fn choose() -> Result<Self, ClusterError> {
        if id(&["-u"]).await != Some(0) {
            return Ok(Self::Own);
        }
        for name in UNPRIVILEGED {
            if let (Some(uid), Some(gid)) = (id(&["-u", name]).await, id(&["-g", name]).await) {
                return Ok(Self::Other { name, uid, gid });
            }
        }
        Err(ClusterError::NoAccount)
    }

    /// Makes a folder and its parents; the folder is the account's alone.
    pub(super) fn make_dir(&self, dir: &Path) -> Result<(), ClusterError> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::create_dir_all(dir).map_err(io("create", dir))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(io("close to others", dir))?;
        self.own(dir)
    }

    /// Gives a file or folder to the account.
    pub(super) fn own(&self, path: &Path) -> Result<(), ClusterError> {
        match self {
            Self::Own => Ok(()),
            Self::Other { uid, gid, .. } => std::os::unix::fs::chown(path, Some(*uid), Some(*gid))
                .map_err(io("hand over", path)),
        }
    }

    /// Fails when the account cannot reach `dir`, because a folder above it is closed to it.
    pub(super) async fn check_entry(&self, dir: &Path) -> Result<(), ClusterError> {
        let Self::Other { name, .. } = self else { return Ok(()) };
        let enters = self.command("test").arg("-w").arg(dir).status().await;
        match enters {
            Ok(status) if status.success() => Ok(()),
            _ => Err(ClusterError::Closed { dir: dir.to_owned(), account: name }),
        }
    }

    /// A command run by the account, without the PostgreSQL settings of this process's environment and with messages
    /// in English.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Self::Other { uid, gid, .. } = self {
            // std drops the supplementary groups when root changes the uid.
            command.uid(*uid).gid(*gid);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| n.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        // The present folder may be closed to the account.
        command.env("LC_ALL", "C").current_dir("/").stdin(std::process::Stdio::null());
        command
    }
}

/// What `id` (POSIX) prints, as a number.
pub(super) async fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).output().await.ok()?;
    if !output.status.success() {
        return None;
    }
    std::str::from_utf8(&output.stdout).ok()?.trim().parse().ok()
}
