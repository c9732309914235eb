//! What the documents say about the project itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::repository;

/// Names of all functions marked as tests in the sources below a folder.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| {
                let line = line.trim();
                let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
                Some(name.split(['(', '<']).next()?.to_owned())
            });
            found.extend(names);
        }
    }
}

#[test]
fn the_map_names_only_tests_that_exist() {
    let mut known = BTreeSet::new();
    for folder in ["tests", "host/src", "plugin-api/src", "plugin-worker/src", "plugins"] {
        tests_below(&repository().join(folder), &mut known);
    }
    let map = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = map.split_once("| what stays true | held by |").unwrap();
    let named = table.lines().filter_map(|line| line.trim_end_matches(" |").rsplit_once(" | "));
    let named = named.flat_map(|(_, tests)| tests.split(", ").map(|name| name.trim_matches('`')));
    let named: Vec<_> = named.filter(|name| !name.starts_with('-')).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(known.contains(name), "ARCHITECTURE.md names `{name}`, which no test is called");
    }
}

#[test]
fn the_map_names_only_files_that_exist() {
    let map = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = map.split_once("| folder | what it is").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    for line in table.lines().skip(2) {
        let (folders, about) = line.trim_start_matches("| ").split_once(" | ").unwrap();
        let first = folders.split('`').nth(1).unwrap();
        assert!(repository().join(first).exists(), "no `{first}`");
        for name in about.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")) {
            let folder = repository().join(first);
            let found = folder.join(name).exists() || folder.join("src").join(name).exists();
            assert!(found, "no `{name}` in `{first}`");
        }
    }
}

#[test]
fn the_checks_run_the_command_that_the_readme_gives() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let second = readme.split("```sh\n").nth(2).unwrap().split_once("\n```").unwrap().0;
    let checks = fs::read_to_string(repository().join(".ci/run")).unwrap();
    assert!(checks.lines().any(|line| line == format!("step {second}")), "{second}");
}
