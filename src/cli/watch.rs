//! Notices a card that does not answer. In `flash` the core does that for each card; here it is for
//! what reads or writes one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::io::ReadAt;

/// After so long without an answer, it is said.
const STALL: Duration = Duration::from_secs(8);

/// The requests that are under way.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Requests>);

#[derive(Debug, Default)]
struct Requests {
    next: u64,
    since: BTreeMap<u64, Instant>,
    named: bool,
}

impl Watch {
    /// Runs a request.
    pub fn over<T>(&self, request: impl FnOnce() -> T) -> T {
        let number = {
            let mut requests = self.lock();
            requests.next += 1;
            let number = requests.next;
            requests.since.insert(number, Instant::now());
            number
        };
        let answer = request();
        self.lock().since.remove(&number);
        answer
    }

    /// Returns what there is to say at `now`, once each time.
    pub fn news(&self, now: Instant) -> Option<String> {
        let mut requests = self.lock();
        let begun = requests.since.values().min();
        let waits = begun.map_or(Duration::ZERO, |&begun| {
            now.saturating_duration_since(begun)
        });
        if (waits >= STALL) == requests.named {
            return None;
        }
        requests.named = !requests.named;
        Some(match requests.named {
            true => format!("has not answered for {} seconds", waits.as_secs()),
            false => "answers again".into(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A source whose reads are watched.
pub struct Watched<'a> {
    pub inner: &'a dyn ReadAt,
    pub watch: &'a Watch,
}

impl ReadAt for Watched<'_> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.watch.over(|| self.inner.read_exact_at(offset, buf))
    }

    fn forget_cached(&self) {
        self.inner.forget_cached();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_takes_long_is_named_once() {
        let watch = Watch::default();
        let now = Instant::now();
        watch.over(|| {
            assert_eq!(watch.news(now + Duration::from_secs(3)), None);
            let said = watch.news(Instant::now() + Duration::from_secs(9));
            assert_eq!(said.unwrap(), "has not answered for 9 seconds");
            assert_eq!(watch.news(now + Duration::from_secs(20)), None);
        });
        assert_eq!(watch.news(now).unwrap(), "answers again");
        assert_eq!(watch.news(now + Duration::from_secs(99)), None);
    }
}
