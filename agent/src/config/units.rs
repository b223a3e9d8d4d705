//! Durations and sizes as people write them: `10s`, `250ms`, `4MiB`.

use std::time::Duration;

pub(super) const DURATION: &str = "a whole number with its unit: ms, s, m or h (`500ms`, `10s`)";
pub(super) const BYTES: &str = "a number of bytes, or one with KiB or MiB (`4096`, `4KiB`)";

/// Parses `DURATION`; `None` for anything else.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_number(text)?;
    Some(match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        _ => return None,
    })
}

/// Parses `BYTES`; `None` for anything else and for what does not fit 32 bits.
pub(super) fn parse_bytes(text: &str) -> Option<u32> {
    let (number, unit) = split_number(text)?;
    let factor = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return None,
    };
    u32::try_from(number.checked_mul(factor)?).ok()
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A [`Duration`] as `DURATION`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if value.subsec_millis() == 0 {
            serializer.collect_str(&format_args!("{}s", value.as_secs()))
        } else {
            serializer.collect_str(&format_args!("{}ms", value.as_millis()))
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        // A bare number has no unit, and guessing one is how timeouts get wrong by a thousand.
        String::deserialize(deserializer)
            .ok()
            .and_then(|text| super::parse_duration(&text))
            .ok_or_else(|| D::Error::custom(format_args!("expected {}", super::DURATION)))
    }
}

/// A number of bytes as `BYTES`.
pub(super) mod bytes {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    // serde hands over a reference.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(in super::super) fn serialize<S: Serializer>(
        value: &u32,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match *value {
            bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => {
                serializer.collect_str(&format_args!("{}MiB", bytes >> 20))
            }
            bytes => serializer.serialize_u32(bytes),
        }
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u32),
        Text(String),
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u32, D::Error> {
        match Written::deserialize(deserializer) {
            Ok(Written::Number(bytes)) => Some(bytes),
            Ok(Written::Text(text)) => super::parse_bytes(&text),
            Err(_) => None,
        }
        .ok_or_else(|| D::Error::custom(format_args!("expected {}", super::BYTES)))
    }
}

/// A listening address.
pub(super) mod socket_address {
    use std::net::SocketAddr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// What is allowed.
    pub(in super::super) const SOCKET_ADDRESS: &str =
        "an IP address and a port (`127.0.0.1:9464`, `[::]:9464`)";

    pub(in super::super) fn serialize<S: Serializer>(
        value: &SocketAddr,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SocketAddr, D::Error> {
        String::deserialize(deserializer)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| D::Error::custom(format_args!("expected {SOCKET_ADDRESS}")))
    }
}
