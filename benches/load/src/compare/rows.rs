//! Rows of the run as comma-separated values: what the generator printed, and who was measured when.

use std::{collections::HashMap, fs, io, path::Path};

/// What can be wrong with rows.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A line has another number of values than the first line has names.
    #[error("line {0} has not one value for each name")]
    Ragged(usize),
    /// A value is missing, or is not a number.
    #[error("line {line}: no number for {name}")]
    NoNumber {
        /// Line, from 1 on.
        line: usize,
        /// Column.
        name: &'static str,
    },
}

/// Lines of values under names. No value has a comma.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    names: Vec<String>,
    lines: Vec<Vec<String>>,
}

impl Rows {
    /// Takes text apart.
    ///
    /// # Errors
    ///
    /// [`RowError::Ragged`] for a line that does not fit the first.
    pub fn parse(text: &str) -> Result<Self, RowError> {
        let split = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        let mut all = text.lines().map(split);
        let names = all.next().unwrap_or_default();
        let lines: Vec<_> = all.collect();
        match lines.iter().position(|line| line.len() != names.len()) {
            Some(at) => Err(RowError::Ragged(at + 2)),
            None => Ok(Self { names, lines }),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is not rows.
    pub fn read(path: &Path) -> Result<Self, RowError> {
        let failed = |source| RowError::Read { path: path.display().to_string(), source };
        Self::parse(&fs::read_to_string(path).map_err(failed)?)
    }

    /// Puts columns with the same value in each line before the others.
    pub fn prefix(&mut self, columns: &[(&str, String)]) {
        self.names.splice(..0, columns.iter().map(|(name, _)| (*name).to_owned()));
        for line in &mut self.lines {
            // A comma in a name would move all columns behind it.
            line.splice(..0, columns.iter().map(|(_, value)| value.replace(',', " ")));
        }
    }

    /// Names of the columns.
    pub fn header(&self) -> String {
        self.names.join(",")
    }

    /// Lines of values.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.lines.iter().map(|line| line.join(","))
    }

    /// The last line in a few words.
    pub fn summary(&self) -> String {
        let Some(last) = self.records().last() else { return String::new() };
        format!("{} op/s, {} us of CPU", last.text("iops"), last.text("server_cpu_us_op"))
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let columns: HashMap<&str, usize> =
            self.names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let columns = std::rc::Rc::new(columns);
        self.lines.iter().enumerate().map(move |(i, values)| Record {
            columns: std::rc::Rc::clone(&columns),
            values,
            line: i + 2,
        })
    }
}

/// Rows of several runs, put together.
#[derive(Debug, Default)]
pub struct Joined {
    rows: Rows,
    rounds: u32,
}

impl Joined {
    /// Adds a run's rows; its rounds, where it has any, are counted on from those before.
    ///
    /// # Errors
    ///
    /// When its columns are others, or a round is not a number.
    pub fn add(&mut self, mut rows: Rows) -> Result<(), RowError> {
        if self.rows.names.is_empty() {
            self.rows.names.clone_from(&rows.names);
        } else if self.rows.names != rows.names {
            return Err(RowError::Ragged(1));
        }
        if let Some(at) = rows.names.iter().position(|name| name == "round") {
            let mut most = 0;
            for (i, line) in rows.lines.iter_mut().enumerate() {
                let wrong = |_| RowError::NoNumber { line: i + 2, name: "round" };
                let round = line[at].parse::<u32>().map_err(wrong)?;
                most = most.max(round + 1);
                line[at] = (self.rounds + round).to_string();
            }
            self.rounds += most;
        }
        self.rows.lines.append(&mut rows.lines);
        Ok(())
    }

    /// All of them, as a file's contents.
    pub fn text(&self) -> String {
        let lines = std::iter::once(self.rows.header()).chain(self.rows.lines());
        lines.map(|line| line + "\n").collect()
    }
}

struct Record<'a> {
    columns: std::rc::Rc<HashMap<&'a str, usize>>,
    values: &'a [String],
    line: usize,
}

impl Record<'_> {
    fn text(&self, name: &str) -> &str {
        self.columns.get(name).map_or("", |at| self.values[*at].as_str())
    }

    fn number(&self, name: &'static str) -> Result<f64, RowError> {
        let wrong = |_| RowError::NoNumber { line: self.line, name };
        self.text(name).parse().map_err(wrong)
    }

    fn maybe(&self, name: &'static str) -> Result<Option<f64>, RowError> {
        if self.text(name).is_empty() { Ok(None) } else { self.number(name).map(Some) }
    }
}

/// One measurement of one rival.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Round, from 0 on.
    pub round: u32,
    /// Rival's name.
    pub rival: String,
    /// Point's name.
    pub point: String,
    /// Corpus.
    pub corpus: String,
    /// Queues.
    pub queues: usize,
    /// Bytes of an operation.
    pub block: f64,
    /// Operations a second.
    pub ops: f64,
    /// Latency that half of the operations do not exceed, in microseconds.
    pub p50: f64,
    /// Latency that 99 % of the operations do not exceed, in microseconds.
    pub p99: f64,
    /// Processor time of the server for an operation, in microseconds.
    pub cpu: Option<f64>,
}

/// The samples of raw rows.
///
/// # Errors
///
/// When a column is missing or is not a number.
pub fn samples(rows: &Rows) -> Result<Vec<Sample>, RowError> {
    rows.records()
        .map(|record| {
            Ok(Sample {
                round: record.number("round")? as u32,
                rival: record.text("rival").to_owned(),
                point: record.text("point").to_owned(),
                corpus: record.text("corpus").to_owned(),
                queues: record.number("queues")? as usize,
                block: record.number("block")?,
                ops: record.number("iops")?,
                p50: record.number("p50_us")?,
                p99: record.number("p99_us")?,
                cpu: record.maybe("server_cpu_us_op")?,
            })
        })
        .collect()
}

/// Memory of one rival with a full disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Rival's name.
    pub rival: String,
    /// Corpus.
    pub corpus: String,
    /// Queues.
    pub queues: usize,
    /// Bytes written to the disk.
    pub written: f64,
    /// Bytes after compression, where the rival says so.
    pub compressed: Option<f64>,
    /// Bytes of the processes before the fill (proportional set size).
    pub idle: f64,
    /// Bytes of the processes after the fill, the disk's data included where they map it.
    pub processes: f64,
    /// Bytes in the kernel: zram's pool, the file on a tmpfs.
    pub kernel: f64,
}

impl Memory {
    /// Names of the columns of [`Memory::csv`].
    pub const HEADER: &str =
        "corpus,queues,rival,written,compressed,idle_pss,pss,kernel,total_per_written";

    /// One line of values.
    pub fn csv(&self) -> String {
        let Self { rival, corpus, queues, written, idle, processes, kernel, .. } = self;
        let compressed = self.compressed.map_or(String::new(), |bytes| bytes.to_string());
        let share = self.per_written();
        let rival = rival.replace(',', " ");
        format!(
            "{corpus},{queues},{rival},{written},{compressed},{idle},{processes},{kernel},{share:.4}"
        )
    }

    /// Bytes of memory for each byte written.
    pub fn per_written(&self) -> f64 {
        (self.processes + self.kernel) / self.written
    }
}

/// What rows of [`Memory::csv`] say.
///
/// # Errors
///
/// When a column is missing or is not a number.
pub fn memory(rows: &Rows) -> Result<Vec<Memory>, RowError> {
    rows.records()
        .map(|record| {
            Ok(Memory {
                rival: record.text("rival").to_owned(),
                corpus: record.text("corpus").to_owned(),
                queues: record.number("queues")? as usize,
                written: record.number("written")?,
                compressed: record.maybe("compressed")?,
                idle: record.number("idle_pss")?,
                processes: record.number("pss")?,
                kernel: record.number("kernel")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_generator_prints_becomes_samples() {
        let printed = "label,corpus,block,queues,iops,p50_us,p99_us,server_cpu_us_op\n\
                       a,mix,4096,2,100.5,1.5,9.0,\n";
        let mut rows = Rows::parse(printed).unwrap();
        let columns = [("round", "3".into()), ("rival", "o,urs".into()), ("point", "p".into())];
        rows.prefix(&columns);
        let text = format!("{}\n{}\n", rows.header(), rows.lines().next().unwrap());
        let rows = Rows::parse(&text).unwrap();
        let expected = Sample {
            round: 3,
            rival: "o urs".into(),
            point: "p".into(),
            corpus: "mix".into(),
            queues: 2,
            block: 4096.0,
            ops: 100.5,
            p50: 1.5,
            p99: 9.0,
            cpu: None,
        };
        assert_eq!(samples(&rows).unwrap(), [expected]);
    }

    #[test]
    fn memory_comes_back_as_it_was_written() {
        let memory_of = |compressed| Memory {
            rival: "zram".into(),
            corpus: "mix".into(),
            queues: 1,
            written: 1000.0,
            compressed,
            idle: 10.0,
            processes: 100.0,
            kernel: 400.0,
        };
        let both = [memory_of(Some(480.0)), memory_of(None)];
        let lines: Vec<_> = both.iter().map(Memory::csv).collect();
        let rows = Rows::parse(&format!("{}\n{}", Memory::HEADER, lines.join("\n"))).unwrap();
        assert_eq!(memory(&rows).unwrap(), both);
        assert!((both[0].per_written() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn rounds_of_several_runs_are_counted_on() {
        let mut joined = Joined::default();
        joined.add(Rows::parse("rival,round\na,0\na,1\n").unwrap()).unwrap();
        joined.add(Rows::parse("rival,round\na,0\na,2\n").unwrap()).unwrap();
        joined.add(Rows::parse("rival,round\nb,0\n").unwrap()).unwrap();
        assert_eq!(joined.text(), "rival,round\na,0\na,1\na,2\na,4\nb,5\n");
        assert!(joined.add(Rows::parse("rival,x\na,0\n").unwrap()).is_err());
    }

    #[test]
    fn a_broken_line_is_named() {
        assert!(matches!(Rows::parse("a,b\n1,2\n3\n"), Err(RowError::Ragged(3))));
        let rows = Rows::parse("round,queues\n1,2\n1,x\n").unwrap();
        let error = samples(&rows).unwrap_err();
        assert_eq!(error.to_string(), "line 2: no number for block");
    }
}
