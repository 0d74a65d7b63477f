//! The header `traceparent` of W3C Trace Context: which trace something belongs to, and its parent there.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A trace, and the span in it that is the parent of what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Traceparent {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// Never all zero.
    pub span_id: [u8; 8],
    /// Whether this trace is recorded. Other flags are not passed on.
    pub sampled: bool,
}

/// The text is no `traceparent`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a traceparent is `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`")]
pub struct InvalidTraceparent;

/// Bytes of what every version begins with.
const LENGTH: usize = 55;

impl FromStr for Traceparent {
    type Err = InvalidTraceparent;

    /// A later version than 00 may go on behind a dash; what is behind it is not kept.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = text.get(..LENGTH).ok_or(InvalidTraceparent)?;
        let rest = &text[LENGTH..];
        let parts: Vec<&str> = known.split('-').collect();
        let [version, trace_id, span_id, flags] = parts[..] else { return Err(InvalidTraceparent) };
        let [version] = hex(version)?;
        let (trace_id, span_id, [flags]) = (hex(trace_id)?, hex(span_id)?, hex(flags)?);
        let fits = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        if fits && trace_id != [0; 16] && span_id != [0; 8] {
            Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
        } else {
            Err(InvalidTraceparent)
        }
    }
}

/// Lower case only, as the standard has it.
fn hex<const N: usize>(text: &str) -> Result<[u8; N], InvalidTraceparent> {
    let mut bytes = [0; N];
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(InvalidTraceparent);
    }
    hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidTraceparent)?;
    Ok(bytes)
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (hex::encode(self.trace_id), hex::encode(self.span_id));
        write!(f, "00-{trace}-{span}-{:02x}", u8::from(self.sampled))
    }
}

impl TryFrom<String> for Traceparent {
    type Error = InvalidTraceparent;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Traceparent> for String {
    fn from(traceparent: Traceparent) -> Self {
        traceparent.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_good_one_round_trips() {
        for flags in ["00", "01"] {
            let text = format!("00-{TRACE}-{SPAN}-{flags}");
            assert_eq!(text.parse::<Traceparent>().unwrap().to_string(), text);
        }
        // Flags that are not known are not passed on; a later version is understood as this one.
        let sampled = format!("00-{TRACE}-{SPAN}-01");
        for text in [
            format!("00-{TRACE}-{SPAN}-ff"),
            format!("01-{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01-what-is-to-come"),
        ] {
            assert_eq!(text.parse::<Traceparent>().unwrap().to_string(), sampled);
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "é".repeat(40),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-x"),
            format!("00-{TRACE}-{SPAN}-01 "),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01.x"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{SPAN}-{TRACE}-01"),
            format!("0x-{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(text.parse::<Traceparent>(), Err(InvalidTraceparent), "{text}");
        }
    }
}
