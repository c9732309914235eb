//! What `ssh HOST` would do: the person's ssh configuration, with the launch's options on top.
//!
//! Where the program `ssh` exists, `ssh -G` says it exactly, `Match` and `Include` and all. Where it
//! does not, a small reader of `Host` blocks stands in for it.

mod file;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use distant_plugin_api::message::LogLevel;
use distant_plugin_api::{Caller, ErrorKind, LaunchError, LaunchRequest};

use crate::child;

/// How long `ssh -G` may take: a `Match exec` may be slow.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);
/// The default limit of a TCP connection, over all addresses.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// All that matters of the configuration for one host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host as the person wrote it.
    pub given: String,
    /// The host to connect to.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// Key files in the order to try.
    pub identity_files: Vec<PathBuf>,
    /// Whether somebody chose them, or they are the usual ones.
    pub identities_chosen: bool,
    /// Certificates beside those that lie next to their keys.
    pub certificate_files: Vec<PathBuf>,
    /// Whether an agent's other keys are left alone.
    pub identities_only: bool,
    /// The agent's socket.
    pub agent: Option<PathBuf>,
    /// A command whose input and output are the connection.
    pub proxy_command: Option<String>,
    /// Hosts on the way, nearest first.
    pub proxy_jump: Vec<String>,
    /// Files of known hosts; the first one gets accepted keys.
    pub known_hosts: Vec<PathBuf>,
    /// Further files of known hosts, which are everybody's.
    pub global_known_hosts: Vec<PathBuf>,
    /// A file of keys that no host may show any more.
    pub revoked: Option<PathBuf>,
    /// Kinds of signatures that an authority may make.
    pub ca_algorithms: Vec<String>,
    /// What the configuration asks for and only `ssh` itself does, in words.
    pub unheeded: Vec<&'static str>,
    /// What to do with a host that is not known.
    pub unknown_host: UnknownHost,
    /// The name that the host has in those files.
    pub alias: Option<String>,
    /// Whether accepted names are hashed.
    pub hash_names: bool,
    /// Ways to log in, best first.
    pub methods: Vec<String>,
    /// The limit of the TCP connection.
    pub connect_limit: Duration,
    /// `inet`, `inet6` or anything else for both.
    pub family: String,
    /// The address here to connect from.
    pub bind: Option<IpAddr>,
    /// Whether keys are in a smart card.
    pub has_card: bool,
    /// Whether `ssh` processes are to share connections.
    pub is_shared: bool,
    /// What would keep `ssh` from running a command to its end, with the values that do not.
    pub undone: Vec<(&'static str, &'static str)>,
}

/// What `StrictHostKeyChecking` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownHost {
    /// Ask the person.
    Ask,
    /// Refuse.
    Refuse,
    /// Take it, and remember it.
    Accept,
}

/// Where the person's own files are, and what `~` and `%u` mean.
#[derive(Debug, Clone)]
pub struct Person {
    /// The home folder.
    pub home: PathBuf,
    /// The local user's name.
    pub user: String,
    /// Where relative paths start.
    pub cwd: PathBuf,
    environment: BTreeMap<String, String>,
}

impl Person {
    /// Whoever asks for the launch.
    pub fn of(request: &LaunchRequest) -> Self {
        let environment = request.environment.clone();
        let account = Account::own();
        let home = environment.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let user = environment.get("USER").cloned().filter(|user| !user.is_empty());
        let home = home.or_else(std::env::home_dir).unwrap_or_else(|| account.home.clone());
        Self {
            user: user.unwrap_or(account.name),
            cwd: request.cwd.clone().unwrap_or_else(|| home.clone()),
            home,
            environment,
        }
    }

    /// Makes a path of the options absolute.
    pub fn path(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("~") {
            Ok(rest) => self.home.join(rest),
            Err(_) => self.cwd.join(path),
        }
    }
}

/// The account that this process runs as.
struct Account {
    name: String,
    home: PathBuf,
}

impl Account {
    fn own() -> Self {
        let id = rustix::process::getuid().as_raw();
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let own = fields.filter(|it| it.len() > 5).find(|it| it[2].parse() == Ok(id));
        match own {
            Some(own) => Self { name: own[0].to_owned(), home: PathBuf::from(own[5]) },
            None => Self { name: id.to_string(), home: PathBuf::from("/") },
        }
    }
}

/// Finds out what the configuration says of a host.
///
/// # Errors
///
/// `invalid_option` if `ssh` refuses the configuration; `cancelled`, `timed_out`.
pub fn resolve(
    host: &str,
    user: Option<&str>,
    port: Option<u16>,
    person: &Person,
    caller: &Caller,
) -> Result<Settings, LaunchError> {
    if let Some(user) = user.filter(|user| !is_harmless(user)) {
        let message = format!("`{user}` is no user name");
        return Err(LaunchError::new(ErrorKind::InvalidOption, message)
            .caused_by("it could be taken for an option, or do something in a shell"));
    }
    if port == Some(0) {
        let message = format!("there is no port 0 to reach `{host}` at");
        return Err(LaunchError::new(ErrorKind::InvalidOption, message)
            .with_hint("leave the port out for that of the ssh configuration, usually 22"));
    }
    let lines = match by_ssh(host, user, port, person, caller)? {
        Some(lines) => lines,
        None => {
            let read = file::read(host, person);
            if read.has_match {
                let text = "without the program `ssh`, the `Match` blocks of the ssh \
                            configuration are left out";
                caller.notice(LogLevel::Warn, text)?;
            }
            read.lines
        }
    };
    let mut settings = Settings::from_lines(host, &lines, person);
    if let Some(user) = user {
        settings.user = user.to_owned();
    }
    if let Some(port) = port {
        settings.port = port;
    }
    settings.expand(person);
    Ok(settings)
}

/// Whether a user's name, which `%r` puts into commands, means nothing else there. The rule is that
/// of OpenSSH 9.6; older ones have none.
fn is_harmless(user: &str) -> bool {
    let special = |c: char| c.is_control() || "'`\";&<>|(){}".contains(c);
    let after_space = user.split(char::is_whitespace).skip(1).any(|word| word.starts_with('-'));
    !user.starts_with('-') && !user.ends_with('\\') && !after_space && !user.contains(special)
}

fn by_ssh(
    host: &str,
    user: Option<&str>,
    port: Option<u16>,
    person: &Person,
    caller: &Caller,
) -> Result<Option<Vec<(String, String)>>, LaunchError> {
    let mut ssh = Command::new("ssh");
    ssh.arg("-G").stdin(Stdio::null());
    // `ssh` takes the account's home, whatever $HOME says; everything else of a launch does not.
    let account = Account::own();
    let stand_in = stand_in(person, "")?;
    if let Some((_, path)) = &stand_in {
        ssh.arg("-F").arg(path);
    }
    if let Some(user) = user {
        ssh.args(["-l", user]);
    }
    if let Some(port) = port {
        ssh.args(["-p", &port.to_string()]);
    }
    ssh.arg(host);
    let Some(output) = child::output(ssh, RESOLVE_LIMIT, caller)? else { return Ok(None) };
    drop(stand_in);
    if !output.success {
        let message = format!("`ssh` cannot read its configuration for `{host}`");
        let error = LaunchError::new(ErrorKind::InvalidOption, message);
        return Err(output.errors.lines().map(str::to_owned).fold(error, LaunchError::caused_by));
    }
    let home = account.home.display().to_string();
    let own = person.home.display().to_string();
    let mut lines = Vec::new();
    for line in output.text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let mut value = value.to_owned();
        if home != own && home != "/" && key.ends_with("knownhostsfile") {
            value = value.replace(&format!("{home}/.ssh/"), &format!("{own}/.ssh/"));
        }
        lines.push((key.to_owned(), value));
    }
    Ok(Some(lines))
}

/// The configuration for an `ssh` that would take the account's home for the person's, with further
/// lines at its end; nothing where both are the same. It exists as long as the file is open.
///
/// # Errors
///
/// The system is out of something.
pub fn stand_in(person: &Person, more: &str) -> Result<Option<(fs::File, PathBuf)>, LaunchError> {
    if Account::own().home == person.home {
        return Ok(None);
    }
    let own = person.home.join(".ssh/config");
    let text = format!(
        "Include \"{}\"\nMatch all\nInclude /etc/ssh/ssh_config\nMatch all\n{more}",
        own.display()
    );
    crate::files::in_memory(text.as_bytes()).map(Some)
}

/// Words of a line; they may be quoted.
fn words(value: &str) -> Vec<String> {
    shell_words::split(value)
        .unwrap_or_else(|_| value.split_whitespace().map(str::to_owned).collect())
}

impl Settings {
    /// Where it connects to, for people.
    pub fn place(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn from_lines(host: &str, lines: &[(String, String)], person: &Person) -> Self {
        let all = |key: &'static str| {
            lines.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.trim())
        };
        let one = |key| all(key).next().filter(|value| !value.is_empty());
        let is = |key, word: &str| one(key).is_some_and(|value| value.eq_ignore_ascii_case(word));
        let unless_none = |value: &&str| !value.eq_ignore_ascii_case("none");
        let paths = |key| -> Vec<PathBuf> {
            let values = all(key).flat_map(words);
            values.filter(|it| !it.eq_ignore_ascii_case("none")).map(PathBuf::from).collect()
        };
        let usual: Vec<_> =
            USUAL_IDENTITIES.iter().map(|name| PathBuf::from(format!("~/.ssh/{name}"))).collect();
        // One on each line, and `ssh -G` quotes none of them, whatever it holds.
        let files = |key| -> Vec<PathBuf> {
            let values = all(key).filter(unless_none);
            values.map(|it| PathBuf::from(it.trim_matches('"'))).collect()
        };
        let mut identity_files = files("identityfile");
        // `ssh -G` names the usual files where none is chosen.
        let chosen = !identity_files.is_empty()
            && identity_files.iter().any(|file| !usual.contains(file) && !is_usual(file));
        if identity_files.is_empty() {
            identity_files = usual;
        }
        let agent = match one("identityagent") {
            Some(value) if value.eq_ignore_ascii_case("none") => None,
            Some("SSH_AUTH_SOCK") | None => person.environment.get("SSH_AUTH_SOCK").cloned(),
            Some(value) => match value.strip_prefix('$') {
                Some(name) => person.environment.get(name.trim_matches(['{', '}'])).cloned(),
                None => Some(value.to_owned()),
            },
        };
        let mut known_hosts = paths("userknownhostsfile");
        if one("userknownhostsfile").is_none() {
            known_hosts = KNOWN_HOSTS.map(PathBuf::from).to_vec();
        }
        let methods = one("preferredauthentications").unwrap_or(METHODS);
        let methods = methods.split(',').map(|method| method.trim().to_owned());
        let is_allowed = |method: &String| match method.as_str() {
            "publickey" => {
                !is("pubkeyauthentication", "no") && !is("pubkeyauthentication", "false")
            }
            "password" => !is("passwordauthentication", "no"),
            "keyboard-interactive" => !is("kbdinteractiveauthentication", "no"),
            _ => false,
        };
        let is_list = |list: &&str| !list.starts_with(['+', '-', '^']);
        let ca_algorithms = one("casignaturealgorithms");
        let ca_list = ca_algorithms.filter(is_list).map(|list| list.split(',').collect());
        let ca_list: Vec<&str> = ca_list.unwrap_or_else(|| CA_ALGORITHMS.to_vec());
        let is_set = |key| {
            one(key).is_some_and(|it| !["none", "no", "false"].contains(&&*it.to_lowercase()))
        };
        let unheeded = [
            (is_set("knownhostscommand"), "`KnownHostsCommand` is not run: only files count"),
            (is_set("verifyhostkeydns"), "`VerifyHostKeyDNS` is not done: only files count"),
            (
                is_set("pkcs11provider"),
                "`PKCS11Provider` is not used: `backend=openssh` can log in by a smart card",
            ),
            (
                ca_algorithms.is_some() && ca_algorithms.filter(is_list).is_none(),
                "`CASignatureAlgorithms` with `+`, `-` or `^` is left out, as there is no `ssh` to \
                 say what it means",
            ),
        ];
        // Only of those that are named: an older `ssh` does not know them.
        let undone =
            [("forkafterauthentication", "no"), ("sessiontype", "default"), ("stdinnull", "no")];
        let is_otherwise = |(key, usual): &(&'static str, &str)| {
            one(key).is_some_and(|value| !value.eq_ignore_ascii_case(usual))
        };
        let timeout = one("connecttimeout").and_then(|it| it.parse().ok()).filter(|it| *it > 0);
        Self {
            given: host.to_owned(),
            host: one("hostname").unwrap_or(host).to_owned(),
            port: one("port").and_then(|port| port.parse().ok()).unwrap_or(22),
            user: one("user").unwrap_or(&person.user).to_owned(),
            identity_files,
            identities_chosen: chosen,
            certificate_files: files("certificatefile"),
            identities_only: is("identitiesonly", "yes"),
            agent: agent.filter(|path| !path.is_empty()).map(PathBuf::from),
            proxy_command: one("proxycommand").filter(unless_none).map(str::to_owned),
            proxy_jump: one("proxyjump")
                .filter(unless_none)
                .map(|jumps| jumps.split(',').map(|jump| jump.trim().to_owned()).collect())
                .unwrap_or_default(),
            known_hosts,
            global_known_hosts: match one("globalknownhostsfile") {
                Some(_) => paths("globalknownhostsfile"),
                None => vec!["/etc/ssh/ssh_known_hosts".into(), "/etc/ssh/ssh_known_hosts2".into()],
            },
            revoked: files("revokedhostkeys").into_iter().next(),
            ca_algorithms: ca_list.into_iter().map(|it| it.trim().to_owned()).collect(),
            unheeded: unheeded.into_iter().filter(|it| it.0).map(|it| it.1).collect(),
            unknown_host: match one("stricthostkeychecking").map(str::to_lowercase).as_deref() {
                Some("yes" | "true") => UnknownHost::Refuse,
                Some("accept-new" | "no" | "off" | "false") => UnknownHost::Accept,
                _ => UnknownHost::Ask,
            },
            alias: one("hostkeyalias").map(str::to_owned),
            hash_names: is("hashknownhosts", "yes"),
            methods: methods.filter(is_allowed).collect(),
            connect_limit: timeout.map_or(CONNECT_LIMIT, Duration::from_secs),
            family: one("addressfamily").unwrap_or("any").to_owned(),
            bind: one("bindaddress").and_then(|address| address.parse().ok()),
            has_card: is_set("pkcs11provider"),
            undone: undone.into_iter().filter(is_otherwise).collect(),
            is_shared: one("controlpath").is_some_and(|path| !path.eq_ignore_ascii_case("none")),
        }
    }

    /// Tells the person what of their configuration only `ssh` itself does.
    ///
    /// # Errors
    ///
    /// `cancelled`.
    pub fn tell_unheeded(&self, caller: &Caller) -> Result<(), LaunchError> {
        self.unheeded.iter().try_for_each(|unheeded| {
            let text = format!("of the ssh configuration for `{}`, {unheeded}", self.given);
            caller.notice(LogLevel::Warn, text)
        })
    }

    fn expand(&mut self, person: &Person) {
        let tokens = Tokens { settings: self.clone(), person };
        let paths = [
            &mut self.identity_files,
            &mut self.certificate_files,
            &mut self.known_hosts,
            &mut self.global_known_hosts,
        ];
        let single = self.agent.iter_mut().chain(&mut self.revoked);
        for path in paths.into_iter().flatten().chain(single) {
            *path = person.path(Path::new(&tokens.expand(&path.to_string_lossy())));
        }
        if let Some(command) = &self.proxy_command {
            self.proxy_command = Some(tokens.expand_command(command));
        }
    }

    /// Puts the launch's options on top.
    ///
    /// # Errors
    ///
    /// `invalid_option` for a bool that is none.
    pub fn override_by(
        &mut self,
        request: &LaunchRequest,
        person: &Person,
    ) -> Result<(), LaunchError> {
        let options = &request.options;
        let tokens = Tokens { settings: self.clone(), person };
        let paths = |list: Vec<PathBuf>| -> Vec<PathBuf> {
            let expand = |path: &PathBuf| tokens.expand(&path.to_string_lossy());
            list.iter().map(|path| person.path(Path::new(&expand(path)))).collect()
        };
        if let Some(files) = options.path_list("identity_files").filter(|it| !it.is_empty()) {
            self.identity_files = paths(files);
            self.identities_chosen = true;
        }
        if let Some(only) = options.bool("identities_only")? {
            self.identities_only = only;
        }
        if let Some(files) = options.path_list("user_known_hosts_files").filter(|it| !it.is_empty())
        {
            self.known_hosts = paths(files);
        }
        if let Some(command) = options.get("proxy_command") {
            let command = command.trim();
            self.proxy_jump.clear();
            let is_none = command.is_empty() || command.eq_ignore_ascii_case("none");
            self.proxy_command = Some(tokens.expand_command(command)).filter(|_| !is_none);
        }
        Ok(())
    }
}

const USUAL_IDENTITIES: [&str; 4] = ["id_dsa", "id_ecdsa", "id_ed25519", "id_rsa"];
const KNOWN_HOSTS: [&str; 2] = ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"];
/// What OpenSSH lets an authority sign with.
pub(crate) const CA_ALGORITHMS: [&str; 8] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
];
const METHODS: &str = "publickey,keyboard-interactive,password";

/// The further files that newer `ssh` programs look for by themselves.
fn is_usual(file: &Path) -> bool {
    let names = ["id_ecdsa_sk", "id_ed25519_sk", "id_xmss"];
    file.starts_with("~/.ssh") && file.file_name().is_some_and(|it| names.iter().any(|n| it == *n))
}

/// What `%h` and its friends stand for.
struct Tokens<'a> {
    settings: Settings,
    person: &'a Person,
}

impl Tokens<'_> {
    /// Expands a path: `${NAME}` too, which no shell does for it.
    fn expand(&self, text: &str) -> String {
        self.expand_all(text, true)
    }

    /// Expands a command; its variables are the business of the shell that runs it.
    fn expand_command(&self, text: &str) -> String {
        self.expand_all(text, false)
    }

    fn expand_all(&self, text: &str, variables: bool) -> String {
        let it = &self.settings;
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut expanded = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if variables && character == '$' && characters.as_str().starts_with('{') {
                if let Some((name, rest)) = characters.as_str()[1..].split_once('}') {
                    expanded.push_str(self.person.environment.get(name).map_or("", String::as_str));
                    characters = rest.chars();
                    continue;
                }
            }
            if character != '%' {
                expanded.push(character);
                continue;
            }
            match characters.next() {
                Some('h') => expanded.push_str(&it.host),
                Some('n') => expanded.push_str(&it.given),
                Some('p') => expanded.push_str(&it.port.to_string()),
                Some('r') => expanded.push_str(&it.user),
                Some('u') => expanded.push_str(&self.person.user),
                Some('d') => expanded.push_str(&self.person.home.to_string_lossy()),
                Some('i') => {
                    expanded.push_str(&rustix::process::getuid().as_raw().to_string());
                }
                Some('L') => expanded.push_str(machine.split('.').next().unwrap_or_default()),
                Some('l') => expanded.push_str(&machine),
                Some('k') => expanded.push_str(it.alias.as_deref().unwrap_or(&it.given)),
                Some('j') => expanded.push_str(&it.proxy_jump.join(",")),
                Some('C') => {
                    use sha1::Digest;
                    let all = format!("{machine}{}{}{}", it.host, it.port, it.user);
                    let all = format!("{all}{}", it.proxy_jump.join(","));
                    let digest = sha1::Sha1::digest(all.as_bytes());
                    expanded.extend(digest.iter().map(|byte| format!("{byte:02x}")));
                }
                Some('%') => expanded.push('%'),
                Some(other) => expanded.extend(['%', other]),
                None => expanded.push('%'),
            }
        }
        expanded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person() -> Person {
        Person {
            home: "/home/me".into(),
            user: "me".into(),
            cwd: "/work".into(),
            environment: [("X".to_owned(), "value".to_owned())].into(),
        }
    }

    fn settings(text: &str) -> Settings {
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.trim().split_once(' '))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut settings = Settings::from_lines("box", &lines, &person());
        settings.expand(&person());
        settings
    }

    #[test]
    fn what_ssh_prints_is_understood() {
        let it = settings(
            "hostname 10.0.0.7\nport 2222\nuser root\nidentityfile ~/k/%h\nidentityfile \"/a b\"\n\
             identityfile /it's c\n\
             identitiesonly yes\nuserknownhostsfile /a ~/b\nproxycommand ${X:-nc} %h %p %%\n\
             stricthostkeychecking accept-new\nhostkeyalias x\npreferredauthentications password,publickey\n\
             connecttimeout 7\nidentityagent none\nproxyjump a,me@b:23\n",
        );
        assert_eq!((it.host.as_str(), it.port, it.user.as_str()), ("10.0.0.7", 2222, "root"));
        let files = ["/home/me/k/10.0.0.7", "/a b", "/it's c"].map(Path::new);
        assert_eq!(it.identity_files, files);
        assert_eq!(it.known_hosts, [Path::new("/a"), Path::new("/home/me/b")]);
        assert_eq!(it.proxy_command.as_deref(), Some("${X:-nc} 10.0.0.7 2222 %"));
        assert!(it.identities_chosen && it.identities_only && it.agent.is_none());
        assert_eq!(it.unknown_host, UnknownHost::Accept);
        assert!(it.unheeded.is_empty() && it.revoked.is_none());
        assert_eq!(it.methods, ["password", "publickey"]);
        assert_eq!(it.connect_limit, Duration::from_secs(7));
        assert_eq!(it.proxy_jump, ["a", "me@b:23"]);
    }

    #[test]
    fn what_is_not_done_is_said_and_what_is_revoked_is_looked_at() {
        let it = settings(
            "stricthostkeychecking Yes\nrevokedhostkeys ~/gone\nknownhostscommand /bin/x %H\n\
             verifyhostkeydns Ask\ncasignaturealgorithms ssh-ed25519,rsa-sha2-512\n",
        );
        assert_eq!(it.unknown_host, UnknownHost::Refuse);
        assert_eq!(it.revoked.as_deref(), Some(Path::new("/home/me/gone")));
        assert_eq!(it.ca_algorithms, ["ssh-ed25519", "rsa-sha2-512"]);
        let said = it.unheeded.concat();
        assert!(said.contains("KnownHostsCommand") && said.contains("VerifyHostKeyDNS"), "{said}");
        let it =
            settings("casignaturealgorithms -rsa*\nknownhostscommand none\nverifyhostkeydns no\n");
        assert_eq!(
            (it.ca_algorithms, it.unheeded.len()),
            (CA_ALGORITHMS.map(str::to_owned).to_vec(), 1)
        );
        let it = settings("stricthostkeychecking OFF\nrevokedhostkeys none\n");
        assert_eq!((it.unknown_host, it.revoked), (UnknownHost::Accept, None));
    }

    #[test]
    fn a_users_name_is_no_command() {
        for user in ["me", "DOM\\me", "me@realm", "first.last-2", "$me"] {
            assert!(is_harmless(user), "{user}");
        }
        for user in ["-oProxyCommand=x", "$(id)", "a;b", "`id`", "a -b", "a'", "a\nb", "a\\"] {
            assert!(!is_harmless(user), "{user}");
        }
    }

    #[test]
    fn without_a_word_it_is_as_the_page_says() {
        let it = settings("");
        let names: Vec<_> = it.identity_files.iter().map(|it| it.display().to_string()).collect();
        let folder = "/home/me/.ssh";
        let expected = USUAL_IDENTITIES.map(|name| format!("{folder}/{name}"));
        assert_eq!(names, expected);
        assert!(!it.identities_chosen);
        let known: Vec<_> = it.known_hosts.iter().map(|it| it.display().to_string()).collect();
        assert_eq!(known, [format!("{folder}/known_hosts"), format!("{folder}/known_hosts2")]);
    }
}
