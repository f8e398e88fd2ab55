//! From the finished tree to the metadata on the image.
//!
//! Two passes over the inodes in the order of their numbers. The first only plans: it counts the
//! blocks that directories, attributes, symbolic links and extent trees need, so that the layout can
//! be decided. The second writes them, and the inode tables beside them, as two streams of large
//! sequential writes. Both take blocks from clones of the same source, and so agree.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::allocator::{Allocator, BlockSource, Run};
use crate::checksum::Seed;
use crate::directory::{DIRECTORY, Entry, EntryBlock, file_type, fit_one_block};
use crate::error::{FormatError, InodeError};
use crate::formatter::{Options, Summary};
use crate::geometry::{BLOCK, BLOCK_SIZE, Geometry, INODE_SIZE, INODES_PER_BLOCK};
use crate::group::{self, BlockBitmaps, Descriptor};
use crate::htree::IndexPlan;
use crate::inode::{self, Record};
use crate::layout::{Demand, Layout};
use crate::numbering::{LOST_AND_FOUND, Numbering, path_of};
use crate::stream::BlockStream;
use crate::superblock::{self, Counts};
use crate::tree::{Extent, FileData, Inode, InodeId, InodeKind, Tree};
use crate::xattr::Attributes;
use crate::{extent, journal, resize};

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
    write_groups(file, options, &layout, &mut bitmaps, &directories, &journal_map, numbering.end)
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

/// The first pass.
struct Plan<'a> {
    tree: &'a Tree,
    numbering: &'a Numbering,
    hash_seed: [u32; 4],
    source: BlockSource,
    bitmaps: BlockBitmaps,
    /// Blocks in use so far.
    blocks: u64,
    /// Directories of more than one block.
    indexes: HashMap<InodeId, IndexPlan<'a>>,
}

impl Plan<'_> {
    fn run(&mut self) -> Result<(), FormatError> {
        let tree = self.tree;
        for id in &self.numbering.order {
            let id = *id;
            let inode = tree.inode(id);
            let attributes = place_attributes(tree, id)?;
            if attributes.needs_block() {
                self.take();
            }
            match &inode.kind {
                InodeKind::Directory(_) => self.directory(id)?,
                InodeKind::File(data) => self.file(data).map_err(|error| error.at(tree, id))?,
                InodeKind::Symlink(target) => {
                    if target.is_empty() || target.len() >= BLOCK {
                        let length = target.len();
                        return Err(InodeError::SymlinkLength { length }.at(tree, id));
                    }
                    if target.len() > FAST_SYMLINK {
                        self.take();
                    }
                }
                _ => {}
            }
            if id == tree.root() && !self.numbering.has_lost_and_found {
                for _ in 0..LOST_AND_FOUND_BLOCKS {
                    self.take();
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, id: InodeId) -> Result<(), FormatError> {
        if fit_one_block(entries(self.tree, self.numbering, id)) {
            self.take();
            return Ok(());
        }
        let plan = IndexPlan::new(entries(self.tree, self.numbering, id), &self.hash_seed)
            .ok_or_else(|| InodeError::DirectoryTooLarge.at(self.tree, id))?;
        let mut extents = Extents::default();
        for _ in 0..plan.blocks() {
            extents.push(self.take());
        }
        self.indexes.insert(id, plan);
        for _ in 0..extent::tree_blocks(extent::normalise(&extents.0).len()) {
            self.take();
        }
        Ok(())
    }

    fn file(&mut self, data: &FileData) -> Result<(), InodeError> {
        let limit = data.size.div_ceil(BLOCK_SIZE);
        let mut next = 0;
        for extent in &data.extents {
            let end = u64::from(extent.logical) + u64::from(extent.blocks);
            if extent.blocks == 0 || u64::from(extent.logical) < next || end > limit {
                return Err(InodeError::DisorderedExtents);
            }
            next = end;
            let run =
                Run { start: extent.physical, end: extent.physical.saturating_add(u64::from(extent.blocks)) };
            // Content lies below the cursor, and where nobody else has anything.
            if run.end > self.source.cursor().position() {
                return Err(InodeError::ForeignBlocks);
            }
            self.bitmaps.mark(run).map_err(|_| InodeError::ForeignBlocks)?;
            self.blocks += run.len();
        }
        if data.extents.len() > 1 || data.extents.iter().any(|extent| extent.blocks > 4 * 32_768) {
            for _ in 0..extent::tree_blocks(extent::normalise(&data.extents).len()) {
                self.take();
            }
        }
        Ok(())
    }

    /// Takes one block for metadata.
    fn take(&mut self) -> u64 {
        let start = self.source.next();
        let marked = self.bitmaps.mark(Run { start, end: start + 1 });
        debug_assert!(marked.is_ok(), "block {start} was handed out twice");
        self.blocks += 1;
        start
    }
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

/// The second pass.
struct Emitter<'a> {
    tree: &'a Tree,
    numbering: &'a Numbering,
    options: &'a Options,
    seed: Seed,
    source: BlockSource,
    indexes: HashMap<InodeId, IndexPlan<'a>>,
    blocks: BlockStream<'a>,
    table: InodeTable<'a>,
    /// Directories by group.
    directories: Vec<u64>,
}

impl Emitter<'_> {
    /// Returns the block map of the journal, of which the superblock keeps a copy.
    fn run(&mut self) -> Result<[u8; 60], FormatError> {
        let mut journal_map = [0; 60];
        for id in &self.numbering.order {
            self.inode(*id)?;
            if *id == self.tree.root() {
                let layout = self.table.layout;
                if layout.reserved_descriptor_blocks() > 0 {
                    let record = resize::write(layout, self.options.created, &mut self.blocks)?;
                    self.table.put(inode::RESIZE, &record, &Attributes::default())?;
                }
                if layout.journal_blocks > 0 {
                    journal_map = self.journal()?;
                }
                if !self.numbering.has_lost_and_found {
                    self.lost_and_found()?;
                }
            }
        }
        self.blocks.flush()?;
        self.table.flush()?;
        Ok(journal_map)
    }

    fn inode(&mut self, id: InodeId) -> Result<(), FormatError> {
        let tree = self.tree;
        let inode = tree.inode(id);
        let number = self.numbering.number(id);
        let seed = self.seed.of_inode(number, 0);
        let attributes = place_attributes(tree, id)?;
        let mut record = self.record(inode);
        record.links = self.numbering.link_count(id, inode).map_err(|error| error.at(tree, id))?;
        if attributes.needs_block() {
            let block = self.source.next();
            attributes.encode_block(Some(self.seed), block, self.blocks.block(block)?);
            record.xattr_block = block;
            record.blocks = 1;
        }
        match &inode.kind {
            InodeKind::Directory(_) => {
                let extents = self.directory(id, seed)?;
                let blocks: u64 = extents.iter().map(|extent| u64::from(extent.blocks)).sum();
                record.size = blocks * BLOCK_SIZE;
                if blocks > 1 {
                    record.flags |= inode::FLAG_INDEX;
                }
                self.map(&mut record, &extents, seed)?;
                self.count_directory(number);
            }
            InodeKind::File(data) => {
                record.size = data.size;
                self.map(&mut record, &data.extents, seed)?;
            }
            InodeKind::Symlink(target) => {
                record.size = target.len() as u64;
                if target.len() > FAST_SYMLINK {
                    let block = self.source.next();
                    self.blocks.block(block)?[..target.len()].copy_from_slice(target);
                    self.map(&mut record, &[Extent { logical: 0, physical: block, blocks: 1 }], seed)?;
                } else {
                    record.block[..target.len()].copy_from_slice(target);
                }
            }
            InodeKind::CharacterDevice { major, minor } | InodeKind::BlockDevice { major, minor } => {
                record.block = inode::encode_device(*major, *minor)
                    .ok_or_else(|| InodeError::DeviceNumber { major: *major, minor: *minor }.at(tree, id))?;
            }
            InodeKind::Fifo | InodeKind::Socket => {}
        }
        self.table.put(number, &record, &attributes)?;
        Ok(())
    }

    /// A record with what the tree says of an inode.
    fn record(&self, inode: &Inode) -> Record {
        let metadata = &inode.metadata;
        Record {
            mode: inode::type_bits(&inode.kind) | metadata.mode & 0o7777,
            uid: metadata.uid,
            gid: metadata.gid,
            accessed: metadata.modified,
            modified: metadata.modified,
            ..Record::new(self.options.created)
        }
    }

    /// Maps the content of an inode, with as many blocks of extent tree as it takes.
    fn map(&mut self, record: &mut Record, extents: &[Extent], seed: Seed) -> Result<(), FormatError> {
        let extents = extent::normalise(extents);
        let source = &mut self.source;
        let blocks = &mut self.blocks;
        record.flags |= inode::FLAG_EXTENTS;
        record.block = extent::encode(&extents, BLOCK, Some(seed), |node| {
            let block = source.next();
            blocks.block(block)?.copy_from_slice(node);
            Ok::<_, FormatError>(block)
        })?;
        record.blocks += extent::tree_blocks(extents.len());
        record.blocks += extents.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>();
        Ok(())
    }

    fn directory(&mut self, id: InodeId, seed: Seed) -> Result<Vec<Extent>, FormatError> {
        let number = self.numbering.number(id);
        let parent = self.numbering.parent(id);
        let mut extents = Extents::default();
        let Some(plan) = self.indexes.remove(&id) else {
            let block = self.source.next();
            extents.push(block);
            let mut writer = EntryBlock::new(self.blocks.block(block)?);
            writer.add_dots(number, parent);
            for entry in entries(self.tree, self.numbering, id) {
                writer.add(entry);
            }
            writer.finish(seed);
            return Ok(extents.0);
        };
        let mut next = |blocks: &mut BlockStream<'_>, fill: &mut dyn FnMut(&mut [u8])| {
            let block = self.source.next();
            extents.push(block);
            blocks.block(block).map(fill)
        };
        next(&mut self.blocks, &mut |block| plan.encode_root(block, number, parent, seed))?;
        for node in 0..plan.nodes() {
            next(&mut self.blocks, &mut |block| plan.encode_node(node, block, seed))?;
        }
        for mut leaf in plan.leaves() {
            next(&mut self.blocks, &mut |block| {
                let mut writer = EntryBlock::new(block);
                for entry in leaf.by_ref() {
                    writer.add(entry);
                }
                writer.finish(seed);
            })?;
        }
        Ok(extents.0)
    }

    fn lost_and_found(&mut self) -> Result<(), FormatError> {
        let seed = self.seed.of_inode(inode::FIRST, 0);
        let mut extents = Extents::default();
        for index in 0..LOST_AND_FOUND_BLOCKS {
            let block = self.source.next();
            extents.push(block);
            let mut writer = EntryBlock::new(self.blocks.block(block)?);
            if index == 0 {
                writer.add_dots(inode::FIRST, inode::ROOT);
            }
            writer.finish(seed);
        }
        let mut record = Record {
            mode: inode::TYPE_DIRECTORY | 0o700,
            links: 2,
            size: LOST_AND_FOUND_BLOCKS as u64 * BLOCK_SIZE,
            ..Record::new(self.options.created)
        };
        self.map(&mut record, &extents.0, seed)?;
        self.count_directory(inode::FIRST);
        self.table.put(inode::FIRST, &record, &Attributes::default())?;
        Ok(())
    }

    /// The journal's inode and first block; the rest of the journal is holes.
    fn journal(&mut self) -> Result<[u8; 60], FormatError> {
        let layout = self.table.layout;
        let mut tree_blocks = layout.journal_tree.iter().copied();
        let blocks = &mut self.blocks;
        let seed = self.seed.of_inode(inode::JOURNAL, 0);
        let map = extent::encode(&layout.journal, BLOCK, Some(seed), |node| {
            let block = tree_blocks.next().unwrap_or_default();
            blocks.block(block)?.copy_from_slice(node);
            Ok::<_, FormatError>(block)
        })?;
        if let Some(first) = layout.journal.first() {
            let block = blocks.block(first.physical)?;
            journal::encode_superblock(block, layout.journal_blocks as u32, &self.options.uuid);
        }
        let record = Record {
            mode: inode::TYPE_FILE | 0o600,
            size: layout.journal_blocks * BLOCK_SIZE,
            blocks: layout.journal_blocks + layout.journal_tree.len() as u64,
            flags: inode::FLAG_EXTENTS,
            block: map,
            ..Record::new(self.options.created)
        };
        self.table.put(inode::JOURNAL, &record, &Attributes::default())?;
        Ok(map)
    }

    fn count_directory(&mut self, number: u32) {
        let group = u64::from(number - 1) / self.table.layout.inodes_per_group;
        self.directories[group as usize] += 1;
    }
}

/// The inode tables, filled in the order of inode numbers.
struct InodeTable<'a> {
    layout: &'a Layout,
    seed: Seed,
    stream: BlockStream<'a>,
    block: Box<[u8; BLOCK]>,
    /// Where the block in hand belongs; 0 for none.
    position: u64,
}

impl<'a> InodeTable<'a> {
    fn new(file: &'a File, layout: &'a Layout, seed: Seed) -> Self {
        Self { layout, seed, stream: BlockStream::new(file), block: Box::new([0; BLOCK]), position: 0 }
    }

    fn put(&mut self, number: u32, record: &Record, attributes: &Attributes<'_>) -> std::io::Result<()> {
        let index = u64::from(number - 1);
        let table = self.layout.inode_tables[(index / self.layout.inodes_per_group) as usize];
        let index = index % self.layout.inodes_per_group;
        let position = table + index / INODES_PER_BLOCK;
        if position != self.position {
            self.flush_block()?;
            self.position = position;
        }
        let start = (index % INODES_PER_BLOCK) as usize * INODE_SIZE;
        let bytes = &mut self.block[start..start + INODE_SIZE];
        record.encode(bytes);
        attributes.encode_in_inode(&mut bytes[inode::XATTR_ROOM..]);
        inode::seal(bytes, self.seed.of_inode(number, 0));
        Ok(())
    }

    fn flush_block(&mut self) -> std::io::Result<()> {
        if self.position != 0 {
            self.stream.block(self.position)?.copy_from_slice(self.block.as_slice());
            self.block.fill(0);
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.flush_block()?;
        self.position = 0;
        self.stream.flush()
    }
}

/// Bitmaps, descriptors and superblocks. `end` is the first inode number that is not in use.
fn write_groups(
    file: &File,
    options: &Options,
    layout: &Layout,
    bitmaps: &mut BlockBitmaps,
    directories: &[u64],
    journal_map: &[u8; 60],
    end: u32,
) -> Result<Summary, FormatError> {
    let seed = Seed::of_uuid(&options.uuid);
    let groups = layout.groups();
    let mut descriptors = vec![0; layout.descriptor_blocks() as usize * BLOCK];
    let mut block_stream = BlockStream::new(file);
    let mut inode_stream = BlockStream::new(file);
    let mut free_blocks = 0;
    let inodes_in_use = u64::from(end - 1);
    for (group, record) in (0..groups).zip(descriptors.chunks_exact_mut(64)) {
        let index = group as usize;
        let blocks = layout.blocks_in_group(group);
        let used_inodes =
            inodes_in_use.saturating_sub(group * layout.inodes_per_group).min(layout.inodes_per_group);
        let mut descriptor = Descriptor {
            block_bitmap: layout.block_bitmaps[index],
            inode_bitmap: layout.inode_bitmaps[index],
            inode_table: layout.inode_tables[index],
            free_blocks: blocks - bitmaps.used(group),
            free_inodes: layout.inodes_per_group - used_inodes,
            directories: directories[index],
            unused_inodes: layout.inodes_per_group - used_inodes,
            flags: group::INODE_TABLE_ZEROED,
            ..Descriptor::default()
        };
        free_blocks += descriptor.free_blocks;
        // The bitmap of a last, partial group has bits set behind its end, and is always written.
        if bitmaps.is_untouched(group) && group + 1 < groups {
            descriptor.flags |= group::BLOCK_UNINITIALISED;
        } else {
            let block = block_stream.block(descriptor.block_bitmap)?;
            bitmaps.encode(group, blocks, block);
            descriptor.block_bitmap_checksum = seed.checksum(block);
        }
        if used_inodes == 0 {
            descriptor.flags |= group::INODE_UNINITIALISED;
        } else {
            let block = inode_stream.block(descriptor.inode_bitmap)?;
            let bits = layout.inodes_per_group as usize;
            group::set_bits(block, 0, used_inodes as usize);
            group::set_bits(block, bits, 8 * BLOCK - bits);
            descriptor.inode_bitmap_checksum = seed.checksum(&block[..bits / 8]);
        }
        descriptor.encode(seed, group, record);
    }
    block_stream.flush()?;
    inode_stream.flush()?;

    let counts = Counts {
        free_blocks,
        free_inodes: layout.inodes() - inodes_in_use,
        overhead: layout.fixed_blocks() + layout.journal_blocks,
    };
    let mut copy = superblock::encode(options, layout, counts, journal_map);
    for group in (0..groups).filter(|group| layout.geometry.base_blocks(*group) > 0) {
        superblock::seal(&mut copy, group);
        let start = group * crate::geometry::BLOCKS_PER_GROUP * BLOCK_SIZE;
        let offset = if group == 0 { superblock::OFFSET as u64 } else { 0 };
        file.write_all_at(&copy, start + offset)?;
        file.write_all_at(&descriptors, start + BLOCK_SIZE)?;
    }
    Ok(Summary {
        size: layout.blocks * BLOCK_SIZE,
        used: (layout.blocks - free_blocks) * BLOCK_SIZE,
        inodes: inodes_in_use,
    })
}
