//! Where the time of a launch goes: the steps of this side and those that the manager tells.
//!
//! A step lasts until the next one begins, so that together they make up the whole. The manager's
//! times count from the arrival of the request, which is when this side sent it: between them is one
//! unix socket.

use std::time::{Duration, Instant};

use distant_plugin_api::LaunchError;
use serde::Serialize;

use super::arguments::Format;
use super::terminal::{stage_text, Terminal};
use crate::wire::message::{Step, Timing};

/// Steps that are kept: a plugin may begin any number of stages.
const STEPS: usize = 256;

/// The steps of one launch.
pub(crate) struct Trace {
    started: Instant,
    is_wanted: bool,
    /// When the request that is under way was sent.
    asked: Instant,
    steps: Vec<Begun>,
}

#[derive(Debug, PartialEq, Eq)]
struct Begun {
    name: String,
    text: &'static str,
    at: Duration,
}

/// The line of JSON format.
#[derive(Serialize)]
struct TimingsLine<'a> {
    r#type: &'static str,
    steps: Vec<StepLine<'a>>,
    total_ms: f64,
}

#[derive(Serialize)]
struct StepLine<'a> {
    step: &'a str,
    at_ms: f64,
    took_ms: f64,
}

impl Trace {
    /// Begins with the start of the program; keeps and shows nothing unless it `is_wanted`.
    pub(crate) fn new(started: Instant, is_wanted: bool) -> Self {
        let mut trace = Self { started, is_wanted, asked: started, steps: Vec::new() };
        trace.begin("command".to_owned(), "reading the command line and configuration", started);
        trace
    }

    /// The search for the manager begins.
    pub(crate) fn seek_manager(&mut self) {
        self.begin("manager".to_owned(), "finding the manager, or starting one", Instant::now());
    }

    /// A request is sent; what the manager tells counts from here.
    pub(crate) fn asked(&mut self) {
        self.asked = Instant::now();
    }

    /// The manager says when a step began.
    pub(crate) fn told(&mut self, timing: Timing) {
        let at = self.asked.checked_add(Duration::from_micros(timing.at));
        let (name, text) = (name(timing.step), text(timing.step));
        self.begin(name, text, at.unwrap_or(self.asked));
    }

    fn begin(&mut self, name: String, text: &'static str, at: Instant) {
        let is_new = self.steps.last().is_none_or(|last| last.name != name);
        if self.is_wanted && is_new && self.steps.len() < STEPS {
            let at = at.saturating_duration_since(self.started);
            // What came over two threads may be told a moment out of order.
            let at = self.steps.last().map_or(at, |last| at.max(last.at));
            self.steps.push(Begun { name, text, at });
        }
    }

    /// Shows it, the last step ending now.
    ///
    /// # Errors
    ///
    /// It is for standard output, and that cannot be written to.
    pub(crate) fn show(&self, terminal: &Terminal) -> Result<(), LaunchError> {
        if !self.is_wanted {
            return Ok(());
        }
        let total = self.started.elapsed();
        match terminal.format() {
            Format::Json => terminal.json(&self.line(total)),
            Format::Shell => {
                terminal.say(&self.table(total));
                Ok(())
            }
        }
    }

    /// Each step with the time that it took.
    fn spans(&self, total: Duration) -> impl Iterator<Item = (&Begun, Duration)> {
        let ends = self.steps.iter().skip(1).map(|next| next.at).chain([total]);
        self.steps.iter().zip(ends).map(|(step, end)| (step, end.saturating_sub(step.at)))
    }

    fn line(&self, total: Duration) -> TimingsLine<'_> {
        let steps = self.spans(total).map(|(step, took)| StepLine {
            step: &step.name,
            at_ms: milliseconds(step.at),
            took_ms: milliseconds(took),
        });
        TimingsLine { r#type: "timings", steps: steps.collect(), total_ms: milliseconds(total) }
    }

    fn table(&self, total: Duration) -> String {
        let mut table = "     at ms   took ms  step".to_owned();
        let mut row = |at: Duration, took: Option<Duration>, name: &str, text: &str| {
            let took = took.map_or(String::new(), |took| format!("{:.1}", milliseconds(took)));
            let row = format!("{:>10.1}{took:>10}  {name:<13} {text}", milliseconds(at));
            table.push('\n');
            table.push_str(row.trim_end());
        };
        for (step, took) in self.spans(total) {
            row(step.at, Some(took), &step.name, step.text);
        }
        row(total, None, "end", "");
        table
    }
}

fn milliseconds(time: Duration) -> f64 {
    // Three digits after the point are all that was measured.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The name of a step as it travels.
fn name(step: Step) -> String {
    match serde_json::to_value(step) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "other".to_owned(),
    }
}

fn text(step: Step) -> &'static str {
    match step {
        Step::Plan => "choosing the plugin and checking its options",
        Step::Queue => "waiting for a place among the launches",
        Step::Worker => "starting a worker",
        Step::Load => "the worker starts and loads the plugin",
        Step::Request => "handing it the launch",
        Step::Tcp => "reaching the server",
        Step::Proof => "showing it the key, up to its first answer",
        Step::Ticket => "handing the connection over",
        Step::Plugin(stage) => stage_text(stage),
    }
}

#[cfg(test)]
mod tests {
    use distant_plugin_api::message::Stage;

    use super::*;

    fn timing(step: Step, at: u64) -> Timing {
        Timing { step, at }
    }

    #[test]
    fn a_step_lasts_until_the_next_one_and_all_make_up_the_whole() {
        let started = Instant::now();
        let mut trace = Trace::new(started, true);
        trace.asked = started + Duration::from_millis(2);
        for (step, at) in [
            (Step::Plan, 100),
            (Step::Plugin(Stage::Connect), 3_000),
            (Step::Plugin(Stage::Connect), 4_000),
            (Step::Plugin(Stage::HostKey), 2_999),
        ] {
            trace.told(timing(step, at));
        }
        let line = serde_json::to_string(&trace.line(Duration::from_millis(9))).unwrap();
        assert_eq!(
            line,
            r#"{"type":"timings","steps":[{"step":"command","at_ms":0.0,"took_ms":2.1},"#
                .to_owned()
                + r#"{"step":"plan","at_ms":2.1,"took_ms":2.9},{"step":"connect","at_ms":5.0,"took_ms":0.0},"#
                + r#"{"step":"host_key","at_ms":5.0,"took_ms":4.0}],"total_ms":9.0}"#
        );
        let table = trace.table(Duration::from_millis(9));
        assert_eq!(
            table.lines().nth(2),
            Some(
                "       2.1       2.9  plan          choosing the plugin and checking its options"
            )
        );
        assert_eq!(table.lines().last(), Some("       9.0            end"));
    }

    #[test]
    fn what_nobody_wants_is_not_kept_and_what_has_no_end_is_bounded() {
        let mut trace = Trace::new(Instant::now(), false);
        trace.told(timing(Step::Plan, 1));
        assert_eq!(trace.steps, []);
        let mut trace = Trace::new(Instant::now(), true);
        for at in 0..10_000 {
            let stage = if at % 2 == 0 { Stage::Connect } else { Stage::Start };
            trace.told(timing(Step::Plugin(stage), at));
        }
        trace.told(timing(Step::Plan, u64::MAX));
        assert_eq!(trace.steps.len(), STEPS);
    }

    #[test]
    fn steps_travel_by_their_names_and_new_ones_are_survived() {
        for (step, text) in [
            (Step::Plan, r#"{"step":"plan","at":7}"#),
            (Step::Plugin(Stage::HostKey), r#"{"step":"host_key","at":7}"#),
        ] {
            assert_eq!(serde_json::to_string(&timing(step, 7)).unwrap(), text);
            assert_eq!(serde_json::from_str::<Timing>(text).unwrap(), timing(step, 7));
        }
        let new: Timing = serde_json::from_str(r#"{"step":"dance","at":7}"#).unwrap();
        assert_eq!(new.step, Step::Plugin(Stage::Other));
    }
}
