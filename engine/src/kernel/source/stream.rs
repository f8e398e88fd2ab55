//! A tar archive as it arrives: the layer of an image.

use std::io::{self, BufReader};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::file::read_packed;
use super::tar::TarError;
use super::{Budget, Reading, Sink};
use crate::error::{Error, Result};
use crate::pieces::Pieces;
use crate::rootfs::LayerSink;

/// Pieces that wait to be read.
const PIECES: usize = 8;

/// The reading end of a layer.
#[derive(Debug)]
pub(in crate::kernel) struct TarStream {
    pieces: mpsc::Receiver<Bytes>,
    result: oneshot::Sender<Result<()>>,
}

impl TarStream {
    /// Both ends of a layer: what is sent into the sink is read from the stream.
    pub(in crate::kernel) fn new() -> (LayerSink, Self) {
        let (sender, pieces) = mpsc::channel(PIECES);
        let (result, outcome) = oneshot::channel();
        (LayerSink::new(sender, outcome), Self { pieces, result })
    }

    /// Reads all of it. A failure is told to the sending end as well.
    pub(super) fn read(self, reading: Reading<'_>, budget: &mut Budget, sink: &mut dyn Sink) -> Result<()> {
        let mut packed = BufReader::with_capacity(256 << 10, Pieces::new(self.pieces));
        let read = read_packed(&mut packed, budget, sink)
            // What follows the archive belongs to the layer, and to its digest.
            .and_then(|()| io::copy(&mut packed, &mut io::sink()).map(drop).map_err(TarError::from));
        let result = read.map_err(|error| match error {
            _ if reading.cancel.is_cancelled() => Error::cancelled(),
            TarError::Sink(error) => error,
            error => Error::failed("cannot read a layer of the image").with_source(error),
        });
        // Nobody listens when the transfer has failed by itself.
        let _ = self.result.send(match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(error.report().into()),
        });
        result
    }
}
