//! The name a replica gives itself when none is configured.

use rand::RngExt;

/// Characters of the suffix that tells replicas on one machine apart: 36^6 values.
const SUFFIX: usize = 6;
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// `<host name>-<random>`, in the alphabet of agent ids.
pub(super) fn generate(env: impl Fn(&str) -> Option<String>) -> String {
    let mut rng = rand::rng();
    let suffix: String =
        (0..SUFFIX).map(|_| char::from(ALPHABET[rng.random_range(..ALPHABET.len())])).collect();
    format!("{}-{suffix}", plain(&host_name(env).unwrap_or_default()))
}

/// The kernel's name on Linux; elsewhere (macOS) what the shell or the system files say.
pub(crate) fn host_name(env: impl Fn(&str) -> Option<String>) -> Option<String> {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .into_iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .or_else(|| env("HOSTNAME"))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
}

/// Keeps the alphabet of agent ids, at most 64 characters.
fn plain(name: &str) -> String {
    let kept: String = name
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(64)
        .collect();
    if kept.is_empty() { "replica".to_owned() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AgentId;

    #[test]
    fn is_an_id_and_differs_each_time() {
        let (a, b) = (generate(|_| None), generate(|_| None));
        assert_ne!(a, b);
        assert!(AgentId::parse(&a).is_ok(), "{a}");
    }

    #[test]
    fn odd_host_names_are_made_plain() {
        assert_eq!(plain("büro.local\n"), "b-ro.local");
        assert_eq!(plain(" "), "replica");
        assert_eq!(plain(&"x".repeat(300)).len(), 64);
    }
}
