//! Where `agent-fleet dev` keeps its data.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// For root, whose home the server's account cannot enter.
const OF_ROOT: &str = "/var/lib/agent-fleet/dev";

/// `AGENT_FLEET_DEV_DIR`; for root `/var/lib/agent-fleet/dev`; else below the user's data directory (XDG Base Directory
/// Specification), as an absolute path. `env` looks up one variable.
pub(super) fn choose(
    env: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> anyhow::Result<PathBuf> {
    let path = |name| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = path("AGENT_FLEET_DEV_DIR") {
        return std::path::absolute(&dir).context("AGENT_FLEET_DEV_DIR is no path");
    }
    if is_root {
        return Ok(PathBuf::from(OF_ROOT));
    }
    // The specification wants relative paths ignored.
    let data = path("XDG_DATA_HOME").filter(|p| p.is_absolute());
    let data = data.or_else(|| Some(path("HOME")?.join(".local/share")));
    let data = data.context("neither HOME nor AGENT_FLEET_DEV_DIR is set; set one of them")?;
    Ok(data.join("agent-fleet/dev"))
}

/// Makes a folder that other accounts may enter, as the server's has to.
pub(super) fn make(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(env: &[(&str, &str)], is_root: bool) -> Option<PathBuf> {
        let find = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        choose(find, is_root).ok()
    }

    #[test]
    fn the_first_that_is_set() {
        let home = ("HOME", "/home/a");
        assert_eq!(
            chosen(&[home], false).unwrap(),
            Path::new("/home/a/.local/share/agent-fleet/dev")
        );
        let xdg = ("XDG_DATA_HOME", "/data");
        assert_eq!(chosen(&[home, xdg], false).unwrap(), Path::new("/data/agent-fleet/dev"));
        assert_eq!(chosen(&[home, xdg], true).unwrap(), Path::new(OF_ROOT));
        let own = ("AGENT_FLEET_DEV_DIR", "/x");
        assert_eq!(chosen(&[home, xdg, own], true).unwrap(), Path::new("/x"));
        assert!(chosen(&[("HOME", "")], false).is_none());
    }
}
