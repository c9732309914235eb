//! The benchmark at its smallest: that every part of it works, says what it should, and ends when it is
//! told to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{json, Value};

use crate::ssh::remote::Account;
use crate::support::{
    copy_executable, eventually, peer, programs, Finished, Home, Invocation, Look, Running, Seen,
    Signal, PATIENCE,
};

/// For all parts at their smallest, the programs being those of a build without optimisation.
const LIMIT: Duration = Duration::from_secs(600);

/// The tables of a report.
const TABLES: [&str; 10] = [
    "channel",
    "crowd",
    "idle",
    "launch",
    "local",
    "local_steps",
    "program",
    "steps",
    "verdict",
    "verdict_trips",
];

/// What a part says of itself when it is in the middle of it, and how it is told to take long enough
/// there.
const MIDDLES: [(&str, &str, &[&str]); 10] = [
    ("launch", "== launch", SMALLEST),
    ("launch", "without a line: round 2", SMALLEST),
    ("launch", "over a line of 11 ms", SMALLEST),
    ("local", "without a manager: round 2", &["--rounds", "1000"]),
    ("verdict", "== verdict", SMALLEST),
    ("verdict", "over a line of 11 ms", SMALLEST),
    ("idle", "0.20.0, 4", &["--connections", "4"]),
    ("channel", "round 1", SMALLEST),
    ("crowd", "3 at once, round 1", SMALLEST),
    ("program", "== program", &["--rounds", "10000"]),
];

const SMALLEST: &[&str] = &["--smallest"];

/// A benchmark that runs. Where a test fails it is ended in the way that ends all it has started.
struct Bench(Option<Running>);

impl Bench {
    fn start(bench: Invocation) -> Self {
        Self(Some(bench.start()))
    }

    /// At its smallest, with these arguments more.
    fn smallest(home: &Home, out: &Path, more: &[&str]) -> Self {
        Self::with(home, out, &[SMALLEST, more].concat())
    }

    fn with(home: &Home, out: &Path, arguments: &[&str]) -> Self {
        let bench = home.program(&programs().bench, ["--no-build", "--peer"]);
        Self::start(bench.arg(peer()).arg("--out").arg(out).args(arguments))
    }

    #[track_caller]
    fn finish(mut self) -> Finished {
        let running = self.0.as_ref().unwrap();
        assert!(running.ends_within(LIMIT), "it does not end: {}", running.told());
        self.0.take().unwrap().finish()
    }
}

impl std::ops::Deref for Bench {
    type Target = Running;

    fn deref(&self) -> &Running {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(running) = &self.0 {
            running.signal(Signal::TERM);
            running.ends_within(PATIENCE);
        }
    }
}

fn read(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("bench.json")).unwrap()).unwrap()
}

fn is_released(name: &Value) -> bool {
    name.as_str().unwrap().contains("0.20.0")
}

/// Nothing but commands of 0.20.0 went wrong, some of which hang where all cores are busy.
#[track_caller]
fn assert_only_released(report: &Value) {
    let remarks = report["remarks"].as_array().unwrap();
    assert!(remarks.iter().all(|remark| is_released(&remark["what"])), "{remarks:#?}");
}

/// What a benchmark must not leave behind.
struct Traces {
    marks: [String; 2],
    namespaces: String,
    /// All that it has started: an sshd writes over its environment, so that no mark tells of it.
    started: Vec<Seen>,
    folder: PathBuf,
}

impl Traces {
    /// Of a benchmark that is under way.
    fn of(bench: &Running) -> Self {
        let pid = bench.pid();
        let marks = ["DISTANT_BENCH", "DISTANT_BENCH_LINK"].map(|name| format!("{name}={pid}"));
        let running = Look::running();
        let mut started: Vec<Seen> = Vec::new();
        let mut parents = vec![pid];
        while let Some(parent) = parents.pop() {
            let children = running.iter().filter(|seen| seen.parent == parent);
            parents.extend(children.clone().map(|seen| seen.pid));
            started.extend(children.cloned());
        }
        // What it starts works in the homes that it made.
        let cwds = started.iter().filter_map(|seen| {
            let cwd = fs::read_link(format!("/proc/{}/cwd", seen.pid)).ok()?;
            Some(cwd.ancestors().find(|it| it.parent() == Some(Path::new("/tmp")))?.to_owned())
        });
        let is_bench =
            |it: &PathBuf| it.join("netdelay.py").exists() || it.join("host.pub").exists();
        let folder = cwds.into_iter().find(is_bench).unwrap_or_default();
        let namespaces = format!("db{}-", pid % 100_000);
        Self { marks, namespaces, started, folder }
    }

    /// Whether it has a process in a home of its own.
    fn is_at_work(&self) -> bool {
        self.folder.exists()
    }

    #[track_caller]
    fn assert_gone(&self) {
        for mark in &self.marks {
            assert!(Look::marked(mark).is_empty(), "{:#?}", Look::marked(mark));
        }
        let left: Vec<_> = self.started.iter().filter(|seen| seen.lives()).collect();
        assert!(left.is_empty(), "{left:#?}");
        let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = namespaces.map(|it| it.file_name().to_string_lossy().into_owned());
        let names: Vec<_> = names.filter(|name| name.starts_with(&self.namespaces)).collect();
        assert!(names.is_empty(), "{names:?}");
        assert!(!self.folder.exists(), "{}", self.folder.display());
    }
}

#[test]
fn the_benchmark_works_and_leaves_nothing() {
    let home = Home::new();
    let out = home.path("out");
    let bench = Bench::smallest(&home, &out, &[]);
    bench.told_on_stderr("over a line of", LIMIT);
    let traces = Traces::of(&bench);
    assert!(traces.is_at_work(), "{}", bench.told());
    let finished = bench.finish().success();
    traces.assert_gone();

    let report = read(&out);
    assert_eq!(report["failed"], json!([]), "{report:#}");
    assert_only_released(&report);
    assert!(report["machine"]["cores"].as_u64() >= Some(1), "{report:#}");
    let tables = report["tables"].as_array().unwrap();
    let ids: BTreeSet<_> = tables.iter().map(|table| table["id"].as_str().unwrap()).collect();
    assert!(ids.is_superset(&TABLES.into()), "{ids:?}");
    let markdown = fs::read_to_string(out.join("bench.md")).unwrap();
    assert!(finished.stdout.contains(markdown.trim()), "{}", finished.told());
    for table in tables {
        assert!(markdown.contains(table["title"].as_str().unwrap()), "{table:#}");
        let (columns, rows) = (table["columns"].as_array(), table["rows"].as_array());
        let (columns, rows) = (columns.unwrap().len(), rows.unwrap());
        assert!(!rows.is_empty(), "{table:#}");
        for row in rows {
            assert_eq!(row["cells"].as_array().unwrap().len(), columns, "{row:#}");
            for cell in row["cells"].as_array().unwrap() {
                let sample = ["median", "low", "high", "least"].map(|name| cell[name].as_f64());
                let is_sample =
                    matches!(sample, [Some(_), Some(low), Some(high), Some(_)] if low <= high);
                let is_other = cell.is_number() || cell.is_string() || cell.is_null();
                assert!(is_sample || is_other, "{row:#}");
            }
        }
    }
    let launch = tables.iter().find(|table| table["id"] == "launch").unwrap();
    let names: Vec<_> = launch["rows"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    // All that it is compared with, none of them left out because it is not there.
    for what in ["0.20.0, ssh2", "0.20.0, libssh", "ssh host true", "mosh's bootstrap"] {
        let is_there = |name: &&Value| name.as_str().unwrap().replace('`', "").contains(what);
        assert!(names.iter().any(is_there), "{what}: {names:?}");
    }
    let targets = report["targets"].as_array().unwrap();
    // On a busy machine they may be missed; they have to be measured.
    for what in [
        "fixed cost",
        "round trips",
        "manager://",
        "missing program",
        "wake-ups",
        "idle connection",
        "reading",
        "writing",
        "small request",
        "at once",
    ] {
        let is_there = |it: &&Value| it["what"].as_str().unwrap().contains(what);
        let target = targets.iter().find(is_there).unwrap_or_else(|| panic!("{what}: {report:#}"));
        assert!(target["value"].is_number() && target["limit"].is_number(), "{target:#}");
        assert!(target["met"].is_boolean(), "{target:#}");
    }
}

#[test]
fn an_interrupted_benchmark_ends_all_it_started_and_writes_what_it_has() {
    for (number, (part, middle, size)) in MIDDLES.into_iter().enumerate() {
        let home = Home::new();
        let out = home.path("out");
        let bench = Bench::with(&home, &out, &[&["--parts", part], size].concat());
        bench.told_on_stderr(middle, LIMIT);
        let traces = eventually("a benchmark at work", || {
            Some(Traces::of(&bench)).filter(Traces::is_at_work)
        });
        // As a terminal does it: this program is alone in its group, and has to end the others.
        let signal = if number % 2 == 0 { Signal::INT } else { Signal::TERM };
        bench.signal(signal);
        let finished = bench.finish().code(130);
        traces.assert_gone();
        let report = read(&out);
        assert_eq!(report["interrupted"], json!(true), "{middle}: {report:#}");
        // What ended because of it is no failure.
        assert_eq!(report["failed"], json!([]), "{middle}");
        assert_only_released(&report);
        let remarks = report["remarks"].as_array().unwrap();
        let hung = |it: &Value| it["last"].as_str().unwrap().contains("did not end within");
        assert!(remarks.iter().all(hung), "{middle}: {remarks:#?}");
        let markdown = fs::read_to_string(out.join("bench.md")).unwrap();
        assert!(markdown.contains("\nInterrupted:"), "{markdown}\n{}", finished.told());
    }
}

#[test]
fn a_part_that_fails_is_reported_and_the_others_go_on() {
    let home = Home::new();
    let out = home.path("out");
    // It says a version and can nothing else.
    let peer = home.script("peer", "#!/bin/sh\n[ $1 = --version ]\n").display().to_string();
    let words = ["--smallest", "--no-build", "--parts", "local,idle", "--peer", &peer];
    let finished = home.program(&programs().bench, words).arg("--out").arg(&out).run_within(LIMIT);
    let finished = finished.code(1);
    let report = read(&out);
    let failed = report["failed"].as_array().unwrap();
    assert_eq!(failed.len(), 1, "{}", finished.told());
    assert_eq!(failed[0]["what"], "local");
    // What of it can be measured all the same is, and what cannot is named.
    let tables = report["tables"].as_array().unwrap();
    let idle = tables.iter().find(|table| table["id"] == "idle").unwrap();
    let rows = idle["rows"].as_array().unwrap().iter();
    let mut measured: Vec<_> =
        rows.map(|row| (row["name"].as_str().unwrap(), row["cells"][2].is_number())).collect();
    measured.sort_unstable();
    let expected =
        [("0.20.0, 1", false), ("0.20.0, 4", false), ("distant, 1", true), ("distant, 4", true)];
    assert_eq!(measured, expected, "{idle:#}");
    assert!(!report["remarks"].as_array().unwrap().is_empty(), "{report:#}");
    let markdown = fs::read_to_string(out.join("bench.md")).unwrap();
    for title in ["**Parts that failed**", "**What did not work**"] {
        assert!(markdown.contains(title), "{markdown}");
    }
}

#[test]
fn an_ordinary_user_measures_through_a_proxy_and_the_report_says_so() {
    let user = Account::new("/bin/sh", "no matter");
    let folder = user.home.join("bin");
    fs::create_dir_all(folder.join("peer")).unwrap();
    let copy = |from: &Path, to: &Path| {
        copy_executable(from, to);
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let (ours, released) = (&programs().distant, folder.join("peer/distant"));
    copy(peer(), &released);
    let plugins = ["manager_local", "ssh2", "libssh"].map(|name| programs().plugin(name));
    for file in plugins.into_iter().chain([ours.as_path(), programs().bench.as_path()]) {
        copy(file, &folder.join(file.file_name().unwrap()));
    }
    let home = Home::new();
    let out = user.home.join("out");
    let bench = home.program("setpriv", ["--init-groups", "--reuid", &user.name, "--regid"]);
    let bench = bench.arg(&user.name).arg(folder.join("distant-bench")).cwd("/");
    let bench = bench.env("HOME", &user.home).env("TMPDIR", "/tmp");
    let bench = bench.args(&["--smallest", "--no-build", "--parts", "launch,verdict"]);
    let bench = Bench::start(bench.arg("--peer").arg(released).arg("--out").arg(&out));
    bench.told_on_stderr("over a line of", LIMIT);
    let traces = Traces::of(&bench);
    let finished = bench.finish().success();
    traces.assert_gone();

    let report = read(&out);
    assert_eq!(report["machine"]["no_packets"], "there was no root");
    assert_eq!(report["failed"], json!([]), "{report:#}");
    // It wants a terminal, which an sshd without root can give only on some systems.
    assert_only_released(&report);
    assert!(finished.stdout.contains("delays by a TCP proxy, as there was no root"));
    let tables = report["tables"].as_array().unwrap();
    let launches = tables.iter().find(|table| table["id"] == "launch").unwrap();
    let rows = launches["rows"].as_array().unwrap();
    for row in rows.iter().filter(|row| !is_released(&row["name"])) {
        // It took longer where the line was longer, and no launch failed.
        let [_, trips, failed] = [0, 1, 2].map(|at| row["cells"][at].as_f64());
        assert!(trips.is_some() && failed == Some(0.0), "{row:#}");
    }
    let targets = report["targets"].as_array().unwrap();
    let of_trips: Vec<_> = targets.iter().filter(|it| it["unit"] == "round trips").collect();
    assert!(!of_trips.is_empty() && of_trips.iter().all(|it| it["met"].is_null()), "{targets:#?}");
}

#[test]
fn a_wrong_number_of_delays_is_refused_before_anything_runs() {
    let home = Home::new();
    let finished = home.program(&programs().bench, ["--no-build", "--delays", "1"]).run().code(1);
    assert!(finished.stderr.contains("`--delays` are two numbers"), "{}", finished.told());
}
