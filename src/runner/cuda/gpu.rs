//! One NVIDIA GPU: its memory, cuBLAS and the kernels of `kernels.cu`, which NVRTC compiles for it.
//!
//! NVIDIA's libraries are loaded while the program runs, so that the same program serves where there
//! are none. All work is queued on one stream, in order; only [`Gpu::download`] waits for it.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
};
use cudarc::cublas::{self, CudaBlas};
use cudarc::driver::sys::{CUdevice_attribute, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    self, CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr as _, DeviceRepr,
    LaunchConfig, PushKernelArg as _, ValidAsZeroBits,
};
use cudarc::nvrtc::{self, CompileOptions, Ptx};

const SOURCE: &str = include_str!("kernels.cu");
/// Threads of a block, for kernels that leave the choice.
const THREADS: usize = 256;
/// Positions that a warp of `attend` takes at once, as in `kernels.cu`.
const RUN: usize = 32;
/// What NVIDIA recommends for its GPUs since Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// The first GPUs that multiply bf16.
const MIN_COMPUTE_CAPABILITY: (i32, i32) = (8, 0);

/// The 16 bits of weights, activations, K and V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F16,
    Bf16,
}

/// A GPU, ready for work.
#[derive(Clone, Debug)]
pub struct Gpu {
    stream: Arc<CudaStream>,
}

/// Memory of a GPU.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    slice: CudaSlice<T>,
}

/// A place in a GPU's memory, as kernels take it; 0 is none.
pub(super) type Address = u64;

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

/// The most elements that attention is written for a head to have.
pub(super) const MAX_HEAD_DIM: usize = 256;

impl Gpu {
    /// Opens the GPU of that number.
    ///
    /// # Errors
    /// It cannot be used, with what is missing.
    pub fn open(index: usize) -> Result<Self> {
        // SAFETY: this machine's libraries of these names are trusted to be NVIDIA's.
        let is_present = unsafe {
            [
                (driver::sys::is_culib_present(), "the driver (libcuda)"),
                (cublas::sys::is_culib_present(), "cuBLAS (libcublas)"),
                (nvrtc::sys::is_culib_present(), "NVRTC (libnvrtc)"),
            ]
        };
        for (is_present, what) in is_present {
            ensure!(
                is_present,
                "{what} could not be loaded; install it, or set LD_LIBRARY_PATH to where it is, or \
                 DEVICE=cpu"
            );
        }
        let context =
            CudaContext::new(index).context("no such GPU; set DEVICE=cpu to go without")?;
        let (major, minor) = context.compute_capability()?;
        ensure!(
            (major, minor) >= MIN_COMPUTE_CAPABILITY,
            "this GPU has compute capability {major}.{minor}, and 8.0 is needed: Ampere or later; set \
             DEVICE=cpu"
        );
        // SAFETY: there is one stream, whose order is all the synchronisation that memory needs.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        Ok(Self { stream })
    }

    /// Whether this machine has a driver for NVIDIA GPUs.
    pub fn has_driver() -> bool {
        // SAFETY: this machine's library of this name is trusted to be NVIDIA's.
        unsafe { driver::sys::is_culib_present() }
    }

    pub fn index(&self) -> usize {
        self.stream.context().ordinal()
    }

    /// Memory that can be allocated now; `None` if unknown.
    pub fn free_bytes(&self) -> Option<u64> {
        let (free, _) = self.stream.context().mem_get_info().ok()?;
        Some(free as u64)
    }

    fn num_multiprocessors(&self) -> Result<usize> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(self.stream.context().attribute(attribute)? as usize)
    }

    /// Memory of `len` zeros.
    pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<Buffer<T>> {
        let slice = self.stream.alloc_zeros(len);
        let slice = slice.with_context(|| {
            let mib = (len * size_of::<T>()).div_ceil(1 << 20);
            format!("the GPU has no {mib} MiB left; lower KV_CACHE_SIZE or MAX_BATCH_TOKENS")
        })?;
        Ok(Buffer { slice })
    }

    /// Memory with a copy of `values`.
    pub(super) fn upload<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        values: &[T],
    ) -> Result<Buffer<T>> {
        let mut buffer = self.zeros(values.len())?;
        self.write(values, &mut buffer)?;
        Ok(buffer)
    }

    /// Copies `values` to the start of a buffer, which is as long or longer.
    pub(super) fn write<T: DeviceRepr>(&self, values: &[T], to: &mut Buffer<T>) -> Result<()> {
        Ok(self.stream.memcpy_htod(values, &mut to.slice)?)
    }

    /// Copies bytes into a buffer, from its byte `first` on.
    ///
    /// # Panics
    /// If they do not fit.
    pub(super) fn write_bytes<T>(
        &self,
        bytes: &[u8],
        to: &mut Buffer<T>,
        first: usize,
    ) -> Result<()> {
        let num_bytes = to.slice.num_bytes();
        // SAFETY: every pattern of bits is a value of the numbers that buffers have.
        let all = unsafe { to.slice.transmute_mut::<u8>(num_bytes) };
        let mut all = all.expect("bug: as many bytes as it has");
        let mut part = all.slice_mut(first..first + bytes.len());
        Ok(self.stream.memcpy_htod(bytes, &mut part)?)
    }

    /// Waits for all that is queued, and copies the start of a buffer, which is as long or longer.
    pub(super) fn download<T: DeviceRepr>(&self, from: &Buffer<T>, to: &mut [T]) -> Result<()> {
        let part = from.slice.slice(..to.len());
        self.stream.memcpy_dtoh(&part, to)?;
        Ok(self.stream.synchronize()?)
    }
}

/// A step that was recorded, to be queued again as a whole: it reads what lies where its inputs lay.
pub(super) struct Recording(CudaGraph);

// SAFETY: its handles are of no thread, and whoever has it is the only one to use it.
unsafe impl Send for Recording {}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recording").finish()
    }
}

impl Gpu {
    /// Records what `queue` would queue.
    pub(super) fn record(&self, queue: impl FnOnce() -> Result<()>) -> Result<Recording> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode)?;
        let queued = queue();
        // Also after an error, so that the stream is of use again.
        let recorded = self.stream.end_capture(CUgraphInstantiate_flags(0));
        queued?;
        let graph = recorded.context("a step was not recorded")?;
        graph
            .map(Recording)
            .context("a step of nothing was recorded")
    }

    /// Queues a recorded step.
    pub(super) fn replay(&self, recording: &Recording) -> Result<()> {
        Ok(recording.0.launch()?)
    }
}

/// Host memory that a GPU reads and writes by itself, at the full speed of its bus.
#[derive(Debug)]
pub(super) struct Pinned {
    stream: Arc<CudaStream>,
    address: usize,
}

impl Gpu {
    /// Pins the memory of a vector, up to its capacity; `None` if the system allows no more.
    ///
    /// # Safety
    /// What is returned must be dropped before the vector's memory is.
    pub(super) unsafe fn pin<T>(&self, values: &Vec<T>) -> Option<Pinned> {
        let (address, num_bytes) = (values.as_ptr(), values.capacity() * size_of::<T>());
        self.stream.context().bind_to_thread().ok()?;
        // SAFETY: the memory is the vector's, and stays until it is unpinned, as the caller says.
        let result = unsafe {
            driver::sys::cuMemHostRegister_v2(address as *mut c_void, num_bytes, 0).result()
        };
        result.ok().map(|()| Pinned {
            stream: self.stream.clone(),
            address: address as usize,
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was pinned, and its memory is still there, as whoever pinned it said. An error is
        // one of the driver's, which every later call will meet.
        unsafe {
            let _ = self.stream.context().bind_to_thread();
            let _ = driver::sys::cuMemHostUnregister(self.address as *mut c_void);
        }
    }
}

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    pub fn address(&self) -> Address {
        self.slice.device_ptr(self.slice.stream()).0
    }

    /// Where an element lies.
    pub fn address_of(&self, index: usize) -> Address {
        self.address() + (index * size_of::<T>()) as Address
    }

    pub fn num_bytes(&self) -> usize {
        self.slice.num_bytes()
    }

    /// Makes it at least so long; whether it grew, and what it held is lost.
    pub fn reserve(&mut self, gpu: &Gpu, len: usize) -> Result<bool> {
        let grows = self.slice.len() < len;
        if grows {
            *self = gpu.zeros(len.next_power_of_two())?;
        }
        Ok(grows)
    }
}

/// cuBLAS and the kernels, for one kind of element and width of heads.
#[derive(Debug)]
pub(super) struct Kernels {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    /// What cuBLAS works in: its own it could not allocate while a step is recorded.
    _workspace: Buffer<u32>,
    element: Element,
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

/// A matrix of weights. (out_features, in_features)
#[derive(Debug)]
pub(super) struct Matrix {
    pub values: Buffer<u16>,
    pub in_features: usize,
    pub out_features: usize,
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug)]
pub(super) enum Product {
    /// It is stored, as elements.
    Elements(Address),
    /// It is stored, as f32.
    Floats(Address),
    /// It is added to f32.
    Added(Address),
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
        let blas = CudaBlas::new(gpu.stream.clone()).context("cuBLAS does not start")?;
        let workspace = gpu.zeros(WORKSPACE_BYTES / size_of::<u32>())?;
        // SAFETY: the workspace is kept as long as the handle.
        unsafe {
            let address = workspace.address() as *mut c_void;
            cublas::sys::cublasSetWorkspace_v2(*blas.handle(), address, WORKSPACE_BYTES)
                .result()?;
        }
        Ok(Self {
            blas,
            _workspace: workspace,
            element,
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

    /// The product of `x` (rows, in_features) and a transposed matrix. (rows, out_features)
    ///
    /// # Safety
    /// `x` and the result lie inside buffers.
    pub unsafe fn product(
        &self,
        rows: usize,
        x: Address,
        matrix: &Matrix,
        to: Product,
    ) -> Result<()> {
        let elements = match self.element {
            Element::F16 => cudaDataType_t::CUDA_R_16F,
            Element::Bf16 => cudaDataType_t::CUDA_R_16BF,
        };
        let (y, y_type, beta) = match to {
            Product::Elements(y) => (y, elements, 0f32),
            Product::Floats(y) => (y, cudaDataType_t::CUDA_R_32F, 0.0),
            Product::Added(y) => (y, cudaDataType_t::CUDA_R_32F, 1.0),
        };
        let (ins, outs) = (matrix.in_features as i32, matrix.out_features as i32);
        let scale = 1f32;
        self.stream.context().bind_to_thread()?;
        // cuBLAS counts columns first: to it the matrix is (ins, outs), x (ins, rows), y (outs, rows).
        // SAFETY: so the matrix has its size, and the caller says that x and y have theirs.
        unsafe {
            cublas::result::gemm_ex(
                *self.blas.handle(),
                cublasOperation_t::CUBLAS_OP_T,
                cublasOperation_t::CUBLAS_OP_N,
                outs,
                rows as i32,
                ins,
                (&raw const scale).cast::<c_void>(),
                matrix.values.address() as *const c_void,
                elements,
                ins,
                x as *const c_void,
                elements,
                ins,
                (&raw const beta).cast::<c_void>(),
                y as *mut c_void,
                y_type,
                outs,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .context("a product by cuBLAS")
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
