//! Requirements and what satisfies them.

use serde::{Deserialize, Serialize};

use super::{Priority, check_text};

/// At most this many requirements a task.
pub const MAX_CAPABILITIES: usize = 16;
/// Bytes of one capability.
const MAX_LEN: usize = 128;

/// A sorted set of distinct capabilities. Interned in the database as a lane when it is what a task requires.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CapabilitySet(Vec<String>);

/// Why a set of capabilities is refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCapability {
    /// Too many: a task has at most [`MAX_CAPABILITIES`].
    #[error("{given} capabilities are given; at most {max} are allowed")]
    TooMany {
        /// How many are given.
        given: usize,
        /// How many a set of this kind may have.
        max: usize,
    },
    /// One of them cannot be stored.
    #[error(transparent)]
    Text(#[from] super::InvalidText),
}

impl CapabilitySet {
    /// What an agent or host offers: any number up to 256, sorted, without duplicates.
    pub fn offered<I, S>(names: I) -> Result<Self, InvalidCapability>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        Self::checked(names, 256)
    }

    /// What a task with these labels requires: the labels that have a requirement prefix.
    pub fn required<I, S>(labels: I) -> Result<Self, InvalidCapability>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let required = labels.into_iter().filter_map(|l| requirement_of_label(l.as_ref()));
        Self::checked(required, MAX_CAPABILITIES)
    }

    fn checked<I, S>(names: I, max: usize) -> Result<Self, InvalidCapability>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let mut set: Vec<String> = Vec::new();
        for name in names {
            // The scoped form means the same on either side.
            let name = requirement_of_label(name.as_ref())
                .unwrap_or_else(|| name.as_ref().trim().to_owned());
            check_text("capabilities", &name, MAX_LEN)?;
            if name.is_empty() {
                return Err(super::InvalidText::Empty { field: "capabilities" }.into());
            }
            set.push(name);
        }
        set.sort_unstable();
        set.dedup();
        let given = set.len();
        if given > max { Err(InvalidCapability::TooMany { given, max }) } else { Ok(Self(set)) }
    }

    /// The set as stored.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// True when nothing is required, or nothing offered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when every requirement of `required` is offered here.
    pub fn satisfies(&self, required: &[String]) -> bool {
        required.iter().all(|name| self.0.binary_search(name).is_ok())
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|n| other.0.binary_search(n).is_ok()).cloned().collect())
    }
}

impl From<Vec<String>> for CapabilitySet {
    /// From a set that the database holds.
    fn from(mut names: Vec<String>) -> Self {
        names.sort_unstable();
        names.dedup();
        Self(names)
    }
}

/// The requirement that a label states, or `None` for plain metadata. The forge's scoped form `agent/code` counts as
/// `agent:code`.
pub fn requirement_of_label(label: &str) -> Option<String> {
    let label = label.trim();
    let rest = label.strip_prefix("agent:").or_else(|| label.strip_prefix("agent/"))?;
    (!rest.is_empty()).then(|| format!("agent:{rest}"))
}

/// The priority that labels such as `priority:high` or `priority/high` state; the highest wins.
pub fn priority_from_labels<'a>(labels: impl IntoIterator<Item = &'a str>) -> Option<Priority> {
    labels
        .into_iter()
        .filter_map(|label| {
            let label = label.trim();
            let word =
                label.strip_prefix("priority:").or_else(|| label.strip_prefix("priority/"))?;
            word.to_ascii_lowercase().parse().ok()
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_the_prefixed_labels() {
        let set =
            CapabilitySet::required(["bug", "agent/code", "agent:rust", "agent:code", "agent:"]);
        assert_eq!(set.unwrap().as_slice(), ["agent:code", "agent:rust"]);
    }

    #[test]
    fn at_most_sixteen() {
        let labels = |n: usize| (0..n).map(|i| format!("agent:{i}")).collect::<Vec<_>>();
        assert!(CapabilitySet::required(labels(16)).is_ok());
        assert!(CapabilitySet::required(labels(17)).is_err());
        assert!(CapabilitySet::required(["agent:a\0"]).is_err());
    }

    #[test]
    fn satisfaction_is_inclusion() {
        let offered = CapabilitySet::offered(["agent/code", "agent:gpu"]).unwrap();
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(offered.satisfies(&set(&[])));
        assert!(offered.satisfies(&set(&["agent:code"])));
        assert!(!offered.satisfies(&set(&["agent:code", "agent:web"])));
    }

    #[test]
    fn priority_labels() {
        assert_eq!(priority_from_labels(["priority/high", "x"]), Some(Priority::High));
        assert_eq!(
            priority_from_labels(["priority:low", "priority:Urgent"]),
            Some(Priority::Urgent)
        );
        assert_eq!(priority_from_labels(["priority:none"]), None);
    }
}
