//! Deliveries of the forge: each is taken once, whatever its order; those that are plainly new together.

use jiff::Timestamp;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{
    NewTask, ReadyPlace, Store, StoreError,
    connection::{GenericClient, begin, commit},
    error::retry,
    insert::{self, Identified, make_ids},
    issues::{apply_or_create, find, new_task},
    journal::Journal,
    rows::get,
    statement::{
        FIND_DELIVERY, FIND_ISSUE_HASH, FIND_TAKEN, INSERT_DELIVERIES, INSERT_ISSUES, INSERT_TASKS,
        MAKE_TASK_IDS, SET_DELIVERY_RESULT, UPSERT_ISSUE,
    },
};
use crate::model::{Actor, Decision, IssueState, TaskId, Traceparent, decide, words};

words! {
    /// What came of a delivery.
    DeliveryResult {
        /// A task was made.
        Created = "created",
        /// A task was changed, or will be when it is free.
        Updated = "updated",
        /// Nothing was to be done.
        Ignored = "ignored",
        /// It had been taken before.
        Duplicate = "duplicate",
    }
}

/// A delivery whose signature and form are good.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Unique for each delivery.
    pub delivery_id: String,
    /// SHA-256 of the raw body.
    pub body_hash: [u8; 32],
    /// The fine event, `issues` or `issue_label`, or of another kind.
    pub event: String,
    /// What happened, `opened` and so on.
    pub action: String,
    /// What it says.
    pub about: About,
}

/// What a delivery says.
#[derive(Debug, Clone)]
pub enum About {
    /// An issue is in this state.
    Issue {
        /// `org/repo#42`
        key: String,
        /// Its state.
        state: Box<IssueState>,
        /// What the issue does not say of its task.
        defaults: IssueDefaults,
    },
    /// Nothing of ours, and why.
    Nothing(&'static str),
}

/// What an issue does not say of its task: time limit and retries are from the configuration of the replica that heard of
/// it.
#[derive(Debug, Clone, Copy)]
pub struct IssueDefaults {
    /// Seconds.
    pub timeout_secs: i32,
    /// Retries.
    pub max_retries: i32,
    /// The trace of the delivery.
    pub traceparent: Option<Traceparent>,
}

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryOutcome {
    /// In one word.
    pub result: DeliveryResult,
    /// The task that it is about.
    pub task_id: Option<TaskId>,
    /// Why it was ignored.
    pub reason: Option<&'static str>,
    /// A task became ready, or a holder has to be told.
    pub wakes: bool,
}

/// What came of deliveries that were taken together.
#[derive(Debug)]
pub struct TakenTogether {
    /// Of each, in order; `None` for one that is not plainly new: nothing was done about it.
    pub outcomes: Vec<Option<DeliveryOutcome>>,
    /// Where the tasks that were made are ready.
    pub places: Vec<ReadyPlace>,
}

/// A delivery that is plainly new, and what comes of it.
struct New<'a> {
    /// Among those given.
    place: usize,
    delivery: &'a Delivery,
    reason: Option<&'static str>,
    task: Option<(TaskId, NewTask, Actor)>,
}

impl Delivery {
    /// The key of the issue that it is about.
    fn key(&self) -> Option<&str> {
        match &self.about {
            About::Issue { key, .. } => Some(key),
            About::Nothing(_) => None,
        }
    }

    /// What it comes to as the first word of an issue: the task that is to be made, or why none is.
    fn first_word(&self) -> Result<(NewTask, Actor), &'static str> {
        match &self.about {
            About::Nothing(reason) => Err(reason),
            About::Issue { key, state, defaults } => match decide(None, state) {
                Decision::Nothing(reason) => Err(reason),
                _ => Ok((new_task(key, state, 1, *defaults), Actor::Forge(state.sender.clone()))),
            },
        }
    }
}

impl Store {
    /// Takes deliveries of which no two are about one issue or have one id: those that are plainly new in one transaction.
    /// The others are for [`Store::take`], each by itself.
    pub async fn take_deliveries(
        &self,
        deliveries: &[&Delivery],
    ) -> Result<TakenTogether, StoreError> {
        let words: Vec<_> = deliveries.iter().map(|delivery| delivery.first_word()).collect();
        let sets = words.iter().flatten().map(|(task, _)| task.capabilities.as_slice());
        self.know_lanes(sets).await?;
        retry!(self.take_new(deliveries, &words).await)
    }

    async fn take_new(
        &self,
        deliveries: &[&Delivery],
        words: &[Result<(NewTask, Actor), &'static str>],
    ) -> Result<TakenTogether, StoreError> {
        let mut client = self.client().await?;
        MAKE_TASK_IDS.prepare(&client).await?;
        FIND_TAKEN.prepare(&client).await?;
        let (ids, taken) = tokio::try_join!(
            biased;
            make_ids(&client, words.iter().flatten().count()),
            find_taken(&client, deliveries)
        )?;
        let mut ids = ids.into_iter();
        let new: Vec<New<'_>> = deliveries
            .iter()
            .zip(words)
            .enumerate()
            .filter(|(place, _)| !taken.contains(place))
            .map(|(place, (delivery, word))| New {
                place,
                delivery,
                reason: word.as_ref().err().copied(),
                task: word
                    .as_ref()
                    .ok()
                    .and_then(|(task, actor)| Some((ids.next()?, task.clone(), actor.clone()))),
            })
            .collect();
        let mut together =
            TakenTogether { outcomes: vec![None; deliveries.len()], places: Vec::new() };
        if new.is_empty() {
            return Ok(together);
        }

        let mut journal = Journal::default();
        let tx = begin(&mut client).await?;
        let Some(places) = insert_new(&tx, &new, &mut journal).await? else {
            // Somebody else is faster, with one of them: the transaction ends without a commit.
            return Ok(together);
        };
        commit(tx).await?;
        journal.write();
        together.places = places;
        for new in new {
            together.outcomes[new.place] = Some(new.outcome());
        }
        Ok(together)
    }

    /// Takes one delivery, whatever is known of it and its issue, in one transaction.
    pub async fn take_delivery(&self, delivery: &Delivery) -> Result<DeliveryOutcome, StoreError> {
        if let Ok((task, _)) = delivery.first_word() {
            self.know_lanes(std::iter::once(task.capabilities.as_slice())).await?;
        }
        retry!(self.take_once(delivery).await)
    }

    async fn take_once(&self, delivery: &Delivery) -> Result<DeliveryOutcome, StoreError> {
        let mut client = self.client().await?;
        let tx = begin(&mut client).await?;
        let id = &delivery.delivery_id;
        let mut outcome = DeliveryOutcome {
            result: DeliveryResult::Ignored,
            task_id: None,
            reason: delivery.first_word().err(),
            wakes: false,
        };
        let new = New { place: 0, delivery, reason: outcome.reason, task: None };
        if insert_deliveries(&tx, std::slice::from_ref(&new)).await? == 0 {
            let row = FIND_DELIVERY.row(&tx, &[id]).await?;
            outcome.result = DeliveryResult::Duplicate;
            outcome.task_id = row.and_then(|r| get::<Option<Uuid>>(&r, "task_id")).map(TaskId);
            outcome.reason = Some("this delivery has been taken before");
            return Ok(outcome);
        }
        let mut journal = Journal::default();
        if let About::Issue { key, state, defaults } = &delivery.about {
            outcome = take_state(&tx, delivery, key, state, *defaults, &mut journal).await?;
            let task_id = outcome.task_id.map(|task_id| task_id.0);
            SET_DELIVERY_RESULT
                .run(&tx, &[id, &outcome.result.as_str(), &task_id, &outcome.reason])
                .await?;
        }
        commit(tx).await?;
        journal.write();
        Ok(outcome)
    }
}

impl New<'_> {
    fn outcome(&self) -> DeliveryOutcome {
        DeliveryOutcome {
            result: self.result(),
            task_id: self.task.as_ref().map(|(task_id, ..)| *task_id),
            reason: self.reason,
            wakes: false,
        }
    }

    fn result(&self) -> DeliveryResult {
        if self.task.is_some() { DeliveryResult::Created } else { DeliveryResult::Ignored }
    }
}

/// The places of those that are not plainly new.
async fn find_taken<C: GenericClient>(
    client: &C,
    deliveries: &[&Delivery],
) -> Result<Vec<usize>, StoreError> {
    let ids: Vec<&str> = deliveries.iter().map(|delivery| &*delivery.delivery_id).collect();
    let keys: Vec<Option<&str>> = deliveries.iter().map(|delivery| delivery.key()).collect();
    let rows = FIND_TAKEN.rows(client, &[&ids, &keys]).await?;
    let place = |row| usize::try_from(get::<i64>(row, "ord") - 1).unwrap_or(usize::MAX);
    Ok(rows.iter().map(place).collect())
}

/// Inserts all that is plainly new, in one round trip; `None` when one is new no longer.
async fn insert_new<C: GenericClient>(
    client: &C,
    new: &[New<'_>],
    journal: &mut Journal,
) -> Result<Option<Vec<ReadyPlace>>, StoreError> {
    for statement in [INSERT_DELIVERIES, INSERT_ISSUES, INSERT_TASKS] {
        statement.prepare(client).await?;
    }
    let tasks: Vec<Identified<'_>> = new
        .iter()
        .filter_map(|new| new.task.as_ref())
        .map(|(task_id, task, actor)| Identified::new(*task_id, task, actor))
        .collect();
    let issues = new.iter().filter(|new| new.delivery.key().is_some()).count();
    let (deliveries, kept, made) = tokio::try_join!(
        biased;
        insert_deliveries(client, new),
        insert_issues(client, new),
        insert::insert(client, &tasks, false, journal)
    )?;
    let all = deliveries == new.len() && kept == issues && made.tasks.len() == tasks.len();
    Ok(all.then_some(made.places))
}

async fn insert_deliveries<C: GenericClient>(
    client: &C,
    new: &[New<'_>],
) -> Result<usize, StoreError> {
    let ids: Vec<&str> = new.iter().map(|new| &*new.delivery.delivery_id).collect();
    let hashes: Vec<&[u8]> = new.iter().map(|new| &new.delivery.body_hash[..]).collect();
    let events: Vec<&str> = new.iter().map(|new| &*new.delivery.event).collect();
    let actions: Vec<&str> = new.iter().map(|new| &*new.delivery.action).collect();
    let results: Vec<&str> = new.iter().map(|new| new.result().as_str()).collect();
    let tasks: Vec<Option<Uuid>> =
        new.iter().map(|new| new.task.as_ref().map(|(task_id, ..)| task_id.0)).collect();
    let reasons: Vec<Option<&str>> = new.iter().map(|new| new.reason).collect();
    let inserted = INSERT_DELIVERIES
        .run(client, &[&ids, &hashes, &events, &actions, &results, &tasks, &reasons])
        .await?;
    Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
}

async fn insert_issues<C: GenericClient>(client: &C, new: &[New<'_>]) -> Result<usize, StoreError> {
    let (mut keys, mut times, mut hashes) = (Vec::new(), Vec::<Timestamp>::new(), Vec::new());
    let (mut states, mut reopened) = (Vec::new(), Vec::new());
    for New { delivery, .. } in new {
        let About::Issue { key, state, .. } = &delivery.about else { continue };
        keys.push(key.as_str());
        times.push(state.updated_at);
        hashes.push(&delivery.body_hash[..]);
        states.push(Json(&**state));
        reopened.push(state.reopened);
    }
    let inserted = INSERT_ISSUES.run(client, &[&keys, &times, &hashes, &states, &reopened]).await?;
    Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
}

/// Keeps a state of an issue, and applies it to its task when it is the newest.
async fn take_state<C: GenericClient>(
    client: &C,
    delivery: &Delivery,
    key: &str,
    state: &IssueState,
    defaults: IssueDefaults,
    journal: &mut Journal,
) -> Result<DeliveryOutcome, StoreError> {
    let hash = &delivery.body_hash[..];
    let newer = UPSERT_ISSUE
        .row(client, &[&key, &state.updated_at, &hash, &Json(state), &state.reopened])
        .await?;
    if newer.is_some() {
        return apply_or_create(client, key, Some(defaults), journal).await;
    }
    let same = FIND_ISSUE_HASH.row(client, &[&key, &hash]).await?;
    let same = same.is_some_and(|row| get(&row, "same"));
    Ok(DeliveryOutcome {
        result: if same { DeliveryResult::Duplicate } else { DeliveryResult::Ignored },
        task_id: find(client, key).await?,
        reason: Some(if same {
            "this state has been taken before"
        } else {
            "a newer state of the issue is known"
        }),
        wakes: false,
    })
}
