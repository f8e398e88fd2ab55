//! The user's own OpenSSH on a machine that has no sshd.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::deck::{Deck, Ended, finish};
use crate::support::{fixtures, have};

/// More than SSH's window, what may wait for a machine, and the queues between them.
const MUCH: usize = 12 << 20;

struct Machine {
    deck: Arc<Deck>,
    configuration: String,
}

impl Machine {
    /// A program of OpenSSH with the configuration that `ssh-config` prints.
    fn openssh(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.deck.ordinary(Command::new(program));
        command.args(["-F", &self.configuration]).args(arguments);
        command
    }

    fn ssh(&self, arguments: &[&str]) -> Ended {
        finish(self.openssh("ssh", arguments).spawn().unwrap())
    }

    /// What a command writes when it reads this.
    fn through(&self, arguments: &[&str], input: Vec<u8>) -> (i32, Vec<u8>) {
        let mut command = self.openssh("ssh", arguments);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read all of it is no error here.
        let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap();
        (output.status.code().unwrap_or(-1), output.stdout)
    }
}

#[test]
fn openssh_works_on_an_image_without_sshd() {
    if !have("qemu-system-x86_64") || !have("apt-get") || !have("busybox") || !have("ssh") {
        return;
    }
    let deck = Deck::shared();
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "keyhole"]).expect(0);
    deck.run(["vm", "create", "keyhole", "--image", "keyhole"]).expect(0);
    let _guard = deck.guard("keyhole");

    // A machine that was never started has no folder to pin its key in; one that does not run is told.
    assert!(!deck.run(["ssh-config"]).expect(0).stdout.contains("keyhole"));
    deck.run(["vm", "ssh", "keyhole", "true"]).expect(4).says(&["keyhole", "vmdeck vm start"]);
    deck.run(["vm", "start", "keyhole"]).expect(0);

    let plain = deck.run(["vm", "ssh", "keyhole", "--", "echo", "$FLAVOUR;", "exit 7"]).expect(7);
    assert_eq!(plain.stdout, "plain\n", "{plain:?}");
    assert_eq!(plain.stderr, "", "no prompt, no warning");

    let configuration = deck.run(["ssh-config"]).expect(0).stdout;
    let configuration = deck.write("ssh-config", &configuration).to_str().unwrap().to_owned();
    let machine = Machine { deck: Arc::clone(&deck), configuration };
    commands(&machine);
    files(&machine);
    connections(&machine);
    leaves_nothing(&machine);
    deck.run(["vm", "delete", "--force", "keyhole"]).expect(0);
}

fn commands(machine: &Machine) {
    let host = "keyhole.vmdeck";
    assert_eq!(machine.ssh(&[host, "echo out; echo err >&2"]).expect(0).stderr, "err\n");
    assert_eq!(machine.ssh(&[host, "kill -9 $$"]).expect(255).stdout, "");
    machine.ssh(&[host, "/no/such/program"]).expect(127);
    let terminal = machine.ssh(&["-tt", host, "test -t 0 && echo $TERM"]).expect(0);
    assert!(terminal.stdout.ends_with("\r\n"), "a terminal it is: {terminal:?}");

    let bytes: Vec<u8> = (0..MUCH).map(|index| (index * 31 + index / 251) as u8).collect();
    let (status, back) = machine.through(&[host, "cat"], bytes.clone());
    assert!(status == 0 && back == bytes, "status {status}, {} of {} bytes", back.len(), bytes.len());
    // Much that nobody reads is no reason to wait.
    let (status, back) = machine.through(&[host, "exec <&-; echo enough"], bytes);
    assert_eq!((status, back.as_slice()), (0, b"enough\n".as_slice()));
}

fn files(machine: &Machine) {
    let here = machine.deck.folder("keyhole-files");
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_be_bytes).collect();
    fs::write(here.join("there"), &content).unwrap();
    let (there, back) = (here.join("there"), here.join("back"));
    let (there, back) = (there.to_str().unwrap(), back.to_str().unwrap());
    finish(machine.openssh("scp", &["-q", there, "keyhole.vmdeck:/root/here"]).spawn().unwrap()).expect(0);
    finish(machine.openssh("scp", &["-q", "keyhole.vmdeck:/root/here", back]).spawn().unwrap()).expect(0);
    assert_eq!(fs::read(back).unwrap(), content);
    let batch = machine
        .deck
        .write("batch", "mkdir /root/folder\nrename /root/here /root/folder/x\nls -l /root/folder\n");
    let list = finish(
        machine.openssh("sftp", &["-q", "-b", batch.to_str().unwrap(), "keyhole.vmdeck"]).spawn().unwrap(),
    )
    .expect(0);
    assert!(list.stdout.contains(" 1200000 "), "{list:?}");
}

/// Connections to ports of the machine.
fn connections(machine: &Machine) {
    let served = "busybox nc -l -p 7000 -e /bin/echo from inside > /dev/null 2>&1 &";
    machine.ssh(&["keyhole.vmdeck", served]).expect(0);
    let until = Instant::now() + Duration::from_secs(120);
    let said = loop {
        let tried = machine.ssh(&["-W", "127.0.0.1:7000", "keyhole.vmdeck"]);
        if tried.status == 0 || Instant::now() > until {
            break tried;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(said.expect(0).stdout, "from inside\n");
    machine.ssh(&["-W", "127.0.0.1:7001", "keyhole.vmdeck"]).expect(255).says(&["open failed"]);
}

/// A client that is killed in the middle of much input takes its server and its command with it.
fn leaves_nothing(machine: &Machine) {
    let mut command = machine.openssh("ssh", &["keyhole.vmdeck", "exec sleep 1234"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&vec![0; MUCH])));
    let sleeps = |expected: bool| {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let list = machine.deck.run(["vm", "exec", "keyhole", "--", "busybox", "ps"]).expect(0).stdout;
            if list.contains("sleep 1234") == expected {
                return;
            }
            assert!(Instant::now() < until, "{list}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    sleeps(true);
    child.kill().unwrap();
    child.wait().unwrap();
    writing.join().unwrap();
    sleeps(false);
}
