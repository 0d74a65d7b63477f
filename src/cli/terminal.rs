//! What people and programs read: aligned columns, JSON, and foreign text made harmless.

use std::{fmt::Write as _, io::Write as _};

use serde_json::Value;

/// A cell is cut after this many characters.
const MAX_CELL: usize = 70;

/// Makes foreign text safe to print: whatever could steer a terminal or turn the direction of writing becomes U+FFFD.
/// Line feeds and tabs stay.
pub(crate) fn printable(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.chars()
        .map(|c| if steers(c) && !matches!(c, '\n' | '\t') { '\u{FFFD}' } else { c })
        .collect()
}

/// The same for text that has to stay on one line.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Control characters (C0, DEL, C1) and the Unicode marks that reorder text (UAX #9, section 2).
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Indented JSON of the same value, escaped so that it, too, cannot steer a terminal.
pub(crate) fn json(value: &Value) -> String {
    escape(&format!("{value:#}"))
}

/// The same on one line.
pub(crate) fn json_line(value: &Value) -> String {
    escape(&value.to_string())
}

fn escape(json: &str) -> String {
    let mut safe = String::new();
    for c in json.chars() {
        // Outside strings JSON has no such character but the line feed.
        if steers(c) && c != '\n' {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Aligned columns under their headings. Cells are foreign text.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let cells = |row: &[String; N]| row.each_ref().map(|cell| shorten(&one_line(cell)));
    let mut lines = vec![headings.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn shorten(cell: &str) -> String {
    if cell.chars().count() <= MAX_CELL {
        return cell.to_owned();
    }
    cell.chars().take(MAX_CELL - 1).chain(['…']).collect()
}

/// A field of a JSON object as a cell: nothing for null, a list by its commas.
pub(crate) fn cell(object: &Value, field: &str) -> String {
    match &object[field] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let words =
                items.iter().map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned));
            words.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// Writes to stdout at once. Unlike `print!` it does not panic when nobody reads any more.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        let evil = "a\x1b]0;owned\x07b\u{9b}31m\u{202e}c\r\nd\te\rf\u{7f}";
        let safe = printable(evil);
        assert_eq!(safe, "a\u{FFFD}]0;owned\u{FFFD}b\u{FFFD}31m\u{FFFD}c\nd\te\u{FFFD}f\u{FFFD}");
        assert_eq!(one_line("a\n b\u{2028}c"), "a b\u{FFFD}c");
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = json!({"title": "a\u{9b}\x1b\u{202e}é\"\\n"});
        let text = super::json(&value);
        assert!(!text.chars().any(|c| steers(c) && c != '\n'), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert_eq!(json_line(&value).lines().count(), 1);
    }

    #[test]
    fn columns_align() {
        let rows = [["é".to_owned(), "x".to_owned()], ["long".to_owned(), "y".repeat(80)]];
        let text = table(["A", "B"], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "A     B");
        assert_eq!(lines[1], "é     x");
        assert_eq!(lines[2].chars().count(), 6 + MAX_CELL);
        assert_eq!(cell(&json!({"a": ["x", "y"], "n": null, "i": 3}), "a"), "x,y");
    }
}
