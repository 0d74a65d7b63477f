//! Commits that go through although nobody hears of it, or not at once: the connection is cut between the commit and its
//! answer, or the answer is late. What was done is found by reading it again, and is not answered as refused.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use agent_fleet::{
    model::{AgentId, CapabilitySet, ExecutionMode as Mode, Status, TaskId},
    store::{
        Created, Credential, Ended, HeldLease, NewRequest, Outcome, Registration, Store, Waiter,
    },
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::Notify,
};
use tokio_postgres::{Config, config::Host};

use crate::support::{
    db::{Db, database},
    eventually,
    fleet::{HOUR, NOW, agent, complete, completion, create, ending, hinted, operator, pull, task},
};

/// Stands between a store and its database. Once armed, the answer to the next COMMIT is lost with its connection; or it waits until
/// it is let go, or a statement itself does.
struct Line {
    fault: Arc<Fault>,
    store: Store,
}

#[derive(Default)]
struct Fault {
    armed: AtomicBool,
    is_delay: AtomicBool,
    is_hold: AtomicBool,
    /// What the statement says that is to wait; else COMMIT.
    said: Mutex<Option<Vec<u8>>>,
    go_on: Notify,
}

/// The end of the answer to a COMMIT, and that the server is ready for the next.
const DONE: &[u8] = b"COMMIT\0Z\0\0\0\x05I";

/// A stream of bytes, by whatever way the server is reached.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

async fn dial(config: &Config) -> Box<dyn Wire> {
    let port = *config.get_ports().first().unwrap_or(&5432);
    match &config.get_hosts()[0] {
        Host::Unix(dir) => {
            Box::new(UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await.unwrap())
        }
        Host::Tcp(host) => Box::new(TcpStream::connect((host.as_str(), port)).await.unwrap()),
    }
}

impl Line {
    async fn new(db: &Db) -> Self {
        let config: Config = db.url().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (user, name) = (config.get_user().unwrap(), config.get_dbname().unwrap());
        let mut url = format!("host=127.0.0.1 port={port} user={user} dbname={name}");
        if let Some(password) = config.get_password() {
            url.push_str(&format!(" password={}", std::str::from_utf8(password).unwrap()));
        }
        let fault: Arc<Fault> = Arc::default();
        let strikes = Arc::clone(&fault);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, dial(&config).await, Arc::clone(&strikes)));
            }
        });
        Self { fault, store: Store::new(&database(&url), "test").unwrap() }
    }

    fn arm(&self) {
        self.fault.armed.store(true, Ordering::SeqCst);
    }

    fn was_cut(&self) -> bool {
        !self.fault.armed.load(Ordering::SeqCst)
    }

    /// The answer to the next COMMIT waits.
    fn delay(&self) {
        self.fault.is_delay.store(true, Ordering::SeqCst);
        self.arm();
    }

    /// The next statement with such a parameter waits.
    fn hold(&self, parameter: &[u8]) {
        *self.fault.said.lock().unwrap() = Some(parameter.to_vec());
        self.fault.is_hold.store(true, Ordering::SeqCst);
        self.arm();
    }

    /// Lets it go.
    fn go_on(&self) {
        self.fault.go_on.notify_one();
    }
}

async fn carry(mut client: TcpStream, mut server: Box<dyn Wire>, fault: Arc<Fault>) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                let said = fault.said.lock().unwrap().clone().unwrap_or(b"COMMIT\0".to_vec());
                let commits = up[..count].windows(said.len()).any(|w| w == said);
                let is_hold = fault.is_hold.load(Ordering::SeqCst);
                if is_hold && commits && fault.armed.swap(false, Ordering::SeqCst) {
                    fault.go_on.notified().await;
                }
                if server.write_all(&up[..count]).await.is_err() {
                    return;
                }
                if commits && fault.armed.swap(false, Ordering::SeqCst) {
                    if !fault.is_delay.load(Ordering::SeqCst) {
                        // It is answered once it is done, behind what was sent before it; then nobody hears of it.
                        let mut heard = Vec::new();
                        while !heard.ends_with(DONE) {
                            let Ok(count @ 1..) = server.read(&mut down).await else { return };
                            heard.extend_from_slice(&down[..count]);
                        }
                        return;
                    }
                    fault.go_on.notified().await;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A request for tasks with these keys; one without a key where it is empty.
fn named(keys: &[&str], body: &str) -> NewRequest {
    let tasks = keys.iter().map(|key| {
        let mut new = task(&[], Mode::Undecided);
        new.key = (!key.is_empty()).then(|| (*key).to_owned());
        body.clone_into(&mut new.body);
        new
    });
    NewRequest { tasks: tasks.collect(), idempotency_key: None, actor: operator() }
}

#[tokio::test]
async fn a_claim_that_went_through_is_told_though_nothing_else_is_ready() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    create(&line.store, task(&[], Mode::HttpPull), 1).await;
    let session = agent(&line.store, "a", &[], 2).await;
    line.arm();
    // Without a name that the agent gave its request.
    let claims = line.store.claim_for_agents(&[Waiter::one(session)], true).await.unwrap();
    assert!(line.was_cut());
    assert_eq!(claims.claimed.iter().map(|(_, _, lease)| lease.0).collect::<Vec<_>>(), [1]);
    assert_eq!(db.count("select count(*) from fleet.task_events where type = 'claimed'").await, 1);
    db.check_history().await;
}

#[tokio::test]
async fn a_claim_at_once_that_went_through_is_told() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    let session = agent(&line.store, "a", &[], 2).await;
    create(&line.store, task(&[], Mode::HttpPull), 1).await;
    complete(&line.store, pull(&line.store, session).await.unwrap()).await;
    let made = hinted(&line.store, vec![task(&[], Mode::Undecided); 2]).await;
    line.arm();
    let claims = line.store.claim_at_once(&Waiter::one(session)).await.unwrap();
    assert!(line.was_cut());
    assert_eq!(claims.claimed[0].1, made[0]);
    assert_eq!(db.count("select count(*) from fleet.tasks where holder is not null").await, 1);
    db.check_history().await;
}

#[tokio::test]
async fn a_completion_and_the_next_claim_that_went_through_together_are_told() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    let session = agent(&line.store, "a", &[], 1).await;
    create(&line.store, task(&[], Mode::HttpPull), 1).await;
    let held = pull(&line.store, session).await.unwrap();
    let made = hinted(&line.store, vec![task(&[], Mode::Undecided); 2]).await;
    line.arm();
    let worked = line.store.work(&[completion(held)], NOW, &[Waiter::one(session)]).await.unwrap();
    assert!(line.was_cut());
    assert_eq!(worked.ended, [Ended::Before]);
    assert_eq!(worked.claims.claimed[0].1, made[0]);
    assert_eq!(db.count("select count(*) from fleet.tasks where holder is not null").await, 1);
    assert_eq!(db.count("select count(*) from fleet.receipts").await, 1);
    db.check_history().await;
}

#[tokio::test]
async fn a_claim_that_is_heard_of_late_counts_at_once() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    let session = agent(&line.store, "a", &[], 1).await;
    let claim = async || {
        let claims = line.store.claim_for_agents(&[Waiter::one(session)], true).await.unwrap();
        let task = claims.claimed.first();
        task.map(|&(_, task_id, lease)| HeldLease { task_id, lease, holder: session })
    };
    // What the session holds is remembered by now.
    create(&line.store, task(&[], Mode::HttpPull), 1).await;
    complete(&line.store, claim().await.unwrap()).await;
    create(&line.store, task(&[], Mode::HttpPull), 3).await;

    line.delay();
    let (first, ()) = tokio::join!(claim(), async {
        let sql = "select count(*) from fleet.tasks where status = 'assigned'";
        eventually("the claim is committed", async || (db.count(sql).await == 1).then_some(()))
            .await;
        assert_eq!(claim().await, None, "it holds all that it may");
        let at_once = line.store.claim_at_once(&Waiter::one(session)).await.unwrap();
        assert_eq!(at_once.claimed, []);
        line.go_on();
    });
    assert_eq!(claim().await, None, "and still does");
    complete(&line.store, first.unwrap()).await;
    assert!(claim().await.is_some());
    db.check_history().await;
}

#[tokio::test]
async fn a_claim_at_once_that_is_late_takes_nothing_beyond_what_may_be_held() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    let session = agent(&line.store, "a", &[], 2).await;
    create(&line.store, task(&[], Mode::HttpPull), 1).await;
    let held = pull(&line.store, session).await;
    hinted(&line.store, vec![task(&[], Mode::Undecided); 3]).await;
    line.hold(session.0.as_bytes());
    let waiter = Waiter::one(session);
    let (at_once, in_full) = tokio::join!(line.store.claim_at_once(&waiter), async {
        eventually("it is on its way", async || line.was_cut().then_some(())).await;
        let claimed = pull(&line.store, session).await;
        line.go_on();
        claimed
    });
    assert!(held.is_some() && in_full.is_some(), "one slot each");
    let at_once = at_once.unwrap();
    assert!(at_once.claimed.is_empty() && at_once.shortfall, "{at_once:?}");
    // Alone with it again, the process remembers what it holds as before.
    complete(&line.store, in_full.unwrap()).await;
    assert!(pull(&line.store, session).await.is_some());
    assert!(pull(&line.store, session).await.is_none());
    db.check_history().await;
}

#[tokio::test]
async fn a_claim_that_another_replica_told_again_is_not_undone() {
    let db = Db::new().await;
    let (one, two) = (db.store(), db.store());
    create(&one, task(&[], Mode::Undecided), 1).await;
    let session = agent(&one, "a", &[], 5).await;
    let mut waiter = Waiter::one(session);
    waiter.repeatable = true;
    let claim = async |store: &Store| {
        let claims = store.claim_for_agents(std::slice::from_ref(&waiter), true).await.unwrap();
        let (_, task_id, lease) = claims.claimed[0];
        HeldLease { task_id, lease, holder: session }
    };
    let first = claim(&one).await;
    // The reply is on its way into nothing; the agent asks the other replica, and is told.
    assert_eq!(claim(&two).await, first);
    let undone = one.end_leases(&[ending(first, Outcome::Undone)], NOW).await.unwrap();
    assert!(matches!(undone[0], Ended::Not(_)), "{undone:?}");
    assert_eq!(status(&one, first.task_id).await, Status::Assigned);
    db.check_history().await;
}

#[tokio::test]
async fn creations_that_went_through_unheard_of_are_not_made_again() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    // Connected, and the lane is known.
    create(&line.store, task(&[], Mode::Undecided), 1).await;
    line.arm();
    let requests = [named(&[""], ""), named(&["", ""], ""), named(&["k"], "")];
    let made = line.store.create_together(&requests.each_ref(), &|_| false).await.unwrap();
    assert!(line.was_cut());
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 1 + 4);
    for (request, creation) in requests.iter().zip(&made) {
        assert!(matches!(creation.outcome, Created::New(_)), "{:?}", creation.outcome);
        assert_eq!(creation.tasks.len(), request.tasks.len());
    }
    db.check_history().await;
}

#[tokio::test]
async fn what_is_repeated_after_an_outage_does_not_hold_up_what_is_new() {
    const MANY: usize = 50;
    let db = Db::new().await;
    let store = db.store();
    let old: Vec<String> = (0..MANY).map(|n| format!("old-{n}")).collect();
    let new: Vec<String> = (0..MANY).map(|n| format!("new-{n}")).collect();
    let first: Vec<NewRequest> = old.iter().map(|key| named(&[key], "")).collect();
    let before =
        store.create_together(&first.iter().collect::<Vec<_>>(), &|_| false).await.unwrap();
    let mut requests: Vec<NewRequest> =
        old.iter().zip(&new).flat_map(|(o, n)| [named(&[o], ""), named(&[n], "")]).collect();
    requests.push(named(&["old-1", "half"], ""));
    requests[0] = named(&["old-0"], "another body");
    let made =
        store.create_together(&requests.iter().collect::<Vec<_>>(), &|_| false).await.unwrap();
    for (place, creation) in made.iter().enumerate() {
        let told = (&creation.outcome, creation.tasks.len());
        let conflict = |key: &str| Created::Conflict { key: key.to_owned() };
        match place {
            0 => assert_eq!(told, (&conflict("old-0"), 0)),
            _ if place == 2 * MANY => assert_eq!(told, (&conflict("old-1"), 0)),
            _ if place % 2 == 0 => {
                let id = before[place / 2].tasks[0].task_id;
                assert_eq!(told, (&Created::Repeated(vec![id]), 1));
                assert_eq!(creation.tasks[0].task_id, id);
            }
            _ => {
                assert_eq!(told, (&Created::New(vec![creation.tasks[0].task_id]), 1));
                assert_eq!(creation.tasks[0].key, new[place / 2]);
            }
        }
    }
    assert_eq!(db.count("select count(*) from fleet.tasks").await, 2 * MANY as i64);
    let sql = "select count(distinct xmin::text) from fleet.tasks where key like 'new-%'";
    assert_eq!(db.count(sql).await, 1, "one transaction for all that is new");
}

async fn types(db: &Db, id: TaskId) -> Vec<String> {
    let sql = "select type from fleet.task_events where task_id = $1 order by event_id";
    db.rows(sql, &[&id.0]).await.iter().map(|r| r.get(0)).collect()
}

async fn status(store: &Store, id: TaskId) -> Status {
    store.get_task(id).await.unwrap().unwrap().status
}

#[tokio::test]
async fn an_operators_act_that_was_done_unheard_is_not_refused() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    let id = create(&db.store(), task(&[], Mode::Undecided), 1).await[0];

    line.arm();
    let done = line.store.cancel_task(id, &operator(), Some("enough")).await.unwrap();
    assert!(line.was_cut());
    assert_eq!(done, Ok(()));
    assert_eq!(types(&db, id).await, ["created", "cancelled"]);
    // And one that was not: it is refused as ever.
    assert!(line.store.cancel_task(id, &operator(), None).await.unwrap().is_err());

    line.arm();
    assert_eq!(line.store.retry_task(id, &operator(), None).await.unwrap(), Ok(()));
    assert!(line.was_cut());
    assert_eq!(types(&db, id).await, ["created", "cancelled", "retried"]);
    assert!(line.store.retry_task(id, &operator(), None).await.unwrap().is_err());

    // An assignment may be done twice, which is once.
    line.arm();
    let assigned = line.store.assign_task(id, "a", Mode::HttpPull, HOUR, &operator()).await;
    assert_eq!(assigned.unwrap(), Ok(()));
    assert!(line.was_cut());
    assert_eq!(status(&line.store, id).await, Status::Assigned);
    db.check_history().await;
}

#[tokio::test]
async fn a_release_that_was_done_unheard_is_not_a_lost_lease() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    let store = db.store();
    let id = create(&store, task(&[], Mode::Undecided), 1).await[0];
    let session = agent(&store, "a", &[], 1).await;
    let held = pull(&store, session).await.unwrap();
    line.arm();
    let answer = line.store.end_leases(&[ending(held, Outcome::Released)], NOW).await.unwrap();
    assert!(line.was_cut());
    assert!(matches!(answer[0], Ended::Before | Ended::Now(_)), "{answer:?}");
    assert_eq!(types(&db, id).await, ["created", "claimed", "released"]);
    // Said again by itself, it is refused as ever.
    let answer = line.store.end_leases(&[ending(held, Outcome::Released)], NOW).await.unwrap();
    assert!(matches!(answer[0], Ended::Not(_)), "{answer:?}");
    db.check_history().await;
}

fn registration() -> Registration {
    Registration {
        agent_id: AgentId::parse("a").unwrap(),
        agent_type: "t".into(),
        hostname: "h".into(),
        capabilities: CapabilitySet::default(),
        max_concurrency: 1,
        metadata: json!({}),
    }
}

#[tokio::test]
async fn what_nobody_has_requeued_yet_is_resumed_also_after_silence() {
    let db = Db::new().await;
    let store = db.store();
    let id = create(&store, task(&[], Mode::Undecided), 1).await[0];
    let session = agent(&store, "a", &[], 1).await;
    let held = pull(&store, session).await.unwrap();
    // Its death is on record, its tasks have not been requeued yet.
    store.end_session(session, "silent").await.unwrap();
    let registered = store
        .register_agent(&registration(), Credential::Admin, &[7; 32], HOUR, &[id])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(registered.resumed, [(id, held.lease)]);
    assert_eq!(store.list_lost_leases(10).await.unwrap(), []);
    db.check_history().await;
}

#[tokio::test]
async fn a_registration_that_was_done_unheard_still_resumes() {
    let db = Db::new().await;
    let line = Line::new(&db).await;
    let store = db.store();
    let id = create(&store, task(&[], Mode::Undecided), 1).await[0];
    let session = agent(&store, "a", &[], 1).await;
    let held = pull(&store, session).await.unwrap();
    line.arm();
    let registered = line
        .store
        .register_agent(&registration(), Credential::Admin, &[7; 32], HOUR, &[id])
        .await
        .unwrap()
        .unwrap();
    assert!(line.was_cut());
    assert_eq!(registered.resumed, [(id, held.lease)]);
    assert!(registered.replaced.contains(&session), "what it held beside goes back");
    let state = store.check_lease(id).await.unwrap().unwrap();
    assert_eq!(state.holder, Some(registered.session));

    line.arm();
    let deleted = line.store.delete_agent("a").await.unwrap();
    assert!(line.was_cut());
    assert_eq!(deleted, Some(vec![registered.session]));
    assert_eq!(line.store.delete_agent("a").await.unwrap(), None);
}
