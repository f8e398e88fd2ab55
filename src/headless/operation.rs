//! `vmdeck operation …`

use vmdeck_engine::Error;
use vmdeck_engine::operation::record::{OperationRecord, OperationState};

use super::interrupt::Interrupt;
use super::output::{Fields, Table, ago, bytes, duration, time};
use super::{Context, Outcome};
use crate::cli::operation::OperationCommand;

pub(super) async fn run(context: &Context, command: OperationCommand) -> Outcome {
    let operations = context.engine.operations();
    match command {
        OperationCommand::List { limit, running } => {
            let mut records = operations.list(limit).await?;
            records.retain(|record| !running || record.state == OperationState::Running);
            if !context.output.json(&records)? {
                context.output.text(&table(&records))?;
            }
        }
        OperationCommand::Show { id } => {
            let record = operations.find(&id).await?;
            let log = operations.log_lines(&record.id).await?;
            let parts = operations.reported_progress(&record.id).await?;
            let mut document = serde_json::to_value(&record)
                .map_err(|error| Error::failed("cannot write JSON").with_source(error))?;
            document["log"] =
                log.iter().map(|(at, line)| serde_json::json!({ "at": at, "line": line })).collect();
            document["progress"] = serde_json::json!(parts);
            if !context.output.json(&document)? {
                let mut text = fields(&record);
                for part in parts {
                    text.push_str(&format!(
                        "  {}: {} of {}\n",
                        part.label,
                        bytes(part.done),
                        bytes(part.total)
                    ));
                }
                for (at, line) in log {
                    text.push_str(&format!("{}  {line}\n", time(at)));
                }
                context.output.text(&super::output::human(&text))?;
            }
        }
        OperationCommand::Watch { id } => return watch(context, &id).await,
        OperationCommand::Cancel { id } => {
            let record = operations.cancel(&id).await?;
            if !context.output.json(&record)? {
                context.output.text(&format!("{}\n", record.id))?;
            }
        }
    }
    Ok(0)
}

/// Follows an operation of any process; an interrupt ends the watching, not the operation.
async fn watch(context: &Context, id: &str) -> Outcome {
    let operations = context.engine.operations();
    let id = operations.find(id).await?.id;
    let mut snapshots = context.engine.subscribe();
    let mut interrupt = Interrupt::new()?;
    let mut told = 0;
    loop {
        let record = operations.find(id.as_str()).await?;
        for phase in record.phases.iter().skip(told) {
            context
                .output
                .event(&serde_json::json!({ "event": "phase", "operation": id, "phase": phase.name }));
            context.output.message(&format!("{} {}: {}", record.kind.as_str(), record.target, phase.name));
        }
        told = record.phases.len();
        if record.state != OperationState::Running {
            if !context.output.json(&record)? {
                context.output.text(&format!("{}\n", record.state.as_str()))?;
            }
            return match record.error {
                Some(report) => Err(report.into()),
                None if record.state == OperationState::Cancelled => Err(Error::cancelled()),
                None => Ok(0),
            };
        }
        tokio::select! {
            _ = snapshots.changed() => {}
            _ = interrupt.next() => return Err(Error::cancelled()),
        }
    }
}

fn table(records: &[OperationRecord]) -> String {
    let mut table = Table::new(["ID", "KIND", "TARGET", "STATE", "PHASE", "STARTED", "TOOK"]);
    for record in records {
        let ended = record.ended_at.unwrap_or_else(vmdeck_engine::clock::now);
        table.row([
            record.id.to_string(),
            record.kind.as_str().into(),
            record.target.clone(),
            record.state.as_str().into(),
            record.phases.last().map_or_else(|| "-".into(), |phase| phase.name.clone()),
            ago(record.started_at),
            duration(u64::try_from(ended - record.started_at).unwrap_or(0)),
        ]);
    }
    table.render()
}

fn fields(record: &OperationRecord) -> String {
    let mut fields = Fields::default();
    fields
        .add("id", record.id.to_string())
        .add("kind", record.kind.as_str())
        .add("target", &record.target)
        .add("state", record.state.as_str())
        .add("process", record.owner.pid.to_string())
        .add("started", time(record.started_at))
        .add_some("ended", record.ended_at.map(time))
        .add_some("part of", record.parent.as_ref().map(ToString::to_string));
    for phase in &record.phases {
        let took = phase.ended_at.map_or_else(
            || "runs".into(),
            |ended| duration(u64::try_from(ended - phase.started_at).unwrap_or(0)),
        );
        fields.add("phase", format!("{}  {took}", phase.name));
    }
    if let Some(error) = &record.error {
        fields.add("error", &error.message).add_some("next", error.hint.as_ref());
    }
    fields.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_without_phases_still_makes_a_row() -> vmdeck_engine::Result<()> {
        let record: OperationRecord = serde_json::from_value(serde_json::json!({
            "id": "0123456789ab", "parent": null, "kind": "image pull", "target": "x\u{1b}[0m",
            "state": "done", "owner": { "pid": 1, "start_time": 1, "boot_id": "" },
            "started_at": 0, "ended_at": 1500, "cancel_requested": false, "phases": [], "error": null
        }))
        .map_err(|error| Error::failed("record").with_source(error))?;
        let table = table(&[record]);
        assert!(table.contains("1.5 s") && table.contains("x\\u{1b}[0m"), "{table}");
        Ok(())
    }
}
