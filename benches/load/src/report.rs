//! A result, for people and for programs.

use std::fmt::Write;

use crate::{cpu::Spent, worker::Tally};

/// One result.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// The caller's name for the run.
    pub label: String,
    /// Kind of target: `vhost`, `block` or `null`.
    pub target: &'static str,
    /// Pattern, or `fill`.
    pub op: &'static str,
    /// Corpus name.
    pub corpus: String,
    /// How completions were waited for.
    pub wait: &'static str,
    /// Bytes of an operation.
    pub block: u32,
    /// Operations in flight on each queue.
    pub depth: u16,
    /// Queues.
    pub queues: usize,
    /// Time measured.
    pub seconds: f64,
    /// What was done.
    pub tally: Tally,
    /// What it cost.
    pub spent: Spent,
}

enum Value {
    Text(String),
    Number(f64),
    Count(u64),
    Nothing,
}

impl Row {
    /// Operations per second.
    pub fn iops(&self) -> f64 {
        self.tally.ops as f64 / self.seconds
    }

    fn mib(&self) -> f64 {
        self.iops() * f64::from(self.block) / f64::from(1 << 20)
    }

    fn per_op_us(&self, seconds: f64) -> f64 {
        seconds * 1e6 / self.tally.ops.max(1) as f64
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let latency = |q| Value::Number(self.tally.latencies.quantile_us(q));
        let server = self.spent.server.map_or(Value::Nothing, |s| Value::Number(self.per_op_us(s)));
        vec![
            ("label", Value::Text(self.label.clone())),
            ("target", Value::Text(self.target.to_owned())),
            ("op", Value::Text(self.op.to_owned())),
            ("corpus", Value::Text(self.corpus.clone())),
            ("wait", Value::Text(self.wait.to_owned())),
            ("block", Value::Count(self.block.into())),
            ("depth", Value::Count(self.depth.into())),
            ("queues", Value::Count(self.queues as u64)),
            ("seconds", Value::Number(self.seconds)),
            ("ops", Value::Count(self.tally.ops)),
            ("iops", Value::Number(self.iops())),
            ("mib_s", Value::Number(self.mib())),
            ("p50_us", latency(0.5)),
            ("p90_us", latency(0.9)),
            ("p99_us", latency(0.99)),
            ("p999_us", latency(0.999)),
            ("max_us", Value::Number(self.tally.latencies.max_us())),
            ("server_cpu_us_op", server),
            ("generator_cpu_us_op", Value::Number(self.per_op_us(self.spent.generator))),
            ("machine_cpu_us_op", Value::Number(self.per_op_us(self.spent.machine))),
            ("errors", Value::Count(self.tally.errors)),
            ("compared", Value::Count(self.tally.compared)),
            ("mismatches", Value::Count(self.tally.mismatches)),
            ("beside_iops", Value::Number(self.tally.beside as f64 / self.seconds)),
        ]
    }

    /// Names of the columns.
    pub fn csv_header() -> String {
        Self::default().fields().iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",")
    }

    /// One line of values.
    pub fn csv(&self) -> String {
        let values = self.fields().into_iter().map(|(_, value)| match value {
            Value::Text(text) => text.replace([',', '\n'], " "),
            Value::Number(number) => format!("{number:.3}"),
            Value::Count(count) => count.to_string(),
            Value::Nothing => String::new(),
        });
        values.collect::<Vec<_>>().join(",")
    }

    /// One JSON object in one line.
    pub fn json(&self) -> String {
        let values = self.fields().into_iter().map(|(name, value)| {
            let value = match value {
                Value::Text(text) => quote(&text),
                Value::Number(number) => format!("{number:.3}"),
                Value::Count(count) => count.to_string(),
                Value::Nothing => "null".to_owned(),
            };
            format!("\"{name}\":{value}")
        });
        format!("{{{}}}", values.collect::<Vec<_>>().join(","))
    }

    /// Some lines for people.
    pub fn human(&self) -> String {
        let mut text = String::new();
        let latencies = &self.tally.latencies;
        let server = self
            .spent
            .server
            .map_or("unknown".to_owned(), |s| format!("{:.2} us/op", self.per_op_us(s)));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} {} {} B, depth {}, {} queue(s), corpus {}, {}",
            self.target, self.op, self.block, self.depth, self.queues, self.corpus, self.wait,
        );
        let _ = writeln!(
            text,
            "  {:.0} op/s  {:.1} MiB/s  ({} ops in {:.2} s, {} errors)",
            self.iops(),
            self.mib(),
            self.tally.ops,
            self.seconds,
            self.tally.errors,
        );
        let _ = writeln!(
            text,
            "  latency us: p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            latencies.quantile_us(0.5),
            latencies.quantile_us(0.9),
            latencies.quantile_us(0.99),
            latencies.quantile_us(0.999),
            latencies.max_us(),
        );
        let _ = writeln!(
            text,
            "  cpu: server {server}, generator {:.2} us/op, whole machine {:.2} us/op",
            self.per_op_us(self.spent.generator),
            self.per_op_us(self.spent.machine),
        );
        if self.tally.compared > 0 {
            let _ = writeln!(
                text,
                "  compared {} pieces: {} mismatches",
                self.tally.compared, self.tally.mismatches
            );
        }
        text
    }
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_value_for_each_column() {
        let row = Row { label: "a,b\"c".into(), seconds: 1.0, ..Row::default() };
        assert_eq!(row.csv().split(',').count(), Row::csv_header().split(',').count());
        assert!(row.json().starts_with("{\"label\":\"a,b\\\"c\",\"target\":\"\""));
        assert!(row.json().contains("\"server_cpu_us_op\":null"));
    }
}
