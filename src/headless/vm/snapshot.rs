//! `vmdeck vm snapshot …`

use vmdeck_engine::vm::snapshot::VmSnapshot;

use crate::cli::vm::SnapshotCommand;
use crate::headless::output::{Table, bytes, time};
use crate::headless::{Context, Outcome};

pub(super) async fn run(context: &Context, command: SnapshotCommand) -> Outcome {
    let vms = context.engine.vms();
    match command {
        SnapshotCommand::Create { machine, name } => {
            let snapshot = context.follow(vms.snapshot(&machine, name, None)).await?;
            if !context.output.json(&snapshot)? {
                if !snapshot.detail.synced {
                    context
                        .output
                        .message("the guest did not sync its disks first: they are as after a power cut");
                }
                context.output.text(&format!("{}\n", snapshot.name))?;
            }
        }
        SnapshotCommand::List { machine } => {
            let vm = vms.find(&machine).await?;
            let snapshots = vms.snapshots(&vm).await?;
            if !context.output.json(&snapshots)? {
                context.output.text(&table(&snapshots))?;
            }
        }
        SnapshotCommand::Restore { machine, name } => {
            let vm = context.follow(vms.restore(&machine, &name, None)).await?;
            if !context.output.json(&vm)? {
                context.output.text(&format!("{}\n", vm.name))?;
            }
        }
        SnapshotCommand::Delete { machine, names } => {
            let mut deleted = Vec::new();
            for name in &names {
                deleted.push(context.follow(vms.delete_snapshot(&machine, name, None)).await?);
            }
            if !context.output.json(&deleted)? {
                for snapshot in &deleted {
                    if snapshot.kept_for.is_empty() {
                        context.output.message(&format!("{} freed", bytes(snapshot.freed_bytes)));
                    } else {
                        let whom = snapshot.kept_for.join(", ");
                        context.output.message(&format!("its disks stay on disk: these lie on them: {whom}"));
                    }
                    context.output.text(&format!("{}\n", snapshot.name))?;
                }
            }
        }
    }
    Ok(0)
}

fn table(snapshots: &[VmSnapshot]) -> String {
    let mut table = Table::new(["NAME", "CREATED", "MACHINE", "ON DISK"]);
    for snapshot in snapshots {
        let machine = match (snapshot.detail.running, snapshot.detail.synced) {
            (false, _) => "stopped",
            (true, true) => "running, synced",
            (true, false) => "running, not synced",
        };
        table.row([
            snapshot.name.clone(),
            time(snapshot.created_at),
            machine.into(),
            bytes(snapshot.allocated_bytes),
        ]);
    }
    table.render()
}
