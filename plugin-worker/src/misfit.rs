//! What an author has to know of a line that is no message: what is wrong with it, and nothing that
//! stands in it, as it may be a damaged offer with a key.

use serde_json::error::{Category, Error};

/// Says why a line is no message.
pub fn misfit(error: &Error) -> String {
    match error.classify() {
        Category::Io | Category::Syntax | Category::Eof => {
            format!("it is no JSON from its column {} on", error.column())
        }
        Category::Data => {
            let words = error.to_string();
            // The names of members are the protocol's own; a value is never repeated.
            let missing = words.strip_prefix("missing field `").and_then(|it| it.split_once('`'));
            let wanted = words.rsplit_once(", expected ").map(|(_, wanted)| wanted);
            let wanted = wanted.map(|it| it.split(" at line ").next().unwrap_or(it));
            match (missing, wanted) {
                (Some((name, _)), _) => format!("the member `{name}` is missing"),
                (None, Some(wanted)) => format!("a member has another type: expected {wanted}"),
                (None, None) => "a member is not what it has to be".to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use distant_plugin_api::message::PluginMessage;

    use super::*;

    fn said(line: &str) -> String {
        misfit(&serde_json::from_str::<PluginMessage>(line).unwrap_err())
    }

    #[test]
    fn an_author_hears_what_is_wrong_and_no_value() {
        let hello = |members: &str| said(&format!(r#"{{"type":"hello",{members}}}"#));
        assert_eq!(
            hello(r#""protocol":1,"manifest":{"name":"x","schemes":["x"]}"#),
            "a member has another type: expected an array of length 2"
        );
        assert_eq!(
            hello(r#""protocol":[1,1],"manifest":{"name":"x"}"#),
            "the member `schemes` is missing"
        );
        assert_eq!(said(r#"{"id":1}"#), "the member `type` is missing");
        assert_eq!(said("rubbish"), "it is no JSON from its column 1 on");
        let key = "0f".repeat(32);
        for line in [
            format!(r#"{{"type":"offer","id":1,"host":"a","port":"{key}","key":1}}"#),
            format!(
                r#"{{"type":"offer","id":1,"host":"a","port":1,"key":"{key}, expected {key}"}}"#
            ),
            format!(r#"{{"type":"offer","id":"{key}","host":"a","port":1,"key":"{key}"}}"#),
            format!(r#"{{"type":"{key}","offer":"{key}"#),
        ] {
            assert!(!said(&line).contains("0f0f"), "{}", said(&line));
        }
    }
}
