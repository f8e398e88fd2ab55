//! What the C library's allocator keeps of memory that is no longer used.
//!
//! It gives each thread a heap of its own, and hardly ever gives one back: after a few pulls, whose
//! buffers are on the heaps of a dozen threads, the program would keep what they took at most.

#![allow(unsafe_code)]

#[cfg(target_env = "gnu")]
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

/// Gives free memory back to the host. Takes a millisecond or so, while nobody else can allocate.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is thread-safe and only releases pages that hold nothing.
    unsafe {
        libc::malloc_trim(0);
    }
}
