//! The benchmark at its smallest: that every part of it works, and says what it should.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::support::{peer, programs, Home, Look};

/// For all parts at their smallest, the programs being those of a build without optimisation.
const LIMIT: Duration = Duration::from_secs(400);

/// The tables of a report.
const TABLES: [&str; 9] =
    ["channel", "crowd", "idle", "launch", "local", "local_steps", "program", "steps", "verdict"];

#[test]
fn the_benchmark_works_and_leaves_nothing() {
    let home = Home::new();
    let out = home.path("out");
    let bench = home.program(&programs().bench, ["--smallest", "--no-build", "--peer"]);
    let bench = bench.arg(peer()).arg("--out").arg(&out).start();
    let mark = format!("DISTANT_BENCH={}", bench.pid());
    let finished = bench.finish_within(LIMIT).success();
    assert!(Look::marked(&mark).is_empty(), "{:#?}", Look::marked(&mark));

    let report: Value = serde_json::from_slice(&fs::read(out.join("bench.json")).unwrap()).unwrap();
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
    let targets = report["targets"].as_array().unwrap();
    // On a busy machine they may be missed; they have to be measured.
    for what in ["fixed cost", "round trips", "manager://", "missing program", "reading", "at once"]
    {
        let is_there = |it: &&Value| it["what"].as_str().unwrap().contains(what);
        let target = targets.iter().find(is_there).unwrap_or_else(|| panic!("{what}: {report:#}"));
        assert!(target["value"].is_number() && target["limit"].is_number(), "{target:#}");
        assert!(target["met"].is_boolean(), "{target:#}");
    }
}

#[test]
fn a_wrong_number_of_delays_is_refused_before_anything_runs() {
    let home = Home::new();
    let finished = home.program(&programs().bench, ["--no-build", "--delays", "1"]).run().code(1);
    assert!(finished.stderr.contains("`--delays` are two numbers"), "{}", finished.told());
}
