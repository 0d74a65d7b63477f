//! Where the database is: one server, or several of which one takes writes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use deadpool_postgres::Connect;
use futures_util::{FutureExt as _, future::BoxFuture, future::poll_fn};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, Error, NoTls,
    config::{SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use crate::config::Secret;

/// One of several servers has so long to answer before the next is asked.
const EACH: Duration = Duration::from_secs(3);
/// A server has so long to answer when there is no other.
const LAST: Duration = Duration::from_secs(5);

/// What a connection says besides the replies; it must be asked again and again, for the replies, too.
pub(super) type Messages =
    Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<AsyncMessage, Error>>> + Send>;

/// `sslmode=require` in the address means TLS with a verified certificate; anything else means none.
#[derive(Clone)]
enum Tls {
    Off,
    Verified(MakeRustlsConnect),
}

/// The servers of one address. Cheap to clone.
#[derive(Clone)]
pub(super) struct Servers {
    each: Arc<[Config]>,
    tls: Tls,
    /// The one that answered last.
    good: Arc<AtomicUsize>,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Servers")
    }
}

impl Servers {
    /// Reads an address. `settings` are set for every session; `name` shows in `pg_stat_activity`.
    pub(super) fn new(
        url: &Secret,
        settings: &[(&str, &str)],
        name: &str,
    ) -> Result<Self, StoreError> {
        let config = session_config(url, settings, name)?;
        let tls = tls(&config)?;
        let count = config.get_hosts().len().max(config.get_hostaddrs().len());
        let each = match count {
            0 | 1 => vec![config],
            _ => (0..count).map(|place| one_of(&config, place)).collect(),
        };
        Ok(Self { each: each.into(), tls, good: Arc::default() })
    }

    /// Connects to the first that will have us, beginning with the one that did last. Each has a few seconds: a machine
    /// that is frozen takes connections and says nothing.
    pub(super) async fn connect(&self) -> Result<(Client, Messages), Error> {
        let first = self.good.load(Relaxed);
        let mut last = first;
        for step in 0..self.each.len() - 1 {
            let place = (first + step) % self.each.len();
            if let Ok(Ok(connected)) = tokio::time::timeout(EACH, self.connect_to(place)).await {
                self.good.store(place, Relaxed);
                return Ok(connected);
            }
            last = place + 1;
        }
        let place = last % self.each.len();
        let connected = self.connect_to(place).await?;
        self.good.store(place, Relaxed);
        Ok(connected)
    }

    /// How long [`Self::connect`] may take.
    pub(super) fn patience(&self) -> Duration {
        EACH * u32::try_from(self.each.len() - 1).unwrap_or(0) + LAST
    }

    /// The same, at most so long.
    pub(super) async fn connect_in_time(&self) -> Result<(Client, Messages), StoreError> {
        match tokio::time::timeout(self.patience(), self.connect()).await {
            Ok(connected) => connected.map_err(|e| StoreError::Unreachable(Box::new(e))),
            Err(_) => Err(StoreError::silent(self.patience())),
        }
    }

    /// Which version it is that does not take what sessions of ours must have: its number, and what it says.
    pub(super) async fn version(&self) -> Result<(i32, String), Error> {
        let mut plain = self.each[self.good.load(Relaxed)].clone();
        plain.options("");
        let (client, messages) = self.open(&plain).await?;
        let driving = tokio::spawn(drive(messages));
        let sql = "select current_setting('server_version_num')::integer, current_setting('server_version')";
        let row = client.query_one(sql, &[]).await;
        drop(client);
        driving.abort();
        row.map(|row| (row.get(0), row.get(1)))
    }

    async fn connect_to(&self, place: usize) -> Result<(Client, Messages), Error> {
        self.open(&self.each[place]).await
    }

    async fn open(&self, config: &Config) -> Result<(Client, Messages), Error> {
        match &self.tls {
            Tls::Off => {
                let (client, connection) = config.connect(NoTls).await?;
                Ok((client, messages(connection)))
            }
            Tls::Verified(tls) => {
                let (client, connection) = config.connect(tls.clone()).await?;
                Ok((client, messages(connection)))
            }
        }
    }

    /// The configuration of the first.
    pub(super) fn config(&self) -> &Config {
        &self.each[0]
    }
}

impl Connect for Servers {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        async move {
            let (client, messages) = self.connect().await?;
            Ok((client, tokio::spawn(drive(messages))))
        }
        .boxed()
    }
}

/// Keeps a connection going until it ends.
pub(super) async fn drive(mut messages: Messages) {
    while let Some(Ok(_)) = poll_fn(|cx| messages(cx)).await {}
}

fn messages<S, T>(mut connection: Connection<S, T>) -> Messages
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::new(move |cx: &mut Context<'_>| connection.poll_message(cx))
}

fn session_config(
    url: &Secret,
    settings: &[(&str, &str)],
    name: &str,
) -> Result<Config, StoreError> {
    let mut config: Config = url.expose().parse().map_err(|e: tokio_postgres::Error| {
        // The parser's cause names the bad part of the address, never the password.
        let reason =
            std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
        StoreError::Address { reason }
    })?;
    let mut options = config.get_options().unwrap_or_default().to_owned();
    for (setting, value) in settings {
        options.push_str(&format!(" -c {setting}={value}"));
    }
    let options = options.trim();
    if !options.is_empty() {
        config.options(options);
    }
    config
        .application_name(format!("agent-fleet/{name}"))
        .connect_timeout(Duration::from_secs(5))
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(20));
    if config.get_ssl_mode() == SslMode::Prefer {
        config.ssl_mode(SslMode::Disable);
    }
    Ok(config)
}

/// The same configuration with only one of its servers, which must take writes: of several, one does.
fn one_of(config: &Config, place: usize) -> Config {
    let mut one = Config::new();
    if let Some(host) = config.get_hosts().get(place) {
        match host {
            tokio_postgres::config::Host::Tcp(name) => one.host(name),
            tokio_postgres::config::Host::Unix(path) => one.host_path(path),
        };
    }
    if let Some(address) = config.get_hostaddrs().get(place) {
        one.hostaddr(*address);
    }
    let ports = config.get_ports();
    if let Some(port) = ports.get(place).or_else(|| ports.first()) {
        one.port(*port);
    }
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(dbname) = config.get_dbname() {
        one.dbname(dbname);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    one.connect_timeout(EACH)
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    one
}

fn tls(config: &Config) -> Result<Tls, StoreError> {
    if config.get_ssl_mode() != SslMode::Require {
        return Ok(Tls::Off);
    }
    crate::tls::install_provider();
    MakeRustlsConnect::with_native_certs().map(|(tls, _)| Tls::Verified(tls)).map_err(|e| {
        StoreError::Address {
            reason: format!(
                "sslmode=require needs certificate authorities, and none could be loaded: {e:?}"
            ),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_address_is_refused_without_its_password() {
        for url in ["postgres://u:hunter2@h:port/db", "host=h password=hunter2 nonsense=1"] {
            let error = session_config(&Secret::new(url), &[], "r").unwrap_err();
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn sessions_carry_their_limits_and_their_name() {
        let limits = [("lock_timeout", "5s")];
        let config = session_config(&Secret::new("host=h user=u"), &limits, "r1").unwrap();
        assert!(config.get_options().unwrap().contains("lock_timeout=5s"));
        assert_eq!(config.get_application_name(), Some("agent-fleet/r1"));
        assert_eq!(config.get_ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn of_several_servers_each_is_asked_by_itself_and_must_take_writes() {
        let url = "postgres://u:p@one:1,two:2/d?sslmode=disable&application_name=x";
        let servers = Servers::new(&Secret::new(url), &[("lock_timeout", "5s")], "r1").unwrap();
        let hosts: Vec<String> = servers
            .each
            .iter()
            .map(|c| format!("{:?} {:?}", c.get_hosts(), c.get_ports()))
            .collect();
        assert_eq!(hosts, ["[Tcp(\"one\")] [1]", "[Tcp(\"two\")] [2]"]);
        for config in servers.each.iter() {
            assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
            assert_eq!((config.get_user(), config.get_dbname()), (Some("u"), Some("d")));
            assert_eq!(config.get_password(), Some("p".as_bytes()));
            assert!(config.get_options().unwrap().contains("lock_timeout=5s"));
        }
        // A lone one may be a standby: reads go on.
        let servers = Servers::new(&Secret::new("postgres://u@one/d"), &[], "r1").unwrap();
        assert_eq!(servers.config().get_target_session_attrs(), TargetSessionAttrs::Any);
    }
}
