//! Whether this process may administer the network, and which of its children may.
//!
//! What counts is the capability, not the user: `setcap cap_net_admin+ep`, a unit with
//! `AmbientCapabilities`, or root of a name space have it as well as root.

use std::io;

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

const RIGHT: CapabilitySet = CapabilitySet::NET_ADMIN;

/// Whether this thread has CAP_NET_ADMIN in effect (capabilities(7)).
pub(crate) fn may_administer_networks() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(RIGHT))
}

/// Passes the right on to the program that this process executes next, where that can be. Only for a
/// child between fork and exec: makes system calls and nothing else.
pub(crate) fn pass_on() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.inheritable |= RIGHT;
    // What root executes has it anyway, and another's program says what it may not.
    if set_capabilities(None, sets).is_ok() {
        let _ = configure_capability_in_ambient_set(RIGHT, true);
    }
    Ok(())
}

/// Sees to it that the program that this process executes next has not got the right, whoever runs it.
/// Only for a child between fork and exec: makes system calls and nothing else.
pub(crate) fn give_up() -> io::Result<()> {
    // Kernels before 4.3 have no ambient set to be cleared.
    let _ = clear_ambient_capability_set();
    let mut sets = capabilities(None)?;
    if sets.inheritable.contains(RIGHT) {
        sets.inheritable -= RIGHT;
        set_capabilities(None, sets)?;
    }
    // What root executes gets all that is in this set, and needs CAP_SETPCAP to be without.
    if sets.effective.contains(CapabilitySet::SETPCAP) && capability_is_in_bounding_set(RIGHT)? {
        remove_capability_from_bounding_set(RIGHT)?;
    }
    Ok(())
}
