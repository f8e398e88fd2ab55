//! Flow control of the data of a command.
//!
//! For each direction of a stream the receiver grants credit in bytes and the sender spends it. A
//! stream begins with [`WINDOW`] and never has more than that outstanding, so a receiver needs a
//! buffer of that size and no more, and a reader that stalls stops only its own stream. Each frame
//! costs [`FRAME_COST`] beside its length, so that a flood of tiny frames is bounded too.

use thiserror::Error;

use crate::frame::DATA_CHUNK;

/// Credit of a fresh stream in each direction, in bytes.
pub const WINDOW: u32 = 256 * 1024;

/// What a frame costs beside the bytes it carries: roughly what it takes to keep one.
pub const FRAME_COST: u32 = 64;

/// Least credit worth being granted by a message of its own.
const GRANT_AT: u32 = WINDOW / 2;

/// The peer does not keep to the credit it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FlowError {
    #[error("data beyond the credit granted")]
    Overrun,
    #[error("credit beyond the window")]
    Overgrant,
}

/// Cost of a frame with so many bytes of data.
pub fn cost(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX).saturating_add(FRAME_COST)
}

/// The sender's side: what it may still send.
#[derive(Debug)]
pub struct SendWindow {
    credit: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { credit: WINDOW }
    }
}

impl SendWindow {
    /// Most bytes of data that may go into one frame now.
    pub fn available(&self) -> usize {
        usize::try_from(self.credit.saturating_sub(FRAME_COST)).unwrap_or(usize::MAX).min(DATA_CHUNK)
    }

    /// Takes the cost of a frame with so many bytes, at most [`available`](Self::available).
    pub fn spend(&mut self, length: usize) {
        self.credit = self.credit.saturating_sub(cost(length));
    }

    /// The receiver granted more.
    pub fn grant(&mut self, credit: u32) -> Result<(), FlowError> {
        let sum = self.credit.checked_add(credit).filter(|sum| *sum <= WINDOW);
        self.credit = sum.ok_or(FlowError::Overgrant)?;
        Ok(())
    }
}

/// The receiver's side: what the peer may still send.
#[derive(Debug)]
pub struct ReceiveWindow {
    /// What the peer has left.
    granted: u32,
    /// Consumed and not granted anew yet.
    consumed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { granted: WINDOW, consumed: 0 }
    }
}

impl ReceiveWindow {
    /// A frame with so many bytes arrived.
    pub fn receive(&mut self, length: usize) -> Result<(), FlowError> {
        self.granted = self.granted.checked_sub(cost(length)).ok_or(FlowError::Overrun)?;
        Ok(())
    }

    /// A frame with so many bytes was passed on. Returns the credit to grant, once it is worth a
    /// message.
    pub fn consume(&mut self, length: usize) -> Option<u32> {
        self.consumed = self.consumed.saturating_add(cost(length));
        if self.consumed < GRANT_AT {
            return None;
        }
        let credit = std::mem::take(&mut self.consumed);
        self.granted = self.granted.saturating_add(credit);
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flood_beyond_the_credit_is_an_error() {
        let mut window = ReceiveWindow::default();
        let frames = (0..).take_while(|_| window.receive(0).is_ok()).take(1_000_000).count();
        assert_eq!(frames, usize::try_from(WINDOW / FRAME_COST).unwrap());
    }

    #[test]
    fn credit_beyond_the_window_is_an_error() {
        assert_eq!(SendWindow::default().grant(1), Err(FlowError::Overgrant));
        assert_eq!(SendWindow::default().grant(u32::MAX), Err(FlowError::Overgrant));
    }

    proptest! {
        /// Whatever is sent and consumed when, an honest pair never stops for good and never errs.
        #[test]
        fn honest_peers_never_stall_or_err(steps in prop::collection::vec((any::<bool>(), 1_usize..40_000), 1..400)) {
            let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
            let mut flying = std::collections::VecDeque::new();
            let mut arrive = |flying: &mut std::collections::VecDeque<usize>, sender: &mut SendWindow| {
                if let Some(length) = flying.pop_front() && let Some(credit) = receiver.consume(length) {
                    sender.grant(credit).unwrap();
                }
            };
            let mut received = ReceiveWindow::default();
            for (send, length) in steps {
                let length = length.min(sender.available());
                if send && length > 0 {
                    sender.spend(length);
                    flying.push_back(length);
                } else {
                    arrive(&mut flying, &mut sender);
                }
            }
            while !flying.is_empty() {
                arrive(&mut flying, &mut sender);
            }
            prop_assert!(sender.available() > 0);
            received.receive(sender.available()).unwrap();
        }
    }
}
