//! Small random models, written both as GGUF and as a Hugging Face folder with the same values.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor, safetensors};
use serde_json::json;

/// Rows are whole blocks of every quantisation: multiples of 256.
pub const HIDDEN: usize = 256;
const HEADS: usize = 8;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const INNER: usize = 512;
const LAYERS: usize = 2;
pub const VOCAB: usize = 97;
const THETA: f32 = 10_000.0;

#[derive(Clone, Copy, PartialEq)]
pub enum Architecture {
    /// Untied head, no bias, Q and K stored for interleaved rope.
    Llama,
    /// Tied head, biases on Q, K and V.
    Qwen2,
}

impl Architecture {
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }
}

/// One tensor under both names; `gguf` holds what the GGUF file holds.
struct Part {
    gguf_name: String,
    hf_name: String,
    gguf: QTensor,
    /// Heads whose rows are stored for interleaved rope.
    interleaved_heads: Option<usize>,
}

/// A model whose matrices have the given types in turn.
pub struct Synthetic {
    parts: Vec<Part>,
    pub metadata: Vec<(String, Value)>,
    pub extra_tensors: Vec<(String, QTensor)>,
    pub config: serde_json::Value,
}

impl Synthetic {
    pub fn new(architecture: Architecture, types: &[GgmlDType]) -> Self {
        let mut model = Self {
            parts: Vec::new(),
            metadata: metadata(architecture.name()),
            extra_tensors: Vec::new(),
            config: json!({
                "model_type": architecture.name(),
                "hidden_size": HIDDEN,
                "intermediate_size": INNER,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "head_dim": HEAD_DIM,
                "vocab_size": VOCAB,
                "max_position_embeddings": 256,
                "rms_norm_eps": 1e-5,
                "rope_theta": THETA,
                "hidden_act": "silu",
                "tie_word_embeddings": architecture == Architecture::Qwen2,
                "eos_token_id": [2, 5],
            }),
        };
        let mut types = types.iter().cycle().copied();
        let mut matrix = |model: &mut Self, gguf: &str, hf: &str, rows, columns, heads| {
            let dtype = types.next().expect("at least one type");
            let noise = Tensor::randn(0f32, 0.08, (rows, columns), &Device::Cpu);
            model.add(gguf, hf, noise.expect("noise"), dtype, heads);
        };
        let is_llama = architecture == Architecture::Llama;
        let interleaved = |heads| is_llama.then_some(heads);
        matrix(
            &mut model,
            "token_embd.weight",
            "model.embed_tokens.weight",
            VOCAB,
            HIDDEN,
            None,
        );
        if is_llama {
            matrix(
                &mut model,
                "output.weight",
                "lm_head.weight",
                VOCAB,
                HIDDEN,
                None,
            );
        }
        model.add_vector("output_norm.weight", "model.norm.weight", HIDDEN);
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        for layer in 0..LAYERS {
            for (gguf, hf, rows, columns, heads) in [
                ("attn_q", "self_attn.q_proj", q, HIDDEN, interleaved(HEADS)),
                (
                    "attn_k",
                    "self_attn.k_proj",
                    kv,
                    HIDDEN,
                    interleaved(KV_HEADS),
                ),
                ("attn_v", "self_attn.v_proj", kv, HIDDEN, None),
                ("attn_output", "self_attn.o_proj", HIDDEN, q, None),
                ("ffn_gate", "mlp.gate_proj", INNER, HIDDEN, None),
                ("ffn_up", "mlp.up_proj", INNER, HIDDEN, None),
                ("ffn_down", "mlp.down_proj", HIDDEN, INNER, None),
            ] {
                let gguf = format!("blk.{layer}.{gguf}");
                let hf = format!("model.layers.{layer}.{hf}");
                let (weight, hf_weight) = (format!("{gguf}.weight"), format!("{hf}.weight"));
                matrix(&mut model, &weight, &hf_weight, rows, columns, heads);
                if !is_llama
                    && ["attn_q", "attn_k", "attn_v"]
                        .iter()
                        .any(|n| gguf.ends_with(n))
                {
                    model.add_vector(&format!("{gguf}.bias"), &format!("{hf}.bias"), rows);
                }
            }
            for (gguf, hf) in [
                ("attn_norm", "input_layernorm"),
                ("ffn_norm", "post_attention_layernorm"),
            ] {
                let gguf = format!("blk.{layer}.{gguf}.weight");
                model.add_vector(&gguf, &format!("model.layers.{layer}.{hf}.weight"), HIDDEN);
            }
        }
        model
    }

    fn add(
        &mut self,
        gguf_name: &str,
        hf_name: &str,
        values: Tensor,
        dtype: GgmlDType,
        interleaved_heads: Option<usize>,
    ) {
        self.parts.push(Part {
            gguf_name: gguf_name.to_owned(),
            hf_name: hf_name.to_owned(),
            gguf: QTensor::quantize(&values, dtype).expect("quantised"),
            interleaved_heads,
        });
    }

    fn add_vector(&mut self, gguf_name: &str, hf_name: &str, len: usize) {
        let noise = Tensor::randn(1f32, 0.2, len, &Device::Cpu).expect("noise");
        self.add(gguf_name, hf_name, noise, GgmlDType::F32, None);
    }

    /// The GGUF file.
    pub fn gguf(&self) -> Vec<u8> {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let parts = self
            .parts
            .iter()
            .map(|part| (part.gguf_name.as_str(), &part.gguf));
        let extra = self
            .extra_tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor));
        let tensors: Vec<_> = parts.chain(extra).collect();
        let mut file = Cursor::new(Vec::new());
        gguf_file::write(&mut file, &metadata, &tensors).expect("written");
        file.into_inner()
    }

    /// The folder: f32 values of what the GGUF file holds, rows in Hugging Face order.
    pub fn write_folder(&self, folder: &Path) {
        let tensors: HashMap<String, Tensor> = self
            .parts
            .iter()
            .map(|part| (part.hf_name.clone(), part.half_split_values()))
            .collect();
        safetensors::save(&tensors, folder.join("model.safetensors")).expect("saved");
        fs::write(folder.join("config.json"), self.config.to_string()).expect("written");
    }
}

impl Part {
    fn half_split_values(&self) -> Tensor {
        let values = self.gguf.dequantize(&Device::Cpu).expect("dequantised");
        let Some(heads) = self.interleaved_heads else {
            return values;
        };
        let pairs = values
            .reshape((heads, HEAD_DIM / 2, 2, HIDDEN))
            .expect("whole heads");
        let halves = pairs
            .transpose(1, 2)
            .and_then(|t| t.contiguous())
            .expect("transposed");
        halves.reshape((heads * HEAD_DIM, HIDDEN)).expect("rows")
    }
}

fn metadata(architecture: &str) -> Vec<(String, Value)> {
    let key = |name: &str| format!("{architecture}.{name}");
    let number = |n: usize| Value::U32(n as u32);
    let tokens = (0..VOCAB).map(|i| Value::String(format!("token{i}")));
    let kinds = (0..VOCAB).map(|i| Value::I32(if i < 3 { 3 } else { 1 }));
    let mut tokens: Vec<_> = tokens.collect();
    tokens[1] = Value::String("<|im_end|>".to_owned());
    vec![
        (
            "general.architecture".to_owned(),
            Value::String(architecture.to_owned()),
        ),
        (key("context_length"), number(256)),
        (key("embedding_length"), number(HIDDEN)),
        (key("block_count"), number(LAYERS)),
        (key("feed_forward_length"), number(INNER)),
        (key("attention.head_count"), number(HEADS)),
        (key("attention.head_count_kv"), number(KV_HEADS)),
        (key("attention.key_length"), number(HEAD_DIM)),
        (key("attention.value_length"), number(HEAD_DIM)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (key("rope.dimension_count"), number(HEAD_DIM)),
        (key("rope.freq_base"), Value::F32(THETA)),
        (
            "tokenizer.ggml.model".to_owned(),
            Value::String("gpt2".to_owned()),
        ),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
        (
            "tokenizer.ggml.token_type".to_owned(),
            Value::Array(kinds.collect()),
        ),
        ("tokenizer.ggml.eos_token_id".to_owned(), number(2)),
    ]
}
