//! Lists of the API, page by page.

use serde_json::{Value, json};

use super::client::{Client, ClientError};

/// The most that the API gives at once.
const PAGE: usize = 500;

/// Reads `path` until `wanted` items are there or no more exist: `{"items":[…],"next_cursor":…|null}`, as one page of the
/// API would be.
pub(super) async fn fetch(
    client: &Client,
    path: &str,
    query: Vec<(&str, String)>,
    wanted: usize,
) -> Result<Value, ClientError> {
    let mut items = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut page_query = query.clone();
        page_query.push(("limit", (wanted - items.len()).min(PAGE).to_string()));
        page_query.extend(cursor.take().map(|c| ("cursor", c)));
        let page: Value = client.get(path, &page_query).await?;
        let got = self::items(&page);
        let more = !got.is_empty() && items.len() + got.len() < wanted;
        items.extend_from_slice(got);
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if !more || cursor.is_none() {
            return Ok(json!({"items": items, "next_cursor": cursor}));
        }
    }
}

/// The items of a list.
pub(super) fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}
