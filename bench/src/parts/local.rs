//! `manager://`: with and without a running manager, and the steps of it.

use std::process::Command;

use crate::lab::{Lab, Side, PATIENCE};
use crate::parts::Timings;
use crate::process::Finished;
use crate::report::{Goal, Report, Sample, Table};
use crate::{process, Arguments, Failure};

fn launch(lab: &Lab, side: Side) -> Command {
    let mut command = lab.side(side, &["launch", "manager://127.0.0.1", "--distant"]);
    command.arg(lab.program(side));
    if side == Side::Ours {
        command.args(["--timings", "--format", "json"]);
    }
    command
}

/// Launches and says how long it took. Which of 0.20.0's servers lives is a race with its manager, so
/// a failed one is tried again, and only the one that works counts.
fn launched(lab: &Lab, side: Side) -> Result<Finished, Failure> {
    let tries = if side == Side::Peer { 20 } else { 1 };
    let mut last = process::run(&mut launch(lab, side), PATIENCE)?;
    for _ in 1..tries {
        if last.status.success() {
            break;
        }
        last = process::run(&mut launch(lab, side), PATIENCE)?;
    }
    last.success()
}

/// Measures it.
pub(crate) fn measure(
    lab: &Lab,
    arguments: &Arguments,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut cold = [Vec::new(), Vec::new()];
    let mut warm = [Vec::new(), Vec::new()];
    let mut timings = Vec::new();
    for round in 0..=arguments.rounds.div_ceil(3) {
        for side in Side::BOTH {
            let time = without_manager(lab, side)?;
            // Whoever is first has nothing in memory yet.
            if round > 0 {
                cold[side as usize].push(time);
            }
        }
    }
    let managers = [lab.manager(Side::Ours, None)?, lab.manager(Side::Peer, None)?];
    for round in 0..=arguments.rounds * 2 {
        for side in Side::BOTH {
            let finished = launched(lab, side)?;
            end_connection(lab, side)?;
            if round > 0 {
                warm[side as usize].push(finished.milliseconds());
                timings.extend(Timings::find(&finished.stdout));
            }
        }
    }
    drop(managers);
    // Its servers outlive it.
    process::kill_marked(&lab.mark_of(Side::Peer));

    let title = "`launch manager://127.0.0.1` (ms); without a manager, 0.20.0 needs `manager listen --daemon` first";
    let mut table = Table::new("local", title, &["no manager runs", "a manager runs"]);
    for side in Side::BOTH {
        let [cold, warm] = [&cold, &warm].map(|it| Sample::of(it[side as usize].clone()).into());
        table.row(side.name(), vec![cold, warm]);
    }
    report.add(table);
    let title = "Steps of ours with a running manager (ms)";
    let mut table = Table::new("local_steps", title, &["ms"]);
    let took = |names: &[&str]| {
        let sum = |it: &Timings| names.iter().filter_map(|name| it.took(name)).sum();
        Sample::of(timings.iter().map(sum).collect())
    };
    for (name, steps) in [
        ("the command itself, up to its request", &["command", "manager"][..]),
        ("plugin chosen, options checked", &["plan", "queue"]),
        ("a worker is started", &["worker"]),
        ("worker to hello: program and plugin are loaded", &["load"]),
        ("launch handed over, server started", &["request", "start", "offer"]),
        ("connect and proof alone", &["tcp", "proof"]),
        ("ticket", &["ticket"]),
    ] {
        table.row(name, vec![took(steps).into()]);
    }
    report.add(table);
    let ratio = Sample::of(warm[0].clone()).zip(Sample::of(warm[1].clone()));
    let ratio = ratio.map(|(ours, theirs)| ours.median / theirs.median);
    report.target(
        "`manager://` with a running manager, against 0.20.0",
        Goal::AtMost(0.5),
        ratio,
        "×",
    );
    Ok(())
}

/// Ends the connection that was just made; the 0.20.0 server stays, and is killed with its manager.
fn end_connection(lab: &Lab, side: Side) -> Result<(), Failure> {
    let cache = std::fs::read_to_string(lab.home(side).join("cache/distant/cache.toml"))?;
    let id: String = cache.chars().filter(char::is_ascii_digit).collect();
    process::run(&mut lab.side(side, &["manager", "kill", &id]), PATIENCE)?.success()?;
    Ok(())
}

/// Milliseconds from nothing to a connection.
fn without_manager(lab: &Lab, side: Side) -> Result<f64, Failure> {
    let mut milliseconds = 0.0;
    if side == Side::Peer {
        let mut listen = lab.side(side, &["manager", "listen", "--daemon", "--user"]);
        milliseconds += process::run(&mut listen, PATIENCE)?.success()?.milliseconds();
        // It says that it runs before it listens, and `launch` does not wait for it.
        let begun = std::time::Instant::now();
        let socket = lab.socket(side);
        crate::lab::until("a manager of 0.20.0", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })?;
        milliseconds += begun.elapsed().as_secs_f64() * 1e3;
    }
    milliseconds += launched(lab, side)?.milliseconds();
    match side {
        Side::Ours => {
            drop(process::run(&mut lab.side(side, &["manager", "stop"]), PATIENCE)?.success()?)
        }
        Side::Peer => {
            process::kill_marked(&lab.mark_of(side));
            // It leaves its socket.
            std::fs::remove_file(lab.socket(side))?;
        }
    }
    Ok(milliseconds)
}
