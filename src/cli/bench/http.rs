//! HTTP as cheap as it gets: the load shares its cores with what it measures, so each agent is one task with one
//! connection and one buffer, without the channels and the second task of a general client.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// A connection that has rested for so long may have been closed by the other side.
const RESTED: Duration = Duration::from_secs(1);
/// Headers of a reply.
const MAX_HEADERS: usize = 32;

/// Where a coordinator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Host and port.
    authority: String,
    /// What stands before each path, when a proxy puts the coordinator below one.
    prefix: String,
}

/// A connection that is kept alive, and the credential that its calls carry.
#[derive(Debug)]
pub(super) struct Connection {
    address: Address,
    token: Option<String>,
    stream: TcpStream,
    used: Instant,
    input: Vec<u8>,
}

/// An answer. Its body stays in the connection's buffer until the next call.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    pub(super) status: u16,
    pub(super) body: &'a [u8],
}

impl Address {
    /// Reads `http://host:port/path`.
    pub(super) fn parse(url: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.trim().strip_prefix("http://") else {
            bail!(
                "{url} is no address that begins with http://; give the address of a replica itself"
            );
        };
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() || authority.contains('@') {
            bail!("{url} names no host, or more than a host");
        }
        let has_port =
            authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Ok(Self { authority, prefix })
    }

    /// A connection that nothing has been said on.
    pub(super) async fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect(&self.authority)
            .await
            .with_context(|| format!("cannot reach the coordinator at {}", self.authority))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Connection {
    /// Connects. `token` is the bearer of every call.
    pub(super) async fn open(address: &Address, token: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self {
            stream: address.connect().await?,
            address: address.clone(),
            token: token.map(str::to_owned),
            used: Instant::now(),
            input: Vec::with_capacity(8 << 10),
        })
    }

    /// Sets the bearer of the calls to come.
    pub(super) fn authorize(&mut self, token: String) {
        self.token = Some(token);
    }

    /// `POST path` with a JSON body.
    pub(super) async fn post(&mut self, path: &str, body: &[u8]) -> anyhow::Result<Reply<'_>> {
        self.call("POST", path, &[], body).await
    }

    /// Any call.
    pub(super) async fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> anyhow::Result<Reply<'_>> {
        if self.used.elapsed() > RESTED && self.has_closed() {
            self.reconnect().await?;
        }
        let request = self.request(method, path, headers, body);
        let exchanged = async {
            self.stream.write_all(&request).await?;
            self.read_reply().await
        };
        let (status, body) =
            exchanged.await.with_context(|| format!("{method} {path} had no whole answer"))?;
        self.used = Instant::now();
        Ok(Reply { status, body: &self.input[body] })
    }

    fn has_closed(&self) -> bool {
        let nothing_yet = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
        !matches!(self.stream.try_read(&mut [0]), Err(e) if nothing_yet(&e))
    }

    /// Connects anew.
    pub(super) async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.stream = self.address.connect().await?;
        Ok(())
    }

    /// A request as it goes over the wire.
    pub(super) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(512 + body.len());
        for part in [
            method,
            " ",
            &self.address.prefix,
            path,
            " HTTP/1.1\r\nhost: ",
            &self.address.authority,
        ] {
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(token) = &self.token {
            out.extend_from_slice(b"\r\nauthorization: Bearer ");
            out.extend_from_slice(token.as_bytes());
        }
        for (name, value) in headers {
            for part in ["\r\n", name, ": ", value] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        if !body.is_empty() {
            out.extend_from_slice(b"\r\ncontent-type: application/json");
        }
        out.extend_from_slice(format!("\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes());
        out.extend_from_slice(body);
        out
    }

    /// The status, and where in `input` the body stands.
    async fn read_reply(&mut self) -> anyhow::Result<(u16, std::ops::Range<usize>)> {
        self.input.clear();
        let (status, begin, length) = loop {
            self.read_more().await?;
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut head = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(begin) = head.parse(&self.input)? {
                break (head.code.unwrap_or_default(), begin, body_length(&head)?);
            }
        };
        while self.input.len() < begin + length {
            self.read_more().await?;
        }
        Ok((status, begin..begin + length))
    }

    async fn read_more(&mut self) -> anyhow::Result<()> {
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the coordinator closed the connection");
        }
        Ok(())
    }
}

fn body_length(head: &httparse::Response<'_, '_>) -> anyhow::Result<usize> {
    let value = |name: &str| {
        head.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    };
    if value("transfer-encoding").is_some() {
        bail!("the answer comes in chunks, as no coordinator sends it");
    }
    match value("content-length") {
        Some(length) => Ok(std::str::from_utf8(length)?.parse()?),
        None => Ok(0),
    }
}

impl<'a> Reply<'a> {
    /// The body, when the status is the wanted one; else an error that shows what the coordinator said.
    pub(super) fn expect<T: Deserialize<'a>>(self, status: u16) -> anyhow::Result<T> {
        if self.status != status {
            bail!(
                "the coordinator answered {}: {}",
                self.status,
                String::from_utf8_lossy(self.body)
            );
        }
        serde_json::from_slice(self.body)
            .context("the coordinator answered with another body than its API has")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parsed = |url| Address::parse(url).unwrap();
        let address = parsed("http://127.0.0.1:9090");
        assert_eq!((address.authority.as_str(), address.prefix.as_str()), ("127.0.0.1:9090", ""));
        let address = parsed("http://fleet/below/");
        assert_eq!((address.authority.as_str(), address.prefix.as_str()), ("fleet:80", "/below"));
        for bad in ["", "fleet:9090", "https://fleet", "http://", "http://u:p@fleet"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
