//! What guests can reach.

use super::Check;

/// The same on every host: a limit of QEMU's user-mode network, and what there is against it.
///
/// libslirp sends what is meant for any address of the guest's own network, such as its gateway, to
/// the loopback interface (`sotranslate_out` in slirp/src/socket.c), and QEMU 7.2 does not pass on
/// libslirp's switch for that (`disable_host_loopback`).
pub(super) fn check() -> Check {
    Check::warning(
        "guest network",
        "machines with `--network user` or `lan` reach services on this host's loopback interface, by their gateway's address",
        "give machines that you do not trust `--network isolated` (forwarded ports lead in, nothing leads out) or `none`",
    )
}
