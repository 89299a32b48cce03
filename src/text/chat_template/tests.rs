use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::*;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/text")
        .join(name)
}

fn special() -> SpecialTokens {
    SpecialTokens {
        bos_token: Some("<s>".to_string()),
        eos_token: Some("</s>".to_string()),
        ..SpecialTokens::default()
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, special()).expect("parses")
}

fn render(source: &str) -> Result<String, TextError> {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    template(source).render(&messages, None, true, &Map::new())
}

fn failure_of(source: &str) -> String {
    render(source).expect_err("fails").to_string()
}

#[test]
fn every_golden_chat_renders_byte_for_byte() {
    let cases = std::fs::read_to_string(data("chat.json")).expect("a golden file");
    let cases: Vec<Json> = serde_json::from_str(&cases).expect("JSON");
    assert!(cases.len() > 10);
    for case in cases {
        let name = case["template"].as_str().expect("a name");
        let path = data("templates").join(format!("{name}.jinja"));
        let source = std::fs::read_to_string(path).expect("a template");
        let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
        let variables = case["variables"].as_object().expect("variables");
        let add_generation_prompt = case["add_generation_prompt"] == true;
        let rendered = template(&source)
            .render(&case["messages"], tools, add_generation_prompt, variables)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(case["rendered"], rendered, "{name}\n{rendered}");
    }
}

#[test]
fn a_refusal_is_the_templates_own_message() {
    let source = std::fs::read_to_string(data("templates/inst.jinja")).expect("a template");
    let messages = json!([{"role": "assistant", "content": "Hi"}]);
    let error = template(&source).render(&messages, None, false, &Map::new());
    let Err(TextError::TemplateRefused(message)) = error else {
        panic!("{error:?}")
    };
    assert!(message.starts_with("After the optional system message, conversation roles must"));
}

#[test]
fn failures_say_what_and_where() {
    assert!(failure_of("first line\n{{ messages[0].a.b }}").contains("chat_template:2"));
    assert!(failure_of("{{ 'a' + none }}").contains("failed"));
    assert!(failure_of("{{ messages | no_such }}").contains("no_such"));
    assert!(failure_of("{{ missing | tojson }}").contains("tojson"));
    let error = ChatTemplate::new("{% if %}", special())
        .expect_err("no template")
        .to_string();
    assert!(error.contains("does not parse"), "{error}");
    let huge = " ".repeat(MAX_SOURCE_BYTES + 1);
    let error = ChatTemplate::new(&huge, special())
        .expect_err("too long")
        .to_string();
    assert!(error.contains("1048577 bytes"), "{error}");
}

#[test]
fn steps_output_and_nesting_are_limited() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(failure_of(endless).contains("more than 500000 steps"));
    let flood = "{% for a in range(9999) %}{{ 'a' * 1000000 }}{% endfor %}";
    assert!(failure_of(flood).contains("output is longer"));
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(
        failure_of(recursion).contains("recursion"),
        "{}",
        failure_of(recursion)
    );
    let brackets = format!("{{{{ {} }}}}", "[".repeat(100_000));
    assert!(ChatTemplate::new(&brackets, special()).is_err());
}

#[test]
fn a_message_is_cut_between_characters() {
    let failure = failure_of("{{ raise_exception('é' * 999999) }}");
    assert!(failure.ends_with(&"é".repeat(MAX_MESSAGE_BYTES / 2)));
    assert!(failure.len() < MAX_MESSAGE_BYTES + 100);
}

#[test]
fn a_template_knows_tools_if_it_asks_for_them() {
    assert!(template("{% if tools %}{{ tools | tojson }}{% endif %}").knows_tools());
    assert!(!template("{{ messages[0].tools }} tools").knows_tools());
}

#[test]
fn a_long_chat_is_within_the_limits() {
    let source = std::fs::read_to_string(data("templates/thinking.jinja")).expect("a template");
    let source = source.replace("loop.index > 20", "false");
    let turn = [
        json!({"role": "user", "content": "Hi"}),
        json!({"role": "assistant", "content": "<think>a</think>b"}),
    ];
    let messages = Json::Array(turn.iter().cycle().take(2000).cloned().collect());
    let rendered = template(&source).render(&messages, None, true, &Map::new());
    assert_eq!(
        rendered.expect("renders").matches("<|im_start|>").count(),
        2001
    );
}

#[test]
fn the_clock_is_read_when_the_template_asks() {
    let fixed = || jiff::Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    let template = ChatTemplate::with_clock("{{ strftime_now('%d %b %Y') }}", special(), fixed);
    let rendered = template
        .expect("parses")
        .render(&json!([]), None, false, &Map::new());
    assert_eq!(rendered.expect("renders"), "01 Jan 1970");
    assert!(failure_of("{{ strftime_now('%!') }}").contains("strftime_now"));
    assert_eq!(
        render("{{ strftime_now('%Y') | length }}").expect("renders"),
        "4"
    );
}

#[test]
fn generation_blocks_print_their_body_with_their_whitespace_rules() {
    assert_eq!(
        render("a {%- generation -%} b {%- endgeneration %} c").expect("renders"),
        "ab c"
    );
    assert_eq!(
        render("{% generation %}{% set x = 1 %}{% endgeneration %}{{ x }}").expect("renders"),
        ""
    );
    assert_eq!(
        with_known_tags("{% generations %}{%"),
        "{% generations %}{%"
    );
}

#[test]
fn variables_of_a_request_do_not_replace_the_messages() {
    let extra = json!({"messages": [], "word": "w"});
    let extra = extra.as_object().expect("an object");
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let rendered =
        template("{{ messages | length }}{{ word }}").render(&messages, None, false, extra);
    assert_eq!(rendered.expect("renders"), "1w");
}

#[test]
fn python_floats_keep_their_point_and_take_exponents_as_python_does() {
    let numbers = [
        ("1.0", "1.0"),
        ("0.1", "0.1"),
        ("1e16", "1e+16"),
        ("1e15", "1000000000000000.0"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("1.5e-7", "1.5e-07"),
        ("-0.0", "-0.0"),
        ("1e300", "1e+300"),
        ("5", "5"),
        ("-5", "-5"),
        ("18446744073709551615", "18446744073709551615"),
    ];
    for (json, expected) in numbers {
        let extra: Json = serde_json::from_str(&format!("{{\"n\": {json}}}")).expect("JSON");
        let extra = extra.as_object().expect("an object");
        let rendered = template("{{ n | tojson }}").render(&json!([]), None, false, extra);
        assert_eq!(rendered.expect("renders"), expected);
    }
}

#[test]
fn a_folder_keeps_its_template_in_one_of_three_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    let find = || ChatTemplate::find_in_folder(dir.path());
    assert_eq!(find().expect("none"), None);
    write(
        "chat_template.json",
        r#"{"chat_template": "from chat_template.json"}"#,
    );
    assert_eq!(
        find().expect("found").as_deref(),
        Some("from chat_template.json")
    );
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}]}"#,
    );
    assert!(
        find()
            .expect_err("no default")
            .to_string()
            .contains("'default'")
    );
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "d"}]}"#,
    );
    assert_eq!(find().expect("found").as_deref(), Some("d"));
    write(
        "tokenizer_config.json",
        r#"{"chat_template": "from the config"}"#,
    );
    assert_eq!(find().expect("found").as_deref(), Some("from the config"));
    write("chat_template.jinja", "from the file\n");
    assert_eq!(find().expect("found").as_deref(), Some("from the file\n"));
    write("chat_template.jinja", "");
    write("tokenizer_config.json", "{");
    assert_eq!(find().expect("found").as_deref(), Some(""));
    std::fs::remove_file(dir.path().join("chat_template.jinja")).expect("removed");
    assert!(
        find()
            .expect_err("damaged")
            .to_string()
            .contains("tokenizer_config.json")
    );
}

/// Fragments that make many random sources parse.
fn fragment() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "{% for m in messages %}",
        "{% endfor %}",
        "{% if m.content %}",
        "{% else %}",
        "{% endif %}",
        "{{ m.content | trim }}",
        "{{- m['role'] -}}",
        "{% set x = [x] %}",
        "{{ x | tojson }}",
        "{% generation %}",
        "{% endgeneration %}",
        "{{ messages[::-1] }}",
        "{{ range(9) | list }}",
        "{% macro f(a) %}",
        "{% endmacro %}",
        "{{ f(f(1)) }}",
        "{{ 'a' * 9 }}",
        "{{ 1 / 0 }}",
        "{{ -9223372036854775808 // -1 }}",
        "{{ messages | map(attribute='a') | list }}",
        "{{ x.items() }}",
        "{{ '%s' | format(x) }}",
        "{{ ''.split('') }}",
        "{{ x[1:-1:0] }}",
        "{#",
        "#}",
        "{{ raise_exception('no') }}",
        "{{ strftime_now('%Q%é%') }}",
        "{% break %}",
        "{% raw %}",
        "{% endraw %}",
        "{{ x | tojson(indent=-1) }}",
        "{{ 'é'.strip('é') }}",
        "{{ 'aé'[1:] }}",
        "{{ 2 ** 999 }}",
        "{{ 1 % 0 }}",
    ]);
    prop_oneof![4 => known.prop_map(str::to_string), 1 => "\\PC{0,6}", 1 => "[{}%#'\"| a.()\\[\\]-]{0,8}"]
}

proptest! {
    #[test]
    fn no_template_panics_or_hangs(fragments in prop::collection::vec(fragment(), 0..12)) {
        let source = fragments.concat();
        if let Ok(template) = ChatTemplate::new(&source, special()) {
            let messages = json!([{"role": "user", "content": " Hi "}, {"role": "assistant"}]);
            if let Err(error) = template.render(&messages, None, true, &Map::new()) {
                prop_assert!(!error.to_string().contains("panicked"), "{source}");
            }
        }
    }
}
