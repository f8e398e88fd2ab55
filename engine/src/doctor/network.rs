//! What guests can reach, and which networks this host can give them.

use std::path::Path;

use super::Check;
use crate::network::bridge::{self, rights};

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

/// The network that needs a right. To be without it is the usual case, and nothing is wrong then.
pub(super) async fn bridged(data: &Path) -> Check {
    let name = "bridged network";
    match bridge::obstacle() {
        None => match bridge::foreign::obstacle(&bridge::bridge_name(bridge::seed(data))).await {
            None => {
                Check::ok(name, "`--network bridge` can be used: the right, `nft` and /dev/net/tun are there")
            }
            Some(obstacle) => Check::warning(name, obstacle.finding(), obstacle.fix()),
        },
        Some(_) if !rights::may_administer_networks() => {
            Check::ok(name, "`--network bridge` is for root or CAP_NET_ADMIN; all others need neither")
        }
        Some(error) => Check { status: super::CheckStatus::Warning, ..Check::from_error(name, &error) },
    }
}
