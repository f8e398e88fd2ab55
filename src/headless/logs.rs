//! `vmdeck vm logs`: what a machine's serial console printed.
//!
//! A guest prints whatever it likes. On a terminal, control characters other than line feed and tab
//! are escaped; into a file or pipe the bytes go as they are.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use vmdeck_engine::vm::record::Vm;
use vmdeck_engine::{Error, Result};

use super::interrupt::Interrupt;
use super::output::human;
use super::{Context, Outcome};

/// How often a log that is followed is looked at.
const PERIOD: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, vm: &Vm, follow: bool, tail: Option<usize>) -> Outcome {
    let path = context.engine.vms().console_log(vm);
    let fail = |error| Error::io(format!("cannot read `{}`", path.display()), error);
    let mut interrupt = Interrupt::new()?;
    let mut file = loop {
        match File::open(&path) {
            Ok(file) => break file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && follow => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::conflict(format!("machine `{}` has not booted yet", vm.name))
                    .with_hint(format!("`vmdeck vm start {}` boots it", vm.name)));
            }
            Err(error) => return Err(fail(error)),
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = interrupt.next() => return Ok(130),
        }
    };
    match tail {
        Some(lines) => skip_to_tail(&mut file, lines).map_err(fail)?,
        // A long log is in two files: the older one first.
        None => {
            if let Ok(mut older) = File::open(path.with_extension("log.1")) {
                copy(&mut older)?;
            }
        }
    }
    loop {
        copy(&mut file)?;
        if !follow {
            return Ok(0);
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = interrupt.next() => return Ok(130),
        }
        if let Some(newer) = replaced(&file, &path).map_err(fail)? {
            // What came into the old one before it was full.
            copy(&mut file)?;
            file = newer;
        }
    }
}

/// The file that is at the path now, when it is another one: a log that is full is begun anew.
fn replaced(file: &File, path: &Path) -> io::Result<Option<File>> {
    let newer = match File::open(path) {
        Ok(newer) => newer,
        // Renamed, and the next one not there yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (old, new) = (file.metadata()?, newer.metadata()?);
    Ok(((old.dev(), old.ino()) != (new.dev(), new.ino())).then_some(newer))
}

/// Copies what is there to standard output.
fn copy(file: &mut File) -> Result<()> {
    let terminal = io::stdout().is_terminal();
    let mut stdout = io::stdout().lock();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count =
            file.read(&mut buffer).map_err(|error| Error::io("cannot read the console's log", error))?;
        if count == 0 {
            break;
        }
        let written = if terminal {
            let text = String::from_utf8_lossy(&buffer[..count]).replace('\r', "");
            let clean: Vec<_> = text.split('\t').map(human).collect();
            stdout.write_all(clean.join("\t").as_bytes())
        } else {
            stdout.write_all(&buffer[..count])
        };
        if let Err(error) = written {
            if error.kind() == io::ErrorKind::BrokenPipe {
                std::process::exit(141);
            }
            return Err(Error::io("cannot write to standard output", error));
        }
    }
    let _ = stdout.flush();
    Ok(())
}

/// Moves to where the last `lines` lines begin, reading backwards.
fn skip_to_tail(file: &mut File, lines: usize) -> io::Result<()> {
    const CHUNK: u64 = 64 << 10;
    let end = file.seek(SeekFrom::End(0))?;
    let mut position = end;
    let mut found = 0;
    while position > 0 {
        let start = position.saturating_sub(CHUNK);
        let mut chunk = vec![0; usize::try_from(position - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut chunk)?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let at = start + index as u64;
            // The line feed at the very end closes the last line.
            if *byte == b'\n' && at + 1 != end {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(at + 1))?;
                    return Ok(());
                }
            }
        }
        position = start;
    }
    if lines == 0 {
        file.seek(SeekFrom::End(0))?;
    } else {
        file.rewind()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_begun_anew_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        std::fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap();
        assert!(replaced(&file, &path).unwrap().is_none());
        std::fs::rename(&path, folder.path().join("console.log.1")).unwrap();
        assert!(replaced(&file, &path).unwrap().is_none());
        std::fs::write(&path, "new").unwrap();
        assert!(replaced(&file, &path).unwrap().is_some());
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let mut file = tempfile::tempfile().unwrap();
        let text: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
        file.write_all(text.as_bytes()).unwrap();
        for (lines, expected) in [(0, ""), (1, "line 19999\n"), (2, "line 19998\nline 19999\n")] {
            skip_to_tail(&mut file, lines).unwrap();
            let mut rest = String::new();
            file.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, expected);
        }
        skip_to_tail(&mut file, 1_000_000).unwrap();
        assert_eq!(file.stream_position().unwrap(), 0);
    }
}
