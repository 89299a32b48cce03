//! One NVIDIA GPU: what it must have, and its memory.
//!
//! NVIDIA's libraries are loaded while the program runs, so that the same program serves where there
//! are none. All work of a runner is queued on one stream, in order; only [`Gpu::download`] waits for it.

use std::ffi::c_void;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{
    self, CudaContext, CudaSlice, CudaStream, DevicePtr as _, DeviceRepr, ValidAsZeroBits,
};
use cudarc::{cublas, nvrtc};

/// The first GPUs that multiply bf16.
pub(super) const MIN_COMPUTE_CAPABILITY: (i32, i32) = (8, 0);

/// A GPU, ready for work, and a stream of it. It is one runner's: what that records, others must not queue.
#[derive(Debug)]
pub struct Gpu {
    pub(super) stream: Arc<CudaStream>,
}

/// Memory of a GPU.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    slice: CudaSlice<T>,
}

/// A place in a GPU's memory, as kernels take it; 0 is none.
pub(super) type Address = u64;

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
        // SAFETY: memory is used on the stream it came from alone, whose order is all the synchronisation that
        // it needs.
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

    pub(super) fn num_multiprocessors(&self) -> Result<usize> {
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
