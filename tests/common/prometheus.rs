//! A strict reader of Prometheus' text format, version 0.0.4, which accepts nothing that a scraper may not.

use std::collections::{BTreeMap, BTreeSet};

/// Series of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// By name of the sample and labels.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Reads a page; the first line that is wrong is the error.
pub fn parse(page: &str) -> Result<BTreeMap<String, Family>, String> {
    let mut families = BTreeMap::new();
    let mut current: Option<(String, Family)> = None;
    let mut seen = BTreeSet::new();
    if !page.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    for line in page.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
            check_name(name).map_err(|why| wrong(&why))?;
            close(&mut families, current.take())?;
            if families.contains_key(name) {
                return Err(wrong("the family was there before"));
            }
            let family = Family { kind: String::new(), help: help.into(), samples: Vec::new() };
            current = Some((name.into(), family));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
            let (of, family) = current.as_mut().ok_or_else(|| wrong("a type without help"))?;
            if name != of || !family.kind.is_empty() || !family.samples.is_empty() {
                return Err(wrong("a type that is out of place"));
            }
            if !["counter", "gauge", "histogram"].contains(&kind) {
                return Err(wrong("an unknown type"));
            }
            family.kind = kind.into();
        } else {
            let (of, family) = current.as_mut().ok_or_else(|| wrong("a sample without help"))?;
            let sample = sample(line).map_err(|why| wrong(&why))?;
            let suffix = sample.name.strip_prefix(of.as_str());
            let fits = match family.kind.as_str() {
                "histogram" => suffix.is_some_and(|s| ["_bucket", "_sum", "_count"].contains(&s)),
                "counter" => suffix == Some("") && of.ends_with("_total") && sample.value >= 0.0,
                "gauge" => suffix == Some("") && !of.ends_with("_total"),
                _ => false,
            };
            if !fits {
                return Err(wrong("a sample that does not belong to its family"));
            }
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return Err(wrong("the series is there twice"));
            }
            family.samples.push(sample);
        }
    }
    close(&mut families, current)?;
    Ok(families)
}

/// Ends a family.
fn close(
    families: &mut BTreeMap<String, Family>,
    ended: Option<(String, Family)>,
) -> Result<(), String> {
    let Some((name, family)) = ended else { return Ok(()) };
    if family.samples.is_empty() {
        return Err(format!("{name} has no samples"));
    }
    if family.kind == "histogram" {
        check_histograms(&family).map_err(|why| format!("{name}: {why}"))?;
    }
    families.insert(name, family);
    Ok(())
}

/// Buckets count upwards to the end of all numbers, where the count is that of all.
fn check_histograms(family: &Family) -> Result<(), String> {
    let mut by_labels: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let end = labels.remove("le");
        by_labels.entry(labels).or_default().push((sample.name.as_str(), end, sample.value));
    }
    for samples in by_labels.values() {
        let (mut below, mut last) = ((f64::NEG_INFINITY, 0.0), None);
        let mut others = BTreeMap::new();
        for (name, end, value) in samples {
            let Some(end) = end else {
                let suffix = if name.ends_with("_sum") { "sum" } else { "count" };
                if others.insert(suffix, *value).is_some() || name.ends_with("_bucket") {
                    return Err(format!("{name} without an end, or twice"));
                }
                continue;
            };
            let end = number(end)?;
            if !name.ends_with("_bucket") || end <= below.0 || *value < below.1 {
                return Err(format!("bucket {end} is out of order"));
            }
            below = (end, *value);
            last = Some(below);
        }
        if last.map(|(end, _)| end) != Some(f64::INFINITY) {
            return Err("no bucket up to +Inf".into());
        }
        if others.get("count") != last.map(|(_, count)| count).as_ref() || others.len() != 2 {
            return Err("the count is not that of the last bucket, or there is no sum".into());
        }
    }
    Ok(())
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    check_name(name)?;
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (key, behind) = rest.split_once("=\"").ok_or("a label without a value")?;
            check_name(key)?;
            let (value, behind) = quoted(behind)?;
            if labels.insert(key.to_owned(), value).is_some() {
                return Err(format!("label {key} twice"));
            }
            rest = behind;
            if let Some(behind) = rest.strip_prefix('}') {
                rest = behind;
                break;
            }
            rest = rest.strip_prefix(',').ok_or("labels that do not end")?;
        }
    }
    let value = number(rest.strip_prefix(' ').ok_or("no blank before the value")?)?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// A text up to its quote, and what is behind that.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                _ => return Err("an unknown escape".into()),
            },
            letter => value.push(letter),
        }
    }
    Err("a value that does not end".into())
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        // Rust reads "inf" and others, which a scraper need not.
        text if text.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c)) => {
            text.parse().map_err(|_| format!("{text:?} is not a number"))
        }
        text => Err(format!("{text:?} is not a number")),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && name.chars().all(fits) { Ok(()) } else { Err(format!("{name:?} is not a name")) }
}
