//! Takes down whatever a run leaves behind, however it ends: killed, panicked, or by Ctrl-C.
//!
//! The run is a child in a process group of its own. Whatever it starts is in that group or, where it makes a group of
//! its own (PostgreSQL, runs on hosts), names the run's folder in its command line or environment.

use std::{
    fs,
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

const DIR: &str = "AGENT_FLEET_CHAOS_DIR";

/// The folder of the run, in the process that runs it. From here on that process ends with its supervisor.
pub(crate) fn dir_of_run() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os(DIR)?);
    let swept = dir.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        sweep(&swept);
        let _ = fs::remove_dir_all(&swept);
        // The group, which is this process's own.
        let _ = kill(&format!("-{}", std::process::id()));
    });
    Some(dir)
}

/// Starts the run, waits for it, and cleans up. The folder with the logs stays when something was off.
pub(crate) fn supervise() -> ExitCode {
    // Short: sockets live below it. PostgreSQL's account has to get through.
    let dir = tempfile::Builder::new().prefix("afc").tempdir_in("/tmp").unwrap().keep();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&dir, open).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(std::env::args_os().skip(1))
        .env(DIR, &dir)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    // It ends when this is closed; `wait` would close it.
    let held = child.stdin.take();
    let status = child.wait().unwrap();
    drop(held);
    let _ = kill(&format!("-{}", child.id()));
    sweep(&dir);
    if status.success() {
        let _ = fs::remove_dir_all(&dir);
        return ExitCode::SUCCESS;
    }
    for name in ["a", "b"] {
        let _ = fs::remove_dir_all(dir.join("postgres").join(name));
    }
    eprintln!("chaos: {status}; logs and ledgers are in {}", dir.display());
    ExitCode::FAILURE
}

/// Kills every process that names the folder.
fn sweep(dir: &Path) {
    let dir = dir.as_os_str().as_bytes();
    let me = std::process::id();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let names = |file: &str| {
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            text.windows(dir.len()).any(|part| part == dir)
        };
        if pid != me && (names("cmdline") || names("environ")) {
            let _ = kill(&pid.to_string());
        }
    }
}

fn kill(pid: &str) -> std::io::Result<()> {
    Command::new("kill").args(["-KILL", "--", pid]).stderr(Stdio::null()).status().map(drop)
}
