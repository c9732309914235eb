//! Size and start-up of the program.

use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, Side, PATIENCE};
use crate::report::{Report, Sample};
use crate::{process, Arguments, Failure};

/// Measures it.
pub(crate) fn measure(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let title =
        "The program: `distant --version` (ms), stripped size, and that with its ssh plugin (MB)";
    let mut table =
        report.table("program", title, &["--version", "program", "with ssh2", "with libssh"]);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..arguments.rounds * 4 {
        for side in Side::BOTH {
            let finished =
                process::run(&mut lab.side(side, &["--version"]), PATIENCE)?.success()?;
            times[side as usize].push(finished.milliseconds());
        }
    }
    for (side, times) in Side::BOTH.into_iter().zip(times) {
        let program = stripped(lab, lab.program(side))?;
        let folder = lab.program(side).parent().unwrap_or(Path::new("."));
        let with = |backend: &str| -> Result<f64, Failure> {
            let plugin = folder.join(format!("libdistant_plugin_{backend}.so"));
            Ok(match side {
                Side::Ours => program + stripped(lab, &plugin)?,
                // It has both in it.
                Side::Peer => program,
            })
        };
        let sizes = [program, with("ssh2")?, with("libssh")?].map(Into::into);
        table.add(side.name(), [vec![Sample::of(times).into()], sizes.to_vec()].concat());
    }
    Ok(())
}

/// The size of a file without its symbols, in MB.
fn stripped(lab: &Lab, file: &Path) -> Result<f64, Failure> {
    let copy = lab.path("stripped");
    let mut strip = Command::new("strip");
    process::run(strip.arg("-o").arg(&copy).arg(file), PATIENCE)?.success()?;
    Ok(std::fs::metadata(copy)?.len() as f64 / 1e6)
}
