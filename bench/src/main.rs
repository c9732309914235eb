//! Measures this program beside the released distant 0.20.0, OpenSSH and mosh: on the same sshd, in
//! the same run, by turns, so that what else the machine does is shared by all.
//!
//! Each part has a file of its own in `parts`; it fills tables and says which targets they meet.
//! `lab` has the homes and processes, `link` the delayed line, `process` what is measured of them,
//! `report` the tables. Linux only: it reads `/proc`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod lab;
mod link;
mod parts;
mod process;
mod report;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use lab::Lab;
use report::Report;

/// What the whole program may fail with; it is for people alone.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures distant beside 0.20.0, OpenSSH and mosh, and writes a table (Markdown and JSON).
///
/// Linux only. As root it delays real packets between two network namespaces; without root a TCP
/// proxy delays what ssh sends, which leaves out what TCP itself costs. Needs sshd, ssh, ip and
/// python3, and mosh-server where mosh is to be compared. Everything that it starts runs in a home
/// of its own and is ended.
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
    #[arg(long, value_delimiter = ',', num_args = 1, default_value = "20,100")]
    delays: Vec<u32>,
    /// How often each launch is timed over the delayed line
    #[arg(long, default_value_t = 7)]
    line_rounds: usize,
    /// Idle connections
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
    connections: Vec<usize>,
    /// Seconds for which idle connections are watched
    #[arg(long, default_value_t = 10)]
    idle_seconds: u64,
    /// Size of the file that is read and written over a channel, in MiB
    #[arg(long, default_value_t = 16)]
    megabytes: usize,
    /// Small requests over a channel
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Launches at once
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,500")]
    crowds: Vec<usize>,
    /// Most launches at once that 0.20.0 is tried with
    #[arg(long, default_value_t = 100)]
    peer_crowd: usize,
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
    match run(&arguments) {
        Ok(missed) => {
            eprintln!("{missed} targets missed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  caused by: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// Measures, writes the report, and says how many targets were missed.
fn run(arguments: &Arguments) -> Result<usize, Failure> {
    let [_, _] = arguments.delays[..] else { return Err("`--delays` are two numbers".into()) };
    let lab = Lab::new(arguments.peer.clone(), arguments.no_build)?;
    let mut report = Report::new(&lab);
    for part in Part::value_variants().iter().filter(|part| arguments.parts.contains(part)) {
        let name = part.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
        eprintln!("== {name}");
        match part {
            Part::Launch => parts::launch::measure(&lab, arguments, &mut report)?,
            Part::Local => parts::local::measure(&lab, arguments, &mut report)?,
            Part::Verdict => parts::verdict::measure(&lab, arguments, &mut report)?,
            Part::Idle => parts::idle::measure(&lab, arguments, &mut report)?,
            Part::Channel => parts::channel::measure(&lab, arguments, &mut report)?,
            Part::Crowd => parts::crowd::measure(&lab, arguments, &mut report)?,
            Part::Program => parts::program::measure(&lab, arguments, &mut report)?,
        }
        // After each part: what was measured is there also if a later one fails.
        report.write(&arguments.out.clone().unwrap_or_else(|| lab.target().join("bench")))?;
    }
    println!("{}", report.markdown());
    Ok(report.missed())
}
