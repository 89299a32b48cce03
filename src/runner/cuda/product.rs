//! Products of activations and weights, by cuBLAS.

use std::ffi::c_void;
use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
};
use cudarc::cublas::{self, CudaBlas};
use cudarc::driver::CudaStream;

use super::gpu::{Address, Buffer, Gpu};

/// What NVIDIA recommends for its GPUs since Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The 16 bits of weights, activations, K and V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F16,
    Bf16,
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

/// cuBLAS, for one kind of element.
#[derive(Debug)]
pub(super) struct Blas {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    /// What cuBLAS works in: its own it could not allocate while a step is recorded.
    _workspace: Buffer<u32>,
    element: Element,
}

impl Blas {
    pub fn new(gpu: &Gpu, element: Element) -> Result<Self> {
        let blas = CudaBlas::new(gpu.stream.clone()).context("cuBLAS does not start")?;
        let workspace = gpu.zeros(WORKSPACE_BYTES / size_of::<u32>())?;
        // SAFETY: the workspace is kept as long as the handle.
        unsafe {
            let address = workspace.address() as *mut c_void;
            cublas::sys::cublasSetWorkspace_v2(*blas.handle(), address, WORKSPACE_BYTES)
                .result()?;
        }
        Ok(Self {
            stream: gpu.stream.clone(),
            blas,
            _workspace: workspace,
            element,
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
}
