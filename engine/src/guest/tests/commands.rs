//! What commands can do and what is done to them.

use std::os::unix::fs::OpenOptionsExt;

use nix::sys::termios::{LocalFlags, tcgetattr};

use super::*;

async fn run(channel: &GuestChannel, request: ExecRequest) -> (String, String, ExecStatus) {
    let (stdout, stderr, status) = finish(channel.exec(request).await.unwrap()).await;
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status)
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_status_arrive() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let (stdout, stderr, status) = run(&channel, shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!((stdout.as_str(), stderr.as_str(), status), ("out\n", "err\n", ExecStatus::Exited(7)));
    let (.., status) = run(&channel, shell("kill -TERM $$")).await;
    assert_eq!(status, ExecStatus::Signalled(15));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_the_images_and_the_requests() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let request = ExecRequest {
        environment: vec!["MINE=a=b".to_owned()],
        working_directory: Some("/usr".to_owned()),
        ..shell("echo $FROM_IMAGE $MINE $PWD; env | grep -c ^CARGO")
    };
    let (stdout, ..) = run(&channel, request).await;
    assert_eq!(stdout, "yes a=b /usr\n0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_start_says_why() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let cases = [
        (request(&["no-such-program"]), "`no-such-program` was not found"),
        (request(&["/etc/passwd"]), "`/etc/passwd` cannot be executed"),
        (request(&["/etc"]), "`/etc` cannot be executed"),
        (request(&[""]), "empty word"),
        (request(&["echo", "a\0b"]), "zero byte"),
        (ExecRequest { user: Some("nobody-at-all".into()), ..request(&["true"]) }, "no user `nobody-at-all`"),
        (ExecRequest { working_directory: Some("/no/where".into()), ..request(&["true"]) }, "`/no/where`"),
        (request(&["echo", &"x".repeat(100_000)]), "more than the 65535"),
    ];
    for (request, expected) in cases {
        let names_something = request.user.is_some() || request.working_directory.is_some();
        let error = channel.exec(request).await.unwrap_err();
        assert!(error.full_message().contains(expected), "{}", error.full_message());
        assert!(error.hint().is_some() || !names_something, "{error} has no next step");
    }
    // None of them is left over.
    let (stdout, ..) = run(&channel, request(&["echo", "fine"])).await;
    assert_eq!(stdout, "fine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_as_the_user_it_is_meant_to() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let machine = Machine::ready();
    let channel = machine.connect().await;
    for (user, expected) in [("65534", "65534\n"), ("nobody", "65534\n"), ("0:7", "0\n")] {
        let request = ExecRequest { user: Some(user.to_owned()), ..request(&["id", "-u"]) };
        assert_eq!(run(&channel, request).await.0, expected, "{user}");
    }
    let request = ExecRequest { user: Some("0:7".to_owned()), ..request(&["id", "-G"]) };
    assert_eq!(run(&channel, request).await.0, "7\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_input_ends_it() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let mut session = channel.exec(request(&["wc", "-c"])).await.unwrap();
    session.input.write(Bytes::from(vec![b'x'; 70_001])).await.unwrap();
    let (stdout, _, status) = finish(session).await;
    assert_eq!((String::from_utf8(stdout).unwrap().trim(), status), ("70001", ExecStatus::Exited(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_go_through_unchanged() {
    const LENGTH: usize = 100 * 1000 * 1000;
    // A sequence that no shift or swap of pieces leaves as it is, with the magic of the handshake
    // sown into it.
    fn piece(number: u64) -> Vec<u8> {
        let mut state = number;
        let mut bytes: Vec<u8> = (0..12_500)
            .flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()
            })
            .collect();
        bytes[500..516].copy_from_slice(&vmdeck_protocol::handshake::MAGIC);
        bytes
    }
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let mut session = channel.exec(request(&["cat"])).await.unwrap();
    let mut input = session.input;
    let writer = tokio::spawn(async move {
        for number in 0..(LENGTH / 100_000) as u64 {
            input.write(piece(number).into()).await.unwrap();
        }
    });
    let mut received = 0;
    let mut expected = piece(0);
    while let Some(ExecOutput::Stdout(data)) = session.output.recv().await {
        let mut data = &data[..];
        while !data.is_empty() {
            let at = received % 100_000;
            if at == 0 {
                expected = piece((received / 100_000) as u64);
            }
            let length = data.len().min(100_000 - at);
            assert!(data[..length] == expected[at..at + length], "difference after {received} bytes");
            received += length;
            data = &data[length..];
        }
    }
    writer.await.unwrap();
    assert_eq!(received, LENGTH);
    assert_eq!(session.end.status().await.unwrap(), ExecStatus::Exited(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_stops_its_own_command_only() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let mut stalled = channel.exec(shell("echo $$; exec cat /dev/zero")).await.unwrap();
    let pid: u32 = match stalled.output.recv().await.unwrap() {
        ExecOutput::Stdout(data) => String::from_utf8_lossy(&data).lines().next().unwrap().parse().unwrap(),
        ExecOutput::Stderr(data) => panic!("{data:?}"),
    };
    let mut stuffed = channel.exec(request(&["sleep", "1000"])).await.unwrap();
    let stuffing = tokio::time::timeout(
        Duration::from_millis(300),
        stuffed.input.write(Bytes::from(vec![0; 4 * 1024 * 1024])),
    );
    assert!(stuffing.await.is_err(), "a command that does not read takes no more");
    // It has stopped writing: what it wrote does not grow.
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse::<u64>().unwrap()
    };
    let mut before = written();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = written();
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < 4 * 1024 * 1024, "{before} bytes are on their way");
    for _ in 0..20 {
        assert_eq!(run(&channel, request(&["echo", "on"])).await.0, "on\n");
    }
    // And goes on when it is read.
    let mut more = 0;
    while more < 8 * 1024 * 1024 {
        let Some(ExecOutput::Stdout(data)) = stalled.output.recv().await else { panic!("it ended") };
        more += data.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_run_at_once() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let runs = (0..60).map(|number| {
        let channel = channel.clone();
        tokio::spawn(async move {
            let (stdout, ..) = run(&channel, shell(&format!("sleep 0.1; seq {number} 3000"))).await;
            let expected: String = (number..=3000).map(|line| format!("{line}\n")).collect();
            assert_eq!(stdout, expected);
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_that_changes() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let request = ExecRequest {
        pty: Some(WindowSize { columns: 91, rows: 23 }),
        term: Some("vt220".to_owned()),
        ..shell("trap 'stty size; exit 3' WINCH; tty; echo $TERM; stty size; while :; do sleep 0.05; done")
    };
    let mut session = channel.exec(request).await.unwrap();
    let text = read_until(&mut session, "23 91").await;
    assert!(text.contains("/dev/pts/") && text.contains("vt220\r\n"), "{text:?}");
    session.control.resize(WindowSize { columns: 132, rows: 50 }).await.unwrap();
    read_until(&mut session, "50 132").await;
    assert_eq!(session.end.status().await.unwrap(), ExecStatus::Exited(3));
}

/// The program in the foreground of a shell's terminal.
fn foreground(shell: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{shell}/stat")).ok()?;
    // The eighth field of proc_pid_stat(5); the first after the command is the third.
    let group = stat.rsplit(')').next()?.split_ascii_whitespace().nth(5)?.to_owned();
    Some(std::fs::read_to_string(format!("/proc/{group}/comm")).ok()?.trim().to_owned())
}

/// Whether a shell waits for what is typed: its line editor has the terminal hand over every key.
fn listens(shell: u32) -> bool {
    let mut options = std::fs::OpenOptions::new();
    let terminal = options.read(true).custom_flags(libc::O_NOCTTY).open(format!("/proc/{shell}/fd/0"));
    let modes = terminal.and_then(|terminal| Ok(tcgetattr(&terminal)?));
    foreground(shell).as_deref() == Some("bash")
        && modes.is_ok_and(|modes| !modes.local_flags.contains(LocalFlags::ICANON))
}

async fn until(wish: impl Fn() -> bool) {
    let fulfilled = async {
        while !wish() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, fulfilled).await.expect("it does not become so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_job_control_and_an_end_of_input() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let pty = Some(WindowSize { columns: 80, rows: 24 });
    // What is typed reaches whoever is in the foreground: the interrupt character ends `sleep`, and
    // the shell goes on.
    let mut session =
        channel.exec(ExecRequest { pty, ..request(&["/bin/bash", "--norc", "-i"]) }).await.unwrap();
    session.input.write(Bytes::from_static(b"echo be''gin=$$=; sleep 1000\n")).await.unwrap();
    let text = read_until(&mut session, "=\r\n").await;
    let shell = text.split_once("begin=").unwrap().1.split('=').next().unwrap().parse().unwrap();
    // A key that comes while the shell hands over the terminal may make the shell leave.
    until(|| foreground(shell).as_deref() == Some("sleep")).await;
    session.input.write(Bytes::from_static(b"\x03")).await.unwrap();
    // The shell changes the terminal's mode before it listens again: what comes meanwhile may be lost.
    until(|| listens(shell)).await;
    session.input.write(Bytes::from_static(b"echo still''here\n")).await.unwrap();
    read_until(&mut session, "stillhere\r\n").await;
    until(|| listens(shell)).await;
    // A signal goes to the foreground job as well.
    session.input.write(Bytes::from_static(b"echo ag''ain; sleep 1000; echo status=$?\n")).await.unwrap();
    read_until(&mut session, "again\r\n").await;
    until(|| foreground(shell).as_deref() == Some("sleep")).await;
    session.control.signal(15).await.unwrap();
    read_until(&mut session, "status=143\r\n").await;
    // The end of input is the shell's, once it listens again.
    until(|| listens(shell)).await;
    let (.., status) = tokio::time::timeout(PATIENCE, finish(session)).await.unwrap();
    assert_eq!(status, ExecStatus::Exited(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_whole_group() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let mut session = channel.exec(shell("sleep 1000 & echo child=$!=; wait")).await.unwrap();
    let text = read_until(&mut session, "=\n").await;
    let child: u32 = text.split('=').nth(1).unwrap().parse().unwrap();
    session.control.signal(15).await.unwrap();
    assert_eq!(session.end.status().await.unwrap(), ExecStatus::Signalled(15));
    assert!(ends(child, PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_all_of_it_hangs_it_up() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    for pty in [None, Some(WindowSize { columns: 80, rows: 24 })] {
        let mark = machine.path().join(if pty.is_some() { "from-terminal" } else { "from-pipe" });
        let request = ExecRequest { pty, ..marking_its_hang_up(&mark) };
        let mut session = channel.exec(request).await.unwrap();
        let text =
            read_until(&mut session, "=\r\n".trim_start_matches(if pty.is_some() { "" } else { "=\r" }))
                .await;
        let pid: u32 = text.split('=').nth(1).unwrap().parse().unwrap();
        let ExecSession { input, output, control, end } = session;
        drop((input, output, control));
        assert!(!ends(pid, Duration::from_millis(200)).await, "a part of it is still there");
        drop(end);
        assert!(ends(pid, PATIENCE).await);
        assert!(mark.exists(), "it was killed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ignores_the_hang_up_is_killed() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let mut session =
        channel.exec(shell("trap '' HUP; echo pid=$$=; while :; do sleep 0.2; done")).await.unwrap();
    let text = read_until(&mut session, "=\n").await;
    let pid: u32 = text.split('=').nth(1).unwrap().parse().unwrap();
    // The connection with it, too: the port's hang-up has the same effect.
    drop((session, channel));
    assert!(!ends(pid, Duration::from_secs(2)).await);
    assert!(ends(pid, PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_in_the_background_does_not_delay_the_end() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let begin = std::time::Instant::now();
    let script = "(while :; do echo line; sleep 0.05; done) & echo pid=$!=";
    let (stdout, _, status) = run(&channel, shell(script)).await;
    assert_eq!(status, ExecStatus::Exited(0));
    assert!(begin.elapsed() < PATIENCE);
    let pid: u32 = stdout.split('=').nth(1).unwrap().parse().unwrap();
    // It is not killed by its next line of output either.
    assert!(!ends(pid, Duration::from_millis(500)).await);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_output_arrives_before_the_end() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    for pty in [None, Some(WindowSize { columns: 80, rows: 24 })] {
        for _ in 0..10 {
            let request = ExecRequest { pty, ..shell("seq 1 20000") };
            let (stdout, _, status) = run(&channel, request).await;
            assert_eq!(stdout.lines().count(), 20_000);
            assert_eq!(status, ExecStatus::Exited(0));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_comes_though_nobody_reads() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let mut session = channel.exec(shell("seq 1 1000; exit 5")).await.unwrap();
    assert_eq!(session.end.status().await.unwrap(), ExecStatus::Exited(5));
    // Without a receiver even a lot of output stops nothing.
    let mut session = channel.exec(shell("seq 1 1000000; exit 6")).await.unwrap();
    session.output.close();
    assert_eq!(session.end.status().await.unwrap(), ExecStatus::Exited(6));
}
