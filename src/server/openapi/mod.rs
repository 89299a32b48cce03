//! `GET /openapi.json`: the API as a document. What an endpoint takes is described beside the code
//! that reads it, with the same limits; here it is put together.

pub mod schema;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::openai::{chat, completions, tokens};
use super::state::AppState;
use super::{debug, generate, timings};
use schema::{array, count, nullable, one_of, response, string};

pub const PATH: &str = "/openapi.json";

/// The handler.
pub async fn document(State(state): State<Arc<AppState>>) -> Json<Value> {
    let generates = |schema: Value, answer: Value| generating(&schema, &answer);
    let model = response([("id", string()), ("object", one_of(&["model"]))]);
    let models = response([
        ("object", one_of(&["list"])),
        ("data", array(model.clone())),
    ]);
    let ready = json!({"200": json_content(&status("ready")), "503": error("Not ready")});
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "candlepower",
            "description": "An LLM inference server with OpenAI's API.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": {
            generate::PATH: post("Continue a prompt", generates(
                generate::schema(&state), answer(&[]))),
            completions::PATH: post("Continue prompts, as OpenAI does", generates(
                completions::schema(&state), answer(&["text_completion"]))),
            chat::PATH: post("Answer a chat, as OpenAI does", generates(
                chat::schema(&state), answer(&["chat.completion"]))),
            tokens::TOKENIZE_PATH: post("Text to token ids", reading(
                &tokens::tokenize_schema(&state),
                &response([("tokens", array(count())), ("count", count()), ("max_model_len", count())]))),
            tokens::DETOKENIZE_PATH: post("Token ids to text", reading(
                &tokens::detokenize_schema(&state), &response([("prompt", string())]))),
            "/v1/models": get("The model", json!({"200": json_content(&models)})),
            "/v1/models/{id}": get("The model, if it has this name",
                json!({"200": json_content(&model), "404": error("No such model")})),
            "/health": get("Does the server take work?", ready.clone()),
            "/health/ready": get("Does the server take work?", ready),
            "/health/live": get("Does the process answer?",
                json!({"200": json_content(&status("live"))})),
            "/stats": get("What the engine does, and every setting",
                json!({"200": json_content(&json!({"type": "object"}))})),
            "/metrics": get("The same for Prometheus",
                json!({"200": {"description": "Metrics", "content": {"text/plain": {}}}})),
            PATH: get("This document", json!({"200": json_content(&json!({"type": "object"}))})),
        },
        "components": {
            "schemas": {"Error": error_schema()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    });
    document["paths"]["/v1/models/{id}"]["parameters"] = json!([
        {"name": "id", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}},
    ]);
    if state.served.observe.debug_requests > 0 {
        document["paths"][debug::PATH] = get(
            "What happened to the last requests",
            json!({"200": json_content(&response([("requests", array(json!({"type": "object"})))]))}),
        );
    }
    if state.served.keys.are_needed() {
        document["security"] = json!([{"key": []}]);
    }
    Json(document)
}

fn post(summary: &str, operation: Value) -> Value {
    let mut operation = operation;
    operation["summary"] = json!(summary);
    json!({ "post": operation })
}

fn get(summary: &str, responses: Value) -> Value {
    let mut responses = responses;
    responses["401"] = error("No key, or none that opens this server");
    json!({"get": {"summary": summary, "responses": responses}})
}

/// An endpoint that reads a body and gives JSON.
fn reading(body: &Value, answer: &Value) -> Value {
    json!({
        "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": json_content(answer),
            "400": error("A field is wrong; `param` names it"),
            "401": error("No key, or none that opens this server"),
            "404": error("No such model"),
            "408": error("Too slow: the body, or the server"),
            "413": error("The body is too large"),
        },
    })
}

/// One that generates, and may stream.
fn generating(body: &Value, answer: &Value) -> Value {
    let mut operation = reading(body, answer);
    let responses = &mut operation["responses"];
    responses["200"]["content"]["text/event-stream"] = json!({});
    responses["429"] = error("Too much to do; Retry-After says when to come back");
    responses["500"] = error("The server failed; `request_id` is in its log");
    responses["503"] = error("The server does not take work");
    operation
}

fn json_content(schema: &Value) -> Value {
    json!({"description": "As asked", "content": {"application/json": {"schema": schema}}})
}

fn error(description: &str) -> Value {
    let schema = json!({"$ref": "#/components/schemas/Error"});
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

fn error_schema() -> Value {
    response([(
        "error",
        response([
            ("message", string()),
            ("type", string()),
            ("param", nullable(string())),
            ("code", nullable(string())),
        ]),
    )])
}

fn status(status: &str) -> Value {
    response([("status", one_of(&[status]))])
}

/// The whole answer of an endpoint: OpenAI's if it has an `object`, else the plain one.
fn answer(object: &[&str]) -> Value {
    let usage = response([
        ("prompt_tokens", count()),
        ("completion_tokens", count()),
        ("total_tokens", count()),
    ]);
    match object {
        [] => response([
            ("text", string()),
            ("finish_reason", one_of(&["stop", "length"])),
            ("usage", usage),
            ("timings", timings::schema()),
        ]),
        _ => response([
            ("id", string()),
            ("object", one_of(object)),
            ("created", count()),
            ("model", string()),
            ("choices", array(json!({"type": "object"}))),
            ("usage", usage),
        ]),
    }
}
