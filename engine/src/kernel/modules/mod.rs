//! The modules of a kernel: what they say of themselves, what they need, and the files by which
//! modprobe finds them.
//!
//! A distribution's package leaves it to depmod(8), run after the installation, to write those files.
//! There is no installation here, so this part does depmod's work.

pub(super) mod depmod;
mod index;
pub(super) mod module;
pub(super) mod set;
