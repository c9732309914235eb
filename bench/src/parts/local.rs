//! `manager://`: with and without a running manager, and the steps of it.

use std::process::Command;

use crate::lab::{Lab, Side, PATIENCE};
use crate::parts::Timings;
use crate::process::Finished;
use crate::report::{Goal, Report, Sample};
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
    let mut last = process::run(&mut launch(lab, side), side.patience())?;
    for _ in 1..tries {
        if last.status.success() {
            break;
        }
        last = process::run(&mut launch(lab, side), side.patience())?;
    }
    last.success()
}

/// Measures it.
pub(crate) fn measure(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let mut cold = [Vec::new(), Vec::new()];
    let mut warm = [Vec::new(), Vec::new()];
    let mut timings = Vec::new();
    let mut starts = Vec::new();
    let rounds = arguments.rounds.div_ceil(3);
    for round in 0..=rounds {
        report.progress(&format!("without a manager: round {round} of {rounds}"));
        for side in Side::BOTH {
            let what = format!("{} without a manager", side.name());
            let time = report.attempt(&what, without_manager(lab, side));
            // Whoever is first has nothing in memory yet.
            cold[side as usize].extend(time.filter(|_| round > 0));
        }
    }
    let managers = [lab.manager(Side::Ours, None)?, lab.manager(Side::Peer, None)?];
    report.progress("with a running manager");
    for round in 0..=arguments.rounds * 2 {
        for side in Side::BOTH {
            let what = format!("{} with a running manager", side.name());
            let Some(finished) = report.attempt(&what, launched(lab, side)) else { continue };
            report.attempt(&what, end_connection(lab, side));
            if round > 0 {
                warm[side as usize].push(finished.milliseconds());
                timings.extend(Timings::find(&finished.stdout));
            }
        }
        let start = process::run(&mut lab.side(Side::Ours, &["--version"]), PATIENCE)?;
        starts.push(start.milliseconds());
    }
    drop(managers);
    // Its servers outlive it.
    process::kill_marked(&lab.mark_of(Side::Peer));

    let title = "`launch manager://127.0.0.1` (ms); without a manager, 0.20.0 needs `manager listen --daemon` first";
    let mut table = report.table("local", title, &["no manager runs", "a manager runs"]);
    for side in Side::BOTH {
        let [cold, warm] = [&cold, &warm].map(|it| Sample::of(it[side as usize].clone()).into());
        table.add(side.name(), vec![cold, warm]);
    }
    let title = "Steps of ours with a running manager (ms)";
    let mut table = report.table("local_steps", title, &["ms"]);
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
        table.add(name, vec![took(steps).into()]);
    }
    let alone = Sample::of(starts);
    table.add("beside it: `distant --version`", vec![alone.into()]);
    let load = took(&["load"]).zip(alone).map(|(load, alone)| load.median - alone.median);
    table.add("the plugin's load alone: worker to hello less that", vec![load.into()]);
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

/// Milliseconds from nothing to a connection, all of which is ended again.
fn without_manager(lab: &Lab, side: Side) -> Result<f64, Failure> {
    // Where the last one left it, it would be in the way.
    let _ = std::fs::remove_file(lab.socket(side));
    let started = match side {
        Side::Ours => Ok(0.0),
        Side::Peer => start_peer(lab),
    };
    let launched = started.and_then(|started| Ok(started + launched(lab, side)?.milliseconds()));
    if side == Side::Ours {
        process::run(&mut lab.side(side, &["manager", "stop"]), PATIENCE)?;
    }
    process::kill_marked(&lab.mark_of(side));
    launched
}

/// Starts a manager of 0.20.0, and says how long that took.
fn start_peer(lab: &Lab) -> Result<f64, Failure> {
    let mut listen = lab.side(Side::Peer, &["manager", "listen", "--daemon", "--user"]);
    let listening = process::run(&mut listen, PATIENCE)?.success()?.milliseconds();
    // It says that it runs before it listens, and `launch` does not wait for it.
    let begun = std::time::Instant::now();
    let socket = lab.socket(Side::Peer);
    crate::lab::until("a manager of 0.20.0", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })?;
    Ok(listening + begun.elapsed().as_secs_f64() * 1e3)
}
