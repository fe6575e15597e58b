//! `list`: one row a daemon, with the columns of zramctl(8).

use serde_json::{Map, Value};
use vhost_user_zram::internals::api::Disk;

use crate::cli::List;
use crate::client::ClientError;
use crate::fleet::{Daemon, each};
use crate::table::{self, Heading};
use crate::units::{human, ratio};

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
#[error("unknown column: {name} (there are {})", names().join(", "))]
pub struct ColumnError {
    name: String,
}

/// A value of a column.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    None,
    Text(String),
    Count(u64),
    Bytes(u64),
}

/// A column.
struct Column {
    heading: Heading,
    /// What it says of a daemon.
    value: fn(&Row) -> Item,
}

/// A daemon and its answer.
pub struct Row {
    name: String,
    api: String,
    disk: Result<Disk, ClientError>,
}

/// What the answer says, if there is one.
fn of(row: &Row, value: impl Fn(&Disk) -> Item) -> Item {
    row.disk.as_ref().map_or(Item::None, value)
}

const fn column(name: &'static str, right: bool, value: fn(&Row) -> Item) -> Column {
    Column { heading: Heading { name, right }, value }
}

/// The columns, zramctl's first.
const COLUMNS: &[Column] = &[
    column("NAME", false, |row| Item::Text(row.name.clone())),
    column("DISKSIZE", true, |row| of(row, |disk| Item::Bytes(disk.size_bytes))),
    column("DATA", true, |row| of(row, |disk| Item::Bytes(disk.memory.pages_bytes))),
    column("COMPR", true, |row| of(row, |disk| Item::Bytes(disk.memory.objects_bytes))),
    column("ALGORITHM", false, |row| of(row, |disk| Item::Text(disk.algorithm.clone()))),
    column("STREAMS", true, |row| of(row, |disk| Item::Count(disk.engine.workers))),
    column("ZERO-PAGES", true, |row| of(row, |disk| Item::Count(disk.pages.same))),
    column("TOTAL", true, |row| of(row, |disk| Item::Bytes(total(disk)))),
    column("MEM-LIMIT", true, |row| of(row, |disk| Item::Bytes(disk.settings.mem_limit_bytes))),
    column("MEM-USED", true, |row| of(row, |disk| Item::Bytes(disk.memory.arena_max_bytes))),
    column("MIGRATED", true, |row| of(row, |disk| Item::Count(disk.pages.compacted))),
    // A disk that nobody uses has no such place, as with zramctl.
    column("MOUNTPOINT", false, |row| {
        of(row, |disk| {
            let served = disk.session.connected.then(|| disk.daemon.socket.clone());
            served.map_or(Item::None, Item::Text)
        })
    }),
    column("STATE", false, |row| Item::Text(state(row))),
    column("RATIO", true, |row| {
        of(row, |disk| Item::Text(ratio(disk.memory.pages_bytes, total(disk))))
    }),
    column("WORST-CASE", true, |row| of(row, |disk| Item::Bytes(disk.memory.worst_case_bytes))),
    column("PID", true, |row| of(row, |disk| Item::Count(disk.daemon.pid.into()))),
    column("API", false, |row| Item::Text(row.api.clone())),
];

/// The order in which zramctl shows the usual columns.
const USUAL: [&str; 9] =
    ["NAME", "ALGORITHM", "DISKSIZE", "DATA", "COMPR", "TOTAL", "STREAMS", "MOUNTPOINT", "STATE"];

/// All memory that the disk takes.
pub fn total(disk: &Disk) -> u64 {
    disk.memory.arena_bytes + disk.memory.metadata_bytes
}

fn state(row: &Row) -> String {
    match &row.disk {
        Ok(disk) if disk.session.connected => "serving".into(),
        Ok(disk) if disk.daemon.ready => "ready".into(),
        Ok(_) => "starting".into(),
        Err(error) => error.state().into(),
    }
}

fn names() -> Vec<&'static str> {
    COLUMNS.iter().map(|column| column.heading.name).collect()
}

fn find(name: &str) -> Result<&'static Column, ColumnError> {
    let found = COLUMNS.iter().find(|column| column.heading.name.eq_ignore_ascii_case(name.trim()));
    found.ok_or_else(|| ColumnError { name: name.into() })
}

/// The columns that are asked for.
fn chosen(options: &List) -> Result<Vec<&'static Column>, ColumnError> {
    if options.output_all {
        return Ok(COLUMNS.iter().collect());
    }
    let usual = USUAL.iter().map(|name| find(name));
    match options.output.as_deref() {
        None => usual.collect(),
        Some(list) => match list.strip_prefix('+') {
            Some(list) => usual.chain(list.split(',').map(find)).collect(),
            None => list.split(',').map(find).collect(),
        },
    }
}

/// Asks all daemons. One that does not answer has a row that says so.
pub fn ask(daemons: &[Daemon]) -> Vec<Row> {
    each(daemons, |daemon| Row {
        name: daemon.name.clone(),
        api: daemon.client.path().display().to_string(),
        disk: daemon.client.get("/v1/disk"),
    })
}

/// The table as `options` have it.
///
/// # Errors
/// There is no such column.
pub fn render(rows: &[Row], options: &List) -> Result<String, ColumnError> {
    let columns = chosen(options)?;
    if options.json {
        return Ok(json(rows, &columns));
    }
    let headings: Vec<Heading> = columns.iter().map(|column| column.heading).collect();
    let text = |item| match item {
        Item::None => String::new(),
        Item::Text(text) => text,
        Item::Count(count) => count.to_string(),
        Item::Bytes(bytes) if options.bytes => bytes.to_string(),
        Item::Bytes(bytes) => human(bytes),
    };
    let cells = |row| columns.iter().map(|column| text((column.value)(row))).collect();
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let print = if options.raw { table::raw } else { table::aligned };
    Ok(print(&headings, &cells, !options.noheadings))
}

fn json(rows: &[Row], columns: &[&Column]) -> String {
    let value = |item| match item {
        Item::None => Value::Null,
        Item::Text(text) => text.into(),
        Item::Count(number) | Item::Bytes(number) => number.into(),
    };
    let disks: Vec<Value> = rows
        .iter()
        .map(|row| {
            let named = columns
                .iter()
                .map(|column| (column.heading.name.to_lowercase(), value((column.value)(row))));
            let mut object: Map<String, Value> = named.collect();
            if let Err(error) = &row.disk {
                object.insert("error".into(), crate::report::with_causes(error).into());
            }
            object.into()
        })
        .collect();
    let all = Value::from(Map::from_iter([("disks".to_owned(), Value::from(disks))]));
    // Values of JSON always have a text.
    serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn rows() -> Vec<Row> {
        let row = |name: &str, disk| Row { name: name.into(), api: format!("/run/{name}"), disk };
        let mut disk = samples::disk("vm1");
        disk.session.connected = true;
        vec![
            row("vm1", Ok(disk)),
            row("vm2", Ok(samples::disk("vm2"))),
            row("old", Err(ClientError::Stale("/run/old".into()))),
        ]
    }

    fn options(output: &str) -> List {
        List { output: Some(output.into()), ..List::default() }
    }

    #[test]
    fn the_usual_columns_are_those_of_zramctl_and_the_state() {
        let text = render(&rows(), &List::default()).unwrap();
        let expected = "\
NAME ALGORITHM     DISKSIZE DATA COMPR TOTAL STREAMS MOUNTPOINT    STATE
vm1  zstd(level=1)       4G   3M    1M  1.1M       2 /run/vm1.sock serving
vm2  zstd(level=1)       4G   3M    1M  1.1M       2               ready
old                                                                stale socket
";
        assert_eq!(text, expected);
    }

    #[test]
    fn columns_are_chosen_by_name() {
        let text = render(&rows()[..2], &options("name,MEM-USED,ZERO-PAGES")).unwrap();
        assert_eq!(
            text,
            "NAME MEM-USED ZERO-PAGES\nvm1        2M          7\nvm2        2M          7\n"
        );
        let added = render(&rows()[..1], &options("+ratio")).unwrap();
        assert!(added.lines().next().unwrap().ends_with("STATE   RATIO"), "{added}");
        let error = render(&rows(), &options("NAME,SIZE")).unwrap_err().to_string();
        assert!(error.starts_with("unknown column: SIZE (there are NAME, DISKSIZE, "), "{error}");
        let all = List { output_all: true, raw: true, ..List::default() };
        for line in render(&rows(), &all).unwrap().lines() {
            assert_eq!(line.split(' ').count(), COLUMNS.len(), "{line}");
        }
    }

    #[test]
    fn options_are_those_of_zramctl() {
        let bytes =
            List { bytes: true, noheadings: true, raw: true, ..options("NAME,DISKSIZE,TOTAL") };
        let text = render(&rows(), &bytes).unwrap();
        assert_eq!(text, "vm1 4294967296 1158348\nvm2 4294967296 1158348\nold - -\n");
    }

    #[test]
    fn json_has_numbers_and_says_what_is_wrong() {
        let options = List { json: true, output_all: true, ..List::default() };
        let text = render(&rows(), &options).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let disks = value["disks"].as_array().unwrap();
        assert_eq!(disks[0]["disksize"], 4_294_967_296_u64);
        assert_eq!((&disks[1]["mountpoint"], &disks[1]["state"]), (&Value::Null, &"ready".into()));
        assert_eq!(disks[2]["state"], "stale socket");
        assert!(disks[2]["error"].as_str().unwrap().contains("/run/old"), "{text}");
        assert!(disks[0].get("error").is_none());
    }
}
