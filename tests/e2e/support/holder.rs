//! A process that holds name spaces for as long as the value lives.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

pub(crate) struct Holder(Child);

impl Holder {
    /// Has a shell make things in the name spaces that `unshare` makes by these options. `None` where the
    /// host does not let it.
    pub(crate) fn start(unshare: &[&str], script: &str, path: Option<&str>) -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(unshare).args(["sh", "-c", &format!("{script} && echo made && read line")]);
        command.envs(path.map(|path| ("PATH", path)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let holder = Self(child);
        (line.trim() == "made").then_some(holder)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
