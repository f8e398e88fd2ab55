//! The layers of an image, and the tree they become while others still stream.
//!
//! ```text
//! Waiting ─▶ Begun ─▶ Read ─▶ Merged      merged in their order, by whichever thread finds one ready
//!              └────────────▶ Merged      the bottom one, as it comes
//! ```
//!
//! The bottom layer hides nothing, so that its entries go into the tree as they come. The others wait
//! until they are complete and those below them are in the tree. So what is left to do when the last
//! byte is there is little, whatever the image.

use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use vmdeck_ext4::Metadata;

use super::entries::LayerEntries;
use super::error::{LayerError, LayerName, RootfsError};
use super::jail::Jail;
use super::layer::Budget;
use super::merge;

/// What is known of each layer, and the tree of the lowest ones.
#[derive(Debug)]
pub(super) struct Stack {
    /// Held for moments only.
    layers: Mutex<Vec<LayerState>>,
    /// Taken out by whoever merges for as long as that takes: held for moments only.
    tree: Mutex<Option<Tree>>,
}

#[derive(Debug)]
enum LayerState {
    Waiting,
    Begun,
    Read(LayerName, LayerEntries),
    Merged,
}

/// The lowest layers as one tree.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) jail: Jail,
    /// Layers that are in it.
    merged: usize,
    /// Why the next one cannot be laid over it.
    failure: Option<RootfsError>,
}

impl Stack {
    pub(super) fn new(layers: usize) -> Self {
        // A root no layer describes is as `umoci` makes it, its time too.
        let jail = Jail::new(Metadata { mode: 0o755, ..Metadata::default() });
        Self {
            layers: Mutex::new((0..layers).map(|_| LayerState::Waiting).collect()),
            tree: Mutex::new(Some(Tree { jail, merged: 0, failure: None })),
        }
    }

    /// A layer begins.
    ///
    /// # Errors
    /// There is no such layer, or it has begun before.
    pub(super) fn begin(&self, index: usize) -> Result<(), RootfsError> {
        match self.layers.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            Some(state @ LayerState::Waiting) => {
                *state = LayerState::Begun;
                Ok(())
            }
            _ => Err(RootfsError::Unexpected { index }),
        }
    }

    /// Reads a layer by `read`, which puts what it can into the tree it is lent.
    pub(super) fn read(
        &self,
        index: usize,
        layer: LayerName,
        budget: &Budget,
        cancel: &CancellationToken,
        read: impl FnOnce(Option<&mut Jail>) -> Result<LayerEntries, LayerError>,
    ) -> Result<(), LayerError> {
        let state = if index == 0
            && let Some(mut tree) = self.take()
        {
            // When this fails the tree is lost, and with it the image.
            let rest = read(Some(&mut tree.jail))?;
            merge::add_all(&mut tree.jail, rest, budget, cancel)?;
            tree.merged = 1;
            self.put_back(tree);
            LayerState::Merged
        } else {
            LayerState::Read(layer, read(None)?)
        };
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)[index] = state;
        Ok(())
    }

    /// Merges every layer whose turn has come, unless another thread does.
    pub(super) fn merge_ready(&self, budget: &Budget, cancel: &CancellationToken) {
        while let Some(mut tree) = self.take() {
            let Some((layer, list)) = self.next(&tree) else {
                self.put_back(tree);
                return;
            };
            match merge::apply(&mut tree.jail, list, budget, cancel) {
                Ok(()) => tree.merged += 1,
                Err(source) => tree.failure = Some(RootfsError::Layer { layer, source }),
            }
            // Before it is looked at again: another thread may have found it taken, and gone.
            self.put_back(tree);
        }
    }

    /// The first layer that is missing, if any.
    pub(super) fn missing(&self) -> Option<usize> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().position(|state| !matches!(state, LayerState::Read(..) | LayerState::Merged))
    }

    /// All layers as one tree. Nobody else may be at work on it any more.
    pub(super) fn finish(self, budget: &Budget, cancel: &CancellationToken) -> Result<Jail, RootfsError> {
        self.merge_ready(budget, cancel);
        if let Some(index) = self.missing() {
            return Err(RootfsError::Missing { index });
        }
        match self.tree.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(Tree { failure: Some(failure), .. }) => Err(failure),
            Some(Tree { jail, .. }) => Ok(jail),
            // It was lost with the bottom layer.
            None => Err(RootfsError::Missing { index: 0 }),
        }
    }

    fn take(&self) -> Option<Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put_back(&self, tree: Tree) {
        *self.tree.lock().unwrap_or_else(PoisonError::into_inner) = Some(tree);
    }

    /// The layer that comes next, if it is complete.
    fn next(&self, tree: &Tree) -> Option<(LayerName, LayerEntries)> {
        if tree.failure.is_some() {
            return None;
        }
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let state = layers.get_mut(tree.merged).filter(|state| matches!(state, LayerState::Read(..)))?;
        match std::mem::replace(state, LayerState::Merged) {
            LayerState::Read(layer, list) => Some((layer, list)),
            _ => None,
        }
    }
}
