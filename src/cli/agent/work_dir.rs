//! What the agent keeps on disk, so that a restart goes on where it was: its token, and what it has claimed.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{AgentError, claims::Claim};
use crate::{config::Secret, telemetry::error_chain};

/// The agent's folder. Tasks work in `tasks/`, runs are kept in `.agent-fleet/` (see [`crate::execution`]).
#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    /// Held so that no second agent works here.
    _lock: File,
}

impl WorkDir {
    /// Makes the folder if it is missing and takes it for this process.
    pub(super) fn open(path: &Path) -> Result<Self, AgentError> {
        std::fs::create_dir_all(path.join("claims")).map_err(io("create", path))?;
        let path = path.canonicalize().map_err(io("find", path))?;
        let lock_path = path.join("agent-lock");
        let lock = File::create(&lock_path).map_err(io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(AgentError::InUse { path }),
            Err(std::fs::TryLockError::Error(source)) => Err(io("lock", &lock_path)(source)),
        }
    }

    /// The folder as an absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names this folder's runs; made at the first start.
    pub(super) fn fleet_id(&self) -> Result<Uuid, AgentError> {
        let path = self.path.join("fleet-id");
        if let Some(id) = read(&path)?.and_then(|text| text.trim().parse().ok()) {
            return Ok(id);
        }
        let id = Uuid::now_v7();
        self.write(&path, id.to_string().as_bytes())?;
        Ok(id)
    }

    /// The token of the last registration.
    pub(super) fn token(&self) -> Result<Option<Secret>, AgentError> {
        let text = read(&self.path.join("agent-token"))?;
        Ok(text.map(|t| Secret::new(t.trim())).filter(|t| !t.expose().is_empty()))
    }

    /// Keeps the token of a registration.
    pub(super) fn save_token(&self, token: &Secret) -> Result<(), AgentError> {
        self.write(&self.path.join("agent-token"), token.expose().as_bytes())
    }

    /// What was claimed and is not settled; files that cannot be read are left alone and reported.
    pub(super) fn claims(&self) -> Result<Vec<Claim>, AgentError> {
        let dir = self.path.join("claims");
        let mut claims = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(io("list", &dir))? {
            let path = entry.map_err(io("list", &dir))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match serde_json::from_str(&read(&path)?.unwrap_or_default()) {
                Ok(claim) => claims.push(claim),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = error_chain(&error), "not a claim; ignored")
                }
            }
        }
        Ok(claims)
    }

    /// Keeps a claim until it is settled.
    pub(super) fn save_claim(&self, claim: &Claim) -> Result<(), AgentError> {
        let text = serde_json::to_vec(claim)
            .map_err(|e| io("write", &self.claim_path(claim))(std::io::Error::other(e)))?;
        self.write(&self.claim_path(claim), &text)
    }

    /// Forgets a claim that is settled.
    pub(super) fn remove_claim(&self, claim: &Claim) -> Result<(), AgentError> {
        let path = self.claim_path(claim);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn claim_path(&self, claim: &Claim) -> PathBuf {
        self.path.join("claims").join(format!("{}.{}.json", claim.task.task_id, claim.run_lease))
    }

    /// Replaces a file whole, for this user's eyes only.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), AgentError> {
        let mut file = tempfile::NamedTempFile::new_in(&self.path).map_err(io("write", path))?;
        file.write_all(content).map_err(io("write", path))?;
        file.as_file().sync_all().map_err(io("write", path))?;
        file.persist(path).map_err(|e| io("write", path)(e.error))?;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<String>, AgentError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

fn io(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> AgentError {
    move |source| AgentError::WorkDir { act, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_kept_is_found_again() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("work");
        let dir = WorkDir::open(&path).unwrap();
        let id = dir.fleet_id().unwrap();
        assert!(dir.token().unwrap().is_none());
        dir.save_token(&Secret::new("abc")).unwrap();
        let mode = std::fs::metadata(path.join("agent-token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let claim = Claim::for_test(7);
        dir.save_claim(&claim).unwrap();
        assert!(matches!(WorkDir::open(&path), Err(AgentError::InUse { .. })));
        drop(dir);

        let dir = WorkDir::open(&path).unwrap();
        assert_eq!(dir.fleet_id().unwrap(), id);
        assert_eq!(dir.token().unwrap().unwrap().expose(), "abc");
        std::fs::write(path.join("claims/x.json"), "{").unwrap();
        let claims = dir.claims().unwrap();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].task.task_id, claim.task.task_id);
        dir.remove_claim(&claim).unwrap();
        dir.remove_claim(&claim).unwrap();
        assert!(dir.claims().unwrap().is_empty());
    }
}
