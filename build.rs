//! A new migration must be embedded without a `cargo clean`: the macro that embeds them notices edits, not new files.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
