//! What GGUF metadata says about a decoder; families add what is theirs.

use anyhow::{Result, bail, ensure};

use super::gguf::{GgufFile, Metadata, Value};
use super::rope;
use super::spec::{
    Activation, Biases, Mlp, ModelSpec, Norm, NormKind, Positions, Rope, RopePairing,
};

/// End tokens that chat models use beside the one their metadata names.
const END_TOKENS: [&str; 6] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
];
/// Keys of an architecture that change nothing in what it computes. The window that rope scaling
/// started from is not used by the kinds of scaling that are supported.
const HARMLESS: [&str; 4] = [
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
];
/// `tokenizer.ggml.token_type` of control tokens.
const CONTROL_TOKEN: i32 = 3;

/// A decoder with RMS norms, rope and a gated SiLU MLP, without biases.
pub(super) fn rms_decoder(
    file: &mut GgufFile,
    architecture: &str,
    pairing: RopePairing,
) -> Result<ModelSpec> {
    let metadata = &file.metadata;
    let key = |name: &str| format!("{architecture}.{name}");
    let required = |name: &str| metadata.required(&key(name));
    let optional = |name: &str| metadata.integer(&key(name));
    let num_experts = [optional("expert_count")?, optional("expert_used_count")?];
    ensure!(
        num_experts.iter().all(|n| n.unwrap_or(0) == 0),
        "it is a mixture of experts, which is not supported"
    );
    let hidden_size = required("embedding_length")?;
    let num_heads = required("attention.head_count")?;
    ensure!(num_heads > 0, "its attention.head_count is 0");
    let head_dim = optional("attention.key_length")?.unwrap_or(hidden_size / num_heads);
    let value_dim = optional("attention.value_length")?.unwrap_or(head_dim);
    ensure!(
        value_dim == head_dim,
        "its heads have {head_dim} dimensions of K and {value_dim} of V; they must be equal"
    );
    let rotated = optional("rope.dimension_count")?.unwrap_or(head_dim);
    let eps = metadata.float(&key("attention.layer_norm_rms_epsilon"))?;
    let eps = eps.unwrap_or(1e-5);
    let mut spec = ModelSpec {
        vocab_size: file.tensors.rows("token_embd.weight")?,
        hidden_size,
        num_layers: required("block_count")?,
        num_heads,
        num_kv_heads: optional("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        intermediate_size: required("feed_forward_length")?,
        norm: Norm {
            kind: NormKind::Rms,
            eps,
        },
        positions: Positions::Learned,
        mlp: Mlp::Gated(Activation::Silu),
        biases: Biases::default(),
        qk_norm: false,
        sliding_window: optional("attention.sliding_window")?.filter(|&window| window > 0),
        tied_head: !file.tensors.contains("output.weight"),
        max_positions: required("context_length")?,
    };
    let mut inverse_frequencies = frequencies(metadata, architecture, rotated)?;
    if let Some(factors) = file.tensors.take_any("rope_freqs.weight") {
        let factors = factors.read_f32()?.flatten_all()?.to_vec1()?;
        rope::divide(&mut inverse_frequencies, &factors)?;
    }
    spec.positions = Positions::Rope(Rope {
        pairing,
        inverse_frequencies,
    });
    Ok(spec)
}

fn frequencies(metadata: &Metadata, architecture: &str, rotated: usize) -> Result<Vec<f32>> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let theta = metadata.float(&key("freq_base"))?.unwrap_or(10_000.0);
    let mut frequencies = rope::inverse_frequencies(theta, rotated)?;
    let old_factor = metadata.float(&key("scale_linear"))?;
    let factor = metadata.float(&key("scaling.factor"))?.or(old_factor);
    match metadata.string(&key("scaling.type"))? {
        Some("none") => {}
        None | Some("linear") => {
            rope::scale_linear(&mut frequencies, factor.unwrap_or(1.0) as f32)?
        }
        Some(other) => bail!("its rope scaling {other:?} is not supported"),
    }
    Ok(frequencies)
}

/// Refuses what an architecture's metadata says and its family has not asked for.
pub(super) fn ensure_all_read(metadata: &Metadata, architecture: &str) -> Result<()> {
    metadata.ensure_all_read(&format!("{architecture}."), &HARMLESS)
}

/// The ids that end a generation: those named in the metadata and well-known control tokens.
pub(super) fn eos_token_ids(metadata: &Metadata, vocab_size: usize) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        let key = format!("tokenizer.ggml.{name}");
        if let Some(id) = metadata.integer(&key)? {
            ensure!(
                id < vocab_size,
                "its metadata key {key} is {id}, the vocabulary has {vocab_size} tokens"
            );
            ids.push(id as u32);
        }
    }
    if let (Some(Value::Strings(tokens)), Some(Value::Integers(kinds))) = (
        metadata.get("tokenizer.ggml.tokens"),
        metadata.get("tokenizer.ggml.token_type"),
    ) {
        let control = tokens.iter().zip(kinds).take(vocab_size).enumerate();
        ids.extend(control.filter_map(|(id, (token, kind))| {
            (*kind == CONTROL_TOKEN && END_TOKENS.contains(&token.as_str())).then_some(id as u32)
        }));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
