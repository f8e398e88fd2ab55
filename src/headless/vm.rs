//! `vmdeck vm …`

mod bulk;
mod change;
mod console;
mod show;
mod snapshot;

use vmdeck_engine::Error;
use vmdeck_engine::guest::ExecRequest;
use vmdeck_engine::vm::CreateVm;
use vmdeck_engine::vm::record::{Boot, Vm};

use super::output::Output;
use super::{Context, Outcome, copy, exec, logs, ssh, stats};
use crate::cli::vm::{CreateArguments, ExecArguments, MachineArguments, RunArguments, VmCommand};

/// `vm exec` and `vm run`: the engine failed before the command ran.
const NOT_RUN: u8 = 125;

/// `vm run` of an image whose own command cannot be run: what a shell says of one that is not there.
const COMMAND_NOT_FOUND: u8 = 127;

pub(super) async fn run(context: &Context, command: VmCommand) -> Outcome {
    let vms = context.engine.vms();
    match command {
        VmCommand::List { labels, wide } => {
            let mut vms = vms.list().await?;
            vms.retain(|vm| labels.iter().all(|label| label.fits(vm)));
            if !context.output.json(&vms)? {
                context.output.text(&if wide { show::wide_table(&vms) } else { show::table(&vms) })?;
                if vms.iter().any(|vm| vm.pending.is_some()) {
                    context
                        .output
                        .message("→: from its next start on; `vmdeck vm show NAME` tells all of it");
                }
            }
            Ok(0)
        }
        VmCommand::Show { name } => {
            let vm = vms.find(&name).await?;
            if !context.output.json(&vm)? {
                context.output.text(&show::fields(&vm))?;
            }
            Ok(0)
        }
        VmCommand::Create(arguments) => {
            let vm = context.follow(vms.create(create(arguments), None)).await?;
            print_vm(context, &vm)
        }
        VmCommand::Run(arguments) => run_command(context, arguments).await,
        VmCommand::Start { which } => bulk::start(context, which).await,
        VmCommand::Stop { which, force } => bulk::stop(context, which, force).await,
        VmCommand::Restart { which, force } => bulk::restart(context, which, force).await,
        VmCommand::Delete { which, force } => bulk::delete(context, which, force).await,
        VmCommand::Pause { which } => bulk::pause(context, which).await,
        VmCommand::Resume { which } => bulk::resume(context, which).await,
        VmCommand::Reset { which } => bulk::reset(context, which).await,
        VmCommand::Set(arguments) => change::set(context, arguments).await,
        VmCommand::Snapshot(command) => snapshot::run(context, command).await,
        VmCommand::Clone { name, new } => {
            let vm = context.follow(vms.clone_vm(&name, new, None)).await?;
            print_vm(context, &vm)
        }
        VmCommand::Ports { name, add, remove } => change::ports(context, &name, add, remove).await,
        VmCommand::Console { name } => console::run(context, &name).await,
        VmCommand::Exec(arguments) => exec_command(context, arguments).await,
        VmCommand::Ssh(arguments) => ssh::run(context, arguments).await,
        VmCommand::SshProxy { name } => ssh::proxy(context, &name).await,
        VmCommand::Cp { source, target } => copy::run(context, &source, &target).await,
        VmCommand::Stats { names, watch } => stats::run(context, names, watch).await,
        VmCommand::Logs { name, follow, tail } => {
            let vm = vms.find(&name).await?;
            logs::run(context, &vm, follow, tail).await
        }
    }
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
        cpus: arguments.resources.cpus,
        memory_mib: arguments.resources.memory,
        disk_gib: arguments.resources.disk,
        network: arguments.network.map(Into::into),
        ports: arguments.resources.ports,
        environment: arguments.environment,
        labels: arguments.resources.labels.into_iter().collect(),
        work_disk: arguments.no_work_disk.then_some(false),
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
    let outcome = run_in(context, &vm, &arguments.command, arguments.terminal, arguments.rm).await;
    if arguments.rm {
        // Deleted however it went, a cancelled boot included: its operation no longer runs.
        if let Err(error) = context.engine.vms().delete(&vm.name, true, None).wait().await {
            context.output.error(&error);
        }
    }
    outcome
}

/// What a machine that has just booted does without; that its image's command cannot be run is told apart.
fn warn(context: &Context, vm: &Vm) {
    let Some(boot) = &vm.boot else { return };
    for warning in boot.warnings.iter().filter(|text| boot.command_not_run() != Some(text.as_str())) {
        context.output.message(&format!("warning: {}: {warning}", vm.name));
    }
}

async fn run_in(
    context: &Context,
    vm: &Vm,
    command: &[String],
    terminal: crate::cli::vm::TerminalArguments,
    is_deleted: bool,
) -> Outcome {
    let vm = match context.follow(context.engine.vms().start(&vm.name, None)).await {
        Ok(vm) => vm,
        Err(error) => return not_run(context.output, error, !command.is_empty()),
    };
    warn(context, &vm);
    if command.is_empty() {
        let refused = vm.boot.as_ref().and_then(Boot::command_not_run).map(str::to_owned);
        context.output.message(&format!("`vmdeck vm exec {}` opens a shell in it", vm.name));
        print_vm(context, &vm)?;
        let Some(refused) = refused else { return Ok(0) };
        context.output.error(&Error::failed(refused).with_hint("the machine is up without it; `vm create --image IMAGE -- COMMAND` makes one with another command"));
        return Ok(COMMAND_NOT_FOUND);
    }
    let request = ExecRequest { command: command.to_vec(), ..ExecRequest::default() };
    let ended = passed_on(context, exec::run(context, &vm.name, request, terminal).await);
    if !is_deleted {
        context.output.message(&format!("`{0}` goes on running; `vmdeck vm stop {0}` stops it", vm.name));
    }
    ended
}

async fn exec_command(context: &Context, arguments: ExecArguments) -> Outcome {
    let request = ExecRequest {
        command: arguments.command,
        environment: checked(arguments.environment)?,
        working_directory: arguments.workdir,
        user: arguments.user,
        ..ExecRequest::default()
    };
    passed_on(context, exec::run(context, &arguments.name, request, arguments.terminal).await)
}

/// Variables as they were given, each with a value.
fn checked(environment: Vec<String>) -> Result<Vec<String>, Error> {
    match environment.iter().find(|variable| variable.find('=').is_none_or(|place| place == 0)) {
        Some(wrong) => Err(Error::usage(format!("`{wrong}` sets no variable")).with_hint("write NAME=value")),
        None => Ok(environment),
    }
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

fn print_vm(context: &Context, vm: &Vm) -> Outcome {
    if !context.output.json(vm)? {
        context.output.text(&format!("{}\n", vm.name))?;
    }
    Ok(0)
}

fn print_vms(context: &Context, vms: &[Vm]) -> Outcome {
    if !context.output.json(vms)? {
        vms.iter().try_for_each(|vm| context.output.text(&format!("{}\n", vm.name)))?;
    }
    Ok(0)
}
