//! A daemon's disk: its attributes over the control API, its pages through a front end.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vhost_user_zram_frontend::{Blk, Client, ClientOptions, Error, Status};

use super::{
    Outcome, Side,
    contents::{self, PAGE},
    outcome,
    script::Action,
};
use crate::process::LIMIT;

/// Sectors of a page.
const SECTORS: u64 = PAGE as u64 / 512;

/// The disk of a daemon that nobody else uses.
pub struct Disk {
    /// Its socket for front ends.
    pub socket: PathBuf,
    /// Its socket for the API.
    pub api: PathBuf,
    /// Who has it open.
    client: Option<Client>,
}

impl Disk {
    /// The disk behind these sockets.
    pub fn new(socket: PathBuf, api: PathBuf) -> Self {
        Self { socket, api, client: None }
    }

    fn connect(&self) -> Result<Client> {
        Ok(Client::connect(&self.socket, &ClientOptions::default())?)
    }

    /// Does something as a front end: the one that is connected, or one for this alone.
    fn with<T>(&mut self, act: impl FnOnce(&mut Blk) -> Result<T>) -> Result<T> {
        match &mut self.client {
            Some(client) => act(client.blk()),
            None => act(self.connect()?.blk()),
        }
    }
}

impl Side for Disk {
    fn act(&mut self, action: &Action) -> Result<Outcome> {
        let done = |result: Result<(), Error>| match result {
            Ok(()) => Ok(Ok("ok".to_owned())),
            Err(Error::Request { status: Status::IoErr, .. }) => Ok(Err("EIO".to_owned())),
            Err(error) => Err(anyhow::Error::from(error)),
        };
        let read = match action {
            Action::Write { name, text } => {
                attribute(&self.api, "PUT", name, text)?.map(|_| "ok".to_owned())
            }
            Action::Read { name, .. } => attribute(&self.api, "GET", name, "")?,
            Action::Fill { kind, first, count } => {
                let pages = contents::pages(kind)?;
                self.with(|blk| {
                    // As dd does it: page by page, up to the first error.
                    let mut each = (*first..first + count).map(|page| {
                        let from = page as usize * PAGE;
                        blk.write(page * SECTORS, &pages[from..from + PAGE])
                    });
                    done(each.find(Result::is_err).unwrap_or(Ok(())))
                })?
            }
            Action::Check { kind, first, count } => {
                let pages = contents::pages(kind)?;
                let range = *first as usize * PAGE..(first + count) as usize * PAGE;
                let read = |blk: &mut Blk| Ok(blk.read_vec(first * SECTORS, range.len())?);
                let same = self.with(read)? == pages[range.clone()];
                Ok(if same { "same" } else { "other" }.to_owned())
            }
            Action::Discard { first, count } => self
                .with(|blk| done(blk.discard(first * SECTORS, u32::try_from(count * SECTORS)?)))?,
            Action::Open => {
                self.client = Some(self.connect()?);
                Ok("ok".to_owned())
            }
            Action::Close => {
                self.client = None;
                Ok("ok".to_owned())
            }
        };
        outcome(action, read)
    }
}

/// Asks the API for an attribute, or to write it; gives the text, or the name of the error.
fn attribute(
    api: &PathBuf,
    method: &str,
    name: &str,
    text: &str,
) -> Result<Result<String, String>> {
    let mut stream = UnixStream::connect(api).with_context(|| api.display().to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    let length = text.len();
    let head = format!(
        "{method} /v1/attributes/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let (status, body) = parse(&String::from_utf8(answer)?)?;
    if (200..300).contains(&status) {
        return Ok(Ok(body));
    }
    let value: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
    let text = |key: &str| value[key].as_str().filter(|text| !text.is_empty());
    match (text("errno"), text("error")) {
        (Some(errno), Some(_)) => Ok(Err(errno.to_owned())),
        _ => bail!("an error without a number or a sentence: {body}"),
    }
}

/// Status and body of an answer.
fn parse(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    if !is_chunked {
        return Ok((status, body.to_owned()));
    }
    let (mut rest, mut whole) = (body, String::new());
    loop {
        let (length, behind) = rest.split_once("\r\n").context("half a chunk")?;
        let length = usize::from_str_radix(length, 16)?;
        if length == 0 {
            return Ok((status, whole));
        }
        whole += behind.get(..length).context("half a chunk")?;
        rest = &behind[length..];
        ensure!(rest.starts_with("\r\n"), "a chunk without an end");
        rest = &rest[2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_and_in_chunks() {
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n1 2";
        assert_eq!(parse(whole).unwrap(), (200, "1 2".into()));
        let chunks =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(parse(chunks).unwrap(), (200, "a\nbc".into()));
        assert_eq!(parse("HTTP/1.1 409 Conflict\r\n\r\n{}").unwrap(), (409, "{}".into()));
        for wrong in
            ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na"]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
