//! `kill -9` of whoever takes part in a launch, at many moments of it.
//!
//! The moments are spread over the time that a launch takes and a little more, so they fall before,
//! between and after everything that it does.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    calm, eventually, often, peer, programs, within, Finished, Home, Invocation, Look, Manager,
    Seen, Signal, Stopwatch,
};

/// Moments at which each is killed.
const MOMENTS: usize = 160;

/// How long something may take to end after what it belonged to.
const TIME_TO_END: Duration = Duration::from_secs(15);

fn launch(home: &Home, server: Option<&str>) -> Invocation {
    let launch = home.ours(["launch", "manager://localhost"]);
    match server {
        Some(program) => launch.arg("--distant").arg(program),
        None => launch,
    }
}

/// The servers that are launched: ours, and one that knows nothing of lifelines.
fn servers() -> [Option<String>; 2] {
    [None, Some(peer().display().to_string())]
}

/// How long a whole launch takes here and now, without anything in the way.
fn usual(home: &Home, server: Option<&str>) -> Duration {
    launch(home, server).run().id();
    let begun = Instant::now();
    launch(home, server).run().id();
    begun.elapsed()
}

/// The moments, as the time since the start of a launch.
fn moments(usual: Duration) -> impl Iterator<Item = Duration> {
    let count = often(MOMENTS);
    (0..count).map(move |moment| usual.mul_f64(1.2 * moment as f64 / count as f64))
}

/// Lets that much time pass since then.
fn until(begun: Instant, moment: Duration) {
    while let Some(left) = moment.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// Kills each process of the home that this picks; tells whether there was one.
fn kill(home: &Home, pick: impl Fn(&Seen) -> bool) -> bool {
    let picked: Vec<_> = home.processes().into_iter().filter(pick).collect();
    picked.iter().for_each(Seen::kill);
    !picked.is_empty()
}

fn is_manager(seen: &Seen) -> bool {
    seen.command.contains("manager listen")
}

fn is_worker(seen: &Seen) -> bool {
    seen.command.contains("plugin-worker")
}

fn is_server(seen: &Seen) -> bool {
    seen.command.contains("server listen")
}

/// A launch during which something was killed may have been through already.
#[track_caller]
fn assert_succeeds_or_says_why(finished: &Finished) {
    if finished.status.code() != Some(0) {
        assert_eq!(finished.status.code(), Some(1), "{}", finished.told());
        assert!(finished.stderr.starts_with("error: "), "{}", finished.told());
    }
}

/// Ends every connection of the manager, and waits until it alone is left.
#[track_caller]
fn assert_only_the_manager_is_left(home: &Home, manager: &Manager) {
    // One of a command line that was killed may come about after that.
    within(TIME_TO_END, || {
        let listed = home.ours(["manager", "list", "--format=json"]).run().success().stdout;
        let last: serde_json::Value =
            serde_json::from_str(listed.lines().last().unwrap_or_default()).unwrap();
        for id in last.as_object().unwrap().keys().filter(|key| key.parse::<u32>().is_ok()) {
            // It may have been dropped meanwhile, as its server is gone.
            home.ours(["manager", "kill", id]).run();
        }
        manager.offspring().is_empty().then_some(())
    });
    manager.assert_no_offspring();
}

#[test]
fn a_manager_that_is_killed_leaves_nothing_and_the_next_launch_works() {
    let home = Home::new();
    for server in servers() {
        let server = server.as_deref();
        let usual = usual(&home, server);
        home.ours(["manager", "stop"]).run().success();
        home.assert_empty();
        let mut hits = 0;
        for moment in moments(2 * usual) {
            let begun = Instant::now();
            let running = launch(&home, server).start();
            until(begun, moment);
            hits += usize::from(kill(&home, is_manager));
            let finished = running.finish();
            assert_succeeds_or_says_why(&finished);
            // One that was started just then, or was not there yet.
            kill(&home, is_manager);
            home.assert_empty();
        }
        assert!(hits > 0, "no manager was ever there to be killed");
        launch(&home, server).run().id();
        home.ours(["manager", "stop"]).run().success();
        home.assert_empty();
    }
}

#[test]
fn a_worker_that_is_killed_takes_its_server_along_and_the_next_launch_works() {
    killed_in_a_launch(is_worker);
}

#[test]
fn a_server_that_is_killed_leaves_no_worker_and_the_next_launch_works() {
    killed_in_a_launch(is_server);
}

fn killed_in_a_launch(victim: fn(&Seen) -> bool) {
    let home = Home::new();
    let manager = Manager::start(&home);
    for server in servers() {
        let server = server.as_deref();
        let usual = usual(&home, server);
        let mut hits = 0;
        assert_only_the_manager_is_left(&home, &manager);
        for moment in moments(usual) {
            let begun = Instant::now();
            let running = launch(&home, server).start();
            until(begun, moment);
            hits += usize::from(kill(&home, victim));
            assert_succeeds_or_says_why(&running.finish());
            assert_only_the_manager_is_left(&home, &manager);
        }
        // And once more when it is there for certain.
        launch(&home, server).run().id();
        hits += usize::from(kill(&home, victim));
        eventually("the end of all that the launch started", || {
            manager.offspring().is_empty().then_some(())
        });
        assert!(hits > 1, "there was hardly ever one to be killed");
        launch(&home, server).run().id();
        assert_only_the_manager_is_left(&home, &manager);
    }
}

#[test]
fn a_command_line_that_is_killed_leaves_nothing_and_the_next_launch_works() {
    let home = Home::new();
    let manager = Manager::start(&home);
    for server in servers() {
        let server = server.as_deref();
        let usual = usual(&home, server);
        assert_only_the_manager_is_left(&home, &manager);
        let mut unfinished = 0;
        for moment in moments(usual) {
            let begun = Instant::now();
            let running = launch(&home, server).start();
            until(begun, moment);
            running.signal(Signal::KILL);
            let finished = running.finish();
            if finished.stdout.is_empty() {
                unfinished += 1;
            }
            assert_only_the_manager_is_left(&home, &manager);
        }
        assert!(unfinished > 0, "it was never killed before it had finished");
        launch(&home, server).run().id();
        assert_only_the_manager_is_left(&home, &manager);
    }
}

#[test]
fn a_command_line_that_is_killed_while_the_server_starts_leaves_nothing_at_once() {
    let _calm = calm();
    let home = Home::new();
    let manager = Manager::start(&home);
    let running = launch(&home, Some(&home.mute())).start();
    manager.wait_for_mute();
    running.signal(Signal::KILL);
    let killed = Stopwatch::start();
    manager.assert_no_offspring();
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    drop(running);
}

#[test]
fn a_manager_that_is_killed_with_a_launch_pending_leaves_no_server_that_never_spoke() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let running = launch(&home, Some(&home.mute())).start();
    manager.wait_for_mute();
    manager.kill();
    let finished = running.finish().code(1);
    assert!(finished.stderr.starts_with("error: "), "{}", finished.told());
    assert!(Look::marked(home.mark()).is_empty());
}

/// A server that its worker does not know: the worker's child is what started it.
fn grandchild(home: &Home, how: &str) -> String {
    home.script("wrapped", &format!("#!/bin/sh\n{how}\n")).display().to_string()
}

/// The one server of that manager, once a launch is through.
#[track_caller]
fn launched(home: &Home, manager: &Manager, server: Option<&str>, named: &Path) -> (u32, Seen) {
    let id = launch(home, server).run().id();
    let named = format!("{} server listen", named.display());
    let mut servers = manager.servers();
    servers.retain(|seen| seen.command.starts_with(&named));
    assert_eq!(servers.len(), 1, "{:#?}", manager.offspring());
    (id, servers.remove(0))
}

/// Waits for the end of what a launch started while its manager stays.
#[track_caller]
fn assert_ends(server: &Seen) {
    let gone = within(TIME_TO_END, || (!server.lives()).then_some(()));
    assert!(gone.is_some(), "still there after {TIME_TO_END:?}: {server:#?}");
}

/// Nothing but the end of its standard input reaches this server: it has a session of its own, and
/// the worker's child is not it but what waits for it.
#[test]
fn our_server_ends_with_its_lifeline_where_no_signal_reaches_it() {
    let home = Home::new();
    let ours = &programs().distant;
    let wrapped =
        grandchild(&home, &format!("exec setsid --fork --wait {} \"$@\"", ours.display()));
    let manager = Manager::start(&home);
    let (_, server) = launched(&home, &manager, Some(&wrapped), ours);
    assert!(kill(&home, is_worker));
    assert_ends(&server);
    manager.assert_no_offspring();

    let (_, server) = launched(&home, &manager, Some(&wrapped), ours);
    manager.kill();
    assert_ends(&server);
    launch(&home, None).run().id();
    home.ours(["manager", "stop"]).run().success();
}

/// A 0.20.0 server knows no lifeline, and a manager that is stopped kills no group: what is left
/// is the signal that the kernel sends at the death of the worker.
#[test]
fn a_0_20_server_dies_with_its_worker_while_the_manager_is_stopped() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let peer_path = peer().display().to_string();
    let (_, server) = launched(&home, &manager, Some(&peer_path), peer());
    manager.signal(Signal::STOP);
    assert!(kill(&home, is_worker));
    assert_ends(&server);
    manager.signal(Signal::CONT);
    manager.assert_no_offspring();
    launch(&home, None).run().id();
}

/// A 0.20.0 server whose parent is not the worker but a shell gets no signal of the kernel; it is
/// in the worker's group, though, and whoever outlives the other kills that: the manager when the
/// worker has died or a connection is ended, the worker when the manager has died.
#[test]
fn a_0_20_server_of_a_shell_ends_with_the_group_of_its_worker() {
    let home = Home::new();
    let wrapped = grandchild(&home, &format!("{} \"$@\" & wait", peer().display()));
    let manager = Manager::start(&home);
    let launched = |manager: &Manager| launched(&home, manager, Some(&wrapped), peer());

    let (_, server) = launched(&manager);
    assert!(kill(&home, is_worker));
    assert_ends(&server);
    manager.assert_no_offspring();

    let (id, server) = launched(&manager);
    home.ours(["manager", "kill", &id.to_string()]).run().success();
    assert_ends(&server);
    manager.assert_no_offspring();

    let (_, server) = launched(&manager);
    manager.kill();
    assert_ends(&server);
    launch(&home, None).run().id();
    home.ours(["manager", "stop"]).run().success();
}

#[test]
fn a_manager_that_nobody_can_find_any_more_ends_with_its_last_client_and_takes_its_servers_along() {
    let home = Home::new();
    let manager = Manager::start(&home);
    launch(&home, None).run().id();
    let mut cat = home.ours(["spawn", "--", "cat"]).start();
    cat.say("one");
    assert_eq!(cat.line(), "one");
    // As at the end of a session, in which somebody still works.
    fs::remove_dir_all(home.socket().parent().unwrap()).unwrap();
    manager.said("the socket is gone");
    cat.say("two");
    assert_eq!(cat.line(), "two");
    cat.finish().success();
    manager.finish().success();

    let manager = Manager::start(&home);
    launch(&home, None).run().id();
    fs::remove_file(home.socket()).unwrap();
    manager.finish().success();
}
