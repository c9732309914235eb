//! How soon a launch that cannot work is given up.

use crate::lab::{Distance, Lab, Side, Site, Wrong, PATIENCE};
use crate::parts::launch::round_trips;
use crate::parts::Timings;
use crate::report::{Goal, Report, Sample, Table};
use crate::{process, Arguments, Failure};

/// Measures it.
pub(crate) fn measure(
    lab: &Lab,
    arguments: &Arguments,
    report: &mut Report,
) -> Result<(), Failure> {
    let site = Site::new(lab, Distance::Here)?;
    let ours = lab.backends().into_iter().map(|it| (Side::Ours, it));
    let ways: Vec<_> = ours.chain(["ssh2", "libssh"].map(|it| (Side::Peer, it))).collect();
    let columns = Wrong::ALL.map(Wrong::name);
    let title = "Time until a launch that cannot work says so (ms)";
    let mut table = Table::new("verdict", title, &columns);
    for (side, backend) in ways {
        let mut cells = Vec::new();
        for wrong in Wrong::ALL {
            // It waits for a server that is not there for 15 s.
            let is_slow = side == Side::Peer && wrong == Wrong::Program;
            if is_slow && arguments.smallest {
                cells.push("15 s".to_owned().into());
                continue;
            }
            let rounds = if is_slow { 1 } else { arguments.rounds.div_ceil(3) };
            let mut times = Vec::new();
            for _ in 0..rounds {
                let mut command = site.launch_with(side, backend, Some(wrong))?;
                let finished = match process::run(&mut command, PATIENCE) {
                    Ok(finished) => finished,
                    // Some cases 0.20.0 never gives up.
                    Err(_) if side == Side::Peer => break,
                    Err(error) => return Err(error),
                };
                if finished.status.success() {
                    // Not every one of them is an error to 0.20.0.
                    times.clear();
                    break;
                }
                times.push(finished.milliseconds());
            }
            cells.push(match Sample::of(times) {
                Some(sample) => Some(sample).into(),
                None => "no error".to_owned().into(),
            });
        }
        site.clear(&crate::lab::Way::Launch(side, backend))?;
        table.row(format!("{}, {backend}", side.name()), cells);
    }
    report.add(table);
    drop(site);
    after_the_answer(lab, arguments, report)
}

/// Round trips from the remote's answer that there is no program to the verdict: what the step lasts
/// longer than where the answer is a server, which ends the step at once.
fn after_the_answer(lab: &Lab, arguments: &Arguments, report: &mut Report) -> Result<(), Failure> {
    let title =
        "Round trips of the one command that finds and starts the server, up to the verdict";
    let mut table = Table::new("verdict_trips", title, &["a server starts", "no program there"]);
    let backends = lab.backends();
    let mut steps = vec![[[None; 2]; 2]; backends.len()];
    for (at, delay) in arguments.delays.iter().enumerate() {
        let site = Site::new(lab, Distance::Line(*delay))?;
        for (index, backend) in backends.iter().enumerate() {
            for (kind, wrong) in [None, Some(Wrong::Program)].into_iter().enumerate() {
                for _ in 0..arguments.line_rounds {
                    let mut command = site.launch_with(Side::Ours, backend, wrong)?;
                    let finished = process::run(&mut command, PATIENCE)?;
                    let took = Timings::find(&finished.stdout).and_then(|it| it.took("start"));
                    let least = &mut steps[index][kind][at];
                    *least = [*least, took].into_iter().flatten().reduce(f64::min);
                }
                site.clear(&crate::lab::Way::Launch(Side::Ours, backend))?;
            }
        }
    }
    for (backend, [works, fails]) in backends.into_iter().zip(steps) {
        let [works, fails] = [works, fails].map(|it| round_trips(it[0], it[1], &arguments.delays));
        table.row(backend, vec![works.into(), fails.into()]);
        let more = works.zip(fails).map(|(works, fails)| ((fails - works) * 10.0).round() / 10.0);
        let what = format!("verdict on a missing program after the remote's answer, {backend}");
        report.target(what, Goal::AtMost(1.0), more, "round trips");
    }
    report.add(table);
    Ok(())
}
