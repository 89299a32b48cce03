//! A result of `vllm bench serve --save-result --save-detailed` as a record, to stand beside ours.

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::bench::record::{
    ClientSettings, FORMAT_VERSION, Failure, FailureReason, Record, RequestRecord, Run,
    ServerRecord, Usage, round_to_us,
};

/// The fields that are read, in seconds. Those of single requests are there with `--save-detailed`.
#[derive(Deserialize)]
struct VllmResult {
    date: String,
    model_id: Option<String>,
    num_prompts: usize,
    request_rate: Value,
    max_concurrency: Option<usize>,
    duration: f64,
    input_lens: Option<Vec<u64>>,
    output_lens: Option<Vec<u64>>,
    ttfts: Option<Vec<f64>>,
    itls: Option<Vec<Vec<f64>>>,
    start_times: Option<Vec<f64>>,
    errors: Option<Vec<String>>,
}

/// Whether a document is such a result.
pub fn is_result(document: &Value) -> bool {
    ["completed", "total_input_tokens", "max_concurrency"]
        .iter()
        .all(|name| document.get(name).is_some())
}

/// The record of a result. What it does not tell of the machine and the server is unknown.
///
/// # Errors
/// It lacks the requests, or says different numbers of them.
pub fn read(document: Value) -> anyhow::Result<Record> {
    let result: VllmResult = serde_json::from_value(document)?;
    let detailed = "the requests are missing: save the result with --save-detailed";
    let requests = requests(&result).context(detailed)?;
    ensure!(!requests.is_empty(), "it has no request");
    let run = Run {
        format_version: FORMAT_VERSION,
        tool: "vllm bench serve".to_owned(),
        started: result.date,
        command: "vllm bench serve".to_owned(),
        environment: Default::default(),
        commit: None,
        machine: Default::default(),
        client: ClientSettings {
            workload: None,
            requests: result.num_prompts,
            concurrency: result.max_concurrency,
            request_rate_per_s: result.request_rate.as_f64(),
            warmup: 0,
            max_tokens: None,
            prompt_words: None,
            repeat_ratio: None,
            seed: 0,
            ignore_eos: false,
            request_timeout_s: 0.0,
            cache_state: None,
            slo: None,
            max_send_delay_ms: None,
            search: None,
            prompts_sha256: String::new(),
        },
        server: ServerRecord {
            endpoint: "unknown".to_owned(),
            api: "unknown".to_owned(),
            model: result.model_id,
            stats_before: Value::Null,
            stats_after: Value::Null,
            samples: Vec::new(),
        },
        duration_ms: round_to_us(result.duration * 1e3),
        client_cpu_ms: 0,
        phases: Vec::new(),
    };
    Ok(Record { run, requests })
}

fn requests(result: &VllmResult) -> anyhow::Result<Vec<RequestRecord>> {
    let (Some(inputs), Some(outputs), Some(ttfts), Some(itls), Some(starts), Some(errors)) = (
        &result.input_lens,
        &result.output_lens,
        &result.ttfts,
        &result.itls,
        &result.start_times,
        &result.errors,
    ) else {
        bail!("a list is missing");
    };
    let lengths = [
        inputs.len(),
        outputs.len(),
        ttfts.len(),
        itls.len(),
        starts.len(),
        errors.len(),
    ];
    ensure!(
        lengths.iter().all(|n| *n == lengths[0]),
        "its lists have different lengths"
    );
    let origin = starts.iter().copied().fold(f64::INFINITY, f64::min);
    let ms = |seconds: f64| round_to_us((seconds - origin) * 1e3);
    let request = |index: usize| {
        let start = starts[index];
        let first = start + ttfts[index];
        let failure = &errors[index];
        RequestRecord {
            index,
            prompt: index,
            request_id: index.to_string(),
            due_ms: ms(start),
            sent_ms: ms(start),
            first_token_ms: (ttfts[index] > 0.0).then(|| ms(first)),
            end_ms: ms(first + itls[index].iter().sum::<f64>()),
            gaps_ms: itls[index]
                .iter()
                .map(|gap| round_to_us(gap * 1e3))
                .collect(),
            usage: Some(Usage {
                prompt_tokens: inputs[index],
                completion_tokens: outputs[index],
                cached_tokens: None,
            }),
            failure: (!failure.is_empty())
                .then(|| Failure::new(FailureReason::Connection, failure.as_str())),
            ..RequestRecord::default()
        }
    };
    Ok((0..lengths[0]).map(request).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::Metrics;
    use crate::bench::metrics::tests::{record, request};

    #[test]
    fn what_is_written_reads_back_with_the_same_figures() {
        let original = record(vec![request(0, 5), request(1, 3)]);
        let text = super::super::render(&original).expect("JSON");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert!(is_result(&document));
        let again = Metrics::of(&read(document).expect("detailed"));
        let original = Metrics::of(&original);
        assert_eq!(
            again.output_throughput_tokens_per_s,
            original.output_throughput_tokens_per_s
        );
        assert_eq!(again.latencies.tpot_ms, original.latencies.tpot_ms);
        assert_eq!(again.latencies.service_ms, original.latencies.service_ms);
    }

    #[test]
    fn a_result_without_its_requests_says_what_to_do() {
        let text = super::super::render(&record(vec![request(0, 5)])).expect("JSON");
        let mut document: Value = serde_json::from_str(&text).expect("JSON");
        document["ttfts"] = Value::Null;
        let error = read(document).expect_err("no requests");
        assert!(
            format!("{error:#}").contains("--save-detailed"),
            "{error:#}"
        );
        assert!(!is_result(&serde_json::json!({"run": 1})));
    }
}
