//! Small random models, written both as GGUF and as a Hugging Face folder with the same values.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Shape, Tensor, safetensors};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::Normal;
use serde_json::json;

/// Rows are whole blocks of every quantisation: multiples of 256.
pub const HIDDEN: usize = 256;
const HEADS: usize = 8;
const INNER: usize = 512;
const LAYERS: usize = 2;
/// That of models/tiny-*, so that their tokenizer fits.
pub const VOCAB: usize = 323;
pub const POSITIONS: usize = 256;
const THETA: f32 = 10_000.0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Architecture {
    /// Untied head, no bias, Q and K stored for interleaved rope.
    Llama,
    /// Tied head, biases on Q, K and V.
    Qwen2,
    /// Tied head, norms on the heads of Q and K.
    Qwen3,
    /// Tied head, biases, learned positions, Q, K and V fused; a folder stores matrices (in, out).
    Gpt2,
}

impl Architecture {
    pub const ALL: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gpt2];

    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gpt2 => "gpt2",
        }
    }

    fn kv_heads(self) -> usize {
        match self {
            Self::Gpt2 => HEADS,
            _ => HEADS / 2,
        }
    }

    fn head_dim(self) -> usize {
        match self {
            Self::Gpt2 => HIDDEN / HEADS,
            _ => 64,
        }
    }
}

/// One tensor under both names; `gguf` holds what the GGUF file holds.
struct Part {
    gguf_name: String,
    hf_name: String,
    gguf: QTensor,
    in_folder: InFolder,
}

/// How a folder stores what a GGUF file stores.
#[derive(Clone, Copy)]
enum InFolder {
    Alike,
    /// Rows of so many heads, which the GGUF file has in the order of interleaved rope.
    HalfSplit {
        heads: usize,
        head_dim: usize,
    },
    Transposed,
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
        Self::with_inner(architecture, types, INNER)
    }

    /// With an MLP of the given width.
    pub fn with_inner(architecture: Architecture, types: &[GgmlDType], inner: usize) -> Self {
        let mut model = Self {
            parts: Vec::new(),
            metadata: metadata(architecture, inner),
            extra_tensors: Vec::new(),
            config: config(architecture, inner),
        };
        let mut types = types.iter().cycle().copied();
        let mut dtype = move || types.next().expect("at least one type");
        match architecture {
            Architecture::Gpt2 => model.add_gpt2(inner, &mut dtype),
            _ => model.add_llama_like(architecture, inner, &mut dtype),
        }
        model
    }

    fn add_llama_like(
        &mut self,
        architecture: Architecture,
        inner: usize,
        dtype: &mut impl FnMut() -> GgmlDType,
    ) {
        let (kv_heads, head_dim) = (architecture.kv_heads(), architecture.head_dim());
        let rows_of = |heads| match architecture {
            Architecture::Llama => InFolder::HalfSplit { heads, head_dim },
            _ => InFolder::Alike,
        };
        let embedding = ("token_embd.weight", "model.embed_tokens.weight");
        self.add_matrix(embedding, (VOCAB, HIDDEN), dtype(), InFolder::Alike);
        if architecture == Architecture::Llama {
            let head = ("output.weight", "lm_head.weight");
            self.add_matrix(head, (VOCAB, HIDDEN), dtype(), InFolder::Alike);
        }
        self.add_vector("output_norm.weight", "model.norm.weight", HIDDEN);
        let (q, kv) = (HEADS * head_dim, kv_heads * head_dim);
        for layer in 0..LAYERS {
            let of_layer = |gguf: &str, hf: &str| {
                let (gguf, hf) = (
                    format!("blk.{layer}.{gguf}"),
                    format!("model.layers.{layer}.{hf}"),
                );
                (gguf, hf)
            };
            for (gguf, hf, rows, columns, in_folder) in [
                ("attn_q", "self_attn.q_proj", q, HIDDEN, rows_of(HEADS)),
                ("attn_k", "self_attn.k_proj", kv, HIDDEN, rows_of(kv_heads)),
                ("attn_v", "self_attn.v_proj", kv, HIDDEN, InFolder::Alike),
                (
                    "attn_output",
                    "self_attn.o_proj",
                    HIDDEN,
                    q,
                    InFolder::Alike,
                ),
                ("ffn_gate", "mlp.gate_proj", inner, HIDDEN, InFolder::Alike),
                ("ffn_up", "mlp.up_proj", inner, HIDDEN, InFolder::Alike),
                ("ffn_down", "mlp.down_proj", HIDDEN, inner, InFolder::Alike),
            ] {
                let has_bias = architecture == Architecture::Qwen2
                    && ["attn_q", "attn_k", "attn_v"].contains(&gguf);
                let (gguf, hf) = of_layer(gguf, hf);
                let names = (&*format!("{gguf}.weight"), &*format!("{hf}.weight"));
                self.add_matrix(names, (rows, columns), dtype(), in_folder);
                if has_bias {
                    self.add_vector(&format!("{gguf}.bias"), &format!("{hf}.bias"), rows);
                }
            }
            if architecture == Architecture::Qwen3 {
                for part in ["q_norm", "k_norm"] {
                    let (gguf, hf) = of_layer(
                        &format!("attn_{part}.weight"),
                        &format!("self_attn.{part}.weight"),
                    );
                    self.add_vector(&gguf, &hf, head_dim);
                }
            }
            for (gguf, hf) in [
                ("attn_norm.weight", "input_layernorm.weight"),
                ("ffn_norm.weight", "post_attention_layernorm.weight"),
            ] {
                let (gguf, hf) = of_layer(gguf, hf);
                self.add_vector(&gguf, &hf, HIDDEN);
            }
        }
    }

    fn add_gpt2(&mut self, inner: usize, dtype: &mut impl FnMut() -> GgmlDType) {
        let embedding = ("token_embd.weight", "transformer.wte.weight");
        self.add_matrix(embedding, (VOCAB, HIDDEN), dtype(), InFolder::Alike);
        let positions = ("position_embd.weight", "transformer.wpe.weight");
        self.add_matrix(positions, (POSITIONS, HIDDEN), dtype(), InFolder::Alike);
        let mut norms = vec![("output_norm".to_owned(), "transformer.ln_f".to_owned())];
        for layer in 0..LAYERS {
            for (gguf, hf, rows, columns) in [
                ("attn_qkv", "attn.c_attn", 3 * HIDDEN, HIDDEN),
                ("attn_output", "attn.c_proj", HIDDEN, HIDDEN),
                ("ffn_up", "mlp.c_fc", inner, HIDDEN),
                ("ffn_down", "mlp.c_proj", HIDDEN, inner),
            ] {
                let (gguf, hf) = (
                    format!("blk.{layer}.{gguf}"),
                    format!("transformer.h.{layer}.{hf}"),
                );
                let names = (&*format!("{gguf}.weight"), &*format!("{hf}.weight"));
                self.add_matrix(names, (rows, columns), dtype(), InFolder::Transposed);
                self.add_vector(&format!("{gguf}.bias"), &format!("{hf}.bias"), rows);
            }
            for (gguf, hf) in [("attn_norm", "ln_1"), ("ffn_norm", "ln_2")] {
                let gguf = format!("blk.{layer}.{gguf}");
                norms.push((gguf, format!("transformer.h.{layer}.{hf}")));
            }
        }
        for (gguf, hf) in norms {
            for part in ["weight", "bias"] {
                self.add_vector(&format!("{gguf}.{part}"), &format!("{hf}.{part}"), HIDDEN);
            }
        }
    }

    fn add_matrix(
        &mut self,
        names: (&str, &str),
        shape: (usize, usize),
        dtype: GgmlDType,
        in_folder: InFolder,
    ) {
        let noise = self.noise((0.0, 0.08), shape);
        self.add(names, noise, dtype, in_folder);
    }

    /// The next tensor's, of this mean and deviation: the same in every run.
    fn noise(&self, (mean, deviation): (f32, f32), shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let values = ChaCha8Rng::seed_from_u64(self.parts.len() as u64)
            .sample_iter(Normal::new(mean, deviation).expect("a distribution"));
        let values: Vec<f32> = values.take(shape.elem_count()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("noise")
    }

    fn add(
        &mut self,
        (gguf_name, hf_name): (&str, &str),
        values: Tensor,
        dtype: GgmlDType,
        in_folder: InFolder,
    ) {
        self.parts.push(Part {
            gguf_name: gguf_name.to_owned(),
            hf_name: hf_name.to_owned(),
            gguf: QTensor::quantize(&values, dtype).expect("quantised"),
            in_folder,
        });
    }

    fn add_vector(&mut self, gguf_name: &str, hf_name: &str, len: usize) {
        let noise = self.noise((1.0, 0.2), len);
        let names = (gguf_name, hf_name);
        self.add(names, noise, GgmlDType::F32, InFolder::Alike);
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
            .map(|part| (part.hf_name.clone(), part.values_in_folder()))
            .collect();
        safetensors::save(&tensors, folder.join("model.safetensors")).expect("saved");
        fs::write(folder.join("config.json"), self.config.to_string()).expect("written");
    }
}

impl Part {
    fn values_in_folder(&self) -> Tensor {
        let values = self.gguf.dequantize(&Device::Cpu).expect("dequantised");
        match self.in_folder {
            InFolder::Alike => values,
            InFolder::Transposed => values
                .t()
                .and_then(|values| values.contiguous())
                .expect("a matrix"),
            InFolder::HalfSplit { heads, head_dim } => values
                .reshape((heads, head_dim / 2, 2, HIDDEN))
                .and_then(|pairs| pairs.transpose(1, 2)?.contiguous())
                .and_then(|halves| halves.reshape((heads * head_dim, HIDDEN)))
                .expect("whole heads"),
        }
    }
}

fn config(architecture: Architecture, inner: usize) -> serde_json::Value {
    match architecture {
        Architecture::Gpt2 => json!({
            "model_type": "gpt2",
            "n_embd": HIDDEN,
            "n_inner": inner,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": POSITIONS,
            "vocab_size": VOCAB,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            "eos_token_id": [2, 5],
        }),
        _ => json!({
            "model_type": architecture.name(),
            "hidden_size": HIDDEN,
            "intermediate_size": inner,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": architecture.kv_heads(),
            "head_dim": architecture.head_dim(),
            "vocab_size": VOCAB,
            "max_position_embeddings": POSITIONS,
            "rms_norm_eps": 1e-5,
            "rope_theta": THETA,
            "hidden_act": "silu",
            "tie_word_embeddings": architecture != Architecture::Llama,
            "eos_token_id": [2, 5],
        }),
    }
}

fn metadata(architecture: Architecture, inner: usize) -> Vec<(String, Value)> {
    let key = |name: &str| format!("{}.{name}", architecture.name());
    let number = |n: usize| Value::U32(n as u32);
    let text = |text: &str| Value::String(text.to_owned());
    let tokens = (0..VOCAB).map(|i| Value::String(format!("token{i}")));
    let kinds = (0..VOCAB).map(|i| Value::I32(if i < 3 { 3 } else { 1 }));
    let mut tokens: Vec<_> = tokens.collect();
    tokens[1] = text("<|im_end|>");
    let mut metadata = vec![
        ("general.architecture".to_owned(), text(architecture.name())),
        (key("context_length"), number(POSITIONS)),
        (key("embedding_length"), number(HIDDEN)),
        (key("block_count"), number(LAYERS)),
        (key("feed_forward_length"), number(inner)),
        (key("attention.head_count"), number(HEADS)),
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
        (
            "tokenizer.ggml.token_type".to_owned(),
            Value::Array(kinds.collect()),
        ),
        ("tokenizer.ggml.eos_token_id".to_owned(), number(2)),
    ];
    metadata.extend(match architecture {
        Architecture::Gpt2 => vec![(key("attention.layer_norm_epsilon"), Value::F32(1e-5))],
        _ => {
            let head_dim = || number(architecture.head_dim());
            vec![
                (
                    key("attention.head_count_kv"),
                    number(architecture.kv_heads()),
                ),
                (key("attention.key_length"), head_dim()),
                (key("attention.value_length"), head_dim()),
                (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
                (key("rope.dimension_count"), head_dim()),
                (key("rope.freq_base"), Value::F32(THETA)),
            ]
        }
    });
    metadata
}
