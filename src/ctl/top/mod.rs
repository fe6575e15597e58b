//! `top`: all disks as they change, on a terminal, or one frame as text or picture.

mod model;
mod svg;
mod view;

use std::io::{self, IsTerminal};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, KeyCode, KeyEvent, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};

use self::model::{Model, Sample};
use crate::cli::{Sort, Top};
use crate::client::ClientError;
use crate::fleet::{Daemon, FleetError, Search, each};

/// The longest time until a look is shown after it came, or a key is answered.
const TICK: Duration = Duration::from_millis(50);

/// Time that the end by a signal may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// There is nothing to be shown.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// stdout or stdin is something else.
    #[error("stdin and stdout are not a terminal: --once prints one frame")]
    NoTerminal,
    /// The terminal does not do as it is told.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Asks all daemons.
fn look(daemons: &[Daemon], began: Instant) -> Vec<Sample> {
    each(daemons, |daemon| {
        let disk = daemon.client.get("/v1/disk");
        let at = began.elapsed();
        let disk = disk.map(|disk| {
            // A disk without jobs is of use, too.
            let jobs = daemon.client.get("/v1/jobs").unwrap_or_default();
            Box::new((disk, jobs))
        });
        let disk = disk.map_err(|error: ClientError| error.state().to_owned());
        Sample { name: daemon.name.clone(), at, disk }
    })
}

/// Text of a frame, without blanks at the ends of lines.
fn text(buffer: &Buffer) -> String {
    let area = buffer.area();
    let line = |y| (0..area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..area.height).fold(String::new(), |text, y| text + line(y).trim_end() + "\n")
}

/// Some looks, and the frame after the last one.
///
/// # Errors
/// There is no daemon.
pub fn once(search: &Search, options: &Top) -> Result<String, TopError> {
    let began = Instant::now();
    let mut model = Model::new(options.sort);
    let daemons = search.some()?;
    for at in 0..options.looks {
        if at > 0 {
            thread::sleep(options.interval);
        }
        model.take(look(&daemons, began));
    }
    let backend = TestBackend::new(options.width, options.height);
    // This terminal is memory, and its errors cannot happen.
    let Ok(mut terminal) = Terminal::new(backend);
    let Ok(_) = terminal.draw(|frame| view::draw(frame, &model));
    let buffer = terminal.backend().buffer();
    Ok(if options.svg { svg::svg(buffer) } else { text(buffer) })
}

/// Shows the disks until the user has seen enough. The terminal is as it was afterwards, also after a panic
/// or a signal that ends the program.
///
/// # Errors
/// There is no daemon, or no terminal.
pub fn live(search: &Search, options: &Top) -> Result<(), TopError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    search.some()?;
    let signal = end_at_signals()?;
    let looks = looks(search.clone(), options.interval)?;
    // It has panics restore the terminal, too.
    let mut terminal = ratatui::try_init().map_err(TopError::Terminal)?;
    let shown = show(&mut terminal, &looks, &signal, options);
    let restored = ratatui::try_restore();
    shown.and(restored).map_err(TopError::Terminal)?;
    match signal.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => process::exit(128 + signal),
    }
}

/// Notes a signal that ends a program, so that this one ends with its terminal in order. They are blocked in
/// all threads that are started later.
fn end_at_signals() -> Result<Arc<AtomicI32>, TopError> {
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    let set: SigSet = signals.into_iter().collect();
    set.thread_block().map_err(|errno| TopError::Terminal(errno.into()))?;
    let noted = Arc::new(AtomicI32::new(0));
    let note = Arc::clone(&noted);
    let wait = move || {
        if let Ok(signal) = set.wait() {
            note.store(signal as i32, Ordering::Relaxed);
            // A thread that writes to a terminal which takes nothing does not see that.
            thread::sleep(PATIENCE);
            process::exit(128 + signal as i32);
        }
    };
    thread::Builder::new().spawn(wait).map_err(TopError::Thread)?;
    Ok(noted)
}

/// Looks at all daemons, again and again: a thread waits for those that are slow, and the keys do not.
fn looks(search: Search, interval: Duration) -> Result<Receiver<Vec<Sample>>, TopError> {
    let (sender, receiver) = mpsc::channel();
    let body = move || {
        let began = Instant::now();
        loop {
            let next = Instant::now() + interval;
            // A run directory that goes away has no daemons any more.
            let daemons = search.all().unwrap_or_default();
            if sender.send(look(&daemons, began)).is_err() {
                return;
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    };
    thread::Builder::new().spawn(body).map_err(TopError::Thread)?;
    Ok(receiver)
}

fn show(
    terminal: &mut DefaultTerminal,
    looks: &Receiver<Vec<Sample>>,
    signal: &AtomicI32,
    options: &Top,
) -> io::Result<()> {
    let mut model = Model::new(options.sort);
    loop {
        terminal.draw(|frame| view::draw(frame, &model))?;
        // Something to be drawn: a key, another size, or a look.
        loop {
            if signal.load(Ordering::Relaxed) != 0 {
                return Ok(());
            }
            if event::poll(TICK)? {
                let key = event::read()?.as_key_press_event();
                if key.is_some_and(|key| !answer(&mut model, key)) {
                    return Ok(());
                }
                break;
            }
            match looks.recv_timeout(Duration::ZERO) {
                Ok(samples) if !model.paused => {
                    model.take(samples);
                    break;
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// Does what a key means; `false` ends it.
fn answer(model: &mut Model, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Up | KeyCode::Char('k') => model.move_by(-1),
        KeyCode::Down | KeyCode::Char('j') => model.move_by(1),
        KeyCode::PageUp => model.move_by(-10),
        KeyCode::PageDown => model.move_by(10),
        KeyCode::Home => model.move_by(isize::MIN),
        KeyCode::End => model.move_by(isize::MAX),
        KeyCode::Char('n') => model.sort_by(Sort::Name),
        KeyCode::Char('m') => model.sort_by(Sort::Memory),
        KeyCode::Char('r') => model.sort_by(Sort::Ratio),
        KeyCode::Char('o') => model.sort_by(Sort::Ops),
        KeyCode::Char('d') => model.sort_by(Sort::Data),
        KeyCode::Char('p') => model.paused = !model.paused,
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn model() -> Model {
        let mut model = Model::new(Sort::Name);
        let sample = |name: &str| {
            let disk = Ok(Box::new((samples::disk(name), Vec::new())));
            Sample { name: name.into(), at: Duration::ZERO, disk }
        };
        model.take(vec![sample("a"), sample("b"), sample("c")]);
        model
    }

    #[test]
    fn keys_do_what_the_last_line_says() {
        let mut model = model();
        let mut press = |code| answer(&mut model, KeyEvent::new(code, KeyModifiers::NONE));
        for code in [
            KeyCode::Down,
            KeyCode::End,
            KeyCode::Char('o'),
            KeyCode::Char('p'),
            KeyCode::Char('x'),
        ] {
            assert!(press(code));
        }
        assert!(!press(KeyCode::Char('q')) && !press(KeyCode::Esc) && press(KeyCode::Char('c')));
        assert_eq!(
            (model.selected.as_deref(), model.sort, model.paused),
            (Some("c"), Sort::Ops, true)
        );
        let stop = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(!answer(&mut model, stop));
    }
}
