//! Single values: how each kind is read from a text, the same in the file, the environment and flags.

use std::{fmt, marker::PhantomData, net::SocketAddr, time::Duration};

use serde::{Deserialize, Deserializer, de};

use super::{AuthMode, LogFormat, OutputFormat, PromptVia, Secret};

/// No duration is longer: ten years. Keeps sums and products of durations far from overflow.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A kind of value that is written as text.
pub(super) trait FromText: Sized {
    /// Ends the sentence "expected …".
    const SHAPE: &'static str;

    /// Reads it; the error continues a sentence that begins with the key.
    fn from_text(text: &str) -> Result<Self, String>;
}

impl FromText for String {
    const SHAPE: &'static str = "a text in quotes";

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl FromText for Secret {
    const SHAPE: &'static str = "a text in quotes";

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::new(text))
    }
}

impl FromText for Duration {
    const SHAPE: &'static str = "a duration in quotes such as \"30s\", \"10m\" or \"1h\"";

    fn from_text(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text.trim()) {
            Ok(duration) if duration <= MAX_DURATION => Ok(duration),
            Ok(_) => Err("is longer than ten years; write a shorter duration".to_owned()),
            Err(_) => Err(format!("is `{text}`; expected {}", Self::SHAPE)),
        }
    }
}

impl FromText for SocketAddr {
    const SHAPE: &'static str = "an IP address and a port such as \"127.0.0.1:9090\"";

    fn from_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| format!("is `{text}`; expected {}", Self::SHAPE))
    }
}

impl FromText for u32 {
    const SHAPE: &'static str = "a whole number that is not negative";

    fn from_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| format!("is `{text}`; expected {}", Self::SHAPE))
    }
}

impl FromText for AuthMode {
    const SHAPE: &'static str = "\"token\" or \"open\"";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "token" => Ok(Self::Token),
            "open" => Ok(Self::Open),
            _ => Err(format!("must be {}", Self::SHAPE)),
        }
    }
}

impl FromText for LogFormat {
    const SHAPE: &'static str = "\"text\" or \"json\"";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("must be {}", Self::SHAPE)),
        }
    }
}

impl FromText for PromptVia {
    const SHAPE: &'static str = "\"stdin\" or \"file\"";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "stdin" => Ok(Self::Stdin),
            "file" => Ok(Self::File),
            _ => Err(format!("must be {}", Self::SHAPE)),
        }
    }
}

impl FromText for OutputFormat {
    const SHAPE: &'static str = "the name of an output format in quotes";

    fn from_text(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", ");
        text.parse().map_err(|_| format!("must be one of {known}"))
    }
}

/// A text of the file, read as `T`.
#[derive(Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<T: FromText> de::Visitor<'_> for Visitor<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::SHAPE)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::from_text(text).map(Text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor(PhantomData))
    }
}

/// A whole number of the file.
#[derive(Debug)]
pub(super) struct Count(pub(super) u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(u32::SHAPE)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Count, E> {
                let text = || format!("is {number}; expected {}", u32::SHAPE);
                u32::try_from(number).map(Count).map_err(|_| E::custom(text()))
            }
        }
        deserializer.deserialize_i64(Visitor)
    }
}

/// One secret or a list of them, so that each can be rotated. Empty texts count as absent.
#[derive(Debug, Default)]
pub(super) struct Secrets(pub(super) Vec<Secret>);

impl FromText for Secrets {
    const SHAPE: &'static str = "a text in quotes, or a list of them";

    /// As the environment has it: separated by commas.
    fn from_text(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(Self(parts.map(Secret::new).collect()))
    }
}

impl<'de> Deserialize<'de> for Secrets {
    /// As the file has it: a comma is part of the secret there.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Secrets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Secrets::SHAPE)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secrets, E> {
                let secret = (!text.is_empty()).then(|| Secret::new(text));
                Ok(Secrets(secret.into_iter().collect()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Secrets, A::Error> {
                let mut secrets = Vec::new();
                while let Some(Text(secret)) = seq.next_element::<Text<Secret>>()? {
                    if !secret.expose().is_empty() {
                        secrets.push(secret);
                    }
                }
                Ok(Secrets(secrets))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
