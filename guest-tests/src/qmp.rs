//! QEMU's machine protocol: commands, and events as they come.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{common::Lines, process::LIMIT};

/// A connection to a QEMU.
pub struct Qmp {
    stream: UnixStream,
    lines: Lines,
    commands: u64,
}

impl Qmp {
    /// Connects to the monitor at `path`, which QEMU makes while it starts.
    pub fn connect(path: &Path, mut is_alive: impl FnMut() -> bool) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if !is_alive() => {
                    bail!("QEMU ended before its monitor was there: {error}")
                }
                Err(error) if Instant::now() > deadline => bail!("QEMU's monitor: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        let reader = stream.try_clone().context("QEMU's monitor")?;
        let (lines, _) = Lines::follow(reader, None);
        let mut qmp = Self { stream, lines, commands: 0 };
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; gives what it returns.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.commands += 1;
        let id = self.commands;
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        writeln!(self.stream, "{line}").with_context(|| format!("QEMU's monitor, {command}"))?;
        let answer = self.lines.find(0, LIMIT, |line| answer(line, id));
        match answer {
            None => bail!("QEMU does not answer {command} within {LIMIT:?}"),
            Some(answer) => answer.map_err(|error| anyhow::anyhow!("QEMU, {command}: {error}")),
        }
    }

    /// Whether there is an event of this name, with these values among its data, within `limit`.
    pub fn has(&self, name: &str, data: &Value, limit: Duration) -> bool {
        self.lines.find(0, limit, |line| is_event(line, name, data).then_some(())).is_some()
    }
}

/// What QEMU answers to command `id`, if this is it.
fn answer(line: &str, id: u64) -> Option<std::result::Result<Value, String>> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value.get("id")?.as_u64()? != id {
        return None;
    }
    if let Some(error) = value.get("error") {
        return Some(Err(error.get("desc").unwrap_or(error).to_string()));
    }
    value.get("return").cloned().map(Ok)
}

/// Whether this is event `name` with the values of `data` among its data.
fn is_event(line: &str, name: &str, data: &Value) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return false };
    let wanted = data.as_object().into_iter().flatten();
    value.get("event").and_then(Value::as_str) == Some(name)
        && wanted
            .clone()
            .all(|(key, want)| value.get("data").and_then(|d| d.get(key)) == Some(want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_belong_to_their_commands() {
        assert_eq!(answer(r#"{"return": {"a": 1}, "id": 3}"#, 3), Some(Ok(json!({"a": 1}))));
        for other in [2, 4] {
            assert_eq!(answer(r#"{"return": {}, "id": 3}"#, other), None);
        }
        assert_eq!(answer(r#"{"event": "RESET", "data": {}}"#, 3), None);
        assert_eq!(answer(r#"{"QMP": {"version": {}}}"#, 3), None);
        assert_eq!(answer("not JSON", 3), None);
        let error = answer(r#"{"id": 3, "error": {"class": "GenericError", "desc": "no"}}"#, 3);
        assert_eq!(error, Some(Err("\"no\"".to_owned())));
    }

    #[test]
    fn events_are_known_by_name_and_data() {
        let line = r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#;
        assert!(is_event(line, "SHUTDOWN", &json!({"guest": true})));
        assert!(is_event(line, "SHUTDOWN", &json!({})));
        assert!(!is_event(line, "SHUTDOWN", &json!({"guest": false})));
        assert!(!is_event(line, "SHUTDOWN", &json!({"device": "disk0"})));
        assert!(!is_event(line, "RESET", &json!({})));
        assert!(!is_event(r#"{"return": {}}"#, "RESET", &json!({})));
    }
}
