//! What becomes of a command for several things: each is tried, each that fails is told, and what was done
//! is the result.

use vmdeck_engine::{Error, Result};

use super::output::Output;
use super::{Context, Outcome};

pub(super) struct Ended<T> {
    pub(super) done: Vec<T>,
    failed: Vec<Error>,
    output: Output,
}

impl<T> Ended<T> {
    pub(super) fn new(context: &Context) -> Self {
        Self { done: Vec::new(), failed: Vec::new(), output: context.output }
    }

    /// Takes down how it went with one. Errors are told as they come, but for the last.
    pub(super) fn add(&mut self, result: Result<T>) {
        match result {
            Ok(done) => self.done.push(done),
            Err(error) => {
                if let Some(earlier) = self.failed.last() {
                    self.output.error(earlier);
                }
                self.failed.push(error);
            }
        }
    }

    /// The status: that of the errors where all are of one kind, else 1.
    pub(super) fn outcome(mut self) -> Outcome {
        let Some(last) = self.failed.pop() else { return Ok(0) };
        let kind = last.kind();
        if self.failed.iter().all(|error| error.kind() == kind) {
            return Err(last);
        }
        self.output.error(&last);
        Ok(1)
    }
}
