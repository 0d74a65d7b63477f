//! A forge that does not exist: signed deliveries for issues made up on the spot.

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

use crate::{
    cli::client::{Client, ClientError},
    config::Secret,
};

/// The repository that the demo's issues belong to.
const REPO: &str = "demo/fleet";

/// An issue to be delivered.
#[derive(Debug)]
pub(in crate::cli) struct Issue<'a> {
    /// Counts per repository.
    pub(in crate::cli) number: i64,
    pub(in crate::cli) title: &'a str,
    pub(in crate::cli) body: &'a str,
    pub(in crate::cli) label: &'a str,
}

/// What a delivery is answered with.
#[derive(Debug, Deserialize)]
pub(super) struct Accepted {
    pub(super) result: String,
}

impl Issue<'_> {
    /// The key of its task.
    pub(super) fn key(&self) -> String {
        format!("{REPO}#{}", self.number)
    }

    /// The body that Forgejo sends for `issues`/`opened` (`modules/structs/hook.go`, `IssuePayload`), without the fields
    /// that nobody reads.
    pub(in crate::cli) fn payload(&self, at: Timestamp) -> Value {
        let number = self.number;
        let user = json!({"id": 1, "login": "demo", "username": "demo"});
        json!({
            "action": "opened",
            "number": number,
            "issue": {
                "id": number, "number": number, "user": user, "title": self.title,
                "body": self.body,
                "html_url": format!("http://127.0.0.1/{REPO}/issues/{number}"),
                "labels": [{"id": 1, "name": self.label}],
                "state": "open", "created_at": at.to_string(), "updated_at": at.to_string(), "pull_request": null,
            },
            "repository": {
                "id": 1, "owner": user, "name": "fleet", "full_name": REPO, "default_branch": "main",
                "html_url": format!("http://127.0.0.1/{REPO}"),
            },
            "sender": user,
            "commit_id": "",
        })
    }

    /// Sends it as Forgejo does, signed with the webhook's secret.
    pub(super) async fn deliver(
        &self,
        client: &Client,
        secret: &Secret,
    ) -> Result<Accepted, ClientError> {
        let body = self.payload(Timestamp::now()).to_string();
        let request = client
            .request(Method::POST, "/api/v1/webhooks/forgejo")
            .header("content-type", "application/json")
            .header("x-forgejo-event", "issues")
            .header("x-forgejo-event-type", "issues")
            .header("x-forgejo-delivery", Uuid::now_v7().to_string())
            .header("x-forgejo-signature", sign(secret, body.as_bytes()))
            .body(body);
        let foreign = || ClientError::Foreign { base: client.base().to_owned(), status: 204 };
        client.send(request).await?.ok_or_else(foreign)
    }
}

/// Hex HMAC-SHA256.
pub(in crate::cli) fn sign(secret: &Secret, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_vector() {
        // RFC 4231, test case 2.
        let signature = sign(&Secret::new("Jefe"), b"what do ya want for nothing?");
        assert_eq!(signature, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
