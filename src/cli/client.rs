//! The HTTP client of the command line and of the pull agent: where the coordinator is, who asks, and what an answer
//! that is no success means for a person.

use std::{net::IpAddr, time::Duration};

use reqwest::{Method, RequestBuilder, Url, header};
use serde::{Serialize, de::DeserializeOwned};

use crate::config::Secret;

/// Where `agent-fleet serve` and `dev` listen unless told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:9090";
/// How long a call may take, unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A coordinator, as one caller sees it.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<Secret>,
}

/// Why a call has no answer of the kind that was wanted.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ClientError {
    #[error("AGENT_FLEET_URL is not the http or https address of a coordinator: {0}")]
    BadUrl(&'static str),
    #[error("AGENT_FLEET_TOKEN holds characters that no token has")]
    BadToken,
    #[error(
        "cannot prepare for https; certificates of authorities must be installed (Debian, Ubuntu: `apt-get install \
         ca-certificates`) or named by SSL_CERT_FILE"
    )]
    Tls(#[source] reqwest::Error),
    #[error(
        "cannot reach the coordinator at {base}; is it running there? AGENT_FLEET_URL says where it is looked for"
    )]
    Unreachable { base: String, source: reqwest::Error },
    #[error("{message}{}", hint(*status, *retry_after))]
    Refused { status: u16, code: String, message: String, retry_after: Option<u64> },
    #[error(
        "{base} answered with status {status} in a way no coordinator does; check AGENT_FLEET_URL"
    )]
    Foreign { base: String, status: u16 },
}

impl ClientError {
    /// The server's `code`, when it was the server that refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// The HTTP status, when there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } | Self::Foreign { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// True when the same call may succeed later: the server was not reached, is limited or in trouble.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } | Self::Foreign { status, .. } => {
                matches!(status, 408 | 429 | 500..)
            }
            Self::BadUrl(_) | Self::BadToken | Self::Tls(_) => false,
        }
    }
}

/// What to do about a refusal.
fn hint(status: u16, retry_after: Option<u64>) -> String {
    match (status, retry_after) {
        (401, _) => " (set AGENT_FLEET_TOKEN to a token that this coordinator knows)".to_owned(),
        (403, _) => " (AGENT_FLEET_TOKEN holds a token that may not do this)".to_owned(),
        (429 | 503, Some(secs)) => format!(" (try again in {secs} s)"),
        _ => String::new(),
    }
}

/// The body of every error that a coordinator answers.
#[derive(serde::Deserialize)]
struct ErrorBody {
    error: String,
    code: String,
}

impl Client {
    /// From `AGENT_FLEET_URL` and `AGENT_FLEET_TOKEN`.
    pub fn from_env() -> Result<Self, ClientError> {
        let set = |name| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        let url = set("AGENT_FLEET_URL");
        let token = set("AGENT_FLEET_TOKEN").map(|t| Secret::new(t.trim()));
        Self::new(url.as_deref().unwrap_or(DEFAULT_URL), token)
    }

    /// For the coordinator at `url` (it may have a path, when a proxy puts it below one).
    pub fn new(url: &str, token: Option<Secret>) -> Result<Self, ClientError> {
        let parsed = Url::parse(url.trim()).map_err(|_| ClientError::BadUrl("it is no address"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(ClientError::BadUrl("it must begin with http:// or https://"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(ClientError::BadUrl("it holds a password; use AGENT_FLEET_TOKEN"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(ClientError::BadUrl("it must end with the path"));
        }
        crate::tls::install_provider();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("agent-fleet/", env!("CARGO_PKG_VERSION")))
            // A token goes where it was meant to go and nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        if parsed.scheme() == "http" {
            // Works on a machine without certificates.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&parsed) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(ClientError::Tls)?;
        let client =
            Self { http, base: parsed.as_str().trim_end_matches('/').to_owned(), token: None };
        client.with_token(token)
    }

    /// The same coordinator, asked with another token.
    pub fn with_token(&self, token: Option<Secret>) -> Result<Self, ClientError> {
        let fits = |t: &Secret| header::HeaderValue::from_str(t.expose()).is_ok();
        if !token.as_ref().is_none_or(fits) {
            return Err(ClientError::BadToken);
        }
        Ok(Self { http: self.http.clone(), base: self.base.clone(), token })
    }

    /// The coordinator's address, without a trailing slash.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A call to be completed and given to [`Self::send`]. `path` begins with a slash and is percent-encoded where
    /// needed, see [`segment`].
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base)).timeout(TIMEOUT);
        match &self.token {
            // reqwest marks the header as sensitive.
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// `GET path?query`.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        let mut path = path.to_owned();
        for (i, (name, value)) in query.iter().enumerate() {
            let separator = if i == 0 { '?' } else { '&' };
            path.push_str(&format!("{separator}{name}={}", segment(value)));
        }
        self.answer(self.request(Method::GET, &path)).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.answer(self.request(Method::POST, path).json(body)).await
    }

    /// Sends a call that always has a body in its answer.
    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let found = self.send(request).await?;
        found.ok_or_else(|| ClientError::Foreign { base: self.base.clone(), status: 204 })
    }

    /// Sends a call; `None` when the answer is 204, no content.
    pub async fn send<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<Option<T>, ClientError> {
        let unreachable = |source: reqwest::Error| ClientError::Unreachable {
            base: self.base.clone(),
            source: source.without_url(),
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|v| v.to_str().ok()?.parse().ok());
        let body = response.bytes().await.map_err(unreachable)?;
        let foreign = || ClientError::Foreign { base: self.base.clone(), status: status.as_u16() };
        if status == reqwest::StatusCode::NO_CONTENT {
            return Ok(None);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map(Some).map_err(|_| foreign());
        }
        let ErrorBody { error, code } = serde_json::from_slice(&body).map_err(|_| foreign())?;
        Err(ClientError::Refused { status: status.as_u16(), code, message: error, retry_after })
    }
}

/// One segment of a path or one value of a query, percent-encoded.
pub fn segment(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(text, KEPT).to_string()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A server that answers each request head through `answer`, with `(status, body)`.
    async fn serve(answer: fn(&str) -> (u16, String)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let (status, body) = answer(std::str::from_utf8(&head).unwrap());
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn answers_become_values_and_messages() {
        let url = serve(|head| match head.split(' ').nth(1).unwrap() {
            "/base/no" => (401, r#"{"error":"No.","code":"unauthorized"}"#.to_owned()),
            "/base/html" => (502, "<html>".to_owned()),
            "/base/none" => (204, String::new()),
            _ => (200, serde_json::json!({ "head": head }).to_string()),
        })
        .await;
        let client = Client::new(&format!("{url}/base/"), Some(Secret::new("abc"))).unwrap();
        let path = format!("/echo/{}", segment("org/repo#42"));
        let value: serde_json::Value = client.get(&path, &[("q", "a&b".to_owned())]).await.unwrap();
        let head = value["head"].as_str().unwrap();
        assert!(head.starts_with("GET /base/echo/org%2Frepo%2342?q=a%26b "), "{head}");
        assert!(head.contains("authorization: Bearer abc\r\n"), "{head}");

        let error = client.get::<()>("/no", &[]).await.unwrap_err();
        assert_eq!((error.status(), error.code()), (Some(401), Some("unauthorized")));
        let text = format!("{error} {error:?}");
        assert!(text.starts_with("No. (set AGENT_FLEET_TOKEN"), "{text}");
        assert!(!text.contains("abc"));

        let error = client.get::<()>("/html", &[]).await.unwrap_err();
        assert!(matches!(error, ClientError::Foreign { status: 502, .. }) && error.is_passing());
        let none: Option<()> = client.send(client.request(Method::GET, "/none")).await.unwrap();
        assert!(none.is_none());
    }

    #[tokio::test]
    async fn an_absent_server_is_named_without_the_token() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(&url, Some(Secret::new("abc"))).unwrap();
        let error = client.get::<()>("/", &[]).await.unwrap_err();
        assert!(error.is_passing());
        let text = format!("{:#} {client:?}", anyhow::Error::from(error));
        assert!(text.contains(&url) && text.contains("AGENT_FLEET_URL") && !text.contains("abc"));
    }

    #[test]
    fn odd_settings_are_refused() {
        for bad in ["", "localhost", "ftp://x", "http://u:p@x", "http://x/?a=b"] {
            let error = Client::new(bad, None).unwrap_err();
            assert!(matches!(error, ClientError::BadUrl(_)), "{bad}");
            assert!(!error.to_string().contains("u:p"));
        }
        let error = Client::new(DEFAULT_URL, Some(Secret::new("a\nb"))).unwrap_err();
        assert!(matches!(error, ClientError::BadToken));
    }
}
