//! Whether a delivery comes from somebody who knows the secret.
//!
//! Forgejo sends `X-Forgejo-Signature`, `X-Gitea-Signature` (bare hex) and `X-Hub-Signature-256` (`sha256=` + hex), all
//! the same HMAC-SHA256 over the raw body (Forgejo `services/webhook/shared/payloader.go`, `AddDefaultHeaders`).
//! Without a secret it still sends the headers, empty.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::Secret;

/// Looked at in this order; the first that holds anything decides.
const HEADERS: [&str; 3] = ["x-forgejo-signature", "x-gitea-signature", "x-hub-signature-256"];

/// Why a delivery is refused. All are answered with 401; none says what the right signature would be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// `forgejo.webhook_secret` is empty, so nothing can be verified.
    #[error(
        "no webhook secret is configured; set forgejo.webhook_secret (AGENT_FLEET_WEBHOOK_SECRET)"
    )]
    NotConfigured,
    /// No signature header, or only empty ones.
    #[error("the delivery is not signed; set the same secret at the forge's webhook")]
    Missing,
    /// Not hex, of the wrong length, or made with another secret.
    #[error(
        "the signature does not match; compare the secret here with the one at the forge's webhook"
    )]
    Bad,
}

/// Checks the signature of `body` against each of `secrets` (several while one is being rotated), in constant time.
///
/// `header` looks up one header by its lower-case name. The header that decides is not chosen by whether it fits: a wrong
/// one is not rescued by a right one of another family. Hex in upper case is accepted; it is the same 32 bytes.
pub fn verify<'h>(
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    secrets: &[Secret],
) -> Result<(), SignatureError> {
    // Anybody can sign with an empty secret.
    let secrets: Vec<&Secret> = secrets.iter().filter(|s| !s.expose().is_empty()).collect();
    if secrets.is_empty() {
        return Err(SignatureError::NotConfigured);
    }
    let given = HEADERS
        .into_iter()
        .filter_map(&header)
        .map(|value| {
            let value = value.trim();
            value.strip_prefix("sha256=").unwrap_or(value)
        })
        .find(|value| !value.is_empty())
        .ok_or(SignatureError::Missing)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(given, &mut bytes).map_err(|_| SignatureError::Bad)?;
    // Every secret is tried, so that the time does not tell which one fits.
    let fits = secrets.iter().filter(|secret| fits(secret, body, &bytes)).count();
    if fits > 0 { Ok(()) } else { Err(SignatureError::Bad) }
}

fn fits(secret: &Secret, body: &[u8], signature: &[u8; 32]) -> bool {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(body);
    mac.verify_slice(signature).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Headers<'h> = &'h [(&'h str, &'h str)];

    const BODY: &[u8] = b"{\"a\":1}";

    fn sign(secret: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(body);
        hex::encode(mac.finalize().into_bytes())
    }

    fn check(headers: &[(&str, &str)], secrets: &[&str]) -> Result<(), SignatureError> {
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new(*s)).collect();
        let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        verify(header, BODY, &secrets)
    }

    #[test]
    fn the_known_vector() {
        // RFC 4231, test case 2.
        let secrets = [Secret::new("Jefe")];
        let signature = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let header = |name: &str| (name == "x-gitea-signature").then_some(signature);
        assert_eq!(verify(header, b"what do ya want for nothing?", &secrets), Ok(()));
    }

    #[test]
    fn the_first_header_that_holds_anything_decides() {
        use SignatureError::{Bad, Missing, NotConfigured};
        let good = &*sign("k", BODY);
        let upper = &*good.to_uppercase();
        let prefixed = &*format!("sha256={good}");
        let other = &*sign("other", BODY);
        let (f, g, h) = (HEADERS[0], HEADERS[1], HEADERS[2]);
        let cases: &[(Headers<'_>, Result<(), SignatureError>)] = &[
            (&[(f, good)], Ok(())),
            (&[(g, good)], Ok(())),
            (&[(h, prefixed)], Ok(())),
            (&[(h, good)], Ok(())),
            (&[(f, prefixed)], Ok(())),
            (&[(f, upper)], Ok(())),
            (&[(f, ""), (g, " "), (h, prefixed)], Ok(())),
            (&[(f, "sha256="), (g, good)], Ok(())),
            (&[(f, other), (g, good), (h, prefixed)], Err(Bad)),
            (&[(f, good), (g, other)], Ok(())),
            (&[(f, "zz")], Err(Bad)),
            (&[(f, &good[..62])], Err(Bad)),
            (&[(f, &good[1..])], Err(Bad)),
            (&[(f, &good.replace(&good[..2], "g0"))], Err(Bad)),
            (&[(f, &format!("{good}00"))], Err(Bad)),
            (&[(f, &format!("sha1={good}"))], Err(Bad)),
            (&[(f, "é")], Err(Bad)),
            (&[], Err(Missing)),
            (&[(f, ""), (h, "sha256=")], Err(Missing)),
            (&[("x-hub-signature", good)], Err(Missing)),
        ];
        for (headers, wanted) in cases {
            assert_eq!(&check(headers, &["k"]), wanted, "{headers:?}");
        }
        assert_eq!(check(&[(f, good)], &["new", "k"]), Ok(()));
        assert_eq!(check(&[(f, good)], &[]), Err(NotConfigured));
        // An empty secret is none, also when the delivery is signed with it.
        assert_eq!(check(&[(f, &sign("", BODY))], &[""]), Err(NotConfigured));
        assert_eq!(check(&[(f, &sign("", BODY))], &["", "k"]), Err(Bad));
    }

    proptest! {
        #[test]
        fn arbitrary_headers_and_bodies_never_pass_and_never_panic(
            value in ".{0,80}", body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let result = verify(|_| Some(value.as_str()), &body, &[Secret::new("k")]);
            prop_assert!(result.is_err());
        }

        #[test]
        fn one_changed_byte_is_noticed(
            mut body in proptest::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(),
        ) {
            let signature = sign("k", &body);
            let secrets = [Secret::new("k")];
            prop_assert!(verify(|_| Some(signature.as_str()), &body, &secrets).is_ok());
            let at = at.index(body.len());
            body[at] ^= 1;
            prop_assert_eq!(
                verify(|_| Some(signature.as_str()), &body, &secrets), Err(SignatureError::Bad));
        }
    }
}
