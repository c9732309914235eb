//! What connections cost that nobody uses.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::{calm, often, report, Home, Look, Manager, Server};

/// Connections at the same time.
const CONNECTIONS: usize = 100;

/// Time between two signs of life of a server.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What one process did and holds.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Times that it went to sleep in the time that was watched.
    wake_ups: u64,
    /// KiB for each connection.
    memory: f64,
}

/// Connects `CONNECTIONS` times by a manager to a server, and watches both do nothing.
fn watch(home: &Home, server: &Server, manager: &Manager, time: Duration) -> [Cost; 2] {
    let processes = [manager.pid(), server.process.pid()];
    let destination = server.destination_by(server.address);
    let connect = || {
        home.peer(["connect", &destination]).run().id();
    };
    (0..5).for_each(|_| connect());
    let before = processes.map(Look::memory);
    (5..CONNECTIONS).for_each(|_| connect());
    let memory = processes.map(Look::memory);
    let wake_ups = processes.map(Look::wake_ups);
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
    let later = processes.map(Look::wake_ups);
    [0, 1].map(|at| Cost {
        wake_ups: later[at].since(&wake_ups[at]),
        memory: memory[at].saturating_sub(before[at]) as f64 / (CONNECTIONS - 5) as f64,
    })
}

#[test]
fn idle_connections_cost_nothing_but_their_heartbeats() {
    let _calm = calm();
    let time = Duration::from_secs(if often(10) == 10 { 20 } else { 6 });
    let home = Home::new();
    let server = Server::start(&home);
    let manager = Manager::start(&home);
    let ours = watch(&home, &server, &manager, time);
    drop((server, manager));

    let home = Home::new();
    let server = Server::start_peer(&home);
    let manager = Manager::start_peer(&home);
    let theirs = watch(&home, &server, &manager, time);

    for (who, ours, theirs) in [("manager", ours[0], theirs[0]), ("server", ours[1], theirs[1])] {
        report(format!(
            "{who} with {CONNECTIONS} idle connections for {time:?}: {} wake-ups, {:.1} KiB each; \
             0.20.0: {} and {:.1}",
            ours.wake_ups, ours.memory, theirs.wake_ups, theirs.memory
        ));
        // For each heartbeat: a timer or a socket, and a thread that hands on to another.
        let beats = 1 + time.as_secs() / HEARTBEAT.as_secs();
        let allowed = 3 * beats * CONNECTIONS as u64 + 50;
        assert!(ours.wake_ups <= allowed, "{who}: {} of {allowed}", ours.wake_ups);
        // Else nothing was measured.
        assert!(theirs.wake_ups > 2 * allowed, "{theirs:?}");
        assert!(ours.memory < 64.0, "{who}: {ours:?}");
    }
}
