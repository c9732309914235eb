//! Several questions in one round, with a title and an instruction. sshd with PAM asks one at a time,
//! so a stub of a server asks.

use std::fs;

use serde_json::{json, Value};

use super::each_backend;
use crate::support::{keygen, peer, programs, repository, Home, Invocation, Manager, Running};

const CODE: &str = "One-time code: ";
const PIN: &str = "PIN: ";

/// A server that asks both.
struct Stub {
    process: Running,
    port: String,
}

impl Stub {
    /// Starts one that a home knows.
    fn start(home: &Home) -> Self {
        let key = home.path("stub/host");
        keygen(&key, &["-N", "", "-t", "ed25519"]);
        let script = repository().join("tests/ssh/prompts_stub.py");
        // The system's, which has the packages of the system.
        let process = home.program("/usr/bin/python3", [script, key.clone()]);
        let remote = home.path("stub").display().to_string();
        let process = ["HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"]
            .into_iter()
            .fold(process, |process, name| process.env(name, &remote))
            .start();
        let port = process.line();
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        home.write(".ssh/known_hosts", format!("[127.0.0.1]:{port} {public}"));
        Self { process, port }
    }

    fn launch(&self, home: &Home, backend: &str) -> Invocation {
        let distant = programs().distant.display().to_string();
        self.launch_with(home, backend, &["--distant", &distant])
    }

    fn launch_with(&self, home: &Home, backend: &str, program: &[&str]) -> Invocation {
        let to = format!("ssh://me@127.0.0.1:{}", self.port);
        home.ours(["launch", &to, &format!("--options=backend={backend}")]).args(program)
    }

    /// Ends it, and gives each round of answers that it got.
    fn end(self) -> Vec<Vec<String>> {
        let told = self.process.finish().success().stdout;
        told.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// What an editor saw of a launch.
struct Seen {
    challenges: Vec<Value>,
    told: Vec<String>,
    end: Value,
}

impl Seen {
    /// Goes through a launch, answering each challenge with the next of these.
    fn of(launch: Invocation, answers: &[Vec<&str>]) -> Self {
        let mut launch = launch.in_json();
        let mut answers = answers.iter();
        let (mut challenges, mut told) = (Vec::new(), Vec::new());
        loop {
            let message = launch.json();
            match message["type"].as_str() {
                Some("progress") => {}
                Some("auth_info") => told.push(message["text"].as_str().unwrap().to_owned()),
                Some("auth_challenge") => {
                    let next = answers.next().unwrap_or_else(|| panic!("too many: {message}"));
                    let reply = json!({"type": "auth_challenge_response", "answers": next});
                    challenges.push(message);
                    launch.say(&reply.to_string());
                }
                _ => {
                    launch.finish();
                    return Self { challenges, told, end: message };
                }
            }
        }
    }

    /// All questions, with what is said of whether their answers may be seen.
    fn questions(&self) -> Vec<(&str, &str)> {
        let questions = self.challenges.iter().flat_map(|it| it["questions"].as_array().unwrap());
        questions
            .map(|it| (it["text"].as_str().unwrap(), it["options"]["echo"].as_str().unwrap()))
            .collect()
    }
}

/// The questions as an editor gets them: together, or one by one from `ssh`, which hands each on by
/// itself and not which of them may be seen.
fn split<'a>(backend: &str, answers: &[&'a str]) -> Vec<Vec<&'a str>> {
    match backend {
        "openssh" => answers.iter().map(|answer| vec![*answer]).collect(),
        _ => vec![answers.to_vec()],
    }
}

each_backend! {
    fn a_person_sees_title_instruction_and_both_questions_of_a_round(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let stub = Stub::start(&home);
        let mut terminal = stub.launch(&home, backend).on_terminal();
        terminal.expect("2FA title");
        terminal.expect("Please answer two questions");
        for (question, keys) in [(CODE, "123456\n"), (PIN, "2580\n")] {
            terminal.expect(question);
            terminal.type_keys(keys);
        }
        // A round without a question is answered by nothing, and what it says is shown.
        terminal.expect("Your badge ends soon");
        let (status, screen) = terminal.finish();
        assert!(status.success(), "{screen}");
        // `ssh` does not say which answer may be seen.
        assert_eq!(screen.contains("123456"), backend != "openssh", "{screen}");
        assert!(!screen.contains("2580"), "{screen}");
        assert_eq!(screen.matches("2FA title").count(), 1, "{screen}");
        assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
        assert_eq!(stub.end(), [vec!["123456", "2580"], vec![]]);
    }

    fn an_editor_gets_the_questions_of_a_round_together(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let stub = Stub::start(&home);
        let answers = split(backend, &["123456", "2580"]);
        let seen = Seen::of(stub.launch(&home, backend), &answers);
        assert_eq!(seen.end["type"], "launched", "{}", seen.end);
        assert_eq!(seen.challenges.len(), answers.len());
        let (code, pin) = (format!("(me@127.0.0.1) {CODE}"), format!("(me@127.0.0.1) {PIN}"));
        let echo = if backend == "openssh" { "false" } else { "true" };
        assert_eq!(seen.questions(), [(code.as_str(), echo), (&pin, "false")]);
        let mut told = seen.told;
        if backend != "openssh" {
            let instructions = &seen.challenges[0]["options"]["instructions"];
            told.insert(0, instructions.as_str().unwrap().to_owned());
        }
        assert_eq!(told, ["2FA title\nPlease answer two questions", "Your badge ends soon"]);
        assert_eq!(stub.end(), [vec!["123456", "2580"], vec![]]);
    }

    fn a_one_time_code_is_asked_for_once_where_a_program_is_brought(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let stub = Stub::start(&home);
        let upload = ["--distant-upload", &peer().display().to_string()];
        let answers = split(backend, &["123456", "2580"]);
        let seen = Seen::of(stub.launch_with(&home, backend, &upload), &answers);
        assert_eq!(seen.end["type"], "launched", "{}", seen.end);
        assert_eq!(seen.questions().len(), 2);
        assert_eq!(fs::read_dir(home.path("stub/distant/bin")).unwrap().count(), 1);
        assert_eq!(stub.end(), [vec!["123456", "2580"], vec![]]);
    }

    fn wrong_answers_are_refused_after_three_rounds(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let stub = Stub::start(&home);
        let rounds = [["123456", "0000"], ["654321", "2580"], ["2580", "123456"]];
        let answers = rounds.map(|round| split(backend, &round)).concat();
        let seen = Seen::of(stub.launch(&home, backend), &answers);
        assert_eq!(seen.end["kind"], "authentication", "{}", seen.end);
        assert_eq!(seen.questions().len(), 6);
        assert_eq!(stub.end(), rounds);
    }

    fn an_answer_list_of_the_wrong_length_is_an_error_that_says_so(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let stub = Stub::start(&home);
        let wanted = split(backend, &["123456", "2580"])[0].len();
        for given in [0, 3] {
            let seen = Seen::of(stub.launch(&home, backend), &[vec!["123456"; given]]);
            let reason = format!("wants one for each question: {wanted}, not {given}");
            assert_eq!(seen.end["kind"], "other", "{}", seen.end);
            assert!(seen.end.to_string().contains(&reason), "{}", seen.end);
        }
        // Not even an empty answer was sent.
        assert_eq!(stub.end(), Vec::<Vec<String>>::new());
    }
}
