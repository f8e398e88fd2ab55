//! Memory that a console which is only looked at does not need.
//!
//! The C library's allocator gives each thread a heap of its own, and hardly ever gives one back: after
//! a few pulls, whose buffers are on the heaps of a dozen threads, the program would keep what they took
//! at most. And code that ran once, for the start or for a pull, stays mapped with all that is around it.

#![allow(unsafe_code)]

use nix::libc;

/// Heaps of the process: threads that allocate at the same moment share them. More would be faster
/// only for threads that do little else, and none here does.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Has the allocator keep few heaps. To be called before there are other threads.
pub(crate) fn keep_few_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and touches only the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives free memory back to the host. Takes a millisecond or so, while nobody else can allocate; the
/// code that goes on running is then mapped anew, from the host's page cache.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is thread-safe and only releases pages that hold nothing.
    unsafe {
        libc::malloc_trim(0);
    }
    // Breakpoints are pages of their own, which would go.
    if !is_traced() {
        // SAFETY: the callback has the type that dl_iterate_phdr(3) asks for, and uses no data.
        unsafe {
            libc::dl_iterate_phdr(Some(unmap_code), std::ptr::null_mut());
        }
    }
}

/// Whether a debugger is attached.
fn is_traced() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
}

/// Gives the code of a loaded object back: whatever runs faults in again, page by page.
unsafe extern "C" fn unmap_code(
    info: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: sysconf(3) only answers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    // SAFETY: dl_iterate_phdr(3) hands over one that is valid during this call, with its headers.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    for header in headers {
        let writable = header.p_flags & libc::PF_W != 0;
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 && !writable {
            let begin = (base + header.p_vaddr as usize) & !(page - 1);
            let end = (base + (header.p_vaddr + header.p_memsz) as usize).next_multiple_of(page);
            // SAFETY: these are the pages of a segment that is mapped for as long as the object, and
            // nobody can have written to: what is read there next comes from the same file.
            unsafe {
                libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_DONTNEED);
            }
        }
    }
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_goes_on_running_when_its_memory_was_given_back() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap().to_owned();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        for _ in 0..3 {
            super::give_back();
        }
        assert!(resident() < before, "{} {before}", resident());
    }
}
