//! Health, `/stats` and `/metrics`.

use serde_json::json;

use crate::server::TestServer;

#[test]
fn a_running_server_is_live_and_ready() {
    let server = TestServer::start();
    for (path, status) in [
        ("/health/live", "live"),
        ("/health/ready", "ready"),
        ("/health", "ready"),
    ] {
        let response = server.get(path);
        assert_eq!(
            (response.status, response.json()),
            (200, json!({"status": status})),
            "{path}"
        );
    }
}

#[test]
fn stats_show_engine_model_memory_and_settings() {
    let server = TestServer::start();
    server.post("/generate", json!({"prompt": "abc", "max_tokens": 4}));
    let stats = server.stats();
    assert_eq!(stats["batch"]["num_generated_tokens"], 4);
    assert_eq!(stats["requests"]["num_finished_length"], 1);
    assert_eq!(stats["prefix"]["query_tokens"], 3);
    assert_eq!(stats["evictions"]["num_evicted_blocks"], 0);
    assert_eq!(stats["kv_cache"]["used_blocks"], 0);
    assert_eq!(stats["queue"]["num_waiting_requests"], 0);
    assert_eq!(stats["model"]["name"], "counting");
    assert_eq!(stats["model"]["load_time_ms"], 1500.0);
    assert_eq!(stats["model"]["sha256"], "0123456789abcdef");
    assert_eq!(stats["settings"]["max_batch_size"], 8);
    assert!(
        stats["memory"]["rss_bytes"].as_u64() > Some(1 << 20),
        "{stats}"
    );
    assert!(stats["uptime_ms"].as_f64() > Some(0.0));
}

/// The value of the one sample that has this name and, if given, this label.
pub fn sample(metrics: &str, name: &str, label: &str) -> f64 {
    let line = metrics.lines().find(|line| {
        let series = line.split(['{', ' ']).next().unwrap_or_default();
        series == name && line.contains(label)
    });
    let line = line.unwrap_or_else(|| panic!("no {name} {label} in\n{metrics}"));
    line.rsplit(' ')
        .next()
        .and_then(|value| value.parse().ok())
        .expect("a number")
}

#[test]
fn metrics_count_what_was_done_under_vllms_names() {
    let server = TestServer::start();
    let body = json!({"prompt": "a prompt", "max_tokens": 4});
    server.post("/generate", &body);
    server.post("/v1/completions", &body);
    server.post("/generate", json!({"prompt": "!", "stream": true}));
    let response = server.get("/metrics");
    assert_eq!(
        response.header("content-type"),
        Some("text/plain; version=0.0.4")
    );
    let metrics = &response.body;
    for (name, label, value) in [
        ("vllm:num_requests_running", "engine=\"0\"", 0.0),
        ("vllm:num_requests_waiting", "model_name=\"counting\"", 0.0),
        ("vllm:kv_cache_usage_perc", "", 0.0),
        ("vllm:cache_config_info", "num_gpu_blocks=\"512\"", 1.0),
        ("vllm:cache_config_info", "block_size=\"32\"", 1.0),
        ("vllm:cache_config_info", "cache_dtype=\"f16\"", 1.0),
        ("vllm:prompt_tokens_total", "", 17.0),
        ("vllm:prompt_tokens_cached_total", "", 7.0),
        ("vllm:generation_tokens_total", "", 9.0),
        ("vllm:prefix_cache_queries_total", "", 17.0),
        ("vllm:prefix_cache_hits_total", "", 7.0),
        ("vllm:num_preemptions_total", "", 0.0),
        ("vllm:corrupted_requests_total", "", 0.0),
        (
            "vllm:request_success_total",
            "finished_reason=\"length\"",
            2.0,
        ),
        (
            "vllm:request_success_total",
            "finished_reason=\"stop\"",
            1.0,
        ),
        (
            "vllm:request_success_total",
            "finished_reason=\"abort\"",
            0.0,
        ),
        (
            "vllm:admission_rejections_total",
            "reason=\"queue_full\"",
            0.0,
        ),
        ("vllm:time_to_first_token_seconds_count", "", 3.0),
        (
            "vllm:time_to_first_token_seconds_bucket",
            "le=\"2560\"",
            3.0,
        ),
        ("vllm:inter_token_latency_seconds_count", "", 6.0),
        ("vllm:request_time_per_output_token_seconds_count", "", 2.0),
        ("vllm:e2e_request_latency_seconds_count", "", 3.0),
        (
            "vllm:e2e_request_latency_seconds_bucket",
            "le=\"7680\"",
            3.0,
        ),
        ("vllm:request_queue_time_seconds_count", "", 3.0),
        ("vllm:request_prefill_time_seconds_count", "", 3.0),
        ("vllm:request_decode_time_seconds_count", "", 3.0),
        ("vllm:request_inference_time_seconds_count", "", 3.0),
        ("vllm:request_prompt_tokens_sum", "", 17.0),
        ("vllm:request_generation_tokens_sum", "", 9.0),
        ("vllm:request_params_max_tokens_sum", "", 108.0),
        ("vllm:request_prefill_kv_computed_tokens_sum", "", 10.0),
        (
            "vllm:prompt_tokens_by_source_total",
            "source=\"local_compute\"",
            10.0,
        ),
        (
            "vllm:prompt_tokens_by_source_total",
            "source=\"local_cache_hit\"",
            7.0,
        ),
        ("vllm:prompt_tokens_recomputed_total", "", 1.0),
        ("vllm:request_params_n_sum", "", 3.0),
        ("vllm:request_max_num_generation_tokens_sum", "", 9.0),
        // Two prefills of 8 tokens and 1, another of 1, and 6 decodes.
        ("vllm:iteration_tokens_total_count", "", 9.0),
        ("vllm:iteration_tokens_total_sum", "", 16.0),
        ("vllm:iteration_tokens_total_bucket", "le=\"1\"", 8.0),
        ("vllm:iteration_tokens_total_bucket", "le=\"16384\"", 9.0),
        ("candlepower:step_sequences_sum", "", 9.0),
        ("candlepower:step_seconds_count", "", 9.0),
        ("candlepower:kv_leaked_blocks", "", 0.0),
        ("candlepower:build_info", "version=\"0.1.0\"", 1.0),
        ("candlepower:model_info", "sha256=\"0123456789abcdef\"", 1.0),
    ] {
        assert_eq!(sample(metrics, name, label), value, "{name} {label}");
    }
    let resident = sample(metrics, "process_resident_memory_bytes", "");
    assert!(resident > f64::from(1 << 20), "{resident}");
    let started = sample(metrics, "process_start_time_seconds", "");
    assert!(started > 1.7e9, "{started}");
    for name in ["vllm:prompt_tokens_total", "vllm:num_preemptions_total"] {
        assert!(
            metrics.contains(&format!("# TYPE {name} counter\n")),
            "{name}"
        );
    }
}
