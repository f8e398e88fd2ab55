//! An operation as the store keeps it.

use serde::{Deserialize, Serialize};

use crate::clock::Milliseconds;
use crate::error::ErrorReport;
use crate::identifier::OperationId;
use crate::process::ProcessIdentity;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    pub id: OperationId,
    /// The operation that started this one as a part of itself.
    pub parent: Option<OperationId>,
    pub kind: OperationKind,
    /// What it works on: a name or a reference.
    pub target: String,
    pub state: OperationState,
    /// The process that runs it.
    pub owner: ProcessIdentity,
    pub started_at: Milliseconds,
    pub ended_at: Option<Milliseconds>,
    /// Set when somebody, perhaps another process, asked for it to be cancelled.
    pub cancel_requested: bool,
    pub phases: Vec<OperationPhase>,
    pub error: Option<ErrorReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationPhase {
    pub name: String,
    pub started_at: Milliseconds,
    pub ended_at: Option<Milliseconds>,
}

macro_rules! stored_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_meta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

stored_enum!(
    OperationKind {
        ImagePull = "image pull",
        ImageRegister = "image register",
        ImagePromote = "image promote",
        ImageExport = "image export",
        ImageDelete = "image delete",
        ImagePrune = "image prune",
        KernelPull = "kernel pull",
        KernelImport = "kernel import",
        KernelExport = "kernel export",
        KernelDelete = "kernel delete",
        VmCreate = "vm create",
        VmStart = "vm start",
        VmStop = "vm stop",
        VmRestart = "vm restart",
        VmSet = "vm set",
        VmReset = "vm reset",
        VmPause = "vm pause",
        VmResume = "vm resume",
        VmSnapshot = "vm snapshot",
        VmSnapshotDelete = "vm snapshot delete",
        VmRestore = "vm restore",
        VmClone = "vm clone",
        VmCopy = "vm cp",
        VmDelete = "vm delete",
        HostProbe = "host probe",
    }
);

stored_enum!(
    OperationState {
        Running = "running",
        Done = "done",
        Failed = "failed",
        Cancelled = "cancelled",
        /// Its process ended before it did.
        Interrupted = "interrupted",
    }
);
