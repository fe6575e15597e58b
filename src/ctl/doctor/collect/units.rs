//! Units of systemd.

use std::path::Path;

use super::System;
use super::options;
use crate::doctor::facts::Unit;

const PROPERTIES: &str = "--property=Id,ActiveState,Result,FileDescriptorStoreMax,LimitMEMLOCK,ExecStart,EnvironmentFiles";

/// The part of a unit's name that names the disk.
pub fn instance(unit: &str) -> &str {
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    name.split_once('@').map_or(name, |(_, instance)| instance)
}

/// The units of disks that systemd has loaded, the failed ones included.
pub fn units(system: &System<'_>) -> Vec<Unit> {
    let arguments = ["show", PROPERTIES, "--all", "vhost-user-zram@*.service"];
    let text = (system.run)(Path::new("systemctl"), &arguments).unwrap_or_default();
    text.split("\n\n").filter_map(|block| unit(system, block)).collect()
}

fn unit(system: &System<'_>, block: &str) -> Option<Unit> {
    let property = |name: &str| {
        let mut lines = block.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let name = property("Id");
    if name.is_empty() {
        return None;
    }
    let words = command_line(system, property("ExecStart"), property("EnvironmentFiles"));
    let mut options = options::parse(system, words.get(1..).unwrap_or_default(), Path::new("/"));
    options.name = Some(instance(name).to_owned());
    Some(Unit {
        name: name.to_owned(),
        active: property("ActiveState").to_owned(),
        result: property("Result").to_owned(),
        fd_store_max: property("FileDescriptorStoreMax").parse().ok(),
        mlock_limit: property("LimitMEMLOCK").parse().ok(),
        options,
    })
}

/// The words of "{ path=/usr/bin/x ; argv[]=/usr/bin/x --size ${SIZE} $OPTIONS ; ignore_errors=no ; ... }", with
/// the variables of the unit's environment file.
fn command_line(system: &System<'_>, exec: &str, files: &str) -> Vec<String> {
    let line = exec.split_once("argv[]=").map_or("", |(_, rest)| rest);
    let line = line.split(" ; ").next().unwrap_or_default();
    let file = files.split(" (").next().filter(|path| path.starts_with('/'));
    let text = file.and_then(|path| system.read(path)).unwrap_or_default();
    let settings = text.lines().filter_map(|line| line.trim().split_once('='));
    let settings: Vec<(&str, &str)> = settings
        .filter(|(name, _)| !name.starts_with('#'))
        .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
        .collect();
    let value = |name: &str| {
        settings.iter().rev().find(|(other, _)| *other == name).map_or("", |(_, value)| *value)
    };
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        if let Some(name) = word.strip_prefix("${").and_then(|word| word.strip_suffix('}')) {
            words.push(value(name).to_owned());
        } else if let Some(name) = word.strip_prefix('$') {
            words.extend(value(name).split_whitespace().map(str::to_owned));
        } else {
            words.push(word.to_owned());
        }
    }
    words
}
