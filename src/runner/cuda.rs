//! The runner for NVIDIA GPUs: products by cuBLAS, and one kernel for all that lies between two.
//!
//! Weights, activations, K and V have 16 bits, bf16 where the file's are bf16 and f16 otherwise; the
//! residual stream has 32. A layer is nine launches: norm, QKV, heads (bias, rotation, K and V to their
//! slots), attention over the blocks where they lie, output, norm, up, activation, down. A decode step is
//! recorded when its shape is met again, and then queued at once. The output and down products add to the
//! residual stream themselves, and their biases wait for the next norm. A row's logits are the same in
//! every batch but for rounding: cuBLAS chooses its order of sums by the shapes.

#![allow(unsafe_code)]

mod gpu;
mod inputs;
mod kernels;
mod layer;
mod product;
mod recording;

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use candle_core::quantized::GgmlDType;

pub use self::gpu::Gpu;
use self::gpu::{Address, Buffer, Pinned};
use self::inputs::{Inputs, Sender};
use self::kernels::{Heads, Kernels, StepTables};
use self::layer::{Layer, Linear, Loader, Norm, address};
use self::product::{Blas, Element, Matrix, Product};
use self::recording::Recording;
use super::{KvLayout, Logits, RaggedBatch, Runner, memory};
use crate::kernels::KvType;
use crate::model::{Activation, Mlp, ModelSpec, Positions, StoredTensor, Weights};

/// Elements of 16 bytes, which attention reads at once.
const STRIDE_STEP: usize = 8;
/// Attention looks up so many positions at once, so that blocks are whole multiples.
const BLOCK_STEP: usize = 16;
/// Decode steps that are kept recorded.
const MAX_RECORDINGS: usize = 256;

/// A model, its KV storage and the buffers of a step.
#[derive(Debug)]
pub struct CudaRunner {
    spec: ModelSpec,
    gpu: Gpu,
    kernels: Kernels,
    blas: Blas,
    token_embedding: Matrix,            // (vocab_size, hidden_size)
    position_embedding: Option<Matrix>, // (max_positions, hidden_size)
    layers: Vec<Layer>,
    final_norm: Norm,
    /// `None`: the token embedding is the head.
    head: Option<Matrix>, // (vocab_size, hidden_size)
    inverse_frequencies: Option<Buffer<f32>>, // (head_dim / 2)
    heads: Heads,
    block_size: usize,
    /// K, then V of each layer. (num_layers, 2, num_kv_heads, num_slots, stride)
    kv: Buffer<u16>,
    sender: Sender,
    scratch: Scratch,
    /// Decode steps by their shapes; `None` where one has run once.
    recordings: HashMap<Shape, Option<Recording>>,
    /// The memory of `logits`; before it, to be dropped first.
    pinned: Option<Pinned>,
    logits: Logits,
}

/// All that launches of a step depend on, beside where its parts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    num_rows: usize,
    num_logit_rows: usize,
    num_units: usize,
    /// Of each unit's context.
    num_parts: usize,
}

/// What a step fills, layer after layer.
#[derive(Debug)]
struct Scratch {
    /// The residual stream. (rows, hidden_size)
    x: Buffer<f32>,
    normed: Buffer<u16>,   // (rows, hidden_size)
    qkv: Buffer<u16>,      // (rows, qkv_features)
    q: Buffer<u16>,        // (rows, num_heads, stride)
    attended: Buffer<u16>, // (rows, num_heads * head_dim)
    up: Buffer<u16>,       // (rows, up_features)
    inner: Buffer<u16>,    // (rows, intermediate_size)
    parts: Buffer<f32>,    // see Kernels::attend
    logits: Buffer<f32>,   // (logit_rows, vocab_size)
}

/// Bytes of K and V that one token takes in the storage of [`CudaRunner`].
///
/// # Errors
/// The storage cannot be of this type.
pub fn kv_bytes_per_token(spec: &ModelSpec, kv_type: KvType) -> Result<u64> {
    match kv_type {
        KvType::F16 => Ok((2 * slot_elements(spec) * size_of::<u16>()) as u64),
        KvType::F32 | KvType::Q8_0 => {
            bail!("KV_CACHE_TYPE={kv_type} is for CPUs; on a GPU set KV_CACHE_TYPE=f16")
        }
    }
}

/// Elements of K that a token has in all layers.
fn slot_elements(spec: &ModelSpec) -> usize {
    spec.num_layers * spec.num_kv_heads * stride(spec)
}

fn stride(spec: &ModelSpec) -> usize {
    spec.head_dim.next_multiple_of(STRIDE_STEP)
}

impl CudaRunner {
    /// Puts the weights on the GPU and sets up storage for K and V.
    ///
    /// Fails before it allocates if weights and storage cannot fit the GPU's free memory.
    pub fn new(spec: &ModelSpec, weights: &Weights, gpu: Gpu, kv: KvLayout) -> Result<Self> {
        ensure!(
            kv.block_size > 0 && kv.block_size.is_multiple_of(BLOCK_STEP),
            "blocks of {} tokens are not possible on a GPU, only multiples of {BLOCK_STEP}",
            kv.block_size
        );
        let num_slots = kv.num_slots()?;
        let kv_bytes = kv_bytes_per_token(spec, kv.kv_type)?.saturating_mul(num_slots as u64);
        let parameters: u64 = weights.tensors().map(StoredTensor::num_elements).sum();
        let weight_bytes = parameters.saturating_mul(size_of::<u16>() as u64);
        memory::ensure_free(gpu.free_bytes(), weight_bytes, kv_bytes)?;
        let element = match weights.token_embedding.dtype {
            GgmlDType::BF16 => Element::Bf16,
            _ => Element::F16,
        };
        let loader = Loader {
            gpu: &gpu,
            element,
            spec,
        };
        let matrix = |stored: &Option<StoredTensor>| {
            let matrix = stored.as_ref().map(|stored| loader.matrix(stored));
            matrix.transpose()
        };
        let inverse_frequencies = match &spec.positions {
            Positions::Rope(rope) => Some(gpu.upload(&rope.inverse_frequencies)?),
            Positions::Learned => None,
        };
        let mut runner = Self {
            kernels: Kernels::new(&gpu, element, spec.head_dim)?,
            blas: Blas::new(&gpu, element)?,
            token_embedding: loader.matrix(&weights.token_embedding)?,
            position_embedding: matrix(&weights.position_embedding)?,
            layers: loader.layers(&weights.layers)?,
            final_norm: loader.norm(&weights.final_norm)?,
            head: matrix(&weights.head)?,
            inverse_frequencies,
            heads: Heads {
                num_heads: spec.num_heads as u32,
                num_kv_heads: spec.num_kv_heads as u32,
                head_dim: spec.head_dim as u32,
                stride: stride(spec) as u32,
                num_slots: num_slots as u32,
            },
            block_size: kv.block_size,
            kv: gpu.zeros(2 * slot_elements(spec) * num_slots)?,
            sender: Sender::new(&gpu)?,
            scratch: Scratch::new(&gpu)?,
            recordings: HashMap::new(),
            pinned: None,
            logits: Logits {
                values: Vec::new(),
                vocab_size: spec.vocab_size,
            },
            spec: spec.clone(),
            gpu,
        };
        runner.warm_up(&kv)?;
        Ok(runner)
    }

    /// Runs short prompts, so that the first request does not wait for what NVIDIA's libraries load when
    /// they are first called. What it leaves in the storage is of no sequence.
    fn warm_up(&mut self, kv: &KvLayout) -> Result<()> {
        let most = self.spec.max_positions.min(kv.num_blocks * kv.block_size);
        for num_tokens in [1, 16, 256].map(|num_tokens: usize| num_tokens.min(most) as u32) {
            let num_blocks = num_tokens.div_ceil(kv.block_size as u32);
            self.forward(&RaggedBatch {
                copies: Vec::new(),
                token_ids: vec![0; num_tokens as usize],
                positions: (0..num_tokens).collect(),
                slots: (0..num_tokens).collect(),
                q_start: vec![0, num_tokens],
                seq_lens: vec![num_tokens],
                block_tables: (0..num_blocks).collect(),
                block_table_start: vec![0, num_blocks],
                logit_rows: vec![num_tokens - 1],
            })?;
        }
        Ok(())
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> u64 {
        let tables = [&self.position_embedding, &self.head].into_iter().flatten();
        let linears = self.layers.iter().flat_map(Layer::linears);
        let matrices = linears.map(|linear| &linear.matrix);
        let matrices = tables.chain([&self.token_embedding]).chain(matrices);
        matrices.map(|it| it.values.num_bytes() as u64).sum()
    }

    fn copy_blocks(&self, batch: &RaggedBatch) -> Result<()> {
        let stride = self.heads.stride as usize;
        let pool_elements = self.heads.num_slots as usize * stride;
        let num_pools = 2 * self.spec.num_layers * self.spec.num_kv_heads;
        for copy in &batch.copies {
            let first = |block: u32| block as usize * self.block_size * stride;
            let num_elements = copy.num_tokens as usize * stride;
            let places = (first(copy.from_block), first(copy.to_block), num_elements);
            let pools = (self.kv.address(), num_pools, pool_elements);
            // SAFETY: the caller of `Runner::forward` guarantees blocks inside the storage.
            unsafe { self.kernels.copy_slots(pools, places) }?;
        }
        Ok(())
    }

    /// K and V of a layer.
    fn pools(&self, layer: usize) -> (Address, Address) {
        let heads = &self.heads;
        let elements =
            heads.num_kv_heads as usize * heads.num_slots as usize * heads.stride as usize;
        let pool = |index: usize| self.kv.address_of(index * elements);
        (pool(2 * layer), pool(2 * layer + 1))
    }

    /// Queues a step; the logits are then on the GPU.
    fn run(&mut self, batch: &RaggedBatch) -> Result<()> {
        let sharing = self.spec.num_heads / self.spec.num_kv_heads;
        let inputs = self.sender.send(&self.gpu, batch, sharing)?;
        let longest_context = batch.seq_lens.iter().max().copied().unwrap_or(0);
        let num_kv_heads = self.spec.num_kv_heads;
        let shape = Shape {
            num_rows: batch.num_tokens(),
            num_logit_rows: batch.logit_rows.len(),
            num_units: inputs.num_units,
            num_parts: self.kernels.num_parts(
                inputs.num_units,
                num_kv_heads,
                longest_context as usize,
            ),
        };
        let parts_len = self
            .kernels
            .parts_len(shape.num_units, num_kv_heads, shape.num_parts);
        let scratch = &mut self.scratch;
        let has_moved = scratch.reserve(&self.gpu, &self.spec, &self.heads, (shape, parts_len))?;
        if has_moved || inputs.has_moved {
            self.recordings.clear();
        }
        let is_decode = batch.num_tokens() == batch.num_sequences();
        if !is_decode {
            return self.queue(shape, &inputs);
        }
        match self.recordings.get(&shape) {
            // The first time it runs as it is: what cuBLAS loads then, it could not load while it is
            // recorded.
            None => {
                if self.recordings.len() >= MAX_RECORDINGS {
                    self.recordings.clear();
                }
                self.recordings.insert(shape, None);
                self.queue(shape, &inputs)
            }
            Some(None) => {
                let recording = self.gpu.record(|| self.queue(shape, &inputs))?;
                self.gpu.replay(&recording)?;
                self.recordings.insert(shape, Some(recording));
                Ok(())
            }
            Some(Some(recording)) => self.gpu.replay(recording),
        }
    }

    /// Queues the launches of a step.
    fn queue(&self, shape: Shape, inputs: &Inputs) -> Result<()> {
        let rows = shape.num_rows;
        let x = self.scratch.x.address();
        let table = self.position_embedding.as_ref();
        let table = table.map_or(0, |table| table.values.address());
        let tokens = (self.token_embedding.values.address(), inputs.token_ids);
        let positions = (table, inputs.positions);
        let hidden_size = self.spec.hidden_size;
        // SAFETY: `scratch` has room for the step; ids and positions were checked.
        unsafe {
            self.kernels
                .embed((rows, hidden_size), tokens, positions, x)
        }?;
        // The bias that `x` still lacks.
        let mut pending = 0;
        for index in 0..self.layers.len() {
            self.attend(index, shape, pending, inputs)?;
            pending = address(&self.layers[index].output.bias);
            self.mlp(index, rows, pending)?;
            pending = address(&self.layers[index].down.bias);
        }
        let rows = shape.num_logit_rows;
        if rows > 0 {
            self.normalise(&self.final_norm, rows, (x, pending, inputs.logit_rows))?;
            let head = self.head.as_ref().unwrap_or(&self.token_embedding);
            let to = Product::Floats(self.scratch.logits.address());
            self.product(rows, &self.scratch.normed, head, to)?;
        }
        Ok(())
    }

    /// Adds what attention adds to the residual stream.
    fn attend(&self, index: usize, shape: Shape, pending: Address, inputs: &Inputs) -> Result<()> {
        let rows = shape.num_rows;
        let (layer, scratch) = (&self.layers[index], &self.scratch);
        let x = scratch.x.address();
        self.normalise(&layer.attention_norm, rows, (x, pending, 0))?;
        let qkv = scratch.qkv.address();
        let to = Product::Elements(qkv);
        self.product(rows, &scratch.normed, &layer.qkv.matrix, to)?;
        let (k_pool, v_pool) = self.pools(index);
        let q_k_v = (scratch.q.address(), k_pool, v_pool);
        let frequencies = address(&self.inverse_frequencies);
        let step = StepTables {
            q_start: inputs.q_start,
            positions: inputs.positions,
            block_tables: inputs.block_tables,
            block_table_start: inputs.block_table_start,
            units: inputs.units,
            block_size: self.block_size as u32,
            window: self
                .spec
                .sliding_window
                .map_or(u32::MAX, |window| window as u32),
        };
        let attended = scratch.attended.address();
        // SAFETY: `scratch` has room for the step. The caller of `Runner::forward` guarantees slots and
        // blocks inside the storage, and tables that cover their sequences.
        unsafe {
            self.kernels.write_qkv(
                rows,
                (qkv, address(&layer.qkv.bias)),
                (
                    address(&layer.q_norm),
                    address(&layer.k_norm),
                    layer.attention_norm.eps,
                ),
                (inputs.positions, inputs.slots, frequencies),
                q_k_v,
                self.heads,
            )?;
            let units = (shape.num_units, shape.num_parts);
            let out = (attended, scratch.parts.address());
            self.kernels.attend(units, q_k_v, step, out, self.heads)?;
        }
        self.product(
            rows,
            &scratch.attended,
            &layer.output.matrix,
            Product::Added(x),
        )
    }

    /// Adds what the MLP adds to the residual stream.
    fn mlp(&self, index: usize, rows: usize, pending: Address) -> Result<()> {
        let (layer, scratch) = (&self.layers[index], &self.scratch);
        let x = scratch.x.address();
        self.normalise(&layer.mlp_norm, rows, (x, pending, 0))?;
        let up = scratch.up.address();
        self.product(
            rows,
            &scratch.normed,
            &layer.up.matrix,
            Product::Elements(up),
        )?;
        let (activation, is_gated) = match self.spec.mlp {
            Mlp::Plain(activation) => (activation, false),
            Mlp::Gated(activation) => (activation, true),
        };
        // As in `kernels.cu`.
        let activation = match activation {
            Activation::Silu => 0,
            Activation::Gelu => 1,
            Activation::GeluTanh => 2,
        };
        let shape = (rows, self.spec.intermediate_size);
        let up = (up, address(&layer.up.bias));
        let inner = scratch.inner.address();
        // SAFETY: `scratch` has room for the step.
        unsafe {
            self.kernels
                .mlp_inner(shape, up, (activation, is_gated), inner)
        }?;
        self.product(rows, &scratch.inner, &layer.down.matrix, Product::Added(x))
    }

    fn product(&self, rows: usize, x: &Buffer<u16>, matrix: &Matrix, to: Product) -> Result<()> {
        // SAFETY: `scratch`, where x and the product are, has room for the step.
        unsafe { self.blas.product(rows, x.address(), matrix, to) }
    }

    /// Normalises rows of the residual stream: x, the bias that it lacks, and which rows.
    fn normalise(
        &self,
        norm: &Norm,
        rows: usize,
        x_pending_rows: (Address, Address, Address),
    ) -> Result<()> {
        let shape = (rows, self.spec.hidden_size);
        let weights = (
            norm.weight.address(),
            address(&norm.bias),
            norm.eps,
            norm.is_layer_norm,
        );
        let normed = self.scratch.normed.address();
        // SAFETY: `scratch` has room for the step, and wanted rows are rows of it.
        unsafe {
            self.kernels
                .normalise(shape, x_pending_rows, weights, normed)
        }
    }

    fn resize_logits(&mut self, len: usize) {
        let values = &mut self.logits.values;
        if values.capacity() < len {
            self.pinned = None;
            *values = Vec::with_capacity(len.next_power_of_two());
            // SAFETY: it is dropped here and with `self`, each time before the vector.
            self.pinned = unsafe { self.gpu.pin(values) };
        }
        values.resize(len, 0.0);
    }

    /// Ids and positions index tables on the GPU, where nothing else would stop them.
    fn check(&self, batch: &RaggedBatch) -> Result<()> {
        let ensure_below = |values: &[u32], limit: usize, what: &str| {
            let outside = values.iter().find(|&&value| value as usize >= limit);
            match outside {
                None => Ok(()),
                Some(value) => bail!("{what} {value} lies outside a table of {limit} vectors"),
            }
        };
        ensure_below(&batch.token_ids, self.token_embedding.out_features, "token")?;
        match &self.position_embedding {
            None => Ok(()),
            Some(table) => ensure_below(&batch.positions, table.out_features, "position"),
        }
    }
}

impl Runner for CudaRunner {
    fn forward(&mut self, batch: &RaggedBatch) -> Result<&Logits> {
        self.check(batch)?;
        self.copy_blocks(batch)?;
        self.resize_logits(batch.logit_rows.len() * self.spec.vocab_size);
        if batch.num_tokens() > 0 {
            self.run(batch)?;
            self.gpu
                .download(&self.scratch.logits, &mut self.logits.values)?;
        }
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }
}

impl Layer {
    fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.output, &self.up, &self.down]
    }
}

impl Scratch {
    fn new(gpu: &Gpu) -> Result<Self> {
        let elements = || gpu.zeros(1);
        Ok(Self {
            x: gpu.zeros(1)?,
            normed: elements()?,
            qkv: elements()?,
            q: elements()?,
            attended: elements()?,
            up: elements()?,
            inner: elements()?,
            parts: gpu.zeros(1)?,
            logits: gpu.zeros(1)?,
        })
    }

    /// Makes room for a step; whether anything has moved.
    fn reserve(
        &mut self,
        gpu: &Gpu,
        spec: &ModelSpec,
        heads: &Heads,
        (shape, parts_len): (Shape, usize),
    ) -> Result<bool> {
        let rows = shape.num_rows;
        let up_features = match spec.mlp {
            Mlp::Plain(_) => spec.intermediate_size,
            Mlp::Gated(_) => 2 * spec.intermediate_size,
        };
        let mut has_moved = false;
        for (buffer, len) in [
            (&mut self.x, rows * spec.hidden_size),
            (&mut self.parts, parts_len),
            (&mut self.logits, shape.num_logit_rows * spec.vocab_size),
        ] {
            has_moved |= buffer.reserve(gpu, len)?;
        }
        for (buffer, width) in [
            (&mut self.normed, spec.hidden_size),
            (&mut self.qkv, spec.qkv_features()),
            (&mut self.q, spec.num_heads * heads.stride as usize),
            (&mut self.attended, spec.num_heads * spec.head_dim),
            (&mut self.up, up_features),
            (&mut self.inner, spec.intermediate_size),
        ] {
            has_moved |= buffer.reserve(gpu, rows * width)?;
        }
        Ok(has_moved)
    }
}
