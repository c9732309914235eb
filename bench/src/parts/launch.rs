//! Launches over ssh: what one costs on this machine, how many round trips it takes, and where.

use crate::lab::{Lab, Side, Way};
use crate::parts::Timings;
use crate::report::{Cell, Goal, Report, Sample};
use crate::site::{Distance, Site};
use crate::{Arguments, Failure};

/// The times of one way.
#[derive(Debug, Clone)]
struct Times {
    way: Way,
    milliseconds: Vec<f64>,
    timings: Vec<Timings>,
    failed: usize,
}

impl Times {
    fn least(&self) -> Option<f64> {
        self.milliseconds.iter().copied().reduce(f64::min)
    }

    fn median(&self) -> Option<f64> {
        Some(Sample::of(self.milliseconds.clone())?.median)
    }

    fn step(&self, name: &str) -> Vec<f64> {
        self.timings.iter().filter_map(|it| it.took(name)).collect()
    }
}

/// How often a way may fail that never worked.
const FAILURES: usize = 2;

/// Goes every way so many times, by turns.
fn times(
    lab: &Lab,
    distance: Distance,
    rounds: usize,
    report: &Report,
) -> Result<Vec<Times>, Failure> {
    let site = Site::new(lab, distance)?;
    let empty = |way: Way| Times { way, milliseconds: Vec::new(), timings: Vec::new(), failed: 0 };
    let mut all: Vec<_> = lab.ways().into_iter().map(empty).collect();
    for round in 0..rounds {
        report.progress(&format!("{}: round {} of {rounds}", distance.name(), round + 1));
        for turn in 0..all.len() {
            let at = (round + turn) % all.len();
            let times = &mut all[at];
            if round >= FAILURES && times.milliseconds.is_empty() {
                continue;
            }
            let what = format!("{}, {}", times.way.name(), distance.name());
            let Some(finished) = report.attempt(&what, site.timed(&times.way)) else {
                times.failed += 1;
                continue;
            };
            times.milliseconds.push(finished.milliseconds());
            times.timings.extend(Timings::find(&finished.stdout));
        }
    }
    Ok(all)
}

/// Round trips: by how much longer it takes where each of them takes longer.
pub(super) fn round_trips(near: Option<f64>, far: Option<f64>, delays: &[u32]) -> Option<f64> {
    Some((far? - near?) / (2.0 * (f64::from(delays[1]) - f64::from(delays[0]))))
}

/// Measures them.
pub(crate) fn measure(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let ways = lab.ways();
    let here = times(lab, Distance::Here, arguments.rounds, report)?;
    let mut distant = Vec::new();
    for delay in &arguments.delays {
        let distance = Distance::Line(*delay);
        let times = times(lab, distance, arguments.line_rounds, report);
        distant.push(report.attempt(&distance.name(), times));
    }
    let least = |at: usize, index: usize| distant[at].as_ref()?[index].least();
    let trips = |index: usize| round_trips(least(0, index), least(1, index), &arguments.delays);

    let title = "A launch over ssh by public key: on this machine (ms), and round trips over a line, connection included";
    let columns = ["ms without a line", "round trips", "launches that failed"];
    let mut table = report.table("launch", title, &columns);
    for (index, times) in here.iter().enumerate() {
        let sample = Sample::of(times.milliseconds.clone());
        let cells = vec![sample.into(), trips(index).into(), (times.failed as f64).into()];
        table.add(times.way.name(), cells);
    }

    let ours: Vec<_> =
        (0..ways.len()).filter(|&it| matches!(ways[it], Way::Launch(Side::Ours, _))).collect();
    let names: Vec<_> = ours
        .iter()
        .flat_map(|&it| {
            let Way::Launch(_, backend) = ways[it] else { return Vec::new() };
            vec![format!("{backend}, ms"), format!("{backend}, round trips")]
        })
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let title = "Where a launch of ours goes (`--timings`): ms without a line, and round trips";
    let mut table = report.table("steps", title, &names);
    let steps = here.iter().find_map(|it| it.timings.first()).map(|it| it.steps.clone());
    for step in steps.unwrap_or_default() {
        let cells = ours.iter().flat_map(|&index| {
            let least = |at: usize| {
                distant[at].as_ref()?[index].step(&step.step).into_iter().reduce(f64::min)
            };
            let trips = round_trips(least(0), least(1), &arguments.delays);
            // What the scheduler adds is no round trip.
            let trips = trips.map(|it| if it.abs() < 0.05 { 0.0 } else { it });
            [Cell::from(Sample::of(here[index].step(&step.step))), trips.into()]
        });
        table.add(step.step.clone(), cells.collect());
    }

    // So that the table can be checked: the same by the clock of the command, and above by ours.
    let all = ours.iter().flat_map(|&index| {
        let totals = |times: &Times| times.timings.iter().map(|it| it.total_ms).collect::<Vec<_>>();
        let least = |at: usize| totals(&distant[at].as_ref()?[index]).into_iter().reduce(f64::min);
        let trips = round_trips(least(0), least(1), &arguments.delays);
        [Cell::from(Sample::of(totals(&here[index]))), trips.into()]
    });
    table.add("all of it", all.collect());

    for index in ours {
        let Way::Launch(_, backend) = ways[index] else { continue };
        let most = match backend {
            "ssh2" => 13.0,
            "libssh" => 12.0,
            _ => continue,
        };
        let peer = here.iter().find(|it| it.way == Way::Launch(Side::Peer, backend));
        let ratio = here[index].median().zip(peer.and_then(Times::median));
        let ratio = ratio.map(|(ours, theirs)| ours / theirs);
        let what = format!("fixed cost of a launch, {backend}, against 0.20.0's");
        report.target(what, Goal::AtMost(0.5), ratio, "×");
        let what = format!("round trips of a launch, {backend}");
        // To one digit: the rest is what a scheduler adds.
        let trips = trips(index).map(|it| (it * 10.0).round() / 10.0);
        // Through a proxy there are fewer than there are.
        let trips = trips.filter(|_| lab.no_packets().is_none());
        report.target(what, Goal::AtMost(most), trips, "round trips");
    }
    Ok(())
}
