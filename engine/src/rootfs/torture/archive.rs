//! A writer of tar archives that can also write what ordinary writers do not.

/// How an item's header is written, and where what does not fit into it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// ustar, with an extended header in front where it is needed.
    Pax,
    /// GNU: long names as entries of their own, large numbers in base-256.
    Gnu,
    /// Before POSIX: no magic, folders told by a slash.
    V7,
}

/// One entry of an archive.
#[derive(Clone, Debug)]
pub struct Item {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub typeflag: u8,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub seconds: i64,
    pub nanoseconds: u32,
    pub device: (u32, u32),
    /// What is stored, which for a sparse file is not all of it.
    pub content: Vec<u8>,
    /// Size to claim, when that is not the length of the content.
    pub size: Option<u64>,
    /// Extended header records, besides those that are needed.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    pub dialect: Dialect,
    /// Length of an old GNU sparse file, and offset and length of each stored part.
    pub old_map: Option<(u64, Vec<(u64, u64)>)>,
}

impl Item {
    fn new(typeflag: u8, name: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self {
            name: name.into(),
            link: Vec::new(),
            typeflag,
            mode,
            uid: 0,
            gid: 0,
            seconds: 1_600_000_000,
            nanoseconds: 0,
            device: (0, 0),
            content: Vec::new(),
            size: None,
            records: Vec::new(),
            dialect: Dialect::Pax,
            old_map: None,
        }
    }

    /// A header whose records hold for everything behind it.
    pub fn global(records: &[(&str, &str)]) -> Self {
        let records: Vec<_> = records.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Self { content: encode_records(&records), ..Self::new(b'g', "pax_global_header", 0o644) }
    }

    pub fn file(name: impl Into<Vec<u8>>, content: impl Into<Vec<u8>>) -> Self {
        Self { content: content.into(), ..Self::new(b'0', name, 0o644) }
    }

    pub fn folder(name: impl Into<Vec<u8>>) -> Self {
        Self::new(b'5', name, 0o755)
    }

    pub fn symlink(name: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Self {
        Self { link: target.into(), ..Self::new(b'2', name, 0o777) }
    }

    pub fn hard_link(name: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Self {
        Self { link: target.into(), ..Self::new(b'1', name, 0o644) }
    }

    pub fn fifo(name: impl Into<Vec<u8>>) -> Self {
        Self::new(b'6', name, 0o600)
    }

    pub fn character(name: impl Into<Vec<u8>>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(b'3', name, 0o666) }
    }

    pub fn block(name: impl Into<Vec<u8>>, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(b'4', name, 0o660) }
    }

    /// A whiteout: an empty file, as every tool ships it.
    pub fn whiteout(folder: &str, name: &str) -> Self {
        Self::file(format!("{folder}.wh.{name}"), "")
    }

    pub fn opaque(folder: &str) -> Self {
        Self::file(format!("{folder}.wh..wh..opq"), "")
    }

    /// A file of which only `fragments` (offset, content) are stored, in GNU's PAX format
    /// 0.0, 0.1 or 1.0.
    pub fn sparse(name: &str, version: (u8, u8), size: u64, fragments: &[(u64, &[u8])]) -> Self {
        let stored = fragments.iter().flat_map(|(_, content)| content.iter().copied()).collect::<Vec<u8>>();
        let numbers = fragments.iter().map(|(offset, content)| (*offset, content.len()));
        let mut item = Self::file(format!("./GNUSparseFile.1/{name}"), stored);
        let add = |item: &mut Self, key: &str, value: String| {
            item.records.push((format!("GNU.sparse.{key}").into_bytes(), value.into_bytes()));
        };
        match version {
            (0, 0) => {
                add(&mut item, "size", size.to_string());
                add(&mut item, "numblocks", fragments.len().to_string());
                for (offset, length) in numbers {
                    add(&mut item, "offset", offset.to_string());
                    add(&mut item, "numbytes", length.to_string());
                }
                item.name = name.into();
            }
            (0, _) => {
                add(&mut item, "size", size.to_string());
                add(&mut item, "numblocks", fragments.len().to_string());
                add(&mut item, "name", name.into());
                let map: Vec<String> = numbers.map(|(offset, length)| format!("{offset},{length}")).collect();
                add(&mut item, "map", map.join(","));
            }
            _ => {
                add(&mut item, "major", "1".into());
                add(&mut item, "minor", "0".into());
                add(&mut item, "name", name.into());
                add(&mut item, "realsize", size.to_string());
                let mut map = format!("{}\n", fragments.len());
                for (offset, length) in numbers {
                    map.push_str(&format!("{offset}\n{length}\n"));
                }
                let mut map = map.into_bytes();
                map.resize(map.len().next_multiple_of(512), 0);
                map.append(&mut item.content);
                item.content = map;
            }
        }
        item
    }

    /// The same in the format that came before PAX: its map is in the header, and goes on behind it.
    pub fn old_sparse(name: &str, size: u64, fragments: &[(u64, &[u8])]) -> Self {
        let content = fragments.iter().flat_map(|(_, content)| content.iter().copied()).collect::<Vec<u8>>();
        let map = fragments.iter().map(|(offset, content)| (*offset, content.len() as u64)).collect();
        let item = Self::file(name, content).typeflag(b'S').dialect(Dialect::Gnu);
        Self { old_map: Some((size, map)), ..item }
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: i64, gid: i64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn time(mut self, seconds: i64, nanoseconds: u32) -> Self {
        (self.seconds, self.nanoseconds) = (seconds, nanoseconds);
        self
    }

    pub fn record(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.records.push((key.into(), value.into()));
        self
    }

    pub fn xattr(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.record(&format!("SCHILY.xattr.{name}"), value)
    }

    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    pub fn typeflag(mut self, typeflag: u8) -> Self {
        self.typeflag = typeflag;
        self
    }

    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Appends the entry to an archive.
    pub fn write(&self, archive: &mut Vec<u8>) {
        let size = self.size.unwrap_or(self.content.len() as u64);
        let mut records = self.records.clone();
        let (mut name, mut link) = (self.name.as_slice(), self.link.as_slice());
        match self.dialect {
            Dialect::Gnu => {
                for (flag, text) in [(b'L', &mut name), (b'K', &mut link)] {
                    if text.len() > 100 {
                        let mut long = Self::new(flag, "././@LongLink", 0);
                        long.content = [text, &b"\0"[..]].concat();
                        long.seconds = 0;
                        long.dialect = Dialect::Gnu;
                        long.write(archive);
                        *text = &text[..100];
                    }
                }
            }
            Dialect::Pax => {
                let mut need = |key: &str, value: Vec<u8>| {
                    if !records.iter().any(|(present, _)| present == key.as_bytes()) {
                        records.push((key.into(), value));
                    }
                };
                for (key, text) in [("path", &mut name), ("linkpath", &mut link)] {
                    if text.len() > 100 {
                        need(key, text.to_vec());
                        *text = &text[..100];
                    }
                }
                for (key, number) in [("uid", self.uid), ("gid", self.gid)] {
                    if !(0..1 << 21).contains(&number) {
                        need(key, number.to_string().into_bytes());
                    }
                }
                if size >= 1 << 33 {
                    need("size", size.to_string().into_bytes());
                }
                if self.nanoseconds != 0 || !(0..1 << 33).contains(&self.seconds) {
                    need("mtime", decimal_time(self.seconds, self.nanoseconds).into_bytes());
                }
            }
            Dialect::V7 => {}
        }
        if !records.is_empty() {
            let mut extended = Self::new(b'x', "PaxHeaders/x", 0o644);
            extended.content = encode_records(&records);
            extended.write(archive);
        }
        archive.extend_from_slice(&self.header(name, link, size));
        if let Some((_, map)) = &self.old_map {
            for (position, part) in map.get(4..).unwrap_or_default().chunks(21).enumerate() {
                let mut block = [0; 512];
                old_structs(&mut block, part);
                block[504] = u8::from(4 + (position + 1) * 21 < map.len());
                archive.extend_from_slice(&block);
            }
        }
        archive.extend_from_slice(&self.content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }

    fn header(&self, name: &[u8], link: &[u8], size: u64) -> [u8; 512] {
        let mut header = [0; 512];
        let gnu = self.dialect == Dialect::Gnu;
        header[..name.len()].copy_from_slice(name);
        number(&mut header[100..108], i64::from(self.mode), gnu);
        number(&mut header[108..116], self.uid, gnu);
        number(&mut header[116..124], self.gid, gnu);
        number(&mut header[124..136], size as i64, gnu);
        number(&mut header[136..148], self.seconds, gnu);
        header[156] = self.typeflag;
        header[157..157 + link.len()].copy_from_slice(link);
        match self.dialect {
            Dialect::Pax => header[257..265].copy_from_slice(b"ustar\x0000"),
            Dialect::Gnu => header[257..265].copy_from_slice(b"ustar  \0"),
            Dialect::V7 => {}
        }
        if self.dialect != Dialect::V7 {
            number(&mut header[329..337], i64::from(self.device.0), gnu);
            number(&mut header[337..345], i64::from(self.device.1), gnu);
        }
        if let Some((size, map)) = &self.old_map {
            old_structs(&mut header[386..], &map[..map.len().min(4)]);
            header[482] = u8::from(map.len() > 4);
            number(&mut header[483..495], *size as i64, true);
        }
        seal(&mut header);
        header
    }
}

fn old_structs(block: &mut [u8], map: &[(u64, u64)]) {
    for (field, (offset, length)) in block.chunks_mut(24).zip(map) {
        number(&mut field[..12], *offset as i64, true);
        number(&mut field[12..24], *length as i64, true);
    }
}

/// Fills in a header's checksum.
pub fn seal(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal, or base-256 where that is allowed and needed. What does not fit and has a record of its
/// own is cut off.
fn number(field: &mut [u8], value: i64, base256: bool) {
    let digits = field.len() - 1;
    let fits = u64::try_from(value).is_ok_and(|value| value < 1 << (3 * digits));
    if fits || !base256 {
        let cut = value.rem_euclid(1 << (3 * digits));
        field.copy_from_slice(format!("{cut:0digits$o}\0").as_bytes());
        return;
    }
    let bytes = i128::from(value).to_be_bytes();
    let start = bytes.len() - field.len();
    field.copy_from_slice(&bytes[start..]);
    field[0] |= 0x80;
}

/// `12.5`, `-0.25`.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

/// The records of an extended header.
pub fn encode_records(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let length = (1..20).map(|digits| body + digits).find(|all| all.to_string().len() + body == *all);
        encoded.extend_from_slice(length.unwrap_or_default().to_string().as_bytes());
        encoded.push(b' ');
        encoded.extend_from_slice(key);
        encoded.push(b'=');
        encoded.extend_from_slice(value);
        encoded.push(b'\n');
    }
    encoded
}

/// An archive of these entries, with its end.
pub fn archive(items: &[Item]) -> Vec<u8> {
    let mut archive = Vec::new();
    for item in items {
        item.write(&mut archive);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}
