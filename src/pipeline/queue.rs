//! A bounded queue between threads that either side can end.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A queue of at most `room` items.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    room: usize,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// Makes an empty queue with room for so many items.
    pub fn new(room: usize) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                closed: false,
            }),
            changed: Condvar::new(),
            room,
        }
    }

    /// Adds an item, waiting for room; false, without it, if the queue is closed.
    pub fn push(&self, item: T) -> bool {
        let mut state = self.lock();
        while state.items.len() >= self.room && !state.closed {
            state = self.wait(state);
        }
        if state.closed {
            return false;
        }
        state.items.push_back(item);
        self.changed.notify_all();
        true
    }

    /// Adds an item if there is room before `patience` ends. A closed queue swallows it.
    ///
    /// # Errors
    /// The item itself, if there was no room.
    pub fn push_within(&self, item: T, patience: Duration) -> Result<(), T> {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        while state.items.len() >= self.room && !state.closed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(item);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if !state.closed {
            state.items.push_back(item);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Takes the oldest item, waiting for one; `None` once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                self.changed.notify_all();
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Lets no more items in; those inside can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Closes the queue and drops what is inside.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        let items = std::mem::take(&mut state.items);
        self.changed.notify_all();
        drop(state);
        // Outside the lock: an item's drop may use another queue.
        drop(items);
    }

    // A thread that panicked left the items whole: each change is a single call.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_on_in_order_and_ends() {
        let queue = Queue::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..100 {
                    assert!(queue.push(number));
                }
                queue.close();
                assert!(!queue.push(100));
            });
            let taken: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
            assert_eq!(taken, (0..100).collect::<Vec<_>>());
        });
    }

    #[test]
    fn abandoning_wakes_a_full_pusher() {
        let queue = Queue::new(1);
        assert!(queue.push(1));
        std::thread::scope(|scope| {
            let pusher = scope.spawn(|| queue.push(2));
            std::thread::sleep(std::time::Duration::from_millis(20));
            queue.abandon();
            assert!(!pusher.join().unwrap());
        });
        assert_eq!(queue.pop(), None);
    }
}
