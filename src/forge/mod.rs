//! The forge (Forgejo, Gitea): what its webhooks say, and what that means for a task. Pure: no HTTP server, no SQL, no
//! clock.
//!
//! A delivery passes through, in this order: [`signature::verify`] over the raw bytes, [`payload::parse`],
//! [`rules::is_heard`]; then the store keeps the newest state and carries [`crate::model::decide`] out.

#[cfg(test)]
mod fixtures;
pub mod payload;
pub mod rules;
pub mod signature;
