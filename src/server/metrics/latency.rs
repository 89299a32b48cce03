//! Where the time of requests goes.

use prometheus::{Histogram, Registry};

use super::buckets;
use super::registered::histogram;
use crate::server::timings::{Progress, Timings};

pub struct LatencyHistograms {
    pub first_token: Histogram,
    pub inter_token: Histogram,
    per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
}

impl LatencyHistograms {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let request = |name, help| histogram(registry, name, help, buckets::REQUEST_SECONDS);
        Ok(Self {
            first_token: histogram(
                registry,
                "vllm:time_to_first_token_seconds",
                "Arrival of the request to its first token.",
                buckets::FIRST_TOKEN_SECONDS,
            )?,
            inter_token: histogram(
                registry,
                "vllm:inter_token_latency_seconds",
                "Time between two tokens of a request.",
                buckets::TOKEN_SECONDS,
            )?,
            per_output_token: histogram(
                registry,
                "vllm:request_time_per_output_token_seconds",
                "Mean time between two tokens of a request.",
                buckets::TOKEN_SECONDS,
            )?,
            e2e: request(
                "vllm:e2e_request_latency_seconds",
                "Arrival of the request to its last token.",
            )?,
            queue: request(
                "vllm:request_queue_time_seconds",
                "Arrival of the request to its first step.",
            )?,
            prefill: request(
                "vllm:request_prefill_time_seconds",
                "First step of the request to its first token.",
            )?,
            decode: request(
                "vllm:request_decode_time_seconds",
                "First token of the request to its last.",
            )?,
            inference: request(
                "vllm:request_inference_time_seconds",
                "First step of the request to its last token.",
            )?,
        })
    }

    pub fn observe(&self, progress: &Progress, timings: &Timings) {
        self.e2e.observe(timings.total.as_secs_f64());
        self.queue.observe(timings.queue.as_secs_f64());
        self.prefill.observe(timings.prefill.as_secs_f64());
        self.decode.observe(timings.decode.as_secs_f64());
        let inference = timings.prefill + timings.decode;
        self.inference.observe(inference.as_secs_f64());
        if progress.generated_tokens > 1 {
            let gaps = (progress.generated_tokens - 1) as f64;
            self.per_output_token
                .observe(timings.decode.as_secs_f64() / gaps);
        }
    }
}
