//! Rows of `leases`: what no two machines may have at once.

use rusqlite::{Connection, OptionalExtension, params};

use crate::error::Result;
use crate::identifier::VmId;

/// What is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseKind {
    /// A guest's IPv4 address, as text.
    Address,
    /// The same, in the network that machines share.
    SharedAddress,
    /// The same, on the bridge.
    BridgedAddress,
    /// A port of the host: `tcp/127.0.0.1/2222`.
    Port,
}

impl LeaseKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::SharedAddress => "shared-address",
            Self::BridgedAddress => "bridged-address",
            Self::Port => "port",
        }
    }
}

/// Takes a lease; `false` when somebody has it.
pub fn take(connection: &Connection, kind: LeaseKind, value: &str, vm: &VmId) -> Result<bool> {
    let taken = connection
        .prepare_cached(
            "INSERT INTO leases (kind, value, vm_id, detail) VALUES (?1, ?2, ?3, '{}') ON CONFLICT DO NOTHING",
        )?
        .execute(params![kind.as_str(), value, vm.as_str()])?;
    Ok(taken == 1)
}

/// Gives back all ports of a machine.
pub fn release_ports(connection: &Connection, vm: &VmId) -> Result<()> {
    connection.execute(
        "DELETE FROM leases WHERE kind = ?1 AND vm_id = ?2",
        [LeaseKind::Port.as_str(), vm.as_str()],
    )?;
    Ok(())
}

/// Name of the machine that has a lease.
pub fn holder_name(connection: &Connection, kind: LeaseKind, value: &str) -> Result<Option<String>> {
    Ok(connection
        .prepare_cached(
            "SELECT v.name FROM leases l JOIN vms v ON v.id = l.vm_id WHERE l.kind = ?1 AND l.value = ?2",
        )?
        .query_row([kind.as_str(), value], |row| row.get(0))
        .optional()?)
}

/// Every leased value of a kind, with its machine.
pub fn list(connection: &Connection, kind: LeaseKind) -> Result<Vec<(String, VmId)>> {
    let mut statement =
        connection.prepare_cached("SELECT value, vm_id FROM leases WHERE kind = ?1 AND vm_id IS NOT NULL")?;
    let rows = statement
        .query_map([kind.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(String, String)>, _>>()?;
    Ok(rows.into_iter().map(|(value, vm)| (value, VmId::from_stored(vm))).collect())
}
