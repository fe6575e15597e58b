//! Units of systemd.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::System;
use super::options;
use super::process::is_trusted;
use crate::doctor::facts::Unit;

const PROPERTIES: &str = "--property=Id,ActiveState,Result,FileDescriptorStoreMax,LimitMEMLOCK,ExecStart,EnvironmentFiles,DynamicUser,User";
/// Where units have their settings.
const SETTINGS: &str = "/etc/vhost-user-zram";

/// The part of a unit's name that names the disk.
pub fn instance(unit: &str) -> &str {
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    name.split_once('@').map_or(name, |(_, instance)| instance)
}

/// The units of disks that systemd has loaded, the failed ones included.
pub fn units(system: &System<'_>) -> Vec<Unit> {
    let arguments = ["show", PROPERTIES, "--all", "vhost-user-zram@*.service"];
    let text = system.prints(Path::new("systemctl"), &arguments).unwrap_or_default();
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
    let file = property("EnvironmentFiles").split(" (").next();
    let settings = file.filter(|path| path.starts_with('/')).map(PathBuf::from);
    let words = command_line(system, property("ExecStart"), settings.as_deref());
    let mut options = options::parse(system, words.get(1..).unwrap_or_default(), Path::new("/"));
    options.name = Some(instance(name).to_owned());
    let own_config = Path::new(SETTINGS).join(format!("{}.toml", instance(name)));
    let unused = options.config.as_ref() != Some(&own_config) && system.place(&own_config).exists();
    let is_root = property("DynamicUser") != "yes" && matches!(property("User"), "" | "root" | "0");
    let config = options.config.as_ref().filter(|_| !is_root);
    // Whoever may not read the settings does not know the options.
    let is_known = settings.as_deref().is_none_or(|path| system.read(path).is_some());
    Some(Unit {
        mistake: if is_known { mistake(system, &words) } else { None },
        unused_config: unused.then_some(own_config),
        config_is_closed: config.is_some_and(|path| is_closed(&system.place(path))),
        settings,
        name: name.to_owned(),
        active: property("ActiveState").to_owned(),
        result: property("Result").to_owned(),
        fd_store_max: property("FileDescriptorStoreMax").parse().ok(),
        mlock_limit: property("LimitMEMLOCK").parse().ok(),
        options,
    })
}

/// What the program of a command line says is wrong with its options.
fn mistake(system: &System<'_>, words: &[String]) -> Option<String> {
    let (program, options) = words.split_first()?;
    let program = Path::new(program);
    if !is_trusted(program) {
        return None;
    }
    let mut arguments: Vec<&str> = options.iter().map(String::as_str).collect();
    arguments.push("--check-config");
    let said = (system.run)(program, &arguments).filter(|said| !said.well)?;
    let line = said.complaint.lines().next().unwrap_or("it does not say what");
    Some(line.strip_prefix("error: ").unwrap_or(line).to_owned())
}

/// Whether users without rights of their own may not read a file.
fn is_closed(place: &Path) -> bool {
    let lacks = |path: &Path, bit| {
        fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & bit == 0)
    };
    lacks(place, 0o004) || place.parent().is_some_and(|parent| lacks(parent, 0o001))
}

/// The words of "{ path=/usr/bin/x ; argv[]=/usr/bin/x --size ${SIZE} $OPTIONS ; ignore_errors=no ; ... }", with
/// the variables of the unit's environment file.
fn command_line(system: &System<'_>, exec: &str, settings: Option<&Path>) -> Vec<String> {
    let line = exec.split_once("argv[]=").map_or("", |(_, rest)| rest);
    let line = line.split(" ; ").next().unwrap_or_default();
    let text = settings.and_then(|path| system.read(path)).unwrap_or_default();
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
