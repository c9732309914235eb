//! What was measured: tables with a spread for every number, and the targets.

use std::fs;
use std::path::Path;

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
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    /// A word for programs.
    id: &'static str,
    title: String,
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    cells: Vec<Cell>,
}

impl Table {
    pub(crate) fn new(id: &'static str, title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Self { id, title: title.into(), columns, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, cells: Vec<Cell>) {
        let row = Row { name: name.into(), cells };
        let shown: Vec<_> = row.cells.iter().map(Cell::shown).collect();
        eprintln!("   {}: {}", row.name, shown.join(" | "));
        self.rows.push(row);
    }

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

/// A number that was promised.
#[derive(Debug, Serialize)]
struct Target {
    what: String,
    limit: f64,
    value: f64,
    unit: &'static str,
    met: bool,
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
    root: bool,
    profile: String,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    tables: Vec<Table>,
    targets: Vec<Target>,
}

impl Report {
    /// An empty one for this machine.
    pub(crate) fn new(lab: &Lab) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
        let cpu = cpu.map(|it| it.trim_start_matches([' ', '\t', ':']).to_owned());
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        Self {
            machine: Machine {
                cores: std::thread::available_parallelism().map_or(1, usize::from),
                cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
                // What follows the numbers is the name of whoever built it.
                kernel: kernel.split('-').next().unwrap_or_default().to_owned(),
                openssh: lab.version("ssh", "-V"),
                mosh: lab.mosh().map(|_| lab.version("mosh-server", "--version")),
                root: lab.is_root(),
                profile: lab.profile(),
            },
            tables: Vec::new(),
            targets: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Notes whether a target is met; one that could not be measured is left out, and said.
    pub(crate) fn target(
        &mut self,
        what: impl Into<String>,
        goal: Goal,
        value: Option<f64>,
        unit: &'static str,
    ) {
        let what = what.into();
        let Some(value) = value.filter(|value| value.is_finite()) else {
            return eprintln!("   target not measured: {what}");
        };
        let (limit, met) = match goal {
            Goal::AtMost(limit) => (limit, value <= limit),
            Goal::AtLeast(limit) => (limit, value >= limit),
        };
        let word = if met { "met" } else { "MISSED" };
        eprintln!("   target {word}: {what}: {} of {limit} {unit}", number(value));
        self.targets.push(Target { what, limit, value, unit, met });
    }

    pub(crate) fn missed(&self) -> usize {
        self.targets.iter().filter(|target| !target.met).count()
    }

    pub(crate) fn markdown(&self) -> String {
        let Machine { cores, cpu, kernel, openssh, mosh, root, profile } = &self.machine;
        let mosh = mosh.as_ref().map_or(String::new(), |it| format!(", {it}"));
        let line = if *root { "packets" } else { "a TCP proxy, as there was no root" };
        let mut text = format!(
            "{cores} cores of {cpu}, Linux {kernel}, {openssh}{mosh}; {profile} build; delays by {line}. \
             Medians, and in parentheses where half of the runs lie.\n"
        );
        for table in &self.tables {
            text += &table.markdown();
        }
        if !self.targets.is_empty() {
            text +=
                "\n**Targets**\n\n| target | measured | wanted | |\n| --- | --- | --- | --- |\n";
        }
        for Target { what, limit, value, unit, met } in &self.targets {
            let met = if *met { "met" } else { "missed" };
            text += &format!("| {what} | {} {unit} | {limit} {unit} | {met} |\n", number(*value));
        }
        text
    }

    /// Writes `bench.md` and `bench.json`.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("bench.md"), self.markdown())?;
        let json = serde_json::to_string_pretty(self)?;
        Ok(fs::write(folder.join("bench.json"), json + "\n")?)
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
        let mut table = Table::new("x", "What", &["a", "b"]);
        table.row("one", vec![Sample::of(vec![12.345]).into(), Cell::Nothing]);
        let expected =
            "\n**What**\n\n|  | a | b |\n| --- | --- | --- |\n| one | 12.3 (12.3–12.3) | – |\n";
        assert_eq!(table.markdown(), expected);
    }
}
