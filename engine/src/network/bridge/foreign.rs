//! Firewalls of others: whether one drops what passes between the bridge and the rest of the world.
//!
//! Their tables are read and never changed. A packet has to be let through by every table, so that no
//! rule of ours helps a machine whose packets another table drops: its administrator has to say so.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::nft;
use crate::process::detached;

/// `nft` takes milliseconds; without an answer nothing is said.
const BOUND: Duration = Duration::from_secs(10);
/// More rules than this are not read.
const MOST: u64 = 4 << 20;

/// A chain of another's table that lets through only what its rules name, and does not name the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// Family and name of the table, as in `ip filter`.
    table: String,
    chain: String,
    /// It has Docker's chain for the rules of others.
    has_docker_user: bool,
    bridge: String,
}

impl Obstacle {
    pub(crate) fn finding(&self) -> String {
        format!(
            "a firewall of this host (table {}, chain {}) drops what it does not know: bridged machines reach \
             this host and each other, and nothing beyond",
            self.table, self.chain
        )
    }

    /// What its administrator can do.
    pub(crate) fn fix(&self) -> String {
        let Self { table, chain, bridge, .. } = self;
        if self.has_docker_user {
            format!(
                "tell it of the bridge: `iptables -I DOCKER-USER -i {bridge} -j ACCEPT; iptables -I DOCKER-USER \
                 -o {bridge} -j ACCEPT`"
            )
        } else if (table.as_str(), chain.as_str()) == ("ip filter", "FORWARD") {
            format!(
                "tell it of the bridge: `iptables -I FORWARD -i {bridge} -j ACCEPT; iptables -I FORWARD -o {bridge} \
                 -j ACCEPT`"
            )
        } else if table.ends_with(" firewalld") {
            format!("tell it of the bridge: `firewall-cmd --zone=trusted --add-interface={bridge}`")
        } else {
            format!(
                "tell it of the bridge: `nft insert rule {table} {chain} iifname {bridge} accept; nft insert rule \
                 {table} {chain} oifname {bridge} accept`"
            )
        }
    }
}

/// Looks whether there is one. `None` also where that cannot be told.
pub(crate) async fn obstacle(bridge: &str) -> Option<Obstacle> {
    let mut command = std::process::Command::new(nft::program()?);
    // Without the elements of sets, of which there may be very many.
    command.args(["--terse", "list", "ruleset"]).env_clear().env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    detached::pass_on_network_rights(&mut command);
    let mut command = tokio::process::Command::from(command);
    let listed = async {
        let mut child = command.kill_on_drop(true).spawn().ok()?;
        let mut rules = Vec::new();
        child.stdout.take()?.take(MOST).read_to_end(&mut rules).await.ok()?;
        Some(rules)
    };
    let rules = tokio::time::timeout(BOUND, listed).await.ok()??;
    find(&String::from_utf8_lossy(&rules), bridge)
}

/// Looks for it in what `nft list ruleset` prints.
fn find(rules: &str, bridge: &str) -> Option<Obstacle> {
    let quoted = format!("\"{bridge}\"");
    // A table begins and ends at the beginning of a line.
    rules.split("\n}").find_map(|table| {
        let from = table.find("table ").filter(|from| *from == 0 || table[..*from].ends_with('\n'))?;
        let (heading, body) = table[from..].split_once('\n')?;
        let table = heading.strip_prefix("table ")?.strip_suffix(" {")?;
        let (family, name) = table.split_once(' ')?;
        let sees_it = matches!(family, "ip" | "inet") && name != bridge;
        if !sees_it || body.contains(&quoted) {
            return None;
        }
        let chain = body.split("\n\t}").find_map(dropping)?;
        Some(Obstacle {
            table: table.to_owned(),
            chain: chain.to_owned(),
            has_docker_user: body.contains("chain DOCKER-USER {"),
            bridge: bridge.to_owned(),
        })
    })
}

/// The name of a chain that sees what is passed on, and drops what none of its rules lets through.
fn dropping(chain: &str) -> Option<&str> {
    let mut lines = chain.lines().map(str::trim).filter(|line| !line.is_empty());
    let name = lines.by_ref().find_map(|line| line.strip_prefix("chain ")?.strip_suffix(" {"))?;
    let mut lines = lines.skip_while(|line| !line.starts_with("type filter hook forward "));
    let policy = lines.next()?;
    let last = lines.last().map(|rule| {
        let mut words = rule.split(' ').peekable();
        // `counter packets 5 bytes 420`
        while words.next_if(|word| *word == "counter").is_some() {
            while words.next_if(|word| matches!(*word, "packets" | "bytes")).is_some() {
                words.next();
            }
        }
        words.next().unwrap_or_default()
    });
    (policy.contains("policy drop;") || matches!(last, Some("drop" | "reject"))).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = "vmdeck-1a2b3c4d";

    /// As `nft` 1.0.6 lists what Docker and `iptables -P FORWARD DROP` make.
    const DOCKER: &str = "table ip nat {\n\tchain POSTROUTING {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t}\n}\n\
        table ip filter {\n\tchain DOCKER-USER {\n\t\tcounter packets 0 bytes 0 return\n\t}\n\n\tchain FORWARD {\n\
        \t\ttype filter hook forward priority filter; policy drop;\n\t\tcounter packets 0 bytes 0 jump DOCKER-USER\n\t}\n}\n";

    #[test]
    fn a_chain_that_drops_what_it_does_not_know_is_found() {
        let found = find(DOCKER, BRIDGE).unwrap();
        assert_eq!((found.table.as_str(), found.chain.as_str()), ("ip filter", "FORWARD"));
        assert!(found.fix().contains("DOCKER-USER -i vmdeck-1a2b3c4d"), "{}", found.fix());
        let plain = DOCKER.replace("DOCKER-USER", "MINE");
        let fix = find(&format!("# Warning: table ip filter is another's\n{plain}"), BRIDGE).unwrap().fix();
        assert!(fix.contains("`iptables -I FORWARD -i vmdeck-1a2b3c4d -j ACCEPT;"), "{fix}");
        let fix = find(&plain.replace("ip filter", "inet mine"), BRIDGE).unwrap().fix();
        assert!(fix.contains("`nft insert rule inet mine FORWARD iifname vmdeck-1a2b3c4d accept;"), "{fix}");
        // As firewalld ends its chain.
        let rejecting = "table inet firewalld {\n\tchain filter_FORWARD {\n\t\ttype filter hook forward priority filter + 10; policy accept;\n\
            \t\tct state { established, related } accept\n\t\tcounter packets 1 bytes 2 reject with icmpx admin-prohibited\n\t}\n}\n";
        let found = find(rejecting, BRIDGE).unwrap();
        assert_eq!(found.chain, "filter_FORWARD");
        assert!(found.fix().contains("firewall-cmd"), "{}", found.fix());
    }

    #[test]
    fn what_lets_the_bridge_through_or_sees_none_of_it_is_no_obstacle() {
        let told = DOCKER.replace("counter packets 0 bytes 0 return", "iifname \"vmdeck-1a2b3c4d\" accept");
        for rules in [
            "",
            "table ip filter {\n}\n",
            &told,
            &DOCKER.replace("policy drop", "policy accept"),
            &DOCKER.replace("hook forward", "hook input"),
            &DOCKER.replace("table ip filter", "table ip6 filter"),
            // Our own, which drops what is not for it by a rule that names it.
            &DOCKER.replace("table ip filter", "table ip vmdeck-1a2b3c4d"),
            // One of several rules.
            "table ip x {\n\tchain f {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\tip daddr @known drop\n\t}\n}\n",
        ] {
            assert_eq!(find(rules, BRIDGE), None, "{rules}");
        }
    }
}
