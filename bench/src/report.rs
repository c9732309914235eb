//! What was measured: tables with a spread for every number, and the targets.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::lab::Lab;
use crate::Failure;

/// A number with its spread: the median of all runs, and where half of them lie.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) least: f64,
    pub(crate) runs: usize,
}

impl Sample {
    /// Of these numbers; `None` if there are none.
    pub(crate) fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (numbers.len() - 1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            numbers[low] + (numbers[high] - numbers[low]) * place.fract()
        };
        (!numbers.is_empty()).then(|| Self {
            median: at(0.5),
            low: at(0.25),
            high: at(0.75),
            least: numbers[0],
            runs: numbers.len(),
        })
    }
}

/// A cell of a table.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Sample(Sample),
    Number(f64),
    Text(String),
    Nothing,
}

impl From<Option<Sample>> for Cell {
    fn from(sample: Option<Sample>) -> Self {
        sample.map_or(Self::Nothing, Self::Sample)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Option<f64>> for Cell {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::Nothing, Self::Number)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Cell {
    fn shown(&self) -> String {
        match self {
            Self::Sample(it) => {
                format!("{} ({}–{})", number(it.median), number(it.low), number(it.high))
            }
            Self::Number(it) => number(*it),
            Self::Text(text) => text.clone(),
            Self::Nothing => "–".to_owned(),
        }
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

/// One table.
#[derive(Debug, Clone, Serialize)]
struct Table {
    /// A word for programs.
    id: &'static str,
    title: String,
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    name: String,
    cells: Vec<Cell>,
}

impl Table {
    fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("\n**{}**\n\n", self.title);
        text += &line([vec![String::new()], self.columns.clone()].concat());
        text += &line(vec!["---".to_owned(); self.columns.len() + 1]);
        for row in &self.rows {
            let cells = row.cells.iter().map(Cell::shown).collect();
            text += &line([vec![row.name.clone()], cells].concat());
        }
        text
    }
}

/// A table that is being filled; it is in the report from its first row on.
pub(crate) struct Rows<'a> {
    report: &'a Report,
    table: Table,
}

impl Rows<'_> {
    pub(crate) fn add(&mut self, name: impl Into<String>, cells: Vec<Cell>) {
        let row = Row { name: name.into(), cells };
        let shown: Vec<_> = row.cells.iter().map(Cell::shown).collect();
        self.report.say(&format!("{}: {}", row.name, shown.join(" | ")));
        self.table.rows.push(row);
        let table = self.table.clone();
        self.report.change(|all| {
            all.tables.retain(|it| it.id != table.id);
            all.tables.push(table);
        });
    }
}

/// A number that was promised, if it could be measured.
#[derive(Debug, Serialize)]
struct Target {
    what: String,
    limit: f64,
    value: Option<f64>,
    unit: &'static str,
    met: Option<bool>,
}

/// Whether a target is a ceiling or a floor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// What the numbers were measured on.
#[derive(Debug, Serialize)]
struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
    openssh: String,
    mosh: Option<String>,
    /// Why bytes were delayed in place of packets, where they were.
    no_packets: Option<String>,
    profile: String,
}

/// What did not work, and how often.
#[derive(Debug, Serialize)]
struct Remark {
    what: String,
    times: usize,
    last: String,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Measured {
    machine: Machine,
    tables: Vec<Table>,
    targets: Vec<Target>,
    /// Parts that ended before their end.
    failed: Vec<Remark>,
    remarks: Vec<Remark>,
    interrupted: bool,
    seconds: u64,
}

/// A report, which is written anew with everything that is added to it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    measured: Arc<Mutex<Measured>>,
    folder: PathBuf,
    begun: Instant,
}

impl Report {
    /// An empty one for this machine, whose files go into this folder.
    pub(crate) fn new(lab: &Lab, folder: &Path) -> Result<Self, Failure> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
        let cpu = cpu.map(|it| it.trim_start_matches([' ', '\t', ':']).to_owned());
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let machine = Machine {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            // What follows the numbers is the name of whoever built it.
            kernel: kernel.split('-').next().unwrap_or_default().to_owned(),
            openssh: lab.version("ssh", "-V"),
            mosh: lab.mosh().map(|_| lab.version("mosh-server", "--version")),
            no_packets: lab.no_packets().map(str::to_owned),
            profile: lab.profile(),
        };
        let measured = Measured {
            machine,
            tables: Vec::new(),
            targets: Vec::new(),
            failed: Vec::new(),
            remarks: Vec::new(),
            interrupted: false,
            seconds: 0,
        };
        let (measured, folder) = (Arc::new(Mutex::new(measured)), folder.to_owned());
        let this = Self { measured, folder, begun: Instant::now() };
        fs::create_dir_all(&this.folder)?;
        this.write(&this.measured())?;
        Ok(this)
    }

    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a line, unless it is about what an interruption does.
    fn say(&self, line: &str) {
        if !self.measured().interrupted {
            eprintln!("   {line}");
        }
    }

    /// Adds something and writes it all, so that it is there whatever comes.
    fn change(&self, change: impl FnOnce(&mut Measured)) {
        let mut measured = self.measured();
        if measured.interrupted {
            return;
        }
        change(&mut measured);
        measured.seconds = self.begun.elapsed().as_secs();
        if let Err(error) = self.write(&measured) {
            eprintln!("error: the report cannot be written: {error}");
        }
    }

    /// Adds nothing any more: what comes now is what an interruption does.
    pub(crate) fn interrupt(&self) {
        self.change(|measured| measured.interrupted = true);
    }

    /// Begins a table.
    pub(crate) fn table(
        &self,
        id: &'static str,
        title: impl Into<String>,
        columns: &[&str],
    ) -> Rows<'_> {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Rows { report: self, table: Table { id, title: title.into(), columns, rows: Vec::new() } }
    }

    /// Says where the measuring is.
    pub(crate) fn progress(&self, what: &str) {
        self.say(&format!("[{}] {what}", minutes(self.begun.elapsed())));
    }

    /// Notes that a part ended before its end.
    pub(crate) fn failed(&self, part: &str, error: &Failure) {
        self.say(&format!("FAILED: {error}"));
        let failed = Remark { what: part.to_owned(), times: 1, last: error.to_string() };
        self.change(|measured| measured.failed.push(failed));
    }

    /// What was to be done, if it could be; otherwise that it could not is noted, and it goes on.
    pub(crate) fn attempt<T>(&self, what: &str, result: Result<T, Failure>) -> Option<T> {
        let error = match result {
            Ok(done) => return Some(done),
            Err(error) => error.to_string(),
        };
        self.change(|measured| match measured.remarks.iter_mut().find(|it| it.what == what) {
            Some(remark) => {
                remark.times += 1;
                remark.last = error;
            }
            None => {
                eprintln!("   {what}: {error}");
                let remark = Remark { what: what.to_owned(), times: 1, last: error };
                measured.remarks.push(remark);
            }
        });
        None
    }

    /// Notes whether a target is met.
    pub(crate) fn target(
        &self,
        what: impl Into<String>,
        goal: Goal,
        value: Option<f64>,
        unit: &'static str,
    ) {
        let (what, value) = (what.into(), value.filter(|value| value.is_finite()));
        let (limit, met) = match goal {
            Goal::AtMost(limit) => (limit, value.map(|value| value <= limit)),
            Goal::AtLeast(limit) => (limit, value.map(|value| value >= limit)),
        };
        let target = Target { what, limit, value, unit, met };
        self.say(&format!("target {}", target.shown().join(", ")));
        self.change(|measured| measured.targets.push(target));
    }

    /// Whether every part came to its end.
    pub(crate) fn is_whole(&self) -> bool {
        self.measured().failed.is_empty()
    }

    /// How many targets were met, missed, and not measured.
    pub(crate) fn score(&self) -> [usize; 3] {
        let measured = self.measured();
        let count = |met| measured.targets.iter().filter(|target| target.met == met).count();
        [Some(true), Some(false), None].map(count)
    }

    pub(crate) fn markdown(&self) -> String {
        self.measured().markdown()
    }

    /// Writes `bench.md` and `bench.json`, each whole at any moment.
    fn write(&self, measured: &Measured) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(measured)? + "\n";
        for (name, text) in [("bench.md", measured.markdown()), ("bench.json", json)] {
            let new = self.folder.join(format!(".{name}.new"));
            fs::write(&new, text)?;
            fs::rename(&new, self.folder.join(name))?;
        }
        Ok(())
    }
}

/// A time as a clock shows it.
pub(crate) fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

impl Target {
    fn shown(&self) -> [String; 4] {
        let Self { what, limit, value, unit, met } = self;
        let value = value.map_or("–".to_owned(), |value| format!("{} {unit}", number(value)));
        let met = match met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        [what.clone(), value, format!("{limit} {unit}"), met.to_owned()]
    }
}

impl Measured {
    fn markdown(&self) -> String {
        let Machine { cores, cpu, kernel, openssh, mosh, no_packets, profile } = &self.machine;
        let mosh = mosh.as_ref().map_or(String::new(), |it| format!(", {it}"));
        let line = match no_packets {
            None => "packets between two network namespaces".to_owned(),
            Some(why) => format!(
                "a TCP proxy, as {why}: what ssh says is delayed, but no opening of a connection, and \
                 nothing between manager and server"
            ),
        };
        let mut text = format!(
            "{cores} cores of {cpu}, Linux {kernel}, {openssh}{mosh}; {profile} build; delays by {line}. \
             Medians, and in parentheses where half of the runs lie. Measured in {} min.\n",
            minutes(Duration::from_secs(self.seconds))
        );
        if self.interrupted {
            text += "\nInterrupted: what is missing was not measured.\n";
        }
        for table in &self.tables {
            text += &table.markdown();
        }
        if !self.targets.is_empty() {
            text +=
                "\n**Targets**\n\n| target | measured | wanted | |\n| --- | --- | --- | --- |\n";
        }
        for target in &self.targets {
            text += &format!("| {} |\n", target.shown().join(" | "));
        }
        for (title, remarks) in
            [("Parts that failed", &self.failed), ("What did not work", &self.remarks)]
        {
            if !remarks.is_empty() {
                text += &format!("\n**{title}**\n\n");
            }
            for Remark { what, times, last } in remarks {
                // One line each, whatever a program said.
                let last = last.split_whitespace().collect::<Vec<_>>().join(" ");
                text += &format!("* {what}, {times} ×: {last}\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_quartiles() {
        let sample = Sample::of(vec![5.0, 1.0, 2.0, 4.0, 3.0]).unwrap();
        assert_eq!((sample.low, sample.median, sample.high), (2.0, 3.0, 4.0));
        assert_eq!((sample.least, sample.runs), (1.0, 5));
        let sample = Sample::of(vec![1.0, 2.0]).unwrap();
        assert_eq!((sample.low, sample.median, sample.high), (1.25, 1.5, 1.75));
        assert!(Sample::of(Vec::new()).is_none());
    }

    #[test]
    fn a_table_is_markdown() {
        let cells = vec![Sample::of(vec![12.345]).into(), Cell::Nothing];
        let rows = vec![Row { name: "one".to_owned(), cells }];
        let columns = vec!["a".to_owned(), "b".to_owned()];
        let table = Table { id: "x", title: "What".to_owned(), columns, rows };
        let expected =
            "\n**What**\n\n|  | a | b |\n| --- | --- | --- |\n| one | 12.3 (12.3–12.3) | – |\n";
        assert_eq!(table.markdown(), expected);
    }
}
