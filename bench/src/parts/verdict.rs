//! How soon a launch that cannot work is given up.

use crate::lab::{Lab, Side, Way};
use crate::parts::launch::round_trips;
use crate::parts::Timings;
use crate::report::{Cell, Goal, Report, Sample};
use crate::site::{Distance, Site, Wrong};
use crate::{Arguments, Failure};

/// Measures it.
pub(crate) fn measure(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let site = Site::new(lab, Distance::Here)?;
    let ours = lab.backends().into_iter().map(|it| (Side::Ours, it));
    let ways: Vec<_> = ours.chain(["ssh2", "libssh"].map(|it| (Side::Peer, it))).collect();
    let columns = Wrong::ALL.map(Wrong::name);
    let title = "Time until a launch that cannot work says so (ms)";
    let mut table = report.table("verdict", title, &columns);
    for (side, backend) in ways {
        let name = format!("{}, {backend}", side.name());
        let cells = Wrong::ALL.map(|wrong| verdict(&site, side, backend, wrong, arguments, report));
        report.attempt(&name, site.clear(&Way::Launch(side, backend)));
        table.add(name, cells.to_vec());
    }
    drop(site);
    after_the_answer(lab, arguments, report)
}

/// Times one kind of launch that cannot work.
fn verdict(
    site: &Site<'_>,
    side: Side,
    backend: &'static str,
    wrong: Wrong,
    arguments: &Arguments,
    report: &Report,
) -> Cell {
    // 0.20.0 waits for a server that is not there for 15 s.
    let is_slow = side == Side::Peer && wrong == Wrong::Program;
    if is_slow && arguments.smallest {
        return "not measured".to_owned().into();
    }
    let rounds = if is_slow { 1 } else { arguments.rounds.div_ceil(3) };
    let mut times = Vec::new();
    for _ in 0..rounds {
        let launch = site.launch(side, backend, Some(wrong));
        match launch.and_then(|mut launch| site.run(side, &mut launch)) {
            // Not every one of them is an error to 0.20.0.
            Ok(finished) if finished.status.success() => return "no error".to_owned().into(),
            Ok(finished) => times.push(finished.milliseconds()),
            Err(error) => {
                let what = format!("{}, {backend}: {}", side.name(), wrong.name());
                report.attempt::<()>(&what, Err(error));
                break;
            }
        }
    }
    match Sample::of(times) {
        Some(sample) => Some(sample).into(),
        None => "no end".to_owned().into(),
    }
}

/// Round trips from the remote's answer that there is no program to the verdict: what the step lasts
/// longer than where the answer is a server, which ends the step at once.
fn after_the_answer(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let title =
        "Round trips of the one command that finds and starts the server, up to the verdict";
    let columns = ["a server starts", "no program there"];
    let mut table = report.table("verdict_trips", title, &columns);
    let backends = lab.backends();
    let mut steps = vec![[[None; 2]; 2]; backends.len()];
    for (at, delay) in arguments.delays.iter().enumerate() {
        let distance = Distance::Line(*delay);
        let site = Site::new(lab, distance)?;
        report.progress(&distance.name());
        for (index, backend) in backends.iter().enumerate() {
            for (kind, wrong) in [None, Some(Wrong::Program)].into_iter().enumerate() {
                for _ in 0..arguments.line_rounds.div_ceil(2) {
                    let launch = site.launch(Side::Ours, backend, wrong);
                    let finished = launch.and_then(|mut it| site.run(Side::Ours, &mut it));
                    let what = format!("{backend}, {}", distance.name());
                    let Some(finished) = report.attempt(&what, finished) else { continue };
                    let took = Timings::find(&finished.stdout).and_then(|it| it.took("start"));
                    let least = &mut steps[index][kind][at];
                    *least = [*least, took].into_iter().flatten().reduce(f64::min);
                }
                site.clear(&Way::Launch(Side::Ours, backend))?;
            }
        }
    }
    for (backend, [works, fails]) in backends.into_iter().zip(steps) {
        let [works, fails] = [works, fails].map(|it| round_trips(it[0], it[1], &arguments.delays));
        table.add(backend, vec![works.into(), fails.into()]);
        let more = works.zip(fails).map(|(works, fails)| ((fails - works) * 10.0).round() / 10.0);
        let more = more.filter(|_| lab.no_packets().is_none());
        let what = format!("verdict on a missing program after the remote's answer, {backend}");
        report.target(what, Goal::AtMost(1.0), more, "round trips");
    }
    Ok(())
}
