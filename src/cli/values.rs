//! Values of options, from text.

use std::num::NonZeroU64;

pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text[digits.len()..].to_ascii_uppercase();
    let shift = match suffix.as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(format!("the suffix `{suffix}` is not K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is not a number of bytes"))?;
    let bytes = number.checked_mul(1 << shift);
    bytes.ok_or_else(|| "more than 64 bits".into())
}

pub(super) fn parse_disk_size(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(parse_size(text)?).ok_or_else(|| "the size of a disk cannot be 0".into())
}

pub(super) fn parse_queue_size(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|_| "not a number up to 32768".to_string())?;
    if (2..=32768).contains(&size) && size.is_power_of_two() {
        Ok(size)
    } else {
        Err("not a power of two from 2 to 32768".into())
    }
}

pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| "not an octal number".to_string())?;
    if mode <= 0o777 { Ok(mode) } else { Err("more than the permission bits, 777".into()) }
}

pub(super) fn parse_serial(text: &str) -> Result<String, String> {
    if text.len() <= 20 {
        Ok(text.into())
    } else {
        Err(format!("{} bytes, the maximum is 20", text.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_a_suffix() {
        assert_eq!(parse_size("4097"), Ok(4097));
        assert_eq!(parse_size("3K"), Ok(3 << 10));
        assert_eq!(parse_size("2m"), Ok(2 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("16T"), Ok(16 << 40));
        for bad in ["", "G", "1X", "-1", "1.5G", "0x10", "99999999999T"] {
            parse_size(bad).unwrap_err();
        }
        parse_disk_size("0").unwrap_err();
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("660"), Ok(0o660));
        assert_eq!(parse_mode("0777"), Ok(0o777));
        assert_eq!(parse_mode("0"), Ok(0));
        for bad in ["", "8", "1777", "-1", "u=rw", "0o600"] {
            parse_mode(bad).unwrap_err();
        }
    }

    #[test]
    fn queue_sizes_are_powers_of_two() {
        assert_eq!(parse_queue_size("128"), Ok(128));
        for bad in ["0", "1", "100", "65536", "x"] {
            parse_queue_size(bad).unwrap_err();
        }
    }
}
