//! What text may enter the database: PostgreSQL's `text` cannot hold NUL, and lengths are bounded.

/// Why a text is refused; `field` is the JSON name of the field.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidText {
    /// Longer than allowed.
    #[error("{field} is {len} bytes long; at most {max} are allowed")]
    TooLong {
        /// JSON name of the field.
        field: &'static str,
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Holds U+0000.
    #[error("{field} holds a NUL character (U+0000), which cannot be stored; remove it")]
    Nul {
        /// JSON name of the field.
        field: &'static str,
    },
    /// Must not be empty.
    #[error("{field} must not be empty")]
    Empty {
        /// JSON name of the field.
        field: &'static str,
    },
}

/// Checks a text for NUL and length, `max` in bytes of UTF-8.
pub fn check_text(field: &'static str, text: &str, max: usize) -> Result<(), InvalidText> {
    if text.len() > max {
        return Err(InvalidText::TooLong { field, len: text.len(), max });
    }
    if text.contains('\0') {
        return Err(InvalidText::Nul { field });
    }
    Ok(())
}

/// Makes foreign text storable: NUL becomes U+FFFD, and what is over `max` bytes is cut at a character.
pub fn clean_text(text: &str, max: usize) -> String {
    let end = text.floor_char_boundary(max.min(text.len()));
    text[..end].replace('\0', "\u{FFFD}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_nul_and_length() {
        assert!(check_text("title", "fine", 4).is_ok());
        assert!(matches!(check_text("title", "fines", 4), Err(InvalidText::TooLong { .. })));
        assert!(matches!(check_text("title", "a\0", 4), Err(InvalidText::Nul { .. })));
    }

    #[test]
    fn cleaning_cuts_at_a_character() {
        assert_eq!(clean_text("a\0b", 10), "a\u{FFFD}b");
        assert_eq!(clean_text("aé", 2), "a");
    }
}
