//! What connections cost that nobody uses.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Side};
use crate::process::{self, usage, Running, Usage};
use crate::report::{Cell, Goal, Report, Sample};
use crate::wire::Manager;
use crate::{Arguments, Failure};

/// For all connections of one row to be made.
const SETUP: Duration = Duration::from_secs(120);

/// Between two signs of life of a server.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Connections that are made at the same time.
const AT_ONCE: usize = 16;

/// A server of a side that anybody on this machine can connect to, and its destination.
pub(super) fn server(lab: &Lab, side: Side) -> Result<(Running, String), Failure> {
    let mut server =
        process::start(&mut lab.side(side, &["server", "listen", "--host", "127.0.0.1"]))?;
    let destination = server.until("a server that says where it is", |server| {
        let told = server.told();
        told.lines().find(|it| it.starts_with("distant://")).map(str::to_owned)
    })?;
    Ok((server, destination))
}

/// Measures it.
pub(crate) fn measure(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let columns = ["wake-ups/s", "CPU, % of a core", "KiB each"];
    let columns: Vec<_> = ["manager", "server"]
        .iter()
        .flat_map(|who| columns.map(|it| format!("{who}: {it}")))
        .collect();
    let columns: Vec<_> = columns.iter().map(String::as_str).collect();
    let title = "Connections that nobody uses: in the manager and in the server";
    let mut table = report.table("idle", title, &columns);
    for &count in &arguments.connections {
        for side in Side::BOTH {
            // 0.20.0 tries its clients one after the other, and answers ever more slowly.
            if side == Side::Peer && count > arguments.peer_connections {
                continue;
            }
            let name = format!("{}, {count}", side.name());
            report.progress(&name);
            let watched = watch(lab, side, count, Duration::from_secs(arguments.idle_seconds));
            let costs = report.attempt(&format!("idle connections of {name}"), watched);
            let cells = costs.iter().flatten().flat_map(|it| {
                [Sample::of(it.wake_ups.clone()).into(), Sample::of(it.cpu.clone()).into()]
                    .into_iter()
                    .chain([Cell::from(it.memory)])
            });
            let mut cells: Vec<_> = cells.collect();
            cells.resize(columns.len(), Cell::Nothing);
            table.add(name, cells);
            if side == Side::Ours && arguments.connections.iter().max() == Some(&count) {
                targets(report, count, costs.as_ref());
            }
        }
    }
    Ok(())
}

/// What was promised of idle connections.
fn targets(report: &Report, count: usize, costs: Option<&[Cost; 2]>) {
    for (at, who) in ["manager", "server"].into_iter().enumerate() {
        let cost = costs.map(|it| &it[at]);
        let median = |of: fn(&Cost) -> &Vec<f64>| Some(Sample::of(of(cost?).clone())?.median);
        let beats = 1.0 / HEARTBEAT.as_secs_f64();
        let what = format!("wake-ups for each of {count} idle connections, {who}");
        let each = median(|it| &it.wake_ups).map(|it| it / count as f64);
        report.target(what, Goal::AtMost(beats), each, "a second, the heartbeats");
        let what = format!("{count} idle connections, {who}");
        report.target(what, Goal::AtMost(1.0), median(|it| &it.cpu), "% of a core");
        let what = format!("an idle connection of {count}, {who}");
        report.target(what, Goal::AtMost(40.0), cost.map(|it| it.memory), "KiB");
    }
}

/// What one process costs for its connections.
struct Cost {
    /// A second, in each slice of the time that was watched.
    wake_ups: Vec<f64>,
    /// Percent of a core, likewise.
    cpu: Vec<f64>,
    /// KiB for each connection.
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
        // Several at a time: 0.20.0 waits 80 ms for each.
        let line = async |count: usize| {
            for _ in 0..count {
                client.connect_to(&destination, options).await?;
            }
            Ok::<_, Failure>(())
        };
        let all = async {
            let lines = (0..AT_ONCE).map(|at| line((count + at) / AT_ONCE));
            futures::future::try_join_all(lines).await
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
    let slices = (time.as_secs() / HEARTBEAT.as_secs()).max(1) as u32;
    let mut seen = vec![(Instant::now(), processes.map(usage))];
    for _ in 0..slices {
        thread::sleep(time / slices);
        seen.push((Instant::now(), processes.map(usage)));
    }
    let cost = |at: usize| {
        let each = |of: fn(&Usage) -> f64| {
            let slice = |pair: &[(Instant, [Usage; 2])]| {
                let seconds = (pair[1].0 - pair[0].0).as_secs_f64();
                (of(&pair[1].1[at]) - of(&pair[0].1[at])) / seconds
            };
            seen.windows(2).map(slice).collect()
        };
        let first: &Usage = &seen[0].1[at];
        Cost {
            wake_ups: each(|it| it.wake_ups as f64),
            cpu: each(|it| it.cpu * 100.0),
            memory: first.memory.saturating_sub(before[at].memory) as f64 / count as f64,
        }
    };
    let costs = [cost(0), cost(1)];
    drop((client, runtime));
    drop((manager, server));
    // What 0.20.0 leaves, and its socket.
    process::kill_marked(&lab.mark_of(side));
    Ok(costs)
}
