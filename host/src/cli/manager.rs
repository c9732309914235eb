//! `distant manager …`: what the manager holds, and ending it or a part of it.

use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::arguments::{Format, Manager, Select};
use super::cache::Cache;
use super::launch::attend;
use super::manager_client::{unexpected, ManagerClient, Missing};
use super::person::Person;
use super::terminal::{sanitise, Terminal};
use super::timings::Trace;
use super::{elsewhere, listen, Context, Failure};
use crate::wire::message::{ConnectionInfo, ConnectionList, ManagerRequest, ManagerResponse};

/// How long a manager that said that it ends may take to close the connection.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
///
/// There is no manager, or what it says.
pub(crate) fn run(arguments: Manager, context: &Context) -> Result<ExitCode, Failure> {
    let network = match &arguments {
        Manager::Listen(it) => return listen::run(it, context),
        Manager::Service(_) => return Err(elsewhere(
            "manager service",
            "a launch starts a manager by itself, and `distant manager listen` is for a service",
        )),
        Manager::Select(it) => return select(it, context),
        Manager::Version(it) | Manager::Stop(it) => &it.network,
        Manager::Info(it) | Manager::Kill(it) => &it.network,
        Manager::List(it) => &it.network,
    };
    let network = context.manager_network(network);
    context.run(async {
        let mut person = Person::new(&context.terminal);
        let manager = ManagerClient::connect(context, &network, Missing::Fail, &mut person).await?;
        match &arguments {
            Manager::Version(_) => show_version(&manager, context).await?,
            Manager::Info(it) => show_info(&manager, it.id, context).await?,
            Manager::Kill(it) => kill(&manager, it.id, &mut person, context).await?,
            Manager::List(it) => {
                let selected = Cache::read(&it.cache.cache).selected();
                show_list(&list(&manager).await?, selected, context)?;
            }
            Manager::Stop(_) => stop(&manager, context).await?,
            Manager::Listen(_) | Manager::Service(_) | Manager::Select(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn show_version(manager: &ManagerClient, context: &Context) -> Result<(), LaunchError> {
    let ManagerResponse::Version { version } = manager.ask(&ManagerRequest::Version).await? else {
        return Err(unexpected());
    };
    match context.terminal.format() {
        Format::Json => context.terminal.json(&json!({ "version": version })),
        Format::Shell => context.terminal.line(&sanitise(&version)),
    }
}

async fn list(manager: &ManagerClient) -> Result<ConnectionList, LaunchError> {
    match manager.ask(&ManagerRequest::List).await? {
        ManagerResponse::List(list) => Ok(list),
        _ => Err(unexpected()),
    }
}

fn show_list(
    list: &ConnectionList,
    selected: Option<u32>,
    context: &Context,
) -> Result<(), LaunchError> {
    if context.terminal.format() == Format::Json {
        let shown = list.0.iter().map(|(id, destination)| (*id, without_key(destination)));
        return context.terminal.json(&ConnectionList(shown.collect()));
    }
    let mut table = Table::new(["selected", "id", "scheme", "host", "port"]);
    for (id, destination) in &list.0 {
        let [scheme, host, port] = parts(destination);
        table.row([(selected == Some(*id)).to_string(), id.to_string(), scheme, host, port]);
    }
    context.terminal.line(&table.to_string())
}

async fn show_info(manager: &ManagerClient, id: u32, context: &Context) -> Result<(), LaunchError> {
    let reply = manager.ask(&ManagerRequest::Info { id }).await;
    let ManagerResponse::Info(info) =
        reply.map_err(|error| about(id, "no information about", error))?
    else {
        return Err(unexpected());
    };
    if context.terminal.format() == Format::Json {
        let destination = without_key(&info.destination);
        return context.terminal.json(&ConnectionInfo { destination, ..info });
    }
    let mut table = Table::new(["id", "scheme", "host", "port", "options"]);
    let [scheme, host, port] = parts(&info.destination);
    table.row([info.id.to_string(), scheme, host, port, sanitise(&info.options)]);
    context.terminal.line(&table.to_string())
}

/// A 0.20 manager tells keys to whoever asks; nobody has to see them here.
fn without_key(destination: &str) -> String {
    match destination.parse::<Destination>() {
        Ok(destination) => destination.to_string(),
        Err(_) => "[redacted]".to_owned(),
    }
}

/// Scheme, host and port as a table shows them.
fn parts(destination: &str) -> [String; 3] {
    match destination.parse::<Destination>() {
        Ok(it) => {
            let port = it.port.map(|port| port.to_string());
            [it.scheme.unwrap_or_default(), it.host, port.unwrap_or_default()]
        }
        Err(_) => [String::new(), "[redacted]".to_owned(), String::new()],
    }
}

async fn kill(
    manager: &ManagerClient,
    id: u32,
    person: &mut Person<'_>,
    context: &Context,
) -> Result<(), LaunchError> {
    // It may have something to say before it is done.
    let mut trace = Trace::new(context.started, false);
    let reply = attend(manager, &ManagerRequest::Kill { id }, person, context, &mut trace).await;
    match reply.map_err(|error| about(id, "cannot end", error))? {
        ManagerResponse::Killed => done(context),
        _ => Err(unexpected()),
    }
}

/// Says which connection an error is about; the manager does not.
fn about(id: u32, what: &str, error: LaunchError) -> LaunchError {
    LaunchError::new(error.kind, format!("{what} the connection {id}"))
        .caused_by(error.one_line())
        .with_hint("`distant manager list` shows the connections")
}

fn done(context: &Context) -> Result<(), LaunchError> {
    match context.terminal.format() {
        Format::Json => context.terminal.json(&json!({ "type": "ok" })),
        Format::Shell => Ok(()),
    }
}

/// Ends the manager. Ours replies when everything has ended and closes the connection; a released
/// one takes the request for a question about its version.
async fn stop(manager: &ManagerClient, context: &Context) -> Result<(), LaunchError> {
    let mut replies = manager.send_stop().await?;
    match replies.next().await {
        // It may be gone before its last words are through.
        None => return done(context),
        Some(reply) => super::manager_client::read(&reply)?,
    };
    match tokio::time::timeout(FAREWELL, manager.closed()).await {
        Ok(()) => done(context),
        Err(_) => {
            let error = LaunchError::new(ErrorKind::Other, "the manager does not stop on request")
                .caused_by("it seems to be a manager of distant 0.20.0");
            let socket = UnixStream::connect(manager.socket());
            let process = socket.ok().and_then(|it| rustix::net::sockopt::socket_peercred(it).ok());
            Err(match process {
                Some(credentials) => error.with_hint(format!(
                    "end its process: `kill {}`; the servers that it launched stay",
                    credentials.pid.as_raw_nonzero()
                )),
                None => error,
            })
        }
    }
}

/// One row under another, each cell as wide as the widest of its column: as 0.20 shows tables.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned).into()] }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut line = String::from("+");
        for width in &widths {
            write!(line, "{}+", "-".repeat(width + 2))?;
        }
        f.write_str(&line)?;
        for row in &self.rows {
            f.write_str("\n|")?;
            for (cell, &width) in row.iter().zip(&widths) {
                write!(f, " {cell:width$} |")?;
            }
            write!(f, "\n{line}")?;
        }
        Ok(())
    }
}

fn select(arguments: &Select, context: &Context) -> Result<ExitCode, Failure> {
    let mut cache = Cache::read(&arguments.cache.cache);
    let network = context.manager_network(&arguments.network);
    if let Some(id) = arguments.connection {
        // With an id there is nothing to ask, so in JSON format nothing is said either.
        let silent = Terminal::new(Format::Shell);
        let listed = context.run(async {
            let mut person = Person::new(&silent);
            let missing = Missing::Fail;
            let manager = ManagerClient::connect(context, &network, missing, &mut person).await?;
            Ok(list(&manager).await?.0)
        })?;
        if !listed.contains_key(&id) {
            let message = format!("there is no connection {id} to select");
            let error = LaunchError::new(ErrorKind::InvalidOption, message);
            return Err(error.with_hint("`distant manager list` shows the connections").into());
        }
        cache.select(id)?;
        return Ok(ExitCode::SUCCESS);
    }
    context.run(async {
        let mut person = Person::new(&context.terminal);
        let manager = ManagerClient::connect(context, &network, Missing::Fail, &mut person).await?;
        let connections: Vec<_> = list(&manager).await?.0.into_iter().collect();
        if connections.is_empty() {
            return Err(LaunchError::new(ErrorKind::Other, "the manager has no connections").into());
        }
        let selected = cache.selected();
        let current = connections.iter().position(|(id, _)| selected == Some(*id)).unwrap_or(0);
        let choices: Vec<_> = connections.iter().map(|(_, it)| choice_text(it)).collect();
        let choice = match context.terminal.format() {
            Format::Json => choose_by_program(person, context, &choices, current).await?,
            Format::Shell => person.choose(&choices, current).await?,
        };
        if let Some(choice) = choice {
            let (id, _) = connections.get(choice).ok_or_else(|| {
                let message = format!("there is no choice {choice}: they count from 0");
                LaunchError::new(ErrorKind::InvalidOption, message)
            })?;
            cache.select(*id)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn choice_text(destination: &str) -> String {
    match destination.parse::<Destination>() {
        Ok(it) => Destination { user: None, password: None, ..it }.to_string(),
        Err(_) => "[redacted]".to_owned(),
    }
}

async fn choose_by_program(
    person: Person<'_>,
    context: &Context,
    choices: &[String],
    current: usize,
) -> Result<Option<usize>, LaunchError> {
    #[derive(Serialize)]
    struct Question<'a> {
        choices: &'a [String],
        current: usize,
        r#type: &'static str,
    }
    #[derive(Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Answer {
        Selected {
            #[serde(default)]
            choice: Option<usize>,
        },
    }
    context.terminal.json(&Question { choices, current, r#type: "select" })?;
    match person.into_input().value().await? {
        Some(Answer::Selected { choice }) => Ok(choice),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_looks_as_in_0_20() {
        let mut table = Table::new(["selected", "id", "scheme", "host", "port"]);
        let row = ["true", "2772084459", "distant", "localhost", "40959"];
        table.row(row.map(str::to_owned));
        assert_eq!(
            table.to_string(),
            "+----------+------------+---------+-----------+-------+\n\
             | selected | id         | scheme  | host      | port  |\n\
             +----------+------------+---------+-----------+-------+\n\
             | true     | 2772084459 | distant | localhost | 40959 |\n\
             +----------+------------+---------+-----------+-------+"
        );
    }

    #[test]
    fn a_key_that_a_manager_tells_is_not_shown() {
        let key = "0f".repeat(32);
        assert_eq!(without_key(&format!("distant://:{key}@box:1")), "distant://box:1");
        assert_eq!(without_key("no destination"), "[redacted]");
        assert_eq!(choice_text(&format!("distant://me:{key}@[::1]:1")), "distant://[::1]:1");
    }
}
