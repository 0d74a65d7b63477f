//! The house rules that a compiler does not check.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Every source file with its path below `src`.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            // Comments may name anything.
            let code =
                text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>();
            (name, code.join("\n"))
        })
        .collect()
}

fn room(name: &str) -> &str {
    name.split(['/', '.']).next().unwrap()
}

#[test]
fn each_package_stays_in_its_room() {
    for (package, rooms) in [
        ("tokio_postgres", &["store"][..]),
        ("deadpool_postgres", &["store"]),
        ("refinery", &["store"]),
        ("warp", &["api"]),
        ("openssh", &["execution"]),
        ("reqwest", &["cli"]),
        ("clap", &["cli"]),
        ("opentelemetry", &["traces"]),
        ("opentelemetry_sdk", &["traces"]),
        ("opentelemetry_otlp", &["traces"]),
    ] {
        for (name, code) in files() {
            let uses =
                code.contains(&format!("{package}::")) || code.contains(&format!("use {package}"));
            assert!(!uses || rooms.contains(&room(&name)), "src/{name} uses {package}");
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    // A room may use those after it, and none before.
    let order = [
        &["main", "lib"][..],
        &["cli"],
        &["api"],
        &["coordinator"],
        &["forge", "execution", "store", "web"],
        &["telemetry", "metrics", "traces"],
        &["config"],
        &["shutdown", "tls"],
        &["model"],
    ];
    let rank = |room: &str| order.iter().position(|rooms| rooms.contains(&room));
    // Tests may look from above.
    for (name, code) in files().into_iter().filter(|(name, _)| !name.ends_with("tests.rs")) {
        let own = rank(room(&name)).unwrap_or_else(|| panic!("src/{name} is in no room"));
        for rooms in &order[..own] {
            for other in *rooms {
                let uses = code.contains(&format!("crate::{other}::"))
                    || code.contains(&format!("    {other}::"));
                assert!(!uses || *other == "lib", "src/{name} uses {other}");
            }
        }
        for other in order[own] {
            let siblings = *other != room(&name) && code.contains(&format!("crate::{other}::"));
            assert!(!siblings, "src/{name} uses its sibling {other}");
        }
    }
}

#[test]
fn sql_stands_in_files() {
    for (name, code) in files() {
        // Comments and tests aside, a statement in Rust is one that the DBA cannot find.
        let inline = ["insert into fleet.", "update fleet.", "delete from fleet.", "from fleet."];
        for word in inline {
            assert!(!code.to_lowercase().contains(word), "src/{name} holds SQL: {word}");
        }
    }
}

#[test]
fn the_project_stands_alone() {
    // One test replays real deliveries in place, where there are any.
    for (name, code) in files().into_iter().filter(|(name, _)| name != "forge/fixtures.rs") {
        assert!(!code.contains("../shared"), "src/{name} names a folder outside the project");
    }
}
