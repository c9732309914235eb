//! Measures this program beside the released distant 0.20.0, OpenSSH and mosh: on the same sshd, in
//! the same run, by turns, so that what else the machine does is shared by all.
//!
//! Each part has a file of its own in `parts`; it fills tables and says which targets they meet.
//! `lab` has the programs and their homes, `site` an sshd with managers, `link` the delayed line,
//! `process` what is measured of processes, `report` the tables, `interrupt` what a signal does. Linux
//! only: it reads `/proc`.
//!
//! A run takes long. So nothing is lost of one: the report is written anew with each row, a part that
//! fails is noted and the next one begins, and a launch that fails is noted and the next one made.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod interrupt;
mod lab;
mod link;
mod parts;
mod process;
mod report;
mod site;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use interrupt::Interrupt;
use lab::Lab;
use report::{minutes, Report};

/// What the whole program may fail with; it is for people alone.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures distant beside 0.20.0, OpenSSH and mosh, and writes a table (Markdown and JSON).
///
/// Linux only. As root it delays real packets between two network namespaces; without root a TCP
/// proxy delays what ssh sends, which leaves out what TCP itself costs. Needs sshd, ssh, strip, ip
/// and python3, and mosh-server where mosh is to be compared. Everything that it starts runs in a
/// home of its own and is ended, also by Ctrl-C; what was measured until then is written.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// What to measure; everything by default
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// How often each launch is timed
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Delays of the line in milliseconds each way; round trips are what differs between the two
    #[arg(long, value_delimiter = ',', num_args = 1, default_value = "20,80")]
    delays: Vec<u32>,
    /// How often each launch is timed over the delayed line
    #[arg(long, default_value_t = 5)]
    line_rounds: usize,
    /// Idle connections
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
    connections: Vec<usize>,
    /// Seconds for which idle connections are watched; a server gives a sign of life every 5
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    /// Size of the file that is read and written over a channel, in MiB
    #[arg(long, default_value_t = 16)]
    megabytes: usize,
    /// Small requests over a channel, at most; what takes seconds is ended sooner
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Launches at once
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,500")]
    crowds: Vec<usize>,
    /// Most launches at once that 0.20.0 is tried with; it takes very long
    #[arg(long, default_value_t = 100)]
    peer_crowd: usize,
    /// Most idle connections that 0.20.0 is tried with
    #[arg(long, default_value_t = 1000)]
    peer_connections: usize,
    /// Folder for `bench.md` and `bench.json`; by default `bench` in the target folder
    #[arg(long)]
    out: Option<PathBuf>,
    /// The released distant 0.20.0; by default that of the tests
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Measure the programs beside this one as they are, instead of building them first
    #[arg(long)]
    no_build: bool,
    /// As little of everything as there is: to see that it works
    #[arg(long)]
    smallest: bool,
}

/// The parts, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Launches over ssh: fixed cost, round trips, and where they go
    Launch,
    /// manager:// with and without a running manager
    Local,
    /// How soon a launch that cannot work is given up
    Verdict,
    /// What connections cost that nobody uses
    Idle,
    /// Files and small requests over a channel
    Channel,
    /// Many launches at once
    Crowd,
    /// Size and start-up of the program
    Program,
}

impl Arguments {
    fn effective(mut self) -> Self {
        if self.smallest {
            self.rounds = 2;
            self.delays = vec![1, 11];
            self.line_rounds = 1;
            self.connections = vec![1, 4];
            self.idle_seconds = 1;
            self.megabytes = 1;
            self.requests = 20;
            self.crowds = vec![1, 3];
            self.peer_crowd = 1;
        }
        if self.parts.is_empty() {
            self.parts = Part::value_variants().to_vec();
        }
        self
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse().effective();
    let interrupt = match Interrupt::watch() {
        Ok(interrupt) => interrupt,
        Err(error) => return fail(&error),
    };
    let run = run(&arguments, &interrupt);
    interrupt.give_way();
    match run {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &Failure) -> ExitCode {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}

/// Measures, writes the report, and says whether every part came to its end.
fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<bool, Failure> {
    let [_, _] = arguments.delays[..] else { return Err("`--delays` are two numbers".into()) };
    let lab = Lab::new(arguments, interrupt)?;
    let folder = arguments.out.clone().unwrap_or_else(|| lab.target().join("bench"));
    let report = Report::new(&lab, &folder)?;
    interrupt.write(&report);
    let parts = Part::value_variants().iter().filter(|part| arguments.parts.contains(part));
    let parts: Vec<_> = parts.copied().collect();
    let all = parts.iter().map(|part| part.seconds(arguments)).sum();
    eprintln!(
        "about {} min on two cores; what is measured is in {}",
        minutes(Duration::from_secs(all)),
        folder.display()
    );
    if let Some(why) = lab.no_packets() {
        eprintln!("a TCP proxy delays bytes in place of packets, as {why}");
    }
    let mut left = all;
    for part in parts {
        let name = part.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
        eprintln!("== {name}, about {} min left", minutes(Duration::from_secs(left)));
        if let Err(error) = part.measure(&lab, arguments, &report) {
            report.failed(&name, &error);
        }
        interrupt.give_way();
        left -= part.seconds(arguments);
    }
    report.progress("done");
    println!("{}", report.markdown());
    let [met, missed, unmeasured] = report.score();
    eprintln!("targets: {met} met, {missed} missed, {unmeasured} not measured");
    Ok(report.is_whole())
}

impl Part {
    fn measure(self, lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
        let measure = match self {
            Self::Launch => parts::launch::measure,
            Self::Local => parts::local::measure,
            Self::Verdict => parts::verdict::measure,
            Self::Idle => parts::idle::measure,
            Self::Channel => parts::channel::measure,
            Self::Crowd => parts::crowd::measure,
            Self::Program => parts::program::measure,
        };
        measure(lab, arguments, report)
    }

    /// About how long it takes on two cores.
    fn seconds(self, arguments: &Arguments) -> u64 {
        let rounds = arguments.rounds as f64;
        let line_rounds = arguments.line_rounds as f64 + 1.0;
        // A launch without a line, and how many round trips one has.
        let (launch, trips) = (0.5, 16.0);
        let over = |delay: &u32| launch + trips * 2.0 * f64::from(*delay) / 1e3;
        let over_all: f64 = arguments.delays.iter().map(over).sum();
        let connections = arguments.connections.iter().map(|&it| it as f64 * 0.1);
        let crowds = arguments.crowds.iter().map(|&it| it as f64);
        let seconds = match self {
            Self::Launch => 8.0 * (rounds * launch + line_rounds * over_all),
            Self::Local => rounds * 3.0 + 5.0,
            Self::Verdict => rounds * 10.0 + 50.0 + (8.0 + 6.0 * line_rounds) * over_all,
            Self::Idle => connections
                .map(|connect| 2.0 * (arguments.idle_seconds as f64 + 1.0) + connect)
                .sum(),
            Self::Channel => arguments.megabytes as f64 * 5.0 + 60.0,
            Self::Crowd => {
                crowds.map(|count| if count > 100.0 { count } else { count * 2.5 }).sum()
            }
            Self::Program => rounds / 5.0,
        };
        seconds as u64
    }
}
