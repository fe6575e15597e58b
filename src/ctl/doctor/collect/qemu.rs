//! Virtual machines of QEMU, by their command lines: as people write them, and with JSON as libvirt does.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::System;
use super::process::{all, is_trusted, program, words, working_dir};
use crate::doctor::facts::{Connection, FrontEnd};

/// Settings of an option: `socket,id=x,path=/y` or JSON.
struct Settings {
    /// The first word, without a name; of JSON what names the type.
    kind: String,
    named: HashMap<String, String>,
}

impl Settings {
    fn parse(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(value @ Value::Object(_)) => Self::of_json(&value),
            _ => Self::of_words(text),
        }
    }

    /// A comma within a value is doubled.
    fn of_words(text: &str) -> Self {
        let text = text.replace(",,", "\0");
        let mut named = HashMap::new();
        let mut kind = String::new();
        for (at, word) in text.split(',').enumerate() {
            let word = word.replace('\0', ",");
            match word.split_once('=') {
                Some((name, value)) => _ = named.insert(name.to_owned(), value.to_owned()),
                None if at == 0 => kind = word,
                // An old way to say that something is on.
                None => _ = named.insert(word, "on".to_owned()),
            }
        }
        Self { kind, named }
    }

    /// Names of nested objects are of one level here: no two of them that matter are the same.
    fn of_json(value: &Value) -> Self {
        let mut named = HashMap::new();
        let mut left = vec![value];
        while let Some(value) = left.pop() {
            for (name, value) in value.as_object().into_iter().flatten() {
                let text = match value {
                    Value::Object(_) => {
                        left.push(value);
                        continue;
                    }
                    Value::String(text) => text.clone(),
                    Value::Bool(true) => "on".to_owned(),
                    Value::Bool(false) => "off".to_owned(),
                    other => other.to_string(),
                };
                named.entry(name.clone()).or_insert(text);
            }
        }
        let kind = ["qom-type", "driver", "type"].iter().find_map(|name| named.get(*name));
        Self { kind: kind.cloned().unwrap_or_default(), named }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    fn is_on(&self, name: &str) -> Option<bool> {
        Some(matches!(self.get(name)?, "on" | "yes" | "true" | "y"))
    }
}

/// Values of each option `name`, with one or two dashes.
fn options(words: &[String], name: &str) -> Vec<Settings> {
    let pairs = words.windows(2);
    let pairs = pairs.filter(|pair| {
        let word = pair[0].strip_prefix("--").or_else(|| pair[0].strip_prefix('-'));
        word == Some(name)
    });
    pairs.map(|pair| Settings::parse(&pair[1])).collect()
}

/// Whether the guest's memory is shared.
fn memory_shared(words: &[String]) -> bool {
    let back_ends = options(words, "object");
    let shared = |id: &str| {
        let mut all = back_ends.iter();
        let found = all.find(|object| {
            object.get("id") == Some(id) && object.kind.starts_with("memory-backend-")
        });
        // Memory of memfd is shared unless it is said not to be, other memory the other way round.
        found.is_some_and(|object| {
            object.is_on("share").unwrap_or(object.kind == "memory-backend-memfd")
        })
    };
    let machines = [options(words, "machine"), options(words, "M")];
    let machine = machines.iter().flatten().filter_map(|machine| machine.get("memory-backend"));
    let nodes = options(words, "numa");
    let devices = options(words, "device");
    let placed = nodes.iter().chain(&devices).filter_map(|option| option.get("memdev"));
    let used: Vec<&str> = machine.chain(placed).collect();
    // Without a back end QEMU takes private memory.
    !used.is_empty() && used.into_iter().all(shared)
}

/// Connections of vhost-user-blk devices.
fn connections(words: &[String], base: &Path) -> Vec<Connection> {
    let devices = options(words, "device");
    let used: Vec<&str> = devices
        .iter()
        .filter(|device| device.kind.starts_with("vhost-user-blk"))
        .filter_map(|device| device.get("chardev"))
        .collect();
    let positive = |text: &str| text.parse::<f64>().is_ok_and(|time| time > 0.0);
    options(words, "chardev")
        .iter()
        .filter(|chardev| chardev.get("id").is_some_and(|id| used.contains(&id)))
        .filter_map(|chardev| {
            let times = [chardev.get("reconnect"), chardev.get("reconnect-ms")];
            Some(Connection {
                socket: base.join(chardev.get("path")?),
                reconnects: times.into_iter().flatten().any(positive),
            })
        })
        .collect()
}

/// The two first numbers of "QEMU emulator version 7.2.22 (Debian ...)".
fn version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The virtual machines that are connected, or are to be, to one of `sockets`.
pub(super) fn front_ends(system: &System<'_>, sockets: &[PathBuf]) -> Vec<FrontEnd> {
    let mut found = Vec::new();
    for pid in all(system) {
        let words = words(system, pid);
        let program = program(&words);
        let is_qemu = ["qemu-system-", "qemu-kvm"].iter().any(|name| program.starts_with(name));
        if !is_qemu && program != "kvm" {
            continue;
        }
        let mut connections = connections(&words, &working_dir(system, pid));
        connections.retain(|connection| sockets.contains(&connection.socket));
        if connections.is_empty() {
            continue;
        }
        let exe = fs::read_link(system.place(format!("/proc/{pid}/exe"))).ok();
        let exe = exe.filter(|exe| is_trusted(exe));
        let said = exe.and_then(|exe| system.prints(&exe, &["--version"]));
        let names = options(&words, "name");
        let name = names.last().map(|name| name.get("guest").unwrap_or(&name.kind).to_owned());
        found.push(FrontEnd {
            pid,
            program: program.to_owned(),
            guest: name.unwrap_or_default(),
            version: said.as_deref().and_then(version),
            memory_shared: Some(memory_shared(&words)),
            connections,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn shared_memory_is_known_in_all_its_forms() {
        let memfd = "qemu -object memory-backend-memfd,id=mem,size=1G";
        for shared in [
            "-object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem",
            "--object memory-backend-memfd,size=1G,id=m -machine q35,memory-backend=m",
            "-object memory-backend-file,id=m,mem-path=/dev/shm,share=yes -M pc,memory-backend=m",
            r#"-object {"qom-type":"memory-backend-memfd","id":"pc.ram","share":true} -machine pc,memory-backend=pc.ram"#,
        ] {
            assert!(memory_shared(&line(shared)), "{shared}");
        }
        for private in [
            "-m 1G",
            "-m 1G -mem-path /dev/hugepages",
            memfd,
            "-object memory-backend-memfd,id=m,share=off -numa node,memdev=m",
            "-object memory-backend-ram,id=m -machine pc,memory-backend=m",
            "-object memory-backend-memfd,id=a -numa node,memdev=a -object memory-backend-ram,id=b -device pc-dimm,memdev=b",
            r#"-object {"qom-type":"memory-backend-ram","id":"pc.ram"} -machine pc,memory-backend=pc.ram"#,
            r#"-object {"qom-type":"memory-backend-memfd","id":"pc.ram","share":false} -machine pc,memory-backend=pc.ram"#,
        ] {
            assert!(!memory_shared(&line(private)), "{private}");
        }
    }

    #[test]
    fn connections_are_those_of_vhost_user_blk() {
        let found = |text: &str| connections(&line(text), Path::new("/cwd"));
        let one = |socket: &str, reconnects| vec![Connection { socket: socket.into(), reconnects }];
        let device = "-device vhost-user-blk-pci,chardev=d,num-queues=1";
        let text = format!("-chardev socket,id=d,path=/run/a.sock,reconnect=1 {device}");
        assert_eq!(found(&text), one("/run/a.sock", true));
        let text = format!("-chardev socket,path=b.sock,reconnect-ms=500,id=d {device}");
        assert_eq!(found(&text), one("/cwd/b.sock", true));
        for without in ["", ",reconnect=0", ",reconnect-ms=0"] {
            let text = format!("-chardev socket,id=d,path=/a,,b{without} {device}");
            assert_eq!(found(&text), one("/a,b", false));
        }
        let json = r#"-chardev socket,id=d,path=/run/vm.sock,reconnect=1 -device {"driver":"vhost-user-blk-pci","chardev":"d","id":"v"}"#;
        assert_eq!(found(json), one("/run/vm.sock", true));
        let json = r#"-chardev {"id":"d","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"/x"}},"reconnect-ms":1000}}} -device vhost-user-blk,chardev=d"#;
        assert_eq!(found(json), one("/x", true));
        assert_eq!(found("-chardev socket,id=d,path=/x -device virtio-serial,chardev=d"), []);
    }

    #[test]
    fn a_version_is_found_in_what_qemu_says() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version("something else"), None);
    }
}
