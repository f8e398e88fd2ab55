//! The agent's own services, run by the very binary that machines get, on this host.

use super::*;
use crate::test_support::write_program;

/// A machine whose services are run by the embedded binary.
fn machine() -> (Machine, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("vmdeck-guest");
    write_program(&program, GUEST_BINARY);
    let program = program.to_str().unwrap().to_owned();
    let machine = Machine::start(1, |agent| {
        agent.set_service_program(program);
        for stage in [Stage::Init, Stage::Root, Stage::Agent, Stage::Ready] {
            agent.reach(stage);
        }
    });
    (machine, folder)
}

fn path(of: &Path) -> String {
    of.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_goes_through_the_agent_and_back() {
    let (machine, folder) = machine();
    let source = folder.path().join("source");
    std::fs::create_dir_all(source.join("a/b")).unwrap();
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(source.join("a/big"), &content).unwrap();
    std::os::unix::fs::symlink("big", source.join("a/link")).unwrap();

    let channel = machine.connect().await;
    let (stream, said, status) =
        finish(channel.serve(Service::Send { path: path(&source) }, None).await.unwrap()).await;
    assert_eq!((status, String::from_utf8_lossy(&said)), (ExecStatus::Exited(0), "".into()));

    let to = folder.path().join("to");
    std::fs::create_dir(&to).unwrap();
    let receive = Service::Receive { path: path(&to), name: Some("copy".into()) };
    let mut session = channel.serve(receive, None).await.unwrap();
    session.input.write(Bytes::from(stream)).await.unwrap();
    let (_, said, status) = finish(session).await;
    assert_eq!((status, String::from_utf8_lossy(&said)), (ExecStatus::Exited(0), "".into()));
    assert_eq!(std::fs::read(to.join("copy/a/big")).unwrap(), content);
    assert_eq!(std::fs::read_link(to.join("copy/a/link")).unwrap(), Path::new("big"));
    assert!(to.join("copy/a/b").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_has_a_status_of_its_own() {
    let (machine, folder) = machine();
    let channel = machine.connect().await;
    let missing = Service::Send { path: path(&folder.path().join("missing")) };
    let (_, said, status) = finish(channel.serve(missing, None).await.unwrap()).await;
    assert_eq!(status, ExecStatus::Exited(vmdeck_protocol::service::STATUS_NOT_FOUND));
    assert!(String::from_utf8_lossy(&said).contains("missing"));
    let nowhere = Service::Receive { path: path(&folder.path().join("no/where")), name: None };
    let (_, said, status) = finish(channel.serve(nowhere, None).await.unwrap()).await;
    let said = String::from_utf8_lossy(&said);
    assert_eq!(status, ExecStatus::Exited(vmdeck_protocol::service::STATUS_NOT_FOUND), "{said}");
    assert!(said.contains("there is no folder") && said.contains("/no`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_joined_with_the_service() {
    let (machine, _folder) = machine();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    });
    let channel = machine.connect().await;
    let connect = Service::Connect { host: "127.0.0.1".into(), port };
    let session = channel.serve(connect, None).await.unwrap();
    let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let ExecSession { mut input, mut output, control: _control, mut end } = session;
    let copy = sent.clone();
    tokio::spawn(async move { input.write(Bytes::from(copy)).await.unwrap() });
    let mut received = Vec::new();
    while let Some(ExecOutput::Stdout(data)) = output.recv().await {
        received.extend(data);
    }
    assert_eq!((received[0], &received[1..]), (CONNECTED, &sent[..]));
    assert_eq!(end.status().await.unwrap(), ExecStatus::Exited(0));
    let session = channel.serve(Service::Connect { host: "127.0.0.1".into(), port: 1 }, None).await.unwrap();
    assert_eq!(finish(session).await.2, ExecStatus::Exited(1));
}

/// The client of OpenSSH, which speaks SFTP with a program in place of a server (`sftp -D`).
#[test]
fn openssh_lists_sends_and_fetches_by_sftp() {
    let (_machine, folder) = machine();
    let script = folder.path().join("server");
    let program = folder.path().join("vmdeck-guest");
    let line = format!("#!/bin/sh\nexec {} vmdeck-service '\"sftp\"'\n", program.display());
    write_program(&script, line);
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    std::fs::create_dir(&there).unwrap();
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&here, &content).unwrap();
    let commands = format!(
        "put -p {here} {there}/up\nget {there}/up {here}.back\nmkdir {there}/d\nrename {there}/up {there}/d/renamed\n\
         chmod 600 {there}/d/renamed\nln -s renamed {there}/d/link\nls -l {there}/d\n",
        here = here.display(),
        there = there.display()
    );
    let mut client = std::process::Command::new("sftp")
        .args(["-b", "-", "-D"])
        .arg(&script)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut client.stdin.take().unwrap(), commands.as_bytes()).unwrap();
    let output = client.wait_with_output().unwrap();
    let (said, listed) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{said}");
    assert_eq!(std::fs::read(folder.path().join("here.back")).unwrap(), content);
    assert_eq!(std::fs::read(there.join("d/renamed")).unwrap(), content);
    assert_eq!(std::fs::read_link(there.join("d/link")).unwrap(), Path::new("renamed"));
    assert!(listed.contains("-rw-------") && listed.contains("renamed"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_synced_and_grown_by_the_agent_itself() {
    let (machine, _folder) = machine();
    let channel = machine.connect().await;
    // This host has no disk of a machine: there is nothing to do, and nothing to fail.
    channel.sync().await.unwrap();
    channel.grow(1 << 40).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_could_not_do_it_says() {
    let machine = Machine::start(1, |agent| {
        agent.set_service_program("/no/such/agent".to_owned());
        agent.reach(Stage::Ready);
    });
    let error = machine.connect().await.sync().await.unwrap_err();
    assert!(error.to_string().contains("/no/such/agent") && !is_unknown(&error), "{error}");
}
