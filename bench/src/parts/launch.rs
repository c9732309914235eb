//! Launches over ssh: what one costs on this machine, how many round trips it takes, and where.

use crate::lab::{Distance, Lab, Side, Site, Way};
use crate::parts::Timings;
use crate::report::{Cell, Goal, Report, Sample, Table};
use crate::{Arguments, Failure};

/// The times of one way.
#[derive(Debug, Clone)]
struct Times {
    way: Way,
    milliseconds: Vec<f64>,
    timings: Vec<Timings>,
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

/// Goes every way so many times, by turns.
fn times(site: &Site<'_>, ways: &[Way], rounds: usize) -> Result<Vec<Times>, Failure> {
    let empty =
        |way: &Way| Times { way: way.clone(), milliseconds: Vec::new(), timings: Vec::new() };
    let mut all: Vec<_> = ways.iter().map(empty).collect();
    for round in 0..rounds {
        for turn in 0..all.len() {
            let times = &mut all[(round + turn) % ways.len()];
            let finished = site.timed(&times.way)?;
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
pub(crate) fn measure(
    lab: &Lab,
    arguments: &Arguments,
    report: &mut Report,
) -> Result<(), Failure> {
    let ways = lab.ways();
    let here = times(&Site::new(lab, Distance::Here)?, &ways, arguments.rounds)?;
    let mut distant = Vec::new();
    for delay in &arguments.delays {
        eprintln!("   over a line of {delay} ms each way");
        let site = Site::new(lab, Distance::Line(*delay))?;
        distant.push(times(&site, &ways, arguments.line_rounds)?);
    }

    let title = "A launch over ssh by public key: on this machine (ms), and round trips over a line, connection included";
    let mut table = Table::new("launch", title, &["ms without a line", "round trips"]);
    let trips = |index: usize| {
        let [near, far] = [0, 1].map(|at: usize| distant[at][index].least());
        round_trips(near, far, &arguments.delays)
    };
    for (index, times) in here.iter().enumerate() {
        let sample = Sample::of(times.milliseconds.clone());
        table.row(times.way.name(), vec![sample.into(), trips(index).into()]);
    }
    report.add(table);

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
    let mut table = Table::new("steps", title, &names);
    let steps = here.iter().find_map(|it| it.timings.first()).map(|it| it.steps.clone());
    for step in steps.unwrap_or_default() {
        let cells = ours.iter().flat_map(|&index| {
            let least =
                |at: usize| distant[at][index].step(&step.step).into_iter().reduce(f64::min);
            let trips = round_trips(least(0), least(1), &arguments.delays);
            // What the scheduler adds is no round trip.
            let trips = trips.map(|it| if it.abs() < 0.05 { 0.0 } else { it });
            [Cell::from(Sample::of(here[index].step(&step.step))), trips.into()]
        });
        table.row(step.step.clone(), cells.collect());
    }
    report.add(table);

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
        report.target(what, Goal::AtMost(most), trips, "round trips");
    }
    Ok(())
}
