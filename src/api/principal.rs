//! Who makes a call, and what they may do.

use subtle::ConstantTimeEq;
use warp::http::header;

use super::{call::Call, error::ApiError};
use crate::{
    config::{AuthMode, Secret},
    model::{Actor, AgentId},
    store::{AgentSession, TokenOwner},
};

/// Who makes a call.
#[derive(Debug, Clone)]
pub(super) enum Principal {
    /// May do everything; in open mode everybody is one.
    Admin,
    /// May read, create, assign, retry, cancel.
    Operator,
    /// May read.
    Viewer,
    /// May register an agent.
    Enrollment,
    /// May make the calls of every agent.
    SharedAgent,
    /// An agent, with the token it has now or had before.
    Agent(TokenOwner),
}

impl Call {
    /// Who makes the call; found out once. Renews the session of an agent. Handlers ask this before they read the body: who
    /// may not ask learns nothing from its errors.
    pub(super) async fn principal(&self) -> Result<&Principal, ApiError> {
        self.principal.get_or_try_init(|| self.find_principal()).await
    }

    async fn find_principal(&self) -> Result<Principal, ApiError> {
        if let Err(refused) = &self.admitted {
            return Err(refused.clone());
        }
        let open = self.replica.config.auth.mode == AuthMode::Open;
        if open {
            self.refuse_foreign()?;
        }
        let Some(token) = self.bearer()? else {
            return if open {
                Ok(Principal::Admin)
            } else {
                Err(ApiError::unauthorized("this call needs `Authorization: Bearer <token>`"))
            };
        };
        let digest = crate::store::token_digest(token);
        let auth = &self.replica.config.auth;
        for (tokens, principal) in [
            (&auth.admin_token, Principal::Admin),
            (&auth.operator_token, Principal::Operator),
            (&auth.viewer_token, Principal::Viewer),
            (&auth.enrollment_token, Principal::Enrollment),
            (&auth.shared_agent_token, Principal::SharedAgent),
        ] {
            if is_one_of(tokens, &digest) {
                return Ok(principal);
            }
        }
        match self.replica.find_owner(digest).await? {
            Some(owner) => {
                self.count_for(owner.agent.session)?;
                if owner.current && owner.agent.live {
                    self.replica.heartbeats.touch(owner.agent.session);
                }
                Ok(Principal::Agent(owner))
            }
            None if open => Ok(Principal::Admin),
            None => Err(ApiError::unauthorized("this token is not known here")),
        }
    }

    fn bearer(&self) -> Result<Option<&str>, ApiError> {
        let Some(value) = self.headers.get(header::AUTHORIZATION) else { return Ok(None) };
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        match token {
            Some(token) if !token.is_empty() => Ok(Some(token)),
            _ => Err(ApiError::unauthorized(
                "the credential must be `Authorization: Bearer <token>`",
            )),
        }
    }

    /// The digest of the credential.
    pub(super) fn bearer_digest(&self) -> Result<[u8; 32], ApiError> {
        let token =
            self.bearer()?.ok_or_else(|| ApiError::unauthorized("this call needs a token"))?;
        Ok(crate::store::token_digest(token))
    }

    /// Open mode is for this machine only: a page in a browser, or a proxy, is not it.
    fn refuse_foreign(&self) -> Result<(), ApiError> {
        let foreign = |what: &str| {
            Err(ApiError::forbidden(format!(
                "open mode serves this machine only, and the request has a foreign {what}; use auth.mode = \"token\""
            )))
        };
        let forwarded = self
            .headers
            .keys()
            .any(|name| name == header::FORWARDED || name.as_str().starts_with("x-forwarded-"));
        if forwarded {
            return foreign("Forwarded header");
        }
        if self.header("host").is_some_and(|host| !is_loopback(host)) {
            return foreign("Host");
        }
        if self.headers.contains_key(header::ORIGIN)
            && !self.header("origin").is_some_and(|origin| {
                origin.split_once("://").is_some_and(|(_, host)| is_loopback(host))
            })
        {
            return foreign("Origin");
        }
        Ok(())
    }

    /// Any GET: viewer and above.
    pub(super) async fn reader(&self) -> Result<(), ApiError> {
        match self.principal().await? {
            Principal::Admin | Principal::Operator | Principal::Viewer => Ok(()),
            Principal::Enrollment | Principal::SharedAgent | Principal::Agent(_) => {
                Err(ApiError::forbidden("this call needs the viewer, operator or admin token"))
            }
        }
    }

    /// Create, assign, retry, cancel: operator and above.
    pub(super) async fn operator(&self) -> Result<Actor, ApiError> {
        match self.principal().await? {
            Principal::Admin => Ok(Actor::Operator("admin")),
            Principal::Operator => Ok(Actor::Operator("operator")),
            _ => Err(ApiError::forbidden("this call needs the operator or admin token")),
        }
    }

    /// Drain, resume, delete: admin only.
    pub(super) async fn admin(&self) -> Result<(), ApiError> {
        match self.principal().await? {
            Principal::Admin => Ok(()),
            _ => Err(ApiError::forbidden("this call needs the admin token")),
        }
    }

    /// A call of an agent, by its own token or the shared one, or for it by admin. 404 for an agent that is unknown, 403
    /// for another's.
    pub(super) async fn agent(&self, agent_id: &str) -> Result<AgentSession, ApiError> {
        match self.principal().await? {
            Principal::Admin | Principal::SharedAgent => {
                // Nobody has such a name, and the database does not even take every text.
                AgentId::parse(agent_id).map_err(|e| ApiError::bad_request(e.to_string()))?;
                let agent = self.replica.find_session(agent_id).await?;
                let agent = agent.ok_or_else(|| {
                    ApiError::not_found("there is no such agent; register it first")
                })?;
                self.count_for(agent.session)?;
                if agent.live {
                    self.replica.heartbeats.touch(agent.session);
                }
                Ok(agent)
            }
            Principal::Agent(owner) if owner.agent.agent_id.as_str() == agent_id => {
                // The token before belongs to a session that has been replaced.
                Ok(AgentSession { live: owner.agent.live && owner.current, ..owner.agent.clone() })
            }
            Principal::Agent(_) => Err(ApiError::forbidden("this token is another agent's")),
            _ => Err(ApiError::forbidden("this call needs the agent's own token")),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Compares digests in constant time, and all of them.
fn is_one_of(tokens: &[Secret], given: &[u8; 32]) -> bool {
    tokens
        .iter()
        .map(|token| crate::store::token_digest(token.expose()).ct_eq(given))
        .fold(subtle::Choice::from(0), |any, one| any | one)
        .into()
}

/// `localhost`, `127.0.0.0/8` or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for host in
            ["localhost", "localhost:9090", "127.0.0.1:1", "127.9.9.9", "[::1]:9090", "[::1]"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["example.org", "localhost.example.org", "10.0.0.1:9090", "", "127.0.0.1.example.org"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn one_of_several_tokens() {
        let tokens = [Secret::new("a"), Secret::new("b")];
        let digest = crate::store::token_digest;
        assert!(is_one_of(&tokens, &digest("a")) && is_one_of(&tokens, &digest("b")));
        assert!(!is_one_of(&tokens, &digest("c")) && !is_one_of(&[], &digest("")));
    }
}
