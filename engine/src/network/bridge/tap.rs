//! A machine's end of the bridged network. Unsafe code of the network is here.
//!
//! The device is not persistent: it goes with the last descriptor that leads to it, which is the
//! hypervisor's, however that one ends.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

nix::ioctl_write_ptr_bad!(
    /// Makes the device of a descriptor of `/dev/net/tun` (Linux, tuntap.rst).
    set_interface,
    libc::TUNSETIFF,
    libc::ifreq
);

/// Where taps are made.
pub(super) const DEVICE: &str = "/dev/net/tun";

/// What a tap of a hypervisor is (linux/if_tun.h): Ethernet frames without anything before them but
/// virtio's header, which tells of checksums and segments left to the other side. A device of this name
/// that is there already is none of ours.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;

/// Whether the device that makes taps can be opened.
pub(super) fn available() -> io::Result<()> {
    open().map(drop)
}

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// Makes a tap, which is down and in nothing. `name` has at most 15 bytes.
pub(super) fn make(name: &str) -> io::Result<OwnedFd> {
    let device = open()?;
    // The lower half is all there is of the flags.
    let [low, high, ..] = FLAGS.to_le_bytes();
    let flags = libc::c_short::from_le_bytes([low, high]);
    let mut request =
        libc::ifreq { ifr_name: [0; 16], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which `request` is.
    // It keeps no pointer to it.
    unsafe { set_interface(device.as_raw_fd(), &request) }?;
    Ok(device.into())
}
