//! Output, by byte offset.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use warp::{Filter, filters::BoxedFilter, reply::Response};

use super::{
    Answer,
    call::{BODY, Call, LARGE_BODY, call},
    current, detached,
    error::ApiError,
    ok,
    principal::Principal,
    tasks::{may_see, resolve},
    v1,
    work::held,
};
use crate::{
    coordinator::Replica,
    model::{Lease, TaskId},
    store::{Appended, LogPage},
};

/// `/api/v1/tasks/{id}/logs`
pub(super) fn routes(replica: &Arc<Replica>) -> BoxedFilter<(Response,)> {
    let append = v1()
        .and(warp::path!("tasks" / String / "logs"))
        .and(warp::post())
        .and(call(replica, LARGE_BODY))
        .then(|id, call| detached(append(call, id)));
    let read = v1()
        .and(warp::path!("tasks" / String / "logs"))
        .and(warp::get())
        .and(call(replica, BODY))
        .then(|id, call| detached(read(call, id)));
    append.or(read).unify().boxed()
}

#[derive(Debug, Deserialize)]
struct LogBody {
    agent_id: String,
    lease: i64,
    offset: i64,
    data: String,
}

async fn append(call: Call, id: String) -> Answer {
    call.principal().await?;
    let body: LogBody = call.json()?;
    if body.offset < 0 {
        return Err(ApiError::bad_request("offset: must not be negative"));
    }
    call.agent(&body.agent_id).await?;
    let id = resolve(&call, &id).await?;
    let held = held(&call, &body.agent_id, id, body.lease).await?;
    match call.replica.store.append_log(&held, body.offset, body.data.as_bytes()).await? {
        Appended::Stored(next) | Appended::Overlaps(next) => ok(&json!({"next_offset": next})),
        Appended::Gap(next) => Err(ApiError::refused(
            "log_gap",
            format!("offset: {} leaves a gap; the next offset is {next}", body.offset),
        )),
        Appended::Refused(refusal) => Err(refusal.into()),
    }
}

/// The task, whose output the caller may read.
pub(super) async fn readable(call: &Call, id: &str) -> Result<TaskId, ApiError> {
    let principal = call.principal().await?;
    let id = resolve(call, id).await?;
    let task = current(&call.replica, id).await?;
    let events = match principal {
        Principal::Agent(_) | Principal::SharedAgent => {
            call.replica.store.list_task_events(id).await?
        }
        _ => Vec::new(),
    };
    may_see(principal, &task, &events)?;
    Ok(id)
}

async fn read(call: Call, id: String) -> Answer {
    let id = readable(&call, &id).await?;
    let lease = call.query_number("lease", 0..=i64::MAX)?.map(Lease);
    let offset = call.query_number("offset", 0..=i64::MAX)?.unwrap_or(0);
    let page = call.replica.store.read_logs(id, lease, offset).await?;
    ok(&render_page(page.ok_or_else(|| ApiError::not_found("there is no such task"))?))
}

/// Bytes as text. A character that two chunks share goes with the later one; one that the page cuts waits for the next
/// page, unless no more can come.
pub(super) fn render_page(page: LogPage) -> Value {
    let last = page.chunks.len().saturating_sub(1);
    let mut items = Vec::with_capacity(page.chunks.len());
    let mut carried: Vec<u8> = Vec::new();
    for (place, chunk) in page.chunks.into_iter().enumerate() {
        let offset = chunk.offset - i64::try_from(carried.len()).unwrap_or(0);
        let mut bytes = std::mem::take(&mut carried);
        bytes.extend_from_slice(&chunk.data);
        if place != last || !page.done {
            carried = bytes.split_off(bytes.len() - unfinished(&bytes));
        }
        items.push(json!({
            "lease": chunk.lease, "attempt": chunk.attempt, "offset": offset, "at": chunk.at,
            "data": String::from_utf8_lossy(&bytes),
        }));
    }
    let next_offset = page.next_offset - i64::try_from(carried.len()).unwrap_or(0);
    json!({"items": items, "next_offset": next_offset, "done": page.done})
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    match std::str::from_utf8(&bytes[bytes.len().saturating_sub(4)..]) {
        Ok(_) => 0,
        Err(_) => (1..=3.min(bytes.len()))
            .find(|n| {
                let tail = &bytes[bytes.len() - n..];
                // A leading byte whose character is longer than what is here.
                let needs = match tail[0] {
                    0xC2..=0xDF => 2,
                    0xE0..=0xEF => 3,
                    0xF0..=0xF4 => 4,
                    _ => 0,
                };
                needs > *n
            })
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::store::LogChunk;

    fn page(cuts: &[&[u8]], done: bool) -> LogPage {
        let mut offset = 0;
        let chunks = cuts
            .iter()
            .map(|data| {
                let chunk = LogChunk {
                    lease: Lease(1),
                    attempt: 1,
                    offset,
                    at: Timestamp::UNIX_EPOCH,
                    data: data.to_vec(),
                };
                offset += i64::try_from(data.len()).unwrap();
                chunk
            })
            .collect();
        LogPage { chunks, next_offset: offset, done }
    }

    #[test]
    fn no_character_is_broken_by_a_chunk() {
        let text = "aé€🚀b".as_bytes();
        for cut in 0..=text.len() {
            let value = render_page(page(&[&text[..cut], &text[cut..]], true));
            let whole: String = value["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["data"].as_str().unwrap())
                .collect();
            assert_eq!(whole.as_bytes(), text, "cut at {cut}");
            let value = render_page(page(&[&text[..cut]], false));
            let next = usize::try_from(value["next_offset"].as_i64().unwrap()).unwrap();
            assert!(std::str::from_utf8(&text[..next]).is_ok(), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_text_is_shown_as_such() {
        let value = render_page(page(&[b"a\xff\xfe", b"b"], true));
        assert_eq!(value["items"][0]["data"], "a\u{FFFD}\u{FFFD}");
        assert_eq!(value["next_offset"], 4);
    }
}
