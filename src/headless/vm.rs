//! `vmdeck vm …`

use vmdeck_engine::guest::ExecRequest;
use vmdeck_engine::operation::Task;
use vmdeck_engine::vm::record::{BootPhaseStatus, Vm, VmState};
use vmdeck_engine::vm::{CreateVm, StopOutcome};
use vmdeck_engine::{Engine, Error, Result};

use super::output::{Fields, Output, Table, bytes, duration, time};
use super::{Context, Outcome, exec, logs};
use crate::cli::vm::{CreateArguments, ExecArguments, MachineArguments, RunArguments, VmCommand};

/// `vm exec` and `vm run`: the engine failed before the command ran.
const NOT_RUN: u8 = 125;

pub(super) async fn run(context: &Context, command: VmCommand) -> Outcome {
    let vms = context.engine.vms();
    match command {
        VmCommand::List => {
            let vms = vms.list().await?;
            if !context.output.json(&vms)? {
                context.output.text(&table(&vms))?;
            }
            Ok(0)
        }
        VmCommand::Show { name } => {
            let vm = vms.find(&name).await?;
            if !context.output.json(&vm)? {
                context.output.text(&fields(&vm))?;
            }
            Ok(0)
        }
        VmCommand::Create(arguments) => {
            let vm = context.follow(vms.create(create(arguments), None)).await?;
            print_vms(context, &[vm])
        }
        VmCommand::Run(arguments) => run_command(context, arguments).await,
        VmCommand::Start { names } => {
            let started = each(context, names, |engine, name| engine.vms().start(name, None)).await?;
            print_vms(context, &started)
        }
        VmCommand::Stop { names, force } => {
            let outcomes =
                each(context, names.clone(), |engine, name| engine.vms().stop(name, force, None)).await?;
            print_stopped(context, &names, &outcomes)
        }
        VmCommand::Restart { names, force } => {
            each(context, names.clone(), |engine, name| engine.vms().stop(name, force, None)).await?;
            let started = each(context, names, |engine, name| engine.vms().start(name, None)).await?;
            print_vms(context, &started)
        }
        VmCommand::Delete { names, force } => {
            each(context, names.clone(), |engine, name| engine.vms().delete(name, force, None)).await?;
            if !context.output.json(&names)? {
                names.iter().try_for_each(|name| context.output.text(&format!("{name}\n")))?;
            }
            Ok(0)
        }
        VmCommand::Exec(arguments) => exec_command(context, arguments).await,
        VmCommand::Logs { name, follow, tail } => {
            let vm = vms.find(&name).await?;
            logs::run(context, &vm, follow, tail).await
        }
    }
}

/// One operation per name, one after the other is begun but all run at once. All are waited for;
/// the first error is the result, the others are told.
async fn each<T: Send + 'static>(
    context: &Context,
    names: Vec<String>,
    begin: impl Fn(&Engine, &str) -> Task<T>,
) -> Result<Vec<T>> {
    let tasks: Vec<Task<T>> = names.iter().map(|name| begin(&context.engine, name)).collect();
    let mut done = Vec::with_capacity(tasks.len());
    let mut first: Option<Error> = None;
    for task in tasks {
        match context.follow(task).await {
            Ok(result) => done.push(result),
            Err(error) if first.is_none() => first = Some(error),
            Err(error) => context.output.error(&error),
        }
    }
    first.map_or(Ok(done), Err)
}

fn create(arguments: CreateArguments) -> CreateVm {
    let request = CreateVm {
        name: arguments.name,
        image: arguments.image,
        command: arguments.command,
        ..CreateVm::default()
    };
    with_machine(request, arguments.machine)
}

fn with_machine(request: CreateVm, arguments: MachineArguments) -> CreateVm {
    CreateVm {
        kernel: arguments.kernel,
        cpus: arguments.cpus,
        memory_mib: arguments.memory,
        disk_gib: arguments.disk,
        network: arguments.network.map(Into::into),
        ports: arguments.ports,
        environment: arguments.environment,
        plain_http: arguments.plain_http,
        ..request
    }
}

/// `vm run`: create, boot, run the command, and with `--rm` delete, whatever happened.
async fn run_command(context: &Context, arguments: RunArguments) -> Outcome {
    if arguments.rm && arguments.command.is_empty() {
        return Err(Error::usage("`--rm` without a command would delete the machine at once")
            .with_hint("give a command after `--`, for example `-- sh`"));
    }
    let request = CreateVm { name: arguments.name, image: arguments.image, ..CreateVm::default() };
    let vm =
        context.follow(context.engine.vms().create(with_machine(request, arguments.machine), None)).await;
    let vm = match vm {
        Ok(vm) => vm,
        Err(error) => return not_run(context.output, error, !arguments.command.is_empty()),
    };
    let outcome = run_in(context, &vm, &arguments.command, arguments.terminal).await;
    if arguments.rm {
        // Deleted however it went, a cancelled boot included: its operation no longer runs.
        if let Err(error) = context.engine.vms().delete(&vm.name, true, None).wait().await {
            context.output.error(&error);
        }
    }
    outcome
}

async fn run_in(
    context: &Context,
    vm: &Vm,
    command: &[String],
    terminal: crate::cli::vm::TerminalArguments,
) -> Outcome {
    let vm = match context.follow(context.engine.vms().start(&vm.name, None)).await {
        Ok(vm) => vm,
        Err(error) => return not_run(context.output, error, !command.is_empty()),
    };
    if command.is_empty() {
        context.output.message(&format!("`vmdeck vm exec {}` opens a shell in it", vm.name));
        return print_vms(context, &[vm]);
    }
    let request = ExecRequest { command: command.to_vec(), ..ExecRequest::default() };
    passed_on(context, exec::run(context, &vm.name, request, terminal).await)
}

async fn exec_command(context: &Context, arguments: ExecArguments) -> Outcome {
    let request = ExecRequest {
        command: arguments.command,
        environment: arguments.environment,
        working_directory: arguments.workdir,
        user: arguments.user,
        ..ExecRequest::default()
    };
    passed_on(context, exec::run(context, &arguments.name, request, arguments.terminal).await)
}

fn passed_on(context: &Context, outcome: Outcome) -> Outcome {
    outcome.or_else(|error| not_run(context.output, error, true))
}

/// An error before the guest's command ran: told, and status 125, which no command has by custom.
fn not_run(output: Output, error: Error, has_command: bool) -> Outcome {
    if !has_command || error.is_cancelled() {
        return Err(error);
    }
    output.error(&error);
    Ok(NOT_RUN)
}

fn print_vms(context: &Context, vms: &[Vm]) -> Outcome {
    let printed = match vms {
        [vm] => context.output.json(vm)?,
        vms => context.output.json(vms)?,
    };
    if !printed {
        vms.iter().try_for_each(|vm| context.output.text(&format!("{}\n", vm.name)))?;
    }
    Ok(0)
}

fn print_stopped(context: &Context, names: &[String], outcomes: &[StopOutcome]) -> Outcome {
    let document: Vec<_> = names
        .iter()
        .zip(outcomes)
        .map(|(name, outcome)| serde_json::json!({ "name": name, "outcome": outcome }))
        .collect();
    if !context.output.json(&document)? {
        for (name, outcome) in names.iter().zip(outcomes) {
            let how = match outcome {
                StopOutcome::AlreadyStopped => "was not running",
                StopOutcome::Agent => "synced and powered off",
                StopOutcome::PowerButton => "obeyed the power button",
                StopOutcome::Killed => "was killed: it may have lost what it had not synced",
            };
            context.output.message(&format!("{name} {how}"));
            context.output.text(&format!("{name}\n"))?;
        }
    }
    Ok(0)
}

fn table(vms: &[Vm]) -> String {
    let mut table = Table::new(["NAME", "STATE", "ADDRESS", "CPUS", "MEMORY", "UP", "IMAGE", "KERNEL"]);
    for vm in vms {
        let up =
            vm.run.as_ref().filter(|_| vm.state == VmState::Running).map(|run| {
                duration(u64::try_from(vmdeck_engine::clock::now() - run.started_at).unwrap_or(0))
            });
        table.row([
            vm.name.clone(),
            vm.state.as_str().into(),
            vm.address.map_or_else(|| "-".into(), |address| address.to_string()),
            vm.settings.cpus.to_string(),
            bytes(vm.settings.memory_mib << 20),
            up.unwrap_or_else(|| "-".into()),
            vm.image.clone(),
            vm.kernel.clone(),
        ]);
    }
    table.render()
}

fn fields(vm: &Vm) -> String {
    let mut fields = Fields::default();
    fields
        .add("name", &vm.name)
        .add("id", vm.id.to_string())
        .add("state", vm.state.as_str())
        .add("image", &vm.image)
        .add("kernel", &vm.kernel)
        .add("cpus", vm.settings.cpus.to_string())
        .add("memory", bytes(vm.settings.memory_mib << 20))
        .add("disk", bytes(vm.settings.disk_bytes))
        .add_some("address", vm.address.map(|address| address.to_string()))
        .add("created", time(vm.created_at));
    for port in &vm.settings.ports {
        let protocol = serde_json::to_value(port.protocol).ok();
        fields.add(
            "port",
            format!(
                "{}:{} → {}/{}",
                port.host_address,
                port.host_port,
                port.guest_port,
                protocol.as_ref().and_then(|name| name.as_str()).unwrap_or("tcp")
            ),
        );
    }
    if let Some(run) = &vm.run {
        fields.add("process", run.process.pid.to_string()).add("started", time(run.started_at));
    }
    let mut text = fields.render();
    if let Some(boot) = &vm.boot {
        text.push_str(&format!("last boot:  {}\n", time(boot.started_at)));
        for phase in &boot.phases {
            let took = match (phase.status, phase.duration_ms) {
                (BootPhaseStatus::Pending, _) => "-".into(),
                (BootPhaseStatus::Active, _) => "under way".into(),
                (BootPhaseStatus::Skipped, _) => "not needed".into(),
                (BootPhaseStatus::Done, took) => took.map_or_else(|| "done".into(), duration),
                (BootPhaseStatus::Failed, took) => format!("FAILED after {}", duration(took.unwrap_or(0))),
            };
            text.push_str(&format!("  {:<8} {took}\n", phase.name.as_str()));
        }
        if let Some(failure) = &boot.failure {
            text.push_str(&format!("failure:  {}\n   next:  {}\n", failure.message, failure.hint));
            for line in &failure.console_tail {
                text.push_str(&format!("  | {line}\n"));
            }
        }
    }
    super::output::human(&text).into_owned()
}
