//! Chats with tools: what goes into the prompt, and what comes out of an answer.

use candlepower::runner::{Logits, RaggedBatch, Runner};
use serde_json::{Value, json};

use crate::client::Response;
use crate::model::{END, VOCAB_SIZE};
use crate::server::{Setup, TestServer};

const PATH: &str = "/v1/chat/completions";

/// Ends each prompt; whatever follows it is the answer.
const MARK: u8 = 2;

const TEMPLATE: &str = "\
    {%- for tool in tools %}{{ tool | tojson }}{% endfor %}\
    {%- for message in messages %}[{{ message.role }}]{{ message.content }}\
    {%- for call in message.tool_calls %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}\
    {{- message.tool_call_id }}{% endfor %}\u{2}";

/// A model that always gives the same answer.
struct Reciting {
    answer: &'static str,
    logits: Logits,
    /// Position of the last [`MARK`].
    begin: usize,
}

impl Runner for Reciting {
    fn forward(&mut self, batch: &RaggedBatch) -> anyhow::Result<&Logits> {
        self.logits.values.clear();
        for &row in &batch.logit_rows {
            let position = batch.positions[row as usize] as usize;
            if batch.token_ids[row as usize] == u32::from(MARK) {
                self.begin = position;
            }
            let next = self.answer.as_bytes().get(position - self.begin);
            let next = next.map_or(END, |byte| u32::from(*byte)) as usize;
            let logits = (0..VOCAB_SIZE).map(|id| if id == next { 0.0 } else { -1e4 });
            self.logits.values.extend(logits);
        }
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

fn server(answer: &'static str) -> TestServer {
    let logits = Logits {
        values: Vec::new(),
        vocab_size: VOCAB_SIZE,
    };
    let runner = Reciting {
        answer,
        logits,
        begin: 0,
    };
    TestServer::of(Setup {
        runner: Box::new(runner),
        chat_template: Some(TEMPLATE),
        ..Setup::default()
    })
}

const TWO_CALLS: &str = "I look.\n\
    <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Zürich\"}}\n</tool_call>\n\
    <tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

/// A chat with a tool, and with what `more` changes.
fn ask(server: &TestServer, more: Value) -> Response {
    let mut body = json!({
        "messages": [{"role": "user", "content": "hi"}], "tools": [tool("weather")],
    });
    let Value::Object(more) = more else {
        panic!("{more} is no object")
    };
    body.as_object_mut().expect("an object").extend(more);
    server.post(PATH, body)
}

/// The names and arguments of calls; each must have an id of its own.
fn calls(calls: &Value) -> Vec<(String, String)> {
    let calls = calls.as_array().expect("calls");
    let mut ids: Vec<&str> = calls
        .iter()
        .map(|call| call["id"].as_str().expect("an id"))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), calls.len(), "{ids:?}");
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        let text = |name: &str| call["function"][name].as_str().expect("text").to_owned();
        (text("name"), text("arguments"))
    };
    calls.iter().map(call).collect()
}

fn both() -> Vec<(String, String)> {
    [("weather", "{\"place\": \"Zürich\"}"), ("clock", "{}")]
        .map(|(name, arguments)| (name.to_owned(), arguments.to_owned()))
        .to_vec()
}

#[test]
fn calls_are_parted_from_the_text_and_are_the_reason_of_the_end() {
    let server = server(TWO_CALLS);
    let answer = ask(&server, json!({"n": 2, "logprobs": true})).json();
    for index in 0..2 {
        let choice = &answer["choices"][index];
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert_eq!(choice["message"]["content"], "I look.");
        assert_eq!(calls(&choice["message"]["tool_calls"]), both());
        // Each token of the answer is scored, those of the calls too.
        let scored = choice["logprobs"]["content"].as_array().expect("scores");
        assert_eq!(scored.len(), TWO_CALLS.len() + 1);
    }
    let first = &answer["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(first.get("index"), None);

    let choice = &ask(&server, json!({"parallel_tool_calls": false})).json()["choices"][0];
    assert_eq!(calls(&choice["message"]["tool_calls"]), both()[..1]);
}

#[test]
fn a_stream_has_the_text_as_content_and_each_call_in_a_chunk() {
    let server = server(TWO_CALLS);
    let response = ask(&server, json!({"stream": true}));
    let events = response.events();
    let (done, chunks) = events.split_last().expect("events");
    assert_eq!(*done, "[DONE]");
    let choices: Vec<Value> = chunks
        .iter()
        .map(|chunk| serde_json::from_str::<Value>(chunk).expect("JSON")["choices"][0].clone())
        .collect();
    assert_eq!(choices[0]["delta"]["role"], "assistant");
    let content: String = choices
        .iter()
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect();
    assert_eq!(content, "I look.");
    let deltas: Vec<Value> = choices
        .iter()
        .filter_map(|choice| choice["delta"].get("tool_calls")?.as_array())
        .flatten()
        .cloned()
        .collect();
    let indices: Vec<&Value> = deltas.iter().map(|call| &call["index"]).collect();
    assert_eq!(indices, [0, 1]);
    assert_eq!(calls(&Value::Array(deltas.clone())), both());
    let reasons: Vec<&Value> = choices
        .iter()
        .map(|choice| &choice["finish_reason"])
        .filter(|reason| !reason.is_null())
        .collect();
    assert_eq!(reasons, ["tool_calls"]);
}

#[test]
fn calls_without_text_have_no_content_and_a_malformed_one_is_text() {
    let only = server("<tool_call>{\"name\": \"clock\", \"arguments\": {}}</tool_call>");
    let message = &ask(&only, json!({})).json()["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    assert_eq!(calls(&message["tool_calls"]), both()[1..]);

    const MALFORMED: &str = "<tool_call>clock()</tool_call>";
    let malformed = server(MALFORMED);
    let choice = &ask(&malformed, json!({})).json()["choices"][0];
    assert_eq!(choice["message"]["content"], MALFORMED);
    assert_eq!(choice["message"].get("tool_calls"), None);
    assert_eq!(choice["finish_reason"], "stop");
}

#[test]
fn without_tools_or_with_the_choice_none_an_answer_is_text() {
    let server = server(TWO_CALLS);
    for more in [json!({"tools": []}), json!({"tool_choice": "none"})] {
        let answer = ask(&server, more).json();
        assert_eq!(answer["choices"][0]["message"]["content"], TWO_CALLS);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        // "[user]hi" and the mark: the model is told of no tool.
        assert_eq!(answer["usage"]["prompt_tokens"], 9);
    }
}

#[test]
fn an_answer_is_cut_by_its_length_though_it_called() {
    let server = server(TWO_CALLS);
    let first_call = TWO_CALLS.find("</tool_call>").expect("it is there") + 14;
    let choice = &ask(&server, json!({"max_tokens": first_call})).json()["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(calls(&choice["message"]["tool_calls"]), both()[..1]);
}

#[test]
fn tools_calls_and_results_reach_the_template() {
    let server = server("ok");
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [{
            "id": "c1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"place\":\"Zürich\"}"},
        }]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "3.5"}]},
    ]);
    let answer = ask(&server, json!({ "messages": messages })).json();
    let prompt = "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": {\"type\": \"object\"}}}\
        [user]hi[assistant]None<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"weather\", \
        \"arguments\": {\"place\": \"Zürich\"}}, \"id\": \"c1\"}</tool_call>[tool]3.5c1\u{2}";
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len(), "{answer}");
}

#[test]
fn what_is_wrong_with_tools_is_named() {
    let server = server("ok");
    let user = json!({"role": "user", "content": "hi"});
    let call = |function: Value| json!({"messages": [user, {"role": "assistant", "tool_calls": [{"function": function}]}]});
    for (more, param) in [
        (json!({"tools": "weather"}), "tools"),
        (
            json!({"tools": [tool("a"), {"type": "code"}]}),
            "tools[1].type",
        ),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": ""}}]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a", "strict": true}}]}),
            "tools[0].function.strict",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}),
            "tools[0].function.parameters",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
            "tool_choice",
        ),
        (json!({"parallel_tool_calls": 1}), "parallel_tool_calls"),
        (
            json!({"messages": [{"role": "tool", "content": "3"}]}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"messages": [{"role": "user", "content": "", "tool_calls": [{}]}]}),
            "messages[0].tool_calls",
        ),
        (
            call(json!({"arguments": "{}"})),
            "messages[1].tool_calls[0].function.name",
        ),
        (
            call(json!({"name": "a", "arguments": "[1]"})),
            "messages[1].tool_calls[0].function.arguments",
        ),
    ] {
        let response = ask(&server, more.clone());
        let error = &response.json()["error"];
        assert_eq!(
            (response.status, &error["param"]),
            (400, &json!(param)),
            "{more}: {error}"
        );
    }
}

#[test]
fn a_model_whose_template_knows_no_tools_is_asked_for_none() {
    let server = TestServer::start();
    for (more, param) in [
        (json!({}), "tools"),
        (
            json!({"tools": null, "messages": [{"role": "tool", "content": "3", "tool_call_id": "c"}]}),
            "messages[0].role",
        ),
        (
            json!({"tools": null, "messages": [{"role": "assistant", "tool_calls": [{}]}]}),
            "messages[0].tool_calls",
        ),
    ] {
        let response = ask(&server, more);
        let error = &response.json()["error"];
        assert_eq!((response.status, &error["param"]), (400, &json!(param)));
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("chat template"), "{message}");
    }
    let fields = |server: &TestServer| {
        let document = server.get("/openapi.json").json();
        let body = &document["paths"][PATH]["post"]["requestBody"]["content"]["application/json"];
        body["schema"]["properties"].get("tools").is_some()
    };
    assert!(!fields(&server));
    assert!(fields(&self::server("ok")));
}
