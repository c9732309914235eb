//! Sends what a Rust plugin says with `tracing` to the host as `log` messages.
//!
//! A library has its own copy of `tracing`, so the subscriber is set in the plugin and sees
//! nothing of the host's.

use std::fmt::{self, Write};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::Registry;

use crate::caller::Channel;
use crate::export::Host;
use crate::message::{Log, LogLevel, PluginMessage};

/// Most bytes of one event's text; what is longer is cut.
const TEXT_MAX: usize = 16 * 1024;

/// Sends every event up to `level` to the host from now on, whatever thread it comes from.
///
/// A plugin that has a subscriber of its own keeps it.
pub(crate) fn start(host: Arc<Host>, level: LogLevel) {
    let filter = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber = Registry::default().with(ToHost(host).with_filter(filter));
    // An error means that there is one already: the plugin's own.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct ToHost(Arc<Host>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToHost {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut text = Line(String::new());
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            let _ = write!(text, "{}: ", span.name());
        }
        let mut fields = Fields { message: Line(String::new()), others: Line(String::new()) };
        event.record(&mut fields);
        let _ = write!(text, "{}{}", fields.message.0, fields.others.0);
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            Level::DEBUG => LogLevel::Debug,
            Level::TRACE => LogLevel::Trace,
        };
        let target = metadata.target().to_owned();
        // A log line that does not arrive is no reason for anything.
        let _ = self.0.send(&PluginMessage::Log(Log { level, target, text: text.0 }));
    }
}

/// Text that takes at most [`TEXT_MAX`] bytes.
struct Line(String);

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT_MAX.saturating_sub(self.0.len());
        let end = (0..=room.min(text.len())).rfind(|&end| text.is_char_boundary(end));
        self.0.push_str(&text[..end.unwrap_or(0)]);
        Ok(())
    }
}

struct Fields {
    message: Line,
    others: Line,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.write_str(value),
            name => write!(self.others, " {name}={value}"),
        }
        .unwrap_or_default();
    }
}
