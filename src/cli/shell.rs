//! `agent-fleet completions` and `agent-fleet man`: what a shell and `man` know of the command line, made from it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::{Cli, Outcome, terminal::print};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell that shall complete.
    shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// An existing folder, e.g. `/usr/local/share/man/man1`. One page for each command is written into it.
    folder: PathBuf,
}

/// Runs `completions`.
pub(super) fn completions(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    Ok(print(&String::from_utf8_lossy(&script))?)
}

/// Runs `man`.
pub(super) fn man(args: &ManArgs) -> Outcome {
    Ok(write_pages(&args.folder)?)
}

fn write_pages(folder: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("cannot write the pages into {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(folder.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(page("agent-fleet.1").contains("agent\\-fleet\\-serve(1)"));
        for command in Cli::command().get_subcommands() {
            let about = page(&format!("agent-fleet-{}.1", command.get_name()));
            assert!(about.contains(".SH NAME"), "{about}");
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_pages(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
