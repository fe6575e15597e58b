//! `add` and `remove`: disks by systemd's unit template. Where systemd does not run, nothing is started or
//! ended: the command that does is printed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::{Add, parse_size};
use crate::fleet::SOCKET;

/// Where units have their settings.
const SETTINGS: &str = "/etc/vhost-user-zram";
/// It is there where systemd is the system's first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Why a disk cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// There is one of this name.
    #[error("{} exists: there is a disk {name} already (vhost-user-zramctl remove {name})", path.display())]
    Exists {
        /// Its settings.
        path: PathBuf,
        /// Its name.
        name: String,
    },
    /// Its settings cannot be written or removed.
    #[error("cannot change {}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An option cannot be written so that systemd reads the same.
    #[error(
        "the option {0:?} has a blank, a quote or a line break, which systemd would take apart"
    )]
    Option(String),
    /// A configuration file that is of no use.
    #[error("{}: {what}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Nothing says how large the disk is to be.
    #[error("how large is {name}? Neither --size nor {} says", config.display())]
    NoSize {
        /// Its name.
        name: String,
        /// The file that could say it.
        config: PathBuf,
    },
    /// systemctl cannot be run.
    #[error("cannot run systemctl")]
    Run(#[source] io::Error),
    /// systemctl says no.
    #[error("systemctl {0} failed; its reason is above")]
    Failed(String),
    /// A guest uses the disk.
    #[error("a guest is connected to {0}: shut it down first, or use --force")]
    InUse(String),
    /// Whether a guest uses the disk is not known.
    #[error("the daemon of {0} does not say whether a guest is connected: use --force if none is")]
    Unknown(String),
}

/// The host on which disks are added and removed.
pub struct Host<'h> {
    /// The directory that stands for `/`.
    pub root: PathBuf,
    /// Runs systemctl, and says whether it ended well.
    pub systemctl: &'h dyn Fn(&[&str]) -> io::Result<bool>,
}

/// What the daemon of a disk is told.
struct Told {
    size: u64,
    options: Vec<String>,
}

/// Runs systemctl, which says what is wrong by itself.
pub fn systemctl(arguments: &[&str]) -> io::Result<bool> {
    Command::new("systemctl").args(arguments).status().map(|status| status.success())
}

fn unit(name: &str) -> String {
    format!("vhost-user-zram@{name}.service")
}

impl Host<'_> {
    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether systemd runs here.
    pub fn has_systemd(&self) -> bool {
        self.place(BOOTED).is_dir()
    }

    fn settings(&self, name: &str) -> PathBuf {
        self.place(SETTINGS).join(format!("{name}.conf"))
    }

    /// Size and options of a disk that is to be added, by the command line and the disk's configuration file, if
    /// there is one.
    fn told(&self, disk: &Add) -> Result<Told, InstanceError> {
        let path = Path::new(SETTINGS).join(format!("{}.toml", disk.name));
        let mut options = disk.options.clone();
        let wrong = |what: String| InstanceError::Config { path: path.clone(), what };
        let text = match fs::read_to_string(self.place(&path.to_string_lossy())) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(wrong(error.to_string())),
        };
        let mut size = disk.size;
        // One that is named on the command line is meant instead.
        let named = |word: &String| word == "--config" || word.starts_with("--config=");
        if let Some(text) = text
            && !options.iter().any(named)
        {
            let table: toml::Table = text
                .parse()
                .map_err(|error: toml::de::Error| wrong(error.message().replace('\n', ", ")))?;
            let said = match table.get("size") {
                None => None,
                Some(toml::Value::Integer(number)) => Some(number.to_string()),
                Some(toml::Value::String(text)) => Some(text.clone()),
                Some(_) => return Err(wrong("`size` takes a string or a whole number".into())),
            };
            let said = said.map(|text| parse_size(&text)).transpose();
            size = size.or(said.map_err(|what| wrong(format!("size: {what}")))?);
            options.splice(0..0, ["--config".to_owned(), path.to_string_lossy().into_owned()]);
        }
        let missing = || InstanceError::NoSize { name: disk.name.clone(), config: path.clone() };
        Ok(Told { size: size.ok_or_else(missing)?, options })
    }

    fn call(&self, arguments: &[&str]) -> Result<(), InstanceError> {
        match (self.systemctl)(arguments) {
            Ok(true) => Ok(()),
            Ok(false) => Err(InstanceError::Failed(arguments.join(" "))),
            Err(error) => Err(InstanceError::Run(error)),
        }
    }

    /// Writes the settings of a disk and starts its unit. If that fails, its settings are removed again.
    ///
    /// # Errors
    /// There is such a disk, nothing says how large it is to be, or its unit does not start.
    pub fn add(&self, disk: &Add) -> Result<(), InstanceError> {
        let Add { name, enable, .. } = disk;
        let Told { size, options } = self.told(disk)?;
        if let Some(bad) = options.iter().find(|word| !is_one_word(word)) {
            return Err(InstanceError::Option(bad.clone()));
        }
        let path = self.settings(name);
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => {
                InstanceError::Exists { path: path.clone(), name: name.clone() }
            }
            _ => InstanceError::Settings { path: path.clone(), source },
        };
        fs::create_dir_all(self.place(SETTINGS)).map_err(fail)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(fail)?;
        let text = format!("SIZE={size}\nOPTIONS=\"{}\"\n", options.join(" "));
        let started = file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail);
        let unit = unit(name);
        let command: &[&str] =
            if *enable { &["enable", "--now", &unit] } else { &["start", &unit] };
        let started = started.and_then(|()| self.call(command));
        if started.is_err() {
            // A unit that restarts for ever is not wanted either. What fails here is said above.
            let _ = (self.systemctl)(&["stop", &unit]);
            let _ = fs::remove_file(&path);
        }
        started
    }

    /// The command that starts the daemon of a disk.
    ///
    /// # Errors
    /// Nothing says how large the disk is to be.
    pub fn start_command(&self, disk: &Add, run_dir: &Path) -> Result<String, InstanceError> {
        let Told { size, options } = self.told(disk)?;
        let dir = run_dir.join(&disk.name);
        let words = [
            "vhost-user-zram".to_owned(),
            "--name".into(),
            disk.name.clone(),
            "--socket-path".into(),
            quoted(&dir.join("socket").to_string_lossy()),
            "--api-socket".into(),
            quoted(&dir.join(SOCKET).to_string_lossy()),
            "--size".into(),
            size.to_string(),
        ];
        let options = options.iter().map(|word| quoted(word));
        let line = words.into_iter().chain(options).collect::<Vec<_>>().join(" ");
        Ok(format!("mkdir -p {} && {line}", quoted(&dir.to_string_lossy())))
    }

    /// Stops the unit of a disk for good, and removes its settings and what systemd holds for it.
    ///
    /// # Errors
    /// The unit does not stop.
    pub fn remove(&self, name: &str) -> Result<(), InstanceError> {
        let unit = unit(name);
        self.call(&["disable", "--now", &unit])?;
        // From systemd 254 on the disk's memory outlives a stop. Older ones have dropped it by now.
        let _ = (self.systemctl)(&["clean", "--what=fdstore", &unit]);
        let path = self.settings(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(InstanceError::Settings { path, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// Whether systemd takes the text as one word when it splits a variable's value.
fn is_one_word(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(|letter: char| {
            letter.is_whitespace() || letter.is_control() || "\"'\\$%#".contains(letter)
        })
}

/// A word as a shell takes it.
fn quoted(text: &str) -> String {
    let known = |letter: char| letter.is_ascii_alphanumeric() || "-_./=,:@+%".contains(letter);
    if !text.is_empty() && text.chars().all(known) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn disk(options: &[&str]) -> Add {
        let options = options.iter().map(|word| (*word).to_owned()).collect();
        Add { name: "vm1".into(), size: Some(1 << 30), enable: false, options }
    }

    /// Calls `act` with an empty host whose systemctl answers `well`; gives what it was asked.
    fn with_host<T>(name: &str, well: bool, act: impl FnOnce(&Host<'_>) -> T) -> (T, Vec<String>) {
        let root = std::env::temp_dir().join(format!("zramctl-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        let asked = RefCell::new(Vec::new());
        let systemctl = |arguments: &[&str]| {
            asked.borrow_mut().push(arguments.join(" "));
            Ok(well)
        };
        let result = act(&Host { root: root.clone(), systemctl: &systemctl });
        fs::remove_dir_all(&root).unwrap();
        (result, asked.into_inner())
    }

    #[test]
    fn a_disk_has_settings_and_a_unit() {
        let ((), asked) = with_host("add", true, |host| {
            assert!(!host.has_systemd());
            fs::create_dir_all(host.place(BOOTED)).unwrap();
            assert!(host.has_systemd());
            host.add(&disk(&["--algorithm", "zstd(level=3)"])).unwrap();
            let text = fs::read_to_string(host.settings("vm1")).unwrap();
            assert_eq!(text, "SIZE=1073741824\nOPTIONS=\"--algorithm zstd(level=3)\"\n");
            let error = host.add(&disk(&[])).unwrap_err();
            assert!(matches!(error, InstanceError::Exists { .. }), "{error}");
            assert_eq!(fs::read_to_string(host.settings("vm1")).unwrap(), text);
            host.remove("vm1").unwrap();
            assert!(!host.settings("vm1").exists());
        });
        let unit = "vhost-user-zram@vm1.service";
        let remove = [format!("disable --now {unit}"), format!("clean --what=fdstore {unit}")];
        assert_eq!(asked, [&[format!("start {unit}")], &remove[..]].concat());
    }

    #[test]
    fn a_disk_that_does_not_start_leaves_nothing() {
        let (error, asked) = with_host("fails", false, |host| {
            let error = host.add(&Add { enable: true, ..disk(&[]) }).unwrap_err();
            assert!(!host.settings("vm1").exists());
            error
        });
        assert!(error.to_string().contains("enable --now vhost-user-zram@vm1.service"), "{error}");
        assert_eq!(asked.last().unwrap(), "stop vhost-user-zram@vm1.service");
        // What is not stopped keeps its settings.
        let (result, _) = with_host("stays", false, |host| {
            fs::create_dir_all(host.place(SETTINGS)).unwrap();
            fs::write(host.settings("vm1"), "SIZE=1\n").unwrap();
            let result = host.remove("vm1");
            assert!(host.settings("vm1").exists());
            result
        });
        result.unwrap_err();
    }

    #[test]
    fn options_that_systemd_would_take_apart_are_refused() {
        for bad in ["a b", "", "x\n", "\"", "$HOME", "%i", "it's"] {
            let (result, asked) = with_host("words", true, |host| host.add(&disk(&[bad])));
            assert!(matches!(result, Err(InstanceError::Option(_))), "{bad}");
            assert!(asked.is_empty());
        }
    }

    #[test]
    fn a_configuration_file_of_the_disks_name_is_used() {
        let with_file = |name: &str, text: &str, disk: &Add| {
            let (result, _) = with_host(name, true, |host| {
                fs::create_dir_all(host.place(SETTINGS)).unwrap();
                fs::write(host.place(SETTINGS).join("vm1.toml"), text).unwrap();
                host.add(disk)?;
                let settings = fs::read_to_string(host.settings("vm1")).unwrap();
                host.remove("vm1").unwrap();
                assert!(host.place(SETTINGS).join("vm1.toml").exists(), "it is the user's");
                Ok::<_, InstanceError>(settings)
            });
            result
        };
        let file = "--config /etc/vhost-user-zram/vm1.toml";
        let without_size = || Add { size: None, ..disk(&["--mlock"]) };
        let settings = with_file("file", "size = '2M'\nmlock = true\n", &without_size()).unwrap();
        assert_eq!(settings, format!("SIZE=2097152\nOPTIONS=\"{file} --mlock\"\n"));
        // The command line beats the file, also as the daemon reads it.
        let settings = with_file("beaten", "size = 4096\n", &disk(&[])).unwrap();
        assert_eq!(settings, format!("SIZE=1073741824\nOPTIONS=\"{file}\"\n"));
        let other = disk(&["--config=/etc/mine.toml"]);
        let settings = with_file("other", "not read", &other).unwrap();
        assert_eq!(settings, "SIZE=1073741824\nOPTIONS=\"--config=/etc/mine.toml\"\n");
        for (text, said) in [
            ("mlock = true", "Neither --size nor /etc/vhost-user-zram/vm1.toml"),
            ("size = '0'", "vm1.toml: size: the size of a disk cannot be 0"),
            ("size = true", "vm1.toml: `size` takes"),
            ("size", "vm1.toml: "),
        ] {
            let error = with_file("mistakes", text, &without_size()).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains('\n'), "{text}: {error}");
        }
        let (result, _) = with_host("no-file", true, |host| host.add(&without_size()));
        assert!(matches!(result, Err(InstanceError::NoSize { .. })));
    }

    #[test]
    fn without_systemd_the_command_is_one_for_a_shell() {
        let (text, _) = with_host("command", true, |host| {
            let disk = disk(&["--algorithm", "zstd(level=3)"]);
            host.start_command(&disk, Path::new("/run/x y")).unwrap()
        });
        assert_eq!(
            text,
            "mkdir -p '/run/x y/vm1' && vhost-user-zram --name vm1 --socket-path '/run/x y/vm1/socket' \
             --api-socket '/run/x y/vm1/api.sock' --size 1073741824 --algorithm 'zstd(level=3)'"
        );
    }
}
