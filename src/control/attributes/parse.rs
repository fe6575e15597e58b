//! Numbers and lists as the kernel reads them from an attribute.
//!
//! The rules are those of `memparse`, the `kstrto...` family and `next_arg` (lib/cmdline.c, lib/kstrtox.c of
//! Linux): what an attribute takes from `echo`, a script or a udev rule, it takes here. One thing differs: a
//! number that does not fit 64 bits is refused, where the kernel's `memparse` keeps the low bits of it.

/// Why a text is not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoNumber {
    /// It does not begin with a digit, or something follows that may not.
    Malformed,
    /// It is larger than what it is for can be.
    TooLarge,
}

/// Digits at the start of `text` in the base that they say (`0x` is 16, `0` is 8), or in `base`; their
/// value, and what follows.
fn digits(text: &str, base: Option<u32>) -> Result<(u64, &str), NoNumber> {
    let bytes = text.as_bytes();
    let is_hex = bytes.first() == Some(&b'0')
        && bytes.get(1).is_some_and(|x| x.eq_ignore_ascii_case(&b'x'))
        && bytes.get(2).is_some_and(u8::is_ascii_hexdigit);
    let (base, start) = match base {
        Some(base) => (base, 0),
        None if is_hex => (16, 2),
        None if bytes.first() == Some(&b'0') => (8, 0),
        None => (10, 0),
    };
    let rest = text.get(start..).unwrap_or_default();
    let mut value = Some(0_u64);
    let mut count = 0;
    for digit in rest.chars().map_while(|c| c.to_digit(base)) {
        let more = |value: u64| value.checked_mul(base.into())?.checked_add(digit.into());
        value = value.and_then(more);
        count += 1;
    }
    if count == 0 {
        return Err(NoNumber::Malformed);
    }
    Ok((value.ok_or(NoNumber::TooLarge)?, &rest[count..]))
}

/// A number of bytes: decimal, `0x` or `0` for hexadecimal and octal, with one suffix of `K M G T P E` in
/// either case. What follows is ignored, so `16MiB` is 16 MiB. A suffix alone is nothing (to Linux 6.12 it is 0).
pub(super) fn bytes(text: &str) -> Result<u64, NoNumber> {
    let shift = |suffix: char| match suffix.to_ascii_uppercase() {
        'K' => Some(10),
        'M' => Some(20),
        'G' => Some(30),
        'T' => Some(40),
        'P' => Some(50),
        'E' => Some(60),
        _ => None,
    };
    let (value, rest) = digits(text, None)?;
    let shift = rest.chars().next().and_then(shift).unwrap_or(0);
    value.checked_mul(1 << shift).ok_or(NoNumber::TooLarge)
}

/// A whole number in decimal from 0 to `most`, with nothing behind it but a newline.
pub(super) fn whole(text: &str, most: u64) -> Result<u64, NoNumber> {
    in_base(text, Some(10), most)
}

/// As [`whole`], of 64 bits and in the base that it says: `0x` is hexadecimal, `0` octal.
pub(super) fn of_any_base(text: &str) -> Result<u64, NoNumber> {
    in_base(text, None, u64::MAX)
}

fn in_base(text: &str, base: Option<u32>, most: u64) -> Result<u64, NoNumber> {
    let (value, rest) = digits(text.strip_prefix('+').unwrap_or(text), base)?;
    match rest {
        "" | "\n" if value <= most => Ok(value),
        "" | "\n" => Err(NoNumber::TooLarge),
        _ => Err(NoNumber::Malformed),
    }
}

/// As [`whole`], of 32 bits and with a sign.
pub(super) fn signed(text: &str) -> Result<i32, NoNumber> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) if digits.starts_with('+') => return Err(NoNumber::Malformed),
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let magnitude = whole(digits, u64::from(i32::MIN.unsigned_abs()))?.cast_signed();
    let value = if negative { -magnitude } else { magnitude };
    i32::try_from(value).map_err(|_| NoNumber::TooLarge)
}

/// The words of a list of `KEY=VALUE`, each as key and value; a word without `=` has no value. Words stand
/// apart by blanks outside of double quotes, and quotes around a word or a value are not part of it.
pub(super) fn words(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let blank = |c: char| c.is_ascii_whitespace() || c == '\x0b';
    let mut rest = text.trim_start_matches(blank);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (word, is_quoted) = match rest.strip_prefix('"') {
            Some(word) => (word, true),
            None => (rest, false),
        };
        let mut inside = is_quoted;
        let end = word.find(|c: char| {
            inside ^= c == '"';
            blank(c) && !inside
        });
        let (word, behind) = word.split_at(end.unwrap_or(word.len()));
        rest = behind.trim_start_matches(blank);
        let unquoted = |text: &'_ str| text.strip_suffix('"').map_or(text.len(), str::len);
        // A key has at least a letter: a word that begins with `=` has no value.
        Some(match word.char_indices().find(|(at, c)| *at > 0 && *c == '=') {
            None if is_quoted => (&word[..unquoted(word)], None),
            None => (word, None),
            Some((at, _)) => {
                let (key, value) = (&word[..at], &word[at + 1..]);
                match value.strip_prefix('"') {
                    Some(value) => (key, Some(&value[..unquoted(value)])),
                    None if is_quoted => (key, Some(&value[..unquoted(value)])),
                    None => (key, Some(value)),
                }
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_by_memparse() {
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("16M", 16 << 20),
            ("16m", 16 << 20),
            ("16MiB", 16 << 20),
            ("1K2", 1024),
            ("3G\n", 3 << 30),
            ("2t", 2 << 40),
            ("1P", 1 << 50),
            ("15E", 15 << 60),
            ("0x10", 16),
            ("0X1fk", 31 << 10),
            ("010", 8),
            ("09", 0),
            ("0x", 0),
            ("0xg", 0),
            ("12 34", 12),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(bytes(text), Ok(value), "{text:?}");
        }
        for text in ["", "\n", " 1", "-1", "+1", "x", "none", "é", "M", "k\n"] {
            assert_eq!(bytes(text), Err(NoNumber::Malformed), "{text:?}");
        }
        for text in ["18446744073709551616", "16E", "99999999999999999999999"] {
            assert_eq!(bytes(text), Err(NoNumber::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn whole_numbers_have_nothing_behind_them() {
        for (text, value) in [("0", 0), ("1\n", 1), ("+7", 7), ("007", 7), ("65535", 65535)] {
            assert_eq!(whole(text, 65535), Ok(value), "{text:?}");
        }
        for text in ["", "\n", " 1", "1 ", "1x", "0x1", "-1", "++1", "1\n\n"] {
            assert_eq!(whole(text, 65535), Err(NoNumber::Malformed), "{text:?}");
        }
        for text in ["65536", "18446744073709551616"] {
            assert_eq!(whole(text, 65535), Err(NoNumber::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn signed_numbers_have_32_bits() {
        let ends = [("-2147483648", i32::MIN), ("2147483647\n", i32::MAX), ("-7", -7), ("+7", 7)];
        for (text, value) in ends {
            assert_eq!(signed(text), Ok(value), "{text:?}");
        }
        assert_eq!(signed("2147483648"), Err(NoNumber::TooLarge));
        assert_eq!(signed("-2147483649"), Err(NoNumber::TooLarge));
        for text in ["-+7", "--7", "-", "fast"] {
            assert_eq!(signed(text), Err(NoNumber::Malformed), "{text:?}");
        }
    }

    #[test]
    fn lists_are_split_as_by_next_arg() {
        let all = |text| words(text).collect::<Vec<_>>();
        assert_eq!(all(""), []);
        assert_eq!(all(" \n"), []);
        assert_eq!(
            all(" algo=zstd  level=-3\tdict=/a\n"),
            [("algo", Some("zstd")), ("level", Some("-3")), ("dict", Some("/a"))]
        );
        assert_eq!(
            all("a b= c=\"\" =d"),
            [("a", None), ("b", Some("")), ("c", Some("")), ("=d", None)]
        );
        assert_eq!(all("dict=\"/a b\" x=1"), [("dict", Some("/a b")), ("x", Some("1"))]);
        assert_eq!(all("\"dict=/a b\" \"x y\""), [("dict", Some("/a b")), ("x y", None)]);
        assert_eq!(all("\"open=1 2"), [("open", Some("1 2"))]);
        assert_eq!(all("a=b=c"), [("a", Some("b=c"))]);
    }
}
