//! The only place that starts threads (the packers of `codec` apart, which have pools of their own).
//!
//! [`fan_out`] is for one producer and several stages that see every item in order:
//! ```text
//!            ┌─► stage (hash)    ─┐
//! fill ──────┼─► stage (encode)  ─┼──► back to fill, to be filled again
//!            └─► stage (write)   ─┘
//! ```
//! The number of items is what the caller gives, so memory is bounded, and the slowest stage sets
//! the pace. The first error, wherever it happens, ends all of it, and is what the caller gets;
//! a panic becomes an error.
//!
//! [`together`] with [`Queue`]s between the jobs is for what that cannot be: flash has several writers
//! for each card, which take cells in whatever order the card answers, and a card that hangs must lose
//! its turn instead of setting the pace for the others.

mod queue;

pub use queue::Queue;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::error::{Error, Result};

/// What one thread does with each item, in the order in which they were filled.
pub type Stage<'env, T> = Box<dyn FnMut(&T) -> Result<()> + Send + 'env>;

/// Work for a thread of its own.
pub type Job<'env> = Box<dyn FnOnce() + Send + 'env>;

/// Runs each job on a thread of its own and `work` on this one. Returns what `work` returned when all of
/// them have ended.
///
/// # Panics
/// If a job panics, when all have ended. A job that others wait for is to be [`guarded`].
pub fn together<'env, T>(jobs: impl IntoIterator<Item = Job<'env>>, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        for job in jobs {
            scope.spawn(job);
        }
        work()
    })
}

/// Fills `items` over and over, each one when all stages are done with it, until `fill` returns
/// false, and gives each to every stage. `fill` runs on this thread, each stage on its own.
///
/// # Errors
/// The first error of `fill` or a stage; `Internal` if one of them panics.
pub fn fan_out<T: Send + Sync>(
    items: Vec<T>,
    mut fill: impl FnMut(&mut T) -> Result<bool>,
    stages: Vec<Stage<'_, T>>,
) -> Result<()> {
    let failure = Mutex::new(None);
    let fail = |error: Error| {
        let mut slot = failure.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
    };
    let count = items.len();
    thread::scope(|scope| {
        // `None` wakes the producer up: a stage has failed.
        let (give_back, free) = channel::<Option<T>>();
        let mut queues = Vec::with_capacity(stages.len());
        for stage in stages {
            let (queue, work) = sync_channel::<Arc<T>>(count);
            let give_back = give_back.clone();
            let fail = &fail;
            queues.push(queue);
            scope.spawn(move || {
                if let Err(error) = guarded(|| serve(stage, work.iter(), &give_back)) {
                    fail(error);
                    let _ = give_back.send(None);
                }
            });
        }
        for item in items {
            // OK: `free` is alive.
            let _ = give_back.send(Some(item));
        }
        let produced = guarded(|| {
            while let Ok(Some(mut item)) = free.recv() {
                if !fill(&mut item)? {
                    break;
                }
                let item = Arc::new(item);
                // A queue is closed only by a stage that has failed, and has said so.
                if queues.iter().any(|queue| queue.send(item.clone()).is_err()) {
                    break;
                }
                if let Some(item) = Arc::into_inner(item) {
                    let _ = give_back.send(Some(item));
                }
            }
            Ok(())
        });
        if let Err(error) = produced {
            fail(error);
        }
        drop(queues);
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn serve<T>(
    mut stage: Stage<'_, T>,
    work: impl Iterator<Item = Arc<T>>,
    give_back: &Sender<Option<T>>,
) -> Result<()> {
    for item in work {
        stage(&item)?;
        // Whoever is last gives it back; when the producer is gone, nobody needs it.
        if let Some(item) = Arc::into_inner(item) {
            let _ = give_back.send(Some(item));
        }
    }
    Ok(())
}

/// Runs `work`; a panic in it becomes an error, so that it can still be told to those who wait for it.
///
/// # Errors
/// That of `work`, `Internal` if it panics.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::internal(format!(
            "a thread panicked: {}",
            message(&*panic)
        )))
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn up_to(end: u32) -> impl FnMut(&mut u32) -> Result<bool> {
        let mut next = 0;
        move |item| {
            next += 1;
            *item = next;
            Ok(next <= end)
        }
    }

    #[test]
    fn every_stage_sees_every_item_in_order() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        fan_out(
            vec![0; 3],
            up_to(1000),
            vec![
                Box::new(|item| {
                    first.push(*item);
                    Ok(())
                }),
                Box::new(|item| {
                    second.push(*item);
                    Ok(())
                }),
            ],
        )
        .unwrap();
        assert_eq!(first, (1..=1000).collect::<Vec<_>>());
        assert_eq!(second, first);
    }

    #[test]
    fn the_first_error_ends_it() {
        for at in [1, 2, 3, 500] {
            let seen = AtomicUsize::new(0);
            let error = fan_out(
                vec![0; 4],
                up_to(u32::MAX - 1),
                vec![
                    Box::new(|_| {
                        seen.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    }),
                    Box::new(move |item| match *item == at {
                        true => Err(Error::refused("enough")),
                        false => Ok(()),
                    }),
                ],
            )
            .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(seen.load(Ordering::Relaxed) <= at as usize + 4);
        }
        let mut left = 5;
        let error = fan_out(
            vec![0u32; 2],
            |_| {
                left -= 1;
                if left == 0 {
                    return Err(Error::cancelled());
                }
                Ok(true)
            },
            vec![Box::new(|_| Ok(()))],
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn jobs_and_work_run_at_the_same_time() {
        let (there, back) = (Queue::new(1), Queue::new(1));
        let jobs: Vec<Job> = vec![
            Box::new(|| {
                while let Some(number) = there.pop() {
                    assert!(back.push(number * 2));
                }
                back.close();
            }),
            Box::new(|| {
                assert!((1..100_u32).all(|number| there.push(number)));
                there.close();
            }),
        ];
        let sum = together(jobs, || std::iter::from_fn(|| back.pop()).sum::<u32>());
        assert_eq!(sum, 9900);
        let panics = || -> Result<()> { panic!("in there") };
        let error = guarded(panics).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.one_line().contains("in there"));
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = fan_out(
            vec![0; 2],
            up_to(100),
            vec![Box::new(|item: &u32| {
                assert!(*item < 50, "over there");
                Ok(())
            })],
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.one_line().contains("over there"));
    }
}
