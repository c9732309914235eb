//! Questions travel to the client that launches, and answers come back from nobody else.

use std::time::Duration;

use distant_plugin_api::secret::Secret;
use serde_json::json;

use super::support::{Answers, Fixture};
use crate::wire::message::{
    Authentication, AuthenticationResponse, ClientExtension, ManagerResponse,
};

const CHALLENGE: &str = r#"say '{"type":"ask","id":7,"challenge":{"questions":[
{"text":"Password: ","label":"ssh-prompt"},{"text":"Code: ","label":"ssh-prompt","echo":true}],
"instructions":"Say both","username":"me"}}'"#;

const VERIFICATION: &str =
    r#"say '{"type":"ask","id":8,"verification":{"kind":"host","text":"trust?"}}'"#;

/// Asks, logs what comes, ends with an error.
fn asks(question: &str) -> String {
    let question = question.replace(",\n", ",").replace("[\n", "[");
    format!("{question}\nhear; log \"$line\"\nsay '{{\"type\":\"error\",\"kind\":\"other\",\"message\":\"enough\"}}'")
}

async fn question(replies: &mut Answers) -> (u32, Authentication) {
    match replies.next().await {
        ManagerResponse::Authenticate { id, msg } => (id, msg),
        other => panic!("{other:?}"),
    }
}

fn texts(answers: &[&str]) -> AuthenticationResponse {
    let answers = answers.iter().map(|it| Secret::new(*it)).collect();
    AuthenticationResponse::Challenge { answers }
}

#[tokio::test]
async fn a_challenge_is_asked_as_0_20_does_and_its_answers_reach_the_plugin() {
    let manager = Fixture::start().await;
    let mut events = manager.plugin("box", &asks(CHALLENGE));
    let client = manager.client().await;
    let mut replies = client.launch("box://there", "").await;

    let (id, msg) = question(&mut replies).await;
    assert_eq!(
        serde_json::to_value(&msg).unwrap(),
        json!({
            "type": "auth_challenge",
            "questions": [
                { "label": "ssh-prompt", "text": "Password: ", "options": { "echo": "false" } },
                { "label": "ssh-prompt", "text": "Code: ", "options": { "echo": "true" } },
            ],
            "options": { "instructions": "Say both", "username": "me" },
        })
    );
    client.answer(id, texts(&["hunter2", "123"])).await;

    let expected = json!({ "type": "answer", "id": 7, "answers": ["hunter2", "123"] });
    assert_eq!(events.next_json().await, expected);
    assert_eq!(replies.error().await, "enough");
}

#[tokio::test]
async fn a_verification_is_asked_as_0_20_does() {
    let manager = Fixture::start().await;
    let mut events = manager.plugin("box", &asks(VERIFICATION));
    let odd = VERIFICATION.replace("\"host\"", "\"moon\"");
    let mut odd_events = manager.plugin("odd", &asks(&odd));
    let client = manager.client().await;

    let mut replies = client.launch("box://there", "").await;
    let (id, msg) = question(&mut replies).await;
    assert_eq!(msg, Authentication::Verification { kind: "host".into(), text: "trust?".into() });
    client.answer(id, AuthenticationResponse::Verification { valid: true }).await;
    let expected = json!({ "type": "answer", "id": 8, "valid": true });
    assert_eq!(events.next_json().await, expected);

    let mut replies = client.launch("odd://there", "").await;
    let (id, msg) = question(&mut replies).await;
    assert_eq!(msg, Authentication::Verification { kind: "unknown".into(), text: "trust?".into() });
    client.answer(id, AuthenticationResponse::Verification { valid: false }).await;
    assert_eq!(odd_events.next_json().await["valid"], false);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_cancels_the_question() {
    let manager = Fixture::start().await;
    let client = manager.client().await;
    for (name, asked, answer, expected) in [
        ("few", CHALLENGE, texts(&["one"]), "it wants 2 answers, not 1"),
        ("none", CHALLENGE, texts(&[]), "it wants 2 answers, not 0"),
        ("text", VERIFICATION, texts(&["yes"]), "auth_verification_response"),
    ] {
        let mut events = manager.plugin(name, &asks(asked));
        let mut replies = client.launch(&format!("{name}://there"), "").await;
        let (id, _) = question(&mut replies).await;
        let error = client.answer(id, answer).await.error().await;
        assert!(error.contains(expected), "{error}");
        assert_eq!(events.next_json().await["cancelled"], true);
    }
}

#[tokio::test]
async fn nobody_else_can_answer() {
    let manager = Fixture::start().await;
    let mut events = manager.plugin("box", &asks(VERIFICATION));
    let (client, other) = (manager.client().await, manager.client().await);
    let mut replies = client.launch("box://there", "").await;
    let (id, _) = question(&mut replies).await;
    let yes = AuthenticationResponse::Verification { valid: true };
    for (person, id) in [(&other, id), (&client, id.wrapping_add(1))] {
        let error = person.answer(id, yes.clone()).await.error().await;
        assert_eq!(error, "Invalid authentication id");
    }
    client.answer(id, AuthenticationResponse::Verification { valid: false }).await;
    assert_eq!(events.next_json().await["valid"], false);
}

#[tokio::test]
async fn a_question_of_an_unknown_kind_is_cancelled_and_the_launch_goes_on() {
    let manager = Fixture::start().await;
    let question = r#"say '{"type":"ask","id":7,"fingerprint":{"finger":2}}'"#;
    let mut events = manager.plugin("box", &asks(question));
    let client = manager.client().await;
    assert_eq!(client.launch("box://there", "").await.error().await, "enough");
    let answer = events.next_json().await;
    assert_eq!((&answer["id"], &answer["cancelled"]), (&7.into(), &true.into()), "{answer}");
}

#[tokio::test]
async fn where_nobody_is_there_a_question_is_cancelled_at_once() {
    let manager = Fixture::start().await;
    let mut events = manager.plugin("box", &asks(VERIFICATION));
    let alone = ClientExtension { interactive: false, ..ClientExtension::default() };
    let client = manager.own_client(alone).await;
    assert_eq!(client.launch("box://there", "").await.error().await, "enough");
    assert_eq!(events.next_json().await["cancelled"], true);
}

#[tokio::test]
async fn a_question_is_cancelled_when_its_time_is_over() {
    let manager = Fixture::with(|limits| limits.question = Duration::from_millis(50)).await;
    let mut events = manager.plugin("box", &asks(VERIFICATION));
    let client = manager.client().await;
    let mut replies = client.launch("box://there", "").await;
    let (id, _) = question(&mut replies).await;
    assert_eq!(events.next_json().await["cancelled"], true);
    let late = AuthenticationResponse::Verification { valid: true };
    assert_eq!(client.answer(id, late).await.error().await, "Invalid authentication id");
}

#[tokio::test]
async fn a_person_may_think_for_longer_than_a_plugin_may_take() {
    let manager = Fixture::with(|limits| {
        limits.plugin = Duration::from_secs(2);
        limits.question = Duration::from_secs(3);
    })
    .await;
    let mut events = manager.plugin("box", &asks(VERIFICATION));
    let client = manager.client().await;
    // The answer never comes; still it is the question's limit that counts.
    let mut replies = client.launch("box://there", "timeout=0").await;
    let _question = question(&mut replies).await;
    assert_eq!(events.next_json().await["cancelled"], true);
    assert_eq!(replies.error().await, "enough");
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_question() {
    let manager = Fixture::start().await;
    let mut events = manager.plugin("box", &asks(VERIFICATION));
    let client = manager.client().await;
    let mut replies = client.launch("box://there", "").await;
    question(&mut replies).await;
    client.client.close();
    assert_eq!(events.next().await, "cancelled");
}
