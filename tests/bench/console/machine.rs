//! What stands for the hypervisor of a busy machine: a process whose figures change all the time.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Tells the program that it stands for a machine, and for the how-manieth.
const ASKED: &str = "VMDECK_BENCH_MACHINE";

/// How often it works.
const TURN: Duration = Duration::from_millis(100);

/// Most memory it has beyond its program.
const MEMORY: usize = 24 << 20;

/// Its number, if this process is to be one.
pub(crate) fn asked() -> Option<u64> {
    std::env::var(ASKED).ok()?.parse().ok()
}

/// The program that stands for a machine.
pub(crate) fn command(number: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ASKED, number.to_string());
    command
}

/// Works for one to four hundredths of the time, and has more and less memory, each second
/// differently. Ends with the process that started it, whatever becomes of that.
pub(crate) fn run(number: u64) -> ExitCode {
    let parent = nix::unistd::getppid();
    let mut state = number + 1;
    let mut memory = Vec::new();
    let mut share = 0;
    let begun = Instant::now();
    for turn in 0_u32.. {
        if turn % 10 == 0 {
            if nix::unistd::getppid() != parent {
                return ExitCode::SUCCESS;
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            share = 1 + (state >> 33 & 3);
            memory = vec![1_u8; usize::try_from(state >> 40).unwrap() % MEMORY];
            std::hint::black_box(&memory);
        }
        let until = Instant::now() + Duration::from_millis(share);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        std::thread::sleep((begun + TURN * (turn + 1)).saturating_duration_since(Instant::now()));
    }
    drop(memory);
    ExitCode::SUCCESS
}
