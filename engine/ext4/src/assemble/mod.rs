//! From the finished tree to the metadata on the image.
//!
//! Two passes over the inodes in the order of their numbers. The first only plans: it counts the
//! blocks that directories, attributes, symbolic links and extent trees need, so that the layout can
//! be decided. The second writes them, and the inode tables beside them, as two streams of large
//! sequential writes. Both take blocks from clones of the same source, and so agree.

mod emit;
mod groups;
mod plan;
mod table;

use std::collections::HashMap;
use std::fs::File;

use crate::allocator::{Allocator, Run};
use crate::checksum::Seed;
use crate::directory::{DIRECTORY, Entry, file_type};
use crate::error::FormatError;
use crate::formatter::{Options, Summary};
use crate::geometry::{BLOCK_SIZE, Geometry};
use crate::group::BlockBitmaps;
use crate::inode;
use crate::layout::{Demand, Layout};
use crate::numbering::{LOST_AND_FOUND, Numbering, path_of};
use crate::stream::BlockStream;
use crate::superblock;
use crate::tree::{Extent, InodeId, Tree};
use crate::xattr::Attributes;
use emit::Emitter;
use plan::Plan;
use table::InodeTable;

/// Blocks of a `lost+found` we make: as many as mke2fs gives it, so that e2fsck need not allocate.
const LOST_AND_FOUND_BLOCKS: usize = 4;
/// Longest target that fits into the inode; the kernel wants a zero byte behind it.
const FAST_SYMLINK: usize = 59;

/// Writes everything but the content of files.
pub(crate) fn assemble(
    file: &File,
    options: &Options,
    geometry: Geometry,
    allocator: Allocator,
    tree: &Tree,
) -> Result<Summary, FormatError> {
    let numbering = Numbering::new(tree)?;
    let source = allocator.into_source();
    let mut plan = Plan {
        tree,
        numbering: &numbering,
        hash_seed: superblock::hash_seed(&options.uuid),
        source: source.clone(),
        bitmaps: BlockBitmaps::new(geometry),
        blocks: 0,
        indexes: HashMap::new(),
    };
    plan.run()?;
    let demand = Demand { inodes: u64::from(numbering.end - 1), blocks: plan.blocks };
    let layout = Layout::new(options, geometry, plan.source.cursor(), demand)?;
    let Plan { mut bitmaps, indexes, .. } = plan;
    mark_layout(&mut bitmaps, &layout);
    file.set_len(layout.blocks * BLOCK_SIZE)?;

    let seed = Seed::of_uuid(&options.uuid);
    let mut emitter = Emitter {
        tree,
        numbering: &numbering,
        options,
        seed,
        source,
        indexes,
        blocks: BlockStream::new(file),
        table: InodeTable::new(file, &layout, seed),
        directories: vec![0; layout.inode_tables.len()],
    };
    let journal_map = emitter.run()?;
    let directories = emitter.directories;
    groups::write_groups(file, options, &layout, &mut bitmaps, &directories, &journal_map, numbering.end)
}

/// Entries of a directory with the numbers of their inodes, `lost+found` of the root included.
fn entries<'a>(tree: &'a Tree, numbering: &'a Numbering, id: InodeId) -> impl Iterator<Item = Entry<'a>> {
    let extra = (id == tree.root() && !numbering.has_lost_and_found).then_some(Entry {
        name: LOST_AND_FOUND,
        inode: inode::FIRST,
        file_type: DIRECTORY,
    });
    extra.into_iter().chain(tree.directory(id).into_iter().flatten().map(|(name, child)| Entry {
        name,
        inode: numbering.number(*child),
        file_type: file_type(&tree.inode(*child).kind),
    }))
}

/// Marks what the layout placed. It was taken from behind everything else and cannot overlap.
fn mark_layout(bitmaps: &mut BlockBitmaps, layout: &Layout) {
    let mut mark = |start: u64, blocks: u64| {
        let marked = bitmaps.mark(Run { start, end: start + blocks });
        debug_assert!(marked.is_ok(), "the layout overlaps at block {start}");
    };
    for block in layout.block_bitmaps.iter().chain(&layout.inode_bitmaps).chain(&layout.journal_tree) {
        mark(*block, 1);
    }
    for table in &layout.inode_tables {
        mark(*table, layout.table_blocks());
    }
    for extent in &layout.journal {
        mark(extent.physical, u64::from(extent.blocks));
    }
    if layout.reserved_descriptor_blocks() > 0 {
        mark(layout.resize_map, 1);
    }
    // The first group always has a bitmap.
    mark(0, 0);
}

fn place_attributes<'a>(tree: &'a Tree, id: InodeId) -> Result<Attributes<'a>, FormatError> {
    Attributes::place(&tree.inode(id).metadata.xattrs)
        .map_err(|source| FormatError::Xattr { path: path_of(tree, id), source })
}

/// Blocks in the order of their place in a file.
#[derive(Debug, Default)]
struct Extents(Vec<Extent>);

impl Extents {
    fn push(&mut self, physical: u64) {
        match self.0.last_mut() {
            Some(last) if last.physical + u64::from(last.blocks) == physical => last.blocks += 1,
            last => {
                let logical = last.map_or(0, |last| last.logical + last.blocks);
                self.0.push(Extent { logical, physical, blocks: 1 });
            }
        }
    }
}
