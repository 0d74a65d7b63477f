//! The binary: everything is in the library.

/// Calls are many small pieces of memory, taken in one thread and given back in another. The system's allocator took a fifth
/// of a replica's processor time for that under load.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    agent_fleet::cli::main()
}
