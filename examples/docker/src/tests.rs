//! What the plugin makes of docker's words, with a stub of its command line in docker's place.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use distant_plugin_api::bootstrap::{Reach, Remote};
use distant_plugin_api::message::ServerCommand;
use distant_plugin_api::options::Options;
use distant_plugin_api::{ErrorKind, LaunchRequest};

use crate::container::{reach, Container};

/// Says what docker says: of a container that is not there, and of one whose `inspect` it is given.
/// In it, commands run on this machine.
fn stub(folder: &std::path::Path, inspect: &str) -> String {
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {}/calls\ncase $1 in --context) shift 2;; esac\n\
         case \"$1 $2\" in\n\
         'container inspect') eval \"name=\\${{$#}}\"\n\
         [ \"$name\" = box ] || {{ echo \"Error response from daemon: No such container: $name\" >&2; exit 1; }}\n\
         echo '{inspect}';;\n\
         'exec -i') shift 2; [ \"$1\" != --user ] || shift 2; shift; exec \"$@\";;\nesac\n",
        folder.display()
    );
    let path = folder.join("docker");
    // Not by this process: a parallel fork could still hold the file open for writing.
    let mut writing = Command::new("sh");
    writing.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&path).stdin(Stdio::piped());
    let mut writing = writing.spawn().unwrap();
    writing.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(writing.wait().unwrap().success());
    path.display().to_string()
}

fn request(destination: &str, options: &[(&str, &str)]) -> LaunchRequest {
    LaunchRequest {
        destination: destination.parse().unwrap(),
        options: options.iter().copied().collect::<Options>(),
        server: ServerCommand::default(),
        interactive: false,
        environment: Default::default(),
        cwd: None,
    }
}

#[test]
fn a_container_is_reached_where_its_network_is() {
    let check = |shown: &str, is_local: bool, expected: Reach, shares_network: bool| {
        assert_eq!(reach("box", shown, is_local).unwrap(), (expected, shares_network), "{shown}");
    };
    let at = |host: &str| Reach::Host(host.to_owned());
    check("true bridge 172.17.0.2\n", true, at("172.17.0.2"), false);
    check("true mine fd00::2 172.18.0.2\n", true, at("fd00::2"), false);
    check("true bridge 172.17.0.2\n", false, Reach::Tunnel, false);
    check("true host \n", true, at("127.0.0.1"), true);
    check("true host \n", false, Reach::Tunnel, false);
    check("true none \n", true, Reach::Tunnel, false);
    let stopped = reach("box", "false bridge \n", true).unwrap_err();
    assert_eq!(stopped.kind, ErrorKind::Unreachable);
    assert_eq!(stopped.hint.as_deref(), Some("`docker start box`"));
}

#[test]
fn a_container_is_found_and_used_with_a_stub_of_docker() {
    let folder = tempfile::tempdir().unwrap();
    let program = stub(folder.path(), "true none");
    let find = |destination: &str, options: &[(&str, &str)]| {
        let options = [&[("program", program.as_str())], options].concat();
        Container::find(&request(destination, &options))
    };
    let missing = find("docker://nonesuch", &[]).err().unwrap();
    assert_eq!(missing.kind, ErrorKind::Unresolved);
    assert!(missing.causes[0].contains("No such container: nonesuch"), "{missing:?}");
    let elsewhere = Container::find(&request("docker://box", &[("program", "/nowhere/docker")]));
    assert_eq!(elsewhere.err().unwrap().kind, ErrorKind::Unreachable);

    let options = [("container", "box"), ("context", "far"), ("user", "me:them")];
    let container = find("docker://other@localhost", &options).unwrap();
    let running = container.exec("echo hi; cat; exit 3").unwrap();
    fs::File::from(running.stdin).write_all(b"there").unwrap();
    let mut said = String::new();
    fs::File::from(running.stdout).read_to_string(&mut said).unwrap();
    assert_eq!(said, "hi\nthere");
    let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
    let last = calls.lines().last().unwrap();
    assert_eq!(last, "--context far exec -i --user me:them box sh -c echo hi; cat; exit 3");
}

#[test]
fn a_connection_gets_into_a_container_with_a_stub_of_docker() {
    let folder = tempfile::tempdir().unwrap();
    let program = stub(folder.path(), "true none");
    let options = [("program", program.as_str())];
    let container = Container::find(&request("docker://box", &options)).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = container.forward(server.local_addr().unwrap()).unwrap();
    for text in [&b"first"[..], &[7; 200_000]] {
        let mut client = TcpStream::connect(near).unwrap();
        let (mut served, _) = server.accept().unwrap();
        for socket in [&client, &served] {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        let sent = text.to_vec();
        let sender = std::thread::spawn(move || {
            client.write_all(&sent).unwrap();
            client
        });
        let mut received = vec![0; text.len()];
        served.read_exact(&mut received).unwrap();
        assert_eq!(received, text);
        let mut client = sender.join().unwrap();
        served.write_all(b"back").unwrap();
        drop(served);
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert_eq!(back, b"back");
    }
}
