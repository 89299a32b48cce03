//! The kernels of `kernels.cu`: NVRTC compiles them for the GPU that is there, and each is launched here.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::{self, CompileOptions, Ptx};

use super::gpu::{Address, Gpu};
use super::product::Element;

const SOURCE: &str = include_str!("kernels.cu");
/// Threads of a block, for kernels that leave the choice.
const THREADS: usize = 256;
/// Positions that a warp of `attend` takes at once, as in `kernels.cu`.
const RUN: usize = 32;
/// The most elements that attention is written for a head to have.
const MAX_HEAD_DIM: usize = 256;

/// What kernels need to know of heads and of where K and V lie. As in `kernels.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Heads {
    pub num_heads: u32,
    pub num_kv_heads: u32,
    pub head_dim: u32,
    /// Elements from one head of Q, or slot of K and V, to the next: whole 16 bytes.
    pub stride: u32,
    pub num_slots: u32,
}

// SAFETY: it has the layout of the struct in `kernels.cu`.
unsafe impl DeviceRepr for Heads {}

/// What attention needs to know of a step. As in `kernels.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct StepTables {
    pub q_start: Address,
    pub positions: Address,
    pub block_tables: Address,
    pub block_table_start: Address,
    pub units: Address,
    /// In tokens, a multiple of 16.
    pub block_size: u32,
    pub window: u32,
}

// SAFETY: it has the layout of the struct in `kernels.cu`.
unsafe impl DeviceRepr for StepTables {}

/// The kernels, for one kind of element and width of heads.
#[derive(Debug)]
pub(super) struct Kernels {
    stream: Arc<CudaStream>,
    num_multiprocessors: usize,
    /// Of a block of `attend`.
    attend_warps: usize,
    /// f32 values of a part of `attend`.
    part_len: usize,
    embed: CudaFunction,
    normalise: CudaFunction,
    write_qkv: CudaFunction,
    attend: CudaFunction,
    merge_parts: CudaFunction,
    mlp_inner: CudaFunction,
    copy_slots: CudaFunction,
}

/// Launches `$function` of a grid (x, y, z) with blocks of so many threads and the arguments that follow.
macro_rules! launch {
    ($kernels:expr, $function:ident, $grid:expr, $threads:expr, $($argument:expr),+ $(,)?) => {{
        let (x, y, z) = $grid;
        let mut launch = $kernels.stream.launch_builder(&$kernels.$function);
        $( let argument = $argument; launch.arg(&argument); )+
        let config = LaunchConfig {
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: ($threads as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        launch.launch(config).context(stringify!($function)).map(drop)
    }};
}

impl Kernels {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// NVRTC is older than the GPU, or heads are too wide.
    pub fn new(gpu: &Gpu, element: Element, head_dim: usize) -> Result<Self> {
        ensure!(
            head_dim <= MAX_HEAD_DIM,
            "heads of {head_dim} elements are too wide for a GPU, {MAX_HEAD_DIM} are the most; set \
             DEVICE=cpu"
        );
        let context = gpu.stream.context();
        let ptx = compile(element, head_dim, context.compute_capability()?)?;
        let module = context
            .load_module(ptx)
            .context("the driver takes no kernels of this NVRTC; is it older than NVRTC?")?;
        let function = |name| module.load_function(name);
        Ok(Self {
            num_multiprocessors: gpu.num_multiprocessors()?,
            attend_warps: warps(head_dim),
            part_len: 32 * (32 * groups(head_dim) + 4),
            embed: function("embed")?,
            normalise: function("normalise")?,
            write_qkv: function("write_qkv")?,
            attend: function("attend")?,
            merge_parts: function("merge_parts")?,
            mlp_inner: function("mlp_inner")?,
            copy_slots: function("copy_slots")?,
            stream: gpu.stream.clone(),
        })
    }

    /// Embeds the tokens of `ids`, and where they are. `x` is f32. (rows, width)
    ///
    /// # Safety
    /// All addresses are of as much as the rows need, and ids and positions lie inside the tables.
    pub unsafe fn embed(
        &self,
        (rows, width): (usize, usize),
        (tokens, ids): (Address, Address),
        (positions_table, positions): (Address, Address),
        x: Address,
    ) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe {
            launch!(
                self,
                embed,
                (rows, 1, 1),
                THREADS,
                tokens,
                positions_table,
                ids,
                positions,
                x,
                width as u32,
            )
        }
    }

    /// Adds `pending`, if any, to rows of `x`, f32, and normalises them to elements of `out`.
    ///
    /// # Safety
    /// All addresses are of as much as the rows need.
    pub unsafe fn normalise(
        &self,
        (rows, width): (usize, usize),
        (x, pending, wanted_rows): (Address, Address, Address),
        (weight, bias, eps, is_layer_norm): (Address, Address, f32, bool),
        out: Address,
    ) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe {
            launch!(
                self,
                normalise,
                (rows, 1, 1),
                THREADS,
                x,
                pending,
                wanted_rows,
                weight,
                bias,
                out,
                width as u32,
                eps,
                u32::from(is_layer_norm),
            )
        }
    }

    /// Splits rows of QKV into heads; K and V go to their slots in the pools.
    ///
    /// # Safety
    /// All addresses are of as much as the rows need, and the slots lie inside the pools.
    pub unsafe fn write_qkv(
        &self,
        rows: usize,
        (qkv, bias): (Address, Address),
        (q_norm, k_norm, eps): (Address, Address, f32),
        (positions, slots, inverse_frequencies): (Address, Address, Address),
        (q, k_pool, v_pool): (Address, Address, Address),
        heads: Heads,
    ) -> Result<()> {
        let all_heads = (heads.num_heads + 2 * heads.num_kv_heads) as usize;
        // SAFETY: as the caller says.
        unsafe {
            launch!(
                self,
                write_qkv,
                (rows, all_heads.div_ceil(THREADS / 32), 1),
                THREADS,
                qkv,
                bias,
                q_norm,
                k_norm,
                eps,
                positions,
                slots,
                inverse_frequencies,
                q,
                k_pool,
                v_pool,
                heads,
            )
        }
    }

    /// Into how many parts the contexts of units are best cut: as few as keep the GPU busy.
    pub fn num_parts(
        &self,
        num_units: usize,
        num_kv_heads: usize,
        longest_context: usize,
    ) -> usize {
        let runs_of_warp = longest_context.div_ceil(RUN).div_ceil(self.attend_warps);
        if runs_of_warp <= 2 {
            return 1;
        }
        let room = 2 * self.num_multiprocessors / (num_units * num_kv_heads).max(1);
        // A power of 2, so that steps are alike.
        1 << runs_of_warp.min(room).max(1).ilog2()
    }

    /// f32 values of all parts.
    pub fn parts_len(&self, num_units: usize, num_kv_heads: usize, num_parts: usize) -> usize {
        match num_parts {
            1 => 0,
            _ => num_units * num_kv_heads * num_parts * self.part_len,
        }
    }

    /// Attention of all rows, unit by unit, each in parts.
    ///
    /// # Safety
    /// All addresses are of as much as the units need, and the tables' blocks lie inside the pools.
    pub unsafe fn attend(
        &self,
        (num_units, num_parts): (usize, usize),
        (q, k_pool, v_pool): (Address, Address, Address),
        step: StepTables,
        (out, parts): (Address, Address),
        heads: Heads,
    ) -> Result<()> {
        // Scores are to the base 2, whose exponential is the GPU's own.
        let scale = std::f32::consts::LOG2_E / (heads.head_dim as f32).sqrt();
        // SAFETY: as the caller says.
        unsafe {
            launch!(
                self,
                attend,
                (num_units, heads.num_kv_heads, num_parts),
                32 * self.attend_warps,
                q,
                k_pool,
                v_pool,
                step,
                out,
                parts,
                heads,
                scale,
            )?;
        }
        if num_parts == 1 {
            return Ok(());
        }
        // SAFETY: as the caller says.
        unsafe {
            launch!(
                self,
                merge_parts,
                (num_units, heads.num_kv_heads, 1),
                32,
                parts,
                num_parts as u32,
                step,
                out,
                heads,
            )
        }
    }

    /// What lies between the MLP's products.
    ///
    /// # Safety
    /// All addresses are of as much as the rows need.
    pub unsafe fn mlp_inner(
        &self,
        (rows, width): (usize, usize),
        (up, bias): (Address, Address),
        (activation, is_gated): (u32, bool),
        out: Address,
    ) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe {
            launch!(
                self,
                mlp_inner,
                (rows, width.div_ceil(THREADS), 1),
                THREADS,
                up,
                bias,
                out,
                width as u32,
                activation,
                u32::from(is_gated),
            )
        }
    }

    /// Copies elements from one place of each pool to another; the pools follow one another.
    ///
    /// # Safety
    /// Both places lie inside the pools.
    pub unsafe fn copy_slots(
        &self,
        (pools, num_pools, pool_elements): (Address, usize, usize),
        (from, to, num_elements): (usize, usize, usize),
    ) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe {
            launch!(
                self,
                copy_slots,
                (num_pools, 1, 1),
                THREADS,
                pools,
                pool_elements,
                from,
                to,
                num_elements as u32,
            )
        }
    }
}

/// The kernels for GPUs of a compute capability, and later ones.
fn compile(element: Element, head_dim: usize, (major, minor): (i32, i32)) -> Result<Ptx> {
    let options = CompileOptions {
        options: vec![
            format!("--gpu-architecture=compute_{major}{minor}"),
            format!("-DELEMENT_IS_BF16={}", u32::from(element == Element::Bf16)),
            format!("-DGROUPS={}", groups(head_dim)),
            format!("-DWARPS={}", warps(head_dim)),
        ],
        name: Some("kernels.cu".to_owned()),
        ..CompileOptions::default()
    };
    nvrtc::compile_ptx_with_opts(SOURCE, options)
        .context("NVRTC does not compile the kernels; is it older than the GPU?")
}

/// Groups of 64 elements that attention takes of a head: 1, 2 or 4.
fn groups(head_dim: usize) -> usize {
    head_dim.div_ceil(64).next_power_of_two()
}

/// Warps of a block of attention: as many as leave registers for what each has of a head.
fn warps(head_dim: usize) -> usize {
    if groups(head_dim) == 4 { 4 } else { 8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::cuda::gpu::MIN_COMPUTE_CAPABILITY;

    /// Where there is NVRTC, as scripts/check-cuda sees to.
    #[test]
    fn the_kernels_compile_for_all_kinds_of_gpus_and_models() -> Result<()> {
        // SAFETY: this machine's library of this name is trusted to be NVIDIA's.
        if !unsafe { nvrtc::sys::is_culib_present() } {
            return Ok(());
        }
        for compute_capability in [MIN_COMPUTE_CAPABILITY, (8, 9), (9, 0), (12, 0)] {
            for element in [Element::F16, Element::Bf16] {
                for head_dim in [10, 64, 128, 192, MAX_HEAD_DIM] {
                    compile(element, head_dim, compute_capability)?;
                }
            }
            println!("compiled for {compute_capability:?}");
        }
        Ok(())
    }
}
