//! What connections cost that nobody uses.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Side};
use crate::process::{self, usage, Running, Usage};
use crate::report::{Cell, Goal, Report, Table};
use crate::wire::Manager;
use crate::{Arguments, Failure};

/// For all connections of one row to be made.
const SETUP: Duration = Duration::from_secs(120);

/// A server of a side that anybody on this machine can connect to, and its destination.
pub(super) fn server(lab: &Lab, side: Side) -> Result<(Running, String), Failure> {
    let mut server =
        process::start(&mut lab.side(side, &["server", "listen", "--host", "127.0.0.1"]))?;
    let mut destination = None;
    crate::lab::until("a server that says where it is", || {
        let told = server.told();
        destination = told.lines().find(|it| it.starts_with("distant://")).map(str::to_owned);
        destination.is_some()
    })?;
    Ok((server, destination.unwrap_or_default()))
}

/// Measures it.
pub(crate) fn measure(
    lab: &Lab,
    arguments: &Arguments,
    report: &mut Report,
) -> Result<(), Failure> {
    let columns = ["wake-ups/s", "CPU, % of a core", "KiB each"];
    let columns: Vec<_> = ["manager", "server"]
        .iter()
        .flat_map(|who| columns.map(|it| format!("{who}: {it}")))
        .collect();
    let columns: Vec<_> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new(
        "idle",
        "Connections that nobody uses: in the manager and in the server",
        &columns,
    );
    for side in Side::BOTH {
        for &count in &arguments.connections {
            let name = format!("{}, {count}", side.name());
            let [manager, server] =
                match watch(lab, side, count, Duration::from_secs(arguments.idle_seconds)) {
                    Ok(costs) => costs,
                    // 1,000 of its connections may be more than the machine has time for.
                    Err(error) if side == Side::Peer => {
                        let mut cells = vec![Cell::Nothing; columns.len()];
                        cells[0] = format!("not reached: {error}").into();
                        table.row(name, cells);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
            let cells =
                [manager, server].into_iter().flat_map(|it| [it.wake_ups, it.cpu, it.memory]);
            table.row(name, cells.map(Cell::from).collect());
            if side == Side::Ours && count == 1000 {
                report.target(
                    "1,000 idle connections in the manager",
                    Goal::AtMost(1.0),
                    Some(manager.cpu),
                    "% of a core",
                );
                report.target(
                    "an idle connection in the manager",
                    Goal::AtMost(40.0),
                    Some(manager.memory),
                    "KiB",
                );
            }
        }
    }
    report.add(table);
    Ok(())
}

/// What one process costs for its connections.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wake_ups: f64,
    cpu: f64,
    memory: f64,
}

fn watch(lab: &Lab, side: Side, count: usize, time: Duration) -> Result<[Cost; 2], Failure> {
    let (server, destination) = server(lab, side)?;
    let manager = lab.manager(side, None)?;
    let processes = [manager.pid(), server.pid()];
    let options = if side == Side::Ours { "proof=true" } else { "" };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let client = runtime.block_on(Manager::connect(&lab.socket(side)))?;
    let connect = |count: usize| {
        let all = async {
            for _ in 0..count {
                client.connect_to(&destination, options).await?;
            }
            Ok::<_, Failure>(())
        };
        runtime.block_on(async {
            tokio::time::timeout(SETUP, all).await.map_err(|_| "not connected in time")?
        })
    };
    // What the first one takes is not what each takes.
    connect(1)?;
    let before = processes.map(usage);
    connect(count)?;
    // What is being freed, and the heartbeats of the beginning.
    thread::sleep(Duration::from_millis(300).min(time));
    let begin = processes.map(usage);
    let begun = Instant::now();
    thread::sleep(time);
    let end = processes.map(usage);
    let seconds = begun.elapsed().as_secs_f64();
    let cost = |at: usize| {
        let (before, begin, end): (Usage, Usage, Usage) = (before[at], begin[at], end[at]);
        Cost {
            wake_ups: end.wake_ups.saturating_sub(begin.wake_ups) as f64 / seconds,
            cpu: (end.cpu - begin.cpu) / seconds * 100.0,
            memory: end.memory.saturating_sub(before.memory) as f64 / count as f64,
        }
    };
    let costs = [cost(0), cost(1)];
    drop((client, runtime));
    drop((manager, server));
    // What 0.20.0 leaves, and its socket.
    process::kill_marked(&lab.mark_of(side));
    Ok(costs)
}
