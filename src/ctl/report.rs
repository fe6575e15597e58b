//! What the program says of its own failures.

use std::error::Error;
use std::fmt::Write as _;

use crate::table::plain;

/// An error and its causes as one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // A transparent error is its own cause.
        if !text.ends_with(&said) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    plain(&text)
}
