//! Sizes and other numbers as people read and write them.

/// Suffixes of a size, each 1024 times the one before.
const SUFFIXES: [char; 7] = ['B', 'K', 'M', 'G', 'T', 'P', 'E'];

/// A size with one decimal and a suffix, as util-linux prints it: `0B`, `512B`, `1.5G`, `4G`.
pub fn human(bytes: u64) -> String {
    let mut step = 0;
    while step + 1 < SUFFIXES.len() && bytes >> (10 * (step + 1)) > 0 {
        step += 1;
    }
    let unit = 1_u128 << (10 * step);
    // Tenths, rounded to the nearest.
    let mut tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
    if tenths >= 10 * 1024 && step + 1 < SUFFIXES.len() {
        step += 1;
        tenths = 10;
    }
    let (whole, tenth) = (tenths / 10, tenths % 10);
    let suffix = SUFFIXES[step];
    if tenth == 0 { format!("{whole}{suffix}") } else { format!("{whole}.{tenth}{suffix}") }
}

/// A count with a suffix for thousands: `999`, `1.2k`, `35M`.
pub fn count(value: f64) -> String {
    let mut value = value.max(0.0);
    for suffix in ["", "k", "M", "G"] {
        if value < 999.5 {
            let plain = suffix.is_empty() || value >= 99.95;
            return if plain {
                format!("{value:.0}{suffix}")
            } else {
                format!("{value:.1}{suffix}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}T")
}

/// How many bytes of pages a byte of memory holds: `2.97`, or `-` where nothing is stored.
pub fn ratio(pages: u64, memory: u64) -> String {
    if pages == 0 || memory == 0 {
        return "-".into();
    }
    format!("{:.2}", pages as f64 / memory as f64)
}

/// A time: `4 us`, `1.5 ms`, `2.0 s`.
pub fn micros(us: f64) -> String {
    if us < 1000.0 {
        format!("{us:.0} us")
    } else if us < 1e6 {
        format!("{:.1} ms", us / 1e3)
    } else {
        format!("{:.1} s", us / 1e6)
    }
}

/// A time with its two largest units: `5 s`, `3 min 20 s`, `2 d 4 h`.
pub fn seconds(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min {} s", seconds % 60),
        () => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_util_linux() {
        let sizes = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1K"),
            (1536, "1.5K"),
            (4096, "4K"),
            (1 << 30, "1G"),
            ((1 << 30) + (1 << 29), "1.5G"),
            ((1 << 20) * 1023 + 1, "1023M"),
            ((1 << 30) - 1, "1G"),
            (1100, "1.1K"),
            (u64::MAX, "16E"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn counts_ratios_and_times_are_short() {
        for (value, text) in
            [(0.0, "0"), (999.0, "999"), (1234.0, "1.2k"), (99_960.0, "100k"), (35e6, "35.0M")]
        {
            assert_eq!(count(value), text);
        }
        assert_eq!(count(-1.0), "0");
        assert_eq!(ratio(300, 100), "3.00");
        assert_eq!((ratio(0, 5), ratio(5, 0)), ("-".into(), "-".into()));
        assert_eq!((micros(4.0), micros(1500.0)), ("4 us".into(), "1.5 ms".into()));
        assert_eq!(micros(2e6), "2.0 s");
        assert_eq!((seconds(59), seconds(200)), ("59 s".into(), "3 min 20 s".into()));
        assert_eq!((seconds(7260), seconds(187_200)), ("2 h 1 min".into(), "2 d 4 h".into()));
    }
}
