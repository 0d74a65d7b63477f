//! The binary: everything is in the library.

fn main() -> std::process::ExitCode {
    agent_fleet::cli::main()
}
