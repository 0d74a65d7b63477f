//! The binary: everything is in the library.

/// Calls are many small pieces of memory, taken in one thread and given back in another. That costs the system's allocator a
/// fifth of a replica's processor time under load, see docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    agent_fleet::cli::main()
}
