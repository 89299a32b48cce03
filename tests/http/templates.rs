//! Templates that mean harm: they cost their chat and a process of its own, and nobody else anything.

use std::fs;
use std::thread;
use std::time::Duration;

use candlepower::server::{ChatTemplates, RenderError};
use candlepower::text::SpecialTokens;
use candlepower::text::template_worker::Rendering;
use proptest::prelude::*;
use serde_json::{Map, json};
use tokio::runtime::Runtime;

use crate::client::{Response, request};
use crate::server::{Setup, TestServer, program, templates};

const PATH: &str = "/v1/chat/completions";

/// Does what the message says.
const HARMFUL: &str = "\
    {%- set ns = namespace(x='0123456789abcdef', y=0, n=99999999) %}\
    {%- set what = messages[0].content %}\
    {%- if what == 'double' %}{% for _ in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}\
    {%- elif what == 'add' %}{% for _ in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}\
    {%- elif what == 'join' %}{% for _ in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}\
    {%- elif what == 'replace' %}{% for _ in range(60) %}{% set ns.x = ns.x | replace('a', ns.x) %}{% endfor %}\
    {%- elif what == 'repeat' %}{{ ('a' * ns.n) ~ ('b' * ns.n) ~ ('c' * ns.n) }}\
    {%- elif what == 'nest' %}{% for _ in range(12000) %}{% set ns.y = [[[[[[[[[[[[[[[[[[[[ns.y]]]]]]]]]]]]]]]]]]]] %}{% endfor %}{{ ns.y }}\
    {%- elif what == 'fail' %}{{ messages[0].a.b.c }}\
    {%- elif what == 'steps' %}{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}\
    {%- elif what == 'flood' %}{% for _ in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}\
    {%- endif %}a";

fn server() -> TestServer {
    TestServer::of(Setup {
        chat_template: Some(HARMFUL),
        ..Setup::default()
    })
}

fn chat(server: &TestServer, content: &str) -> Response {
    let body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 2});
    server.send(&request("POST", PATH, &[], &body.to_string()))
}

/// Most memory that this process, which is the server, ever had; as the system counts it, roughly, so
/// that it may seem to have become less.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    let digits = peak.trim().trim_end_matches(" kB");
    digits.parse().expect("a number")
}

#[test]
fn a_template_that_grows_without_bound_costs_its_chat_and_nobody_else() {
    let server = server();
    assert_eq!(chat(&server, "nothing").status, 200);
    let before = peak_kib();
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            for _ in 0..20 {
                assert_eq!(chat(&server, "nothing").status, 200);
                let body = json!({"prompt": "a", "max_tokens": 2});
                assert_eq!(server.post("/generate", body).status, 200);
            }
        });
        for what in ["double", "add", "join", "replace", "repeat", "nest"] {
            let response = chat(&server, what);
            let error = &response.json()["error"];
            assert_eq!(
                (response.status, &error["param"]),
                (400, &json!("messages")),
                "{what}: {error}"
            );
            let message = error["message"].as_str().expect("a message");
            assert!(
                message.contains("exceeded its memory of 256 MiB"),
                "{what}: {message}"
            );
        }
        others.join().expect("they have their answers");
    });
    // Tests beside this one take some, none of them as much as one template asked for.
    let grown = peak_kib().saturating_sub(before);
    assert!(grown < 200 << 10, "the server grew by {grown} KiB");
}

#[test]
fn a_template_that_fails_or_reaches_a_limit_is_400_with_what_was_wrong() {
    let server = server();
    for (what, words) in [
        ("fail", "chat_template:"),
        ("steps", "more than 500000 steps"),
        ("flood", "output is longer than"),
    ] {
        let response = chat(&server, what);
        let error = &response.json()["error"];
        assert_eq!(
            (response.status, &error["param"]),
            (400, &json!("messages"))
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "{what}: {message}");
        assert_eq!(chat(&server, "nothing").status, 200);
    }
}

fn rendering(content: &str) -> Rendering {
    let messages = json!([{"role": "user", "content": content}]);
    Rendering(messages, None, true, Map::new())
}

#[test]
fn a_rendering_that_takes_too_long_is_ended() {
    Runtime::new().expect("a runtime").block_on(async {
        // Copies of 16 MiB, some thousand of them.
        let source = "{%- set ns = namespace(x='0123456789abcdef') %}\
            {%- for _ in range(20) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}\
            {%- if messages[0].content %}{% for _ in range(9999) %}{% set y = ns.x | upper %}{% endfor %}{% endif %}";
        let limit = Duration::from_millis(500);
        let special = SpecialTokens::default();
        let templates = ChatTemplates::with_max_time(program(), source, special, limit).await;
        let templates = templates.expect("it parses");
        let error = templates.render(&rendering("x")).await.expect_err("slow");
        assert!(error.to_string().contains("took too long"), "{error}");
        let prompt = templates.render(&rendering("")).await.expect("a new process");
        assert_eq!(prompt.text, "");
    });
}

#[test]
fn a_template_that_does_not_parse_or_grows_while_it_is_parsed_is_refused() {
    Runtime::new().expect("a runtime").block_on(async {
        let error = templates("{% if %}").await.expect_err("no template");
        assert!(error.to_string().contains("does not parse"), "{error}");
        // Constants are joined when the template is compiled.
        let huge = format!("{{{{ {} }}}}", ["'a' * 99999999"; 9].join(" ~ "));
        match templates(&huge).await {
            Err(RenderError::Template(error)) => {
                assert!(error.to_string().contains("memory"), "{error}");
            }
            Err(error) => panic!("{error}"),
            Ok(templates) => {
                let error = templates.render(&rendering("x")).await.expect_err("huge");
                assert!(error.to_string().contains("memory"), "{error}");
            }
        }
    });
}

/// What makes values grow, among what does not.
fn fragment() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "{% set ns = namespace(x='abcdefgh') %}",
        "{% for _ in range(40) %}",
        "{% endfor %}",
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x = ns.x * 1000 %}",
        "{% set ns.x = [ns.x, ns.x] | join(ns.x) %}",
        "{% set ns.x = ns.x | replace('a', ns.x) %}",
        "{% set ns.x = ns.x | list %}",
        "{% set ns.x = [ns.x, ns.x] %}",
        "{% set ns.x = ns.x | tojson(indent=99999999) %}",
        "{% set ns.x = ns.x | string | indent(99999) %}",
        "{% set ns.x = '%999999999s' | format(ns.x) %}",
        "{% set ns.x = ns.x.split('') %}",
        "{% set ns.x = range(99999999) | list %}",
        "{{ ns.x }}",
        "{{ ns.x | length }}",
        "{{ raise_exception(ns.x) }}",
        "{% macro f() %}{{ ns.x }}{{ f() }}{% endmacro %}{{ f() }}",
    ]);
    known.prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_growing_template_ends_in_a_prompt_or_an_error_and_never_in_our_memory(
        fragments in prop::collection::vec(fragment(), 1..12)
    ) {
        let source = format!("{{% set ns = namespace(x='ab') %}}{}", fragments.concat());
        let before = peak_kib();
        Runtime::new().expect("a runtime").block_on(async {
            match templates(&source).await {
                Ok(templates) => match templates.render(&rendering("x")).await {
                    Ok(_) | Err(RenderError::Template(_)) => Ok(()),
                    Err(error) => Err(TestCaseError::fail(format!("{error}: {source}"))),
                },
                Err(RenderError::Template(_)) => Ok(()),
                Err(error) => Err(TestCaseError::fail(format!("{error}: {source}"))),
            }
        })?;
        let grown = peak_kib().saturating_sub(before);
        prop_assert!(grown < 200 << 10, "{grown} KiB: {source}");
    }
}
