//! Cases that only load the plugin: what every `distant plugin list` does.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use distant_plugin_api::abi::{ROOT_SYMBOL, SYMBOL};

use crate::probe::Watched;
use crate::report::{fail, skip, Case, Found, Status};
use crate::script::Ending;
use crate::symbols::Symbols;
use crate::worker::{ask_what_it_is, short, Greeting};
use crate::{network, Kit};

/// How long a library may take to say what it is, and an executable, which has an interpreter to
/// start.
const LIBRARY_LIMIT: Duration = Duration::from_millis(100);
const EXECUTABLE_LIMIT: Duration = Duration::from_secs(1);
/// How often it is tried, as the machine may be busy.
const TRIES: usize = 5;
/// How long a library may take to be loaded and looked at.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Why nothing is said of a library's symbols.
const UNREADABLE: &str = "not checked: its symbols can only be read in a 64-bit ELF library";
/// What every library needs that can hand a panic on, and what one needs that can show where it was.
const UNWINDS: &str = "_Unwind_RaiseException";
const SHOWS_WHERE: &str = "_Unwind_Backtrace";

pub(crate) const CASES: &[Case] = &[
    Case { name: "load.hello", about: "it loads, and says what it is", run: hello },
    Case { name: "load.manifest", about: "what it says of itself can be used", run: manifest },
    Case { name: "load.exports", about: "it gives no other names away", run: given_away },
    Case { name: "load.panic", about: "a panic of it is an error, no crash", run: panic },
    Case { name: "load.table", about: "its table is one, and stays as it is", run: table },
    Case { name: "load.quiet", about: "it does nothing else meanwhile", run: quiet },
    Case { name: "load.network", about: "it keeps away from the network", run: keeps_away },
    Case { name: "load.time", about: "it says what it is at once", run: time },
    Case { name: "load.hang_up", about: "it ends when its input does", run: hang_up },
];

fn greeting(kit: &Kit) -> Result<Greeting, (Status, String)> {
    described(ask_what_it_is(kit))
}

/// Says why a plugin cannot be asked.
fn described(greeting: Result<Greeting, Ending>) -> Result<Greeting, (Status, String)> {
    greeting.map_err(|ending| match ending {
        Ending::Error(error) => (Status::Fail, error.one_line().into_owned()),
        Ending::Nothing(text, _) => (Status::Crash, text),
        Ending::Timeout(text) => (Status::Timeout, text),
        Ending::Protocol(text) | Ending::Unusable(text) => (Status::Fail, text),
        Ending::Done => (Status::Fail, "it is done before it has begun".to_owned()),
    })
}

fn hello(kit: &Kit) -> Found {
    let greeting = greeting(kit)?;
    let version = Some(greeting.manifest.version).filter(|it| !it.is_empty());
    Ok(version.map(|it| format!("{} {it}", greeting.manifest.name)))
}

fn manifest(kit: &Kit) -> Found {
    let manifest = greeting(kit)?.manifest;
    if let Err(reason) = manifest.check() {
        return fail(reason);
    }
    let file = kit.plugin.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let plain = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let stem = file.split('.').next().unwrap_or_default();
    let named =
        stem.strip_prefix(if kit.is_library { "libdistant_plugin_" } else { "distant-plugin-" });
    match named {
        Some(name) if plain(name) == plain(&manifest.name) => {}
        Some(name) => {
            let own = &manifest.name;
            return fail(format!("it calls itself `{own}`, but its file is named for `{name}`"));
        }
        None => {
            let expected = if kit.is_library {
                format!("libdistant_plugin_{}.so", manifest.name.replace('-', "_"))
            } else {
                format!("distant-plugin-{}", manifest.name)
            };
            return Ok(Some(format!("no host finds `{file}` by itself; call it `{expected}`")));
        }
    }
    let silent = manifest.options.0.iter().find(|option| option.help.is_empty());
    if let Some(option) = silent {
        return Ok(Some(format!("its option `{}` has no help", option.name)));
    }
    Ok(manifest.version.is_empty().then(|| "it does not say its version".to_owned()))
}

fn given_away(kit: &Kit) -> Found {
    if !kit.is_library {
        return skip("it is a program");
    }
    let Some(Symbols { exported: names, .. }) = Symbols::of(&kit.plugin) else {
        return skip(UNREADABLE);
    };
    if !names.iter().any(|name| name == SYMBOL) {
        return fail(format!("it has no symbol `{SYMBOL}`"));
    }
    // The linker's own.
    let usual = [SYMBOL, ROOT_SYMBOL, "_init", "_fini", "_edata", "_end", "__bss_start"];
    let mut more: Vec<_> = names.iter().filter(|name| !usual.contains(&name.as_str())).collect();
    more.sort_unstable();
    let few: Vec<_> = more.iter().take(3).map(|name| format!("`{}`", short(name))).collect();
    let hint = "build it with -fvisibility=hidden, or another library's may be taken for it";
    Ok((!more.is_empty())
        .then(|| format!("it also exports {} names, as {}; {hint}", more.len(), few.join(", "))))
}

fn panic(kit: &Kit) -> Found {
    if !kit.is_library {
        return skip("it is a program");
    }
    let Some(symbols) = Symbols::of(&kit.plugin) else { return skip(UNREADABLE) };
    if !symbols.is_rust {
        return skip("it is not built by rustc");
    }
    let needs = |name: &str| symbols.imported.iter().any(|it| it == name);
    if needs(UNWINDS) {
        return Ok(None);
    }
    if !needs(SHOWS_WHERE) {
        return skip("not checked: it has what a panic needs from no other library");
    }
    fail(
        "it is built with `panic = \"abort\"`, so a panic says nothing and leaves what its launch \
         has started; take that out of its profile",
    )
}

fn keeps_away(kit: &Kit) -> Found {
    if kit.in_process {
        return skip("not checked: the plugin is in the process of a debugger");
    }
    let (greeted, watch) = match network::watch(|| ask_what_it_is(kit)) {
        Ok(started) => started,
        Err(error) => return skip(format!("not checked: this system lets nobody watch: {error}")),
    };
    // What it tried comes first, as it may have failed because of it.
    let seen = watch.seen();
    let own = kit.plugin.to_string_lossy();
    let tried = &seen.tried;
    if let Some(who) = tried.iter().find(|it| !it.contains(&*own)).or(tried.first()) {
        return fail(format!("it uses the network while it says what it is: `{who}`"));
    }
    described(greeted)?;
    match seen.unknown {
        Some(who) => skip(format!("not checked: `{who}` is a program for another machine")),
        None => Ok(None),
    }
}

/// Loads the library in a process that watches it.
fn watched(kit: &Kit) -> Result<Watched, (Status, String)> {
    if !kit.is_library {
        return skip("it is a program");
    }
    let broken = |error: std::io::Error| (Status::Fail, format!("it cannot be loaded: {error}"));
    let mut child = Command::new("/proc/self/exe")
        .arg("plugin-probe")
        .arg(&kit.plugin)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(broken)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    if let Some(mut stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.read_to_end(&mut text);
            // Nobody waits any more if it took too long.
            let _ = sender.send(text);
        });
    }
    let text = receiver.recv_timeout(PROBE_LIMIT);
    // It has printed all that it will, or hangs.
    if text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(broken)?;
    let Ok(text) = text else {
        let limit = PROBE_LIMIT.as_secs();
        return Err((Status::Timeout, format!("it cannot be loaded within {limit} s")));
    };
    match (serde_json::from_slice::<Watched>(&text), status.signal()) {
        (_, Some(signal)) => {
            Err((Status::Crash, format!("it was killed by signal {signal} while it was loaded")))
        }
        (Ok(watched), None) => match watched.error {
            Some(error) => fail(error),
            None => Ok(watched),
        },
        (Err(_), None) => {
            let code = status.code().unwrap_or_default();
            Err((Status::Crash, format!("it exited with status {code} while it was loaded")))
        }
    }
}

fn table(kit: &Kit) -> Found {
    match watched(kit)?.table {
        Some(reason) => fail(reason),
        None => Ok(None),
    }
}

fn quiet(kit: &Kit) -> Found {
    if kit.is_library {
        let watched = watched(kit)?;
        return match watched {
            Watched { threads, .. } if threads > 0 => fail(format!("it starts {threads} threads")),
            Watched { opened, .. } if !opened.is_empty() => {
                fail(format!("it opens `{}` and keeps it", short(&opened[0])))
            }
            Watched { printed, .. } if printed > 0 => fail(format!("it prints {printed} bytes")),
            _ => Ok(None),
        };
    }
    let greeting = greeting(kit)?;
    if let Some(more) = greeting.more {
        return fail(format!("it says more than its hello: `{more}`"));
    }
    match greeting.stderr.lines().next() {
        Some(line) => fail(format!("it prints to standard error: {}", short(line))),
        None => Ok(None),
    }
}

fn time(kit: &Kit) -> Found {
    let limit = if kit.is_library { LIBRARY_LIMIT } else { EXECUTABLE_LIMIT };
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        best = best.min(greeting(kit)?.took);
        if best <= limit {
            return Ok(Some(format!("{} ms", best.as_millis())));
        }
    }
    fail(format!("it takes {} ms, more than {}", best.as_millis(), limit.as_millis()))
}

fn hang_up(kit: &Kit) -> Found {
    let greeting = greeting(kit)?;
    if !greeting.ended {
        return Err((Status::Timeout, "it goes on running when its input has ended".to_owned()));
    }
    match greeting.left.first() {
        Some(left) => fail(format!("it leaves `{left}` behind")),
        None => Ok(None),
    }
}
