//! A request to a daemon's control socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::LIMIT;

/// Sends `body` by PATCH; what is refused, or not answered, is an error.
pub fn patch(socket: &Path, target: &str, body: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "PATCH {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("an answer")?;
    parse(&answer)
}

fn parse(answer: &str) -> Result<Value> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the daemon hung up")?;
    let status = head.split(' ').nth(1).context("no status")?;
    if !status.starts_with('2') {
        bail!("{status}: {body}");
    }
    Ok(if body.is_empty() { Value::Null } else { serde_json::from_str(body)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_and_a_hang_up_are_errors() {
        let found = parse("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{\"size_bytes\":4096}").unwrap();
        assert_eq!(found["size_bytes"], 4096);
        assert_eq!(parse("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), Value::Null);
        let refused = parse("HTTP/1.1 422 X\r\n\r\n{\"error\":\"why\"}").unwrap_err().to_string();
        assert!(refused.contains("422") && refused.contains("why"), "{refused}");
        parse("").unwrap_err();
        parse("HTTP/1.1 200 OK\r\n").unwrap_err();
    }
}
