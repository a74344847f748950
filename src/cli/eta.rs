//! How long a job still takes: a reducer of facts, with the time as an argument.
//!
//! Each step has a rate of its own, the mean since it began: it does not jump when bytes come in
//! bursts, as blocks leave a packer. The time between two facts belongs to the step that the second
//! one is about. A step that is still to come is guessed by one that went before.

use std::time::Duration;

use crate::progress::Phase;

/// In the first seconds nothing is said.
const SILENT: Duration = Duration::from_secs(3);

/// Bytes a second that zeros are hashed with, as long as nothing is known of this machine.
const ZEROS: f64 = 1e9;

/// What is known of a job's steps, and how much of them is done.
#[derive(Clone, Debug, Default)]
pub struct Job {
    steps: Vec<Step>,
    /// When the last fact came.
    last: Duration,
    /// Is what is written read back?
    reads_back: bool,
}

#[derive(Clone, Debug)]
struct Step {
    phase: Phase,
    total: Option<u64>,
    done: u64,
    spent: Duration,
    over: bool,
}

impl Step {
    fn new(phase: Phase, total: Option<u64>) -> Self {
        Self {
            phase,
            total,
            done: 0,
            spent: Duration::ZERO,
            over: false,
        }
    }

    fn left(&self) -> u64 {
        match self.over {
            true => 0,
            false => self.total.unwrap_or(0).saturating_sub(self.done),
        }
    }

    /// Bytes a second, once that can be told.
    fn rate(&self) -> Option<f64> {
        let known = self.done > 0 && self.spent > Duration::ZERO;
        known.then(|| self.done as f64 / self.spent.as_secs_f64())
    }
}

impl Job {
    /// A job whose writing is followed by reading the same back.
    pub fn read_back() -> Self {
        Self {
            reads_back: true,
            ..Self::default()
        }
    }

    /// A step begins `at` so long after the job.
    pub fn started(&mut self, phase: Phase, total: Option<u64>, at: Duration) {
        self.last = at;
        if phase == Phase::Write && self.reads_back {
            self.expect(Phase::Verify, total);
        }
        self.expect(phase, total);
    }

    fn expect(&mut self, phase: Phase, total: Option<u64>) {
        let step = Step::new(phase, total);
        match self.steps.iter_mut().find(|step| step.phase == phase) {
            // It was expected, or goes around once more.
            Some(known) if known.done == 0 && !known.over => *known = step,
            Some(known) => {
                known.over = false;
                known.total = Some(known.done + total.unwrap_or(0));
            }
            None => self.steps.push(step),
        }
    }

    /// So many bytes more are done. None are a sign of life only: whose time that was is not known yet.
    pub fn advanced(&mut self, phase: Phase, bytes: u64, at: Duration) {
        if bytes == 0 {
            return;
        }
        let since = at.saturating_sub(self.last);
        self.last = at;
        if let Some(step) = self.step_mut(phase) {
            step.done += bytes;
            step.spent += since;
        }
    }

    pub fn finished(&mut self, phase: Phase, at: Duration) {
        self.last = at;
        if let Some(step) = self.step_mut(phase) {
            step.over = true;
            // What was skipped takes no time any more.
            step.total = step.total.map(|_| step.done);
        }
    }

    /// Bytes of a step that are done, and all of them, where that is known.
    pub fn done(&self, phase: Phase) -> (u64, Option<u64>) {
        let step = self.steps.iter().find(|step| step.phase == phase);
        step.map_or((0, None), |step| (step.done, step.total))
    }

    /// Returns the mean of a step, in bytes a second.
    pub fn rate(&self, phase: Phase) -> Option<f64> {
        self.steps.iter().find(|step| step.phase == phase)?.rate()
    }

    /// Returns how much of the whole job is done, in thousandths; `None` if its size is unknown.
    pub fn share(&self) -> Option<u64> {
        let sized = || self.steps.iter().filter(|step| step.total.is_some());
        let weight = |step: &Step, bytes: u64| match step.phase {
            // They go by fast.
            Phase::Zeros => u128::from(bytes / 16),
            _ => u128::from(bytes),
        };
        let all: u128 = sized().map(|s| weight(s, s.total.unwrap_or(0))).sum();
        let left: u128 = sized().map(|s| weight(s, s.left())).sum();
        (all > 0).then(|| ((all - left.min(all)) * 1000 / all) as u64)
    }

    /// Returns how long the job takes from `at` on: `None` as long as that is a guess.
    pub fn left(&self, at: Duration) -> Option<Duration> {
        let spent: Duration = self.steps.iter().map(|step| step.spent).sum();
        let since = at.saturating_sub(self.last);
        if spent + since < SILENT {
            return None;
        }
        let mut seconds = 0.0;
        for step in self.steps.iter().filter(|step| step.left() > 0) {
            seconds += step.left() as f64 / self.expected_rate(step)?;
        }
        // What goes on without a word has come closer to its end.
        let left = Duration::try_from_secs_f64(seconds).ok()?;
        let least = left.mul_f64(0.75);
        (seconds > 0.0).then(|| left.saturating_sub(since).max(least))
    }

    fn expected_rate(&self, step: &Step) -> Option<f64> {
        let before = match step.phase {
            Phase::Zeros => return Some(step.rate().unwrap_or(ZEROS)),
            Phase::Verify => self.rate(Phase::Write),
            _ => None,
        };
        // A few bytes tell little of a step that has just begun.
        match (step.rate(), before) {
            (Some(rate), Some(before)) if step.spent < SILENT => {
                let known = step.spent.as_secs_f64() / SILENT.as_secs_f64();
                Some(rate * known + before * (1.0 - known))
            }
            (Some(rate), _) => Some(rate),
            (None, before) => before,
        }
    }

    fn step_mut(&mut self, phase: Phase) -> Option<&mut Step> {
        self.steps.iter_mut().find(|step| step.phase == phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs a job of steps given as (phase, bytes a second, seconds), told in bursts of so many
    /// seconds. Returns the job's length, and what was said of it at each burst, in seconds.
    fn run(mut job: Job, steps: &[(Phase, u64, u32)], burst: u32) -> (f64, Vec<(f64, f64)>) {
        let mut at = Duration::ZERO;
        let mut said = Vec::new();
        for &(phase, rate, seconds) in steps {
            job.started(phase, Some(rate * u64::from(seconds)), at);
            let mut second = 0;
            while second < seconds {
                let step = burst.min(seconds - second);
                for _ in 0..step {
                    at += SECOND;
                    if let Some(left) = job.left(at) {
                        said.push((at.as_secs_f64(), left.as_secs_f64()));
                    }
                }
                second += step;
                job.advanced(phase, rate * u64::from(step), at);
            }
            job.finished(phase, at);
        }
        (at.as_secs_f64(), said)
    }

    /// After the first fifth what is said is at most a quarter wrong.
    fn assert_honest(whole: f64, said: &[(f64, f64)]) {
        assert!(!said.is_empty());
        for (at, left) in said.iter().filter(|(at, _)| *at > whole / 5.0) {
            let all = at + left;
            assert!(
                (all / whole - 1.0).abs() <= 0.25,
                "at {at}: {left} of {whole}"
            );
        }
    }

    #[test]
    fn bursts_do_not_make_the_time_jump() {
        // 30 blocks of a packer, each of which takes 16 seconds.
        let (whole, said) = run(Job::default(), &[(Phase::Capture, 4_000_000, 480)], 16);
        assert_honest(whole, &said);
        for pair in said.windows(2).filter(|pair| pair[0].0 > whole / 5.0) {
            assert!(pair[1].1 <= pair[0].1 * 1.25 + 1.0, "{pair:?}");
        }
    }

    #[test]
    fn reading_back_is_in_the_time_from_the_start() {
        let steps = [(Phase::Write, 20, 60), (Phase::Verify, 24, 50)];
        let (whole, said) = run(Job::read_back(), &steps, 1);
        assert_honest(whole, &said);
    }

    #[test]
    fn zeros_that_are_only_hashed_count_for_what_they_cost() {
        let mut job = Job::default();
        job.started(Phase::Capture, Some(2_000_000_000), Duration::ZERO);
        job.started(Phase::Zeros, Some(30_000_000_000), Duration::ZERO);
        for second in 1..=10 {
            job.advanced(Phase::Capture, 100_000_000, SECOND * second);
        }
        // Ten seconds of data, and thirty of zeros.
        let left = job.left(SECOND * 10).unwrap().as_secs_f64();
        assert!((left - 40.0).abs() < 1.0, "{left}");
    }

    #[test]
    fn nothing_is_said_before_something_is_known() {
        let mut job = Job::default();
        assert_eq!(job.left(SECOND * 60), None);
        job.started(Phase::Write, Some(100), Duration::ZERO);
        assert_eq!(job.left(SECOND * 60), None);
        job.advanced(Phase::Write, 10, SECOND);
        assert_eq!(job.left(SECOND), None);
        assert!(job.left(SECOND * 4).is_some());
        job.finished(Phase::Write, SECOND * 5);
        assert_eq!(job.left(SECOND * 5), None);
        assert_eq!(job.share(), Some(1000));
    }
}
