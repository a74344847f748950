//! Images from the web: a stream that goes on where it broke off.

use std::io::{self, Read};
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body, BodyReader};

use super::interrupt::Interrupt;
use crate::error::{Error, Result};
use crate::units::human_bytes;

/// How often in a row a broken connection is made again without a byte coming through.
const TRIES: u32 = 6;

/// The first pause between two tries; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);

/// A connection that gives nothing for so long counts as broken.
const SILENCE: Duration = Duration::from_secs(30);

/// Is it the address of something on the web?
pub fn is_url(image: &str) -> bool {
    let lower = image.get(..8).unwrap_or(image).to_ascii_lowercase();
    lower.starts_with("http://") || lower.starts_with("https://")
}

/// A file on a server.
#[derive(Clone)]
pub struct Remote {
    agent: Agent,
    url: String,
    interrupt: Interrupt,
}

impl Remote {
    pub fn new(url: &str, interrupt: Interrupt) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("pishrink/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.into(),
            url: url.to_owned(),
            interrupt,
        }
    }

    /// Starts to fetch it.
    pub fn open(&self) -> Result<Download> {
        let response = self.get(None).map_err(|cause| self.failed(cause))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Error::io(
                format!("cannot fetch {}", self.url),
                io::Error::other(format!("the server says {status}")),
            ));
        }
        Ok(self.download(response))
    }

    fn download(&self, response: Response<Body>) -> Download {
        Download {
            remote: self.clone(),
            version: Version::of(&response),
            position: 0,
            body: Some(response.into_body().into_reader()),
            tries: 0,
        }
    }

    /// Takes the address apart into what leads to the file and the file's name; `None` if it ends in
    /// something else, as with parameters.
    pub fn name(&self) -> Option<(&str, &str)> {
        let host = self.url.find("://")? + "://".len();
        self.url[host..].find('/')?;
        let (folder, name) = self.url.split_at(self.url.rfind('/')? + 1);
        let plain = !name.is_empty() && !self.url.contains(['?', '#']);
        plain.then_some((folder, name))
    }

    /// Fetches a file that may lie beside this one, at the address `url`; `None` if there is none.
    ///
    /// # Errors
    /// `Io` if the server cannot be reached or the connection breaks, `Unsupported` if it is larger than
    /// `most` bytes.
    pub fn beside(&self, url: String, most: u64) -> Result<Option<Vec<u8>>> {
        let beside = Self {
            url,
            ..self.clone()
        };
        let response = beside.get(None).map_err(|cause| self.failed(cause))?;
        if response.status() != StatusCode::OK || is_page(&response) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let failed = |cause| Error::io(format!("cannot fetch {}", beside.url), cause);
        beside
            .download(response)
            .take(most + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > most {
            let size = human_bytes(most);
            let what = format!("{} is larger than {size}", beside.url);
            return Err(Error::unsupported(what));
        }
        Ok(Some(bytes))
    }

    fn failed(&self, cause: ureq::Error) -> Error {
        let cause = match cause {
            ureq::Error::Io(cause) => cause,
            other => io::Error::other(other),
        };
        Error::io(format!("cannot fetch {}", self.url), cause)
    }

    /// Asks for the file, or for the part of it `from` a position on if it is still the same.
    fn get(&self, from: Option<(u64, &Version)>) -> Result<Response<Body>, ureq::Error> {
        let mut request = self
            .agent
            .get(&self.url)
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some((position, version)) = from {
            request = request.header(header::RANGE, format!("bytes={position}-"));
            if let Some(name) = &version.name {
                request = request.header(header::IF_RANGE, name);
            }
        }
        request.call()
    }
}

/// Is the answer a page for people? Many servers have one for whatever they do not have.
fn is_page(response: &Response<Body>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| {
            kind.trim_start()
                .to_ascii_lowercase()
                .starts_with("text/html")
        })
}

/// What tells one state of a file on a server from another.
#[derive(Clone, PartialEq, Eq)]
struct Version {
    /// A strong ETag, or else a date.
    name: Option<String>,
    len: Option<u64>,
}

impl Version {
    fn of(response: &Response<Body>) -> Self {
        let text = |name| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let etag = text(header::ETAG).filter(|etag| !etag.starts_with("W/"));
        Self {
            name: etag.or_else(|| text(header::LAST_MODIFIED)),
            len: response.body().content_length(),
        }
    }
}

/// A file on its way from a server.
pub struct Download {
    remote: Remote,
    version: Version,
    position: u64,
    body: Option<BodyReader<'static>>,
    tries: u32,
}

impl Download {
    /// Connects again, and goes on where it broke off.
    fn resume(&mut self) -> io::Result<()> {
        let from = Some((self.position, &self.version));
        let response = self.remote.get(from).map_err(io::Error::other)?;
        let status = response.status();
        match status {
            StatusCode::PARTIAL_CONTENT => {
                if starts_at(&response) != Some(self.position) {
                    return Err(fatal("the server sends another part than was asked for"));
                }
                self.body = Some(response.into_body().into_reader());
                Ok(())
            }
            StatusCode::OK => {
                // No parts, or another file by now.
                if Version::of(&response) != self.version {
                    return Err(fatal("the file changed on the server meanwhile"));
                }
                let mut body = response.into_body().into_reader();
                let skipped = io::copy(&mut (&mut body).take(self.position), &mut io::sink())?;
                if skipped < self.position {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.body = Some(body);
                Ok(())
            }
            _ if status.is_server_error() => {
                Err(io::Error::other(format!("the server says {status}")))
            }
            _ => Err(fatal(format!("the server says {status}"))),
        }
    }

    fn read_once(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.body.is_none() {
            self.resume()?;
        }
        let count = match &mut self.body {
            Some(body) => body.read(buf)?,
            None => 0,
        };
        if count == 0 && self.version.len.is_some_and(|len| self.position < len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }

    fn pause(&self) -> io::Result<()> {
        let mut left = PAUSE * 2_u32.pow(self.tries.min(5));
        let step = Duration::from_millis(50);
        while !left.is_zero() {
            if self.remote.interrupt.requested() {
                return Err(io::Error::other(Error::cancelled()));
            }
            std::thread::sleep(step.min(left));
            left = left.saturating_sub(step);
        }
        Ok(())
    }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.read_once(buf) {
                Ok(count) => {
                    self.position += count as u64;
                    self.tries = 0;
                    return Ok(count);
                }
                // Not Interrupted: callers repeat those.
                Err(error) if is_fatal(&error) || self.tries >= TRIES => {
                    return Err(io::Error::other(format!(
                        "fetching broke off at byte {}: {error}",
                        self.position
                    )));
                }
                Err(_) => {
                    self.body = None;
                    self.pause()?;
                    self.tries += 1;
                }
            }
        }
    }
}

/// Returns the first byte of `Content-Range: bytes 5-9/10`.
fn starts_at(response: &Response<Body>) -> Option<u64> {
    let range = response
        .headers()
        .get(header::CONTENT_RANGE)?
        .to_str()
        .ok()?;
    let range = range.trim().strip_prefix("bytes")?.trim_start();
    range.split_once('-')?.0.parse().ok()
}

fn fatal(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn is_fatal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart_at_its_name() {
        for (url, apart) in [
            (
                "https://x.org/a/b.img.xz",
                Some(("https://x.org/a/", "b.img.xz")),
            ),
            ("http://x.org/b.img", Some(("http://x.org/", "b.img"))),
            ("http://[::1]:8080/b", Some(("http://[::1]:8080/", "b"))),
            ("https://x.zip", None),
            ("https://x.zip/", None),
            ("https://x.org/a/", None),
            ("https://x.org/get?file=b.img", None),
            ("https://x.org/b.img#part", None),
        ] {
            let remote = Remote::new(url, Interrupt::none());
            assert_eq!(remote.name(), apart, "{url}");
        }
    }
}
