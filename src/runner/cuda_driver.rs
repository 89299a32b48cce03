//! NVIDIA's driver, loaded while the program runs.
//!
//! candle is linked with libcuda.so.1, which comes with the driver alone. A program that needs it at
//! its start cannot start on a machine without one: neither to serve on the CPU, nor to say what it
//! lacks. So the functions that candle calls are defined here, each as a jump through a table that
//! [`load`] fills from the library, and nothing is left for the linker to take from it.
//!
//! What the list below lacks, the linker takes from the library after all; `scripts/check-cuda` links
//! with an empty one, and so tells a missing name. lld looks only at what is really called. GNU ld,
//! which Rust links with on aarch64, looks at all that cudarc can call, and keeps the library:
//! `RUSTFLAGS=-Clink-arg=-fuse-ld=lld` helps.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

/// Loads the driver. Nothing of CUDA may be called before.
///
/// # Errors
/// If there is none.
pub fn load() -> Result<(), libloading::Error> {
    // SAFETY: a machine's driver is trusted to be one.
    let driver = unsafe { Library::new("libcuda.so.1") }?;
    for (entry, name) in TABLE.iter().zip(NAMES.iter().copied()) {
        // SAFETY: only the address is taken. The callers have the signature from CUDA's header, as
        // they would of a linked function.
        if let Ok(function) = unsafe { driver.get::<*mut c_void>(name) } {
            entry.store(*function, Ordering::Relaxed);
        }
    }
    // The addresses stay in use.
    std::mem::forget(driver);
    Ok(())
}

/// Where each function is.
static TABLE: [AtomicPtr<c_void>; NAMES.len()] =
    [const { AtomicPtr::new(missing as *mut c_void) }; NAMES.len()];

/// Stands for a function that an old driver lacks. Gets the function's index in the register that
/// [`driver_functions`] puts it into, and hands it on as an argument.
// SAFETY: r11, or x17, is free at a function's start; the stack is as the caller left it.
#[unsafe(naked)]
extern "C" fn missing() {
    #[cfg(target_arch = "x86_64")]
    std::arch::naked_asm!("mov edi, r11d", "jmp {}", sym abort);
    #[cfg(target_arch = "aarch64")]
    std::arch::naked_asm!("mov w0, w17", "b {}", sym abort);
}

extern "C" fn abort(index: u32) -> ! {
    let name = NAMES[index as usize];
    eprintln!("error: NVIDIA's driver has no {name}; install a newer one, or set DEVICE=cpu");
    std::process::abort()
}

/// Defines functions of the driver, and the list of their names.
macro_rules! driver_functions {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        /// A place in the table.
        #[allow(non_camel_case_types)]
        #[repr(u32)]
        enum Index {
            $($name),*
        }

        $(
            // SAFETY: all arguments stay where they are, and the function there returns to the caller.
            // The registers used are free at a function's start. The name is nobody else's: what is
            // linked with this takes the driver's function of this name to be meant.
            #[allow(non_snake_case)]
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                std::arch::naked_asm!(
                    // Other libraries get the driver's own.
                    concat!(".hidden ", stringify!($name)),
                    "mov r11d, {index}",
                    "jmp qword ptr [rip + {table} + 8 * {index}]",
                    index = const Index::$name as u32,
                    table = sym TABLE,
                );
                #[cfg(target_arch = "aarch64")]
                std::arch::naked_asm!(
                    concat!(".hidden ", stringify!($name)),
                    "mov w17, {index}",
                    "adrp x16, {table} + 8 * {index}",
                    "ldr x16, [x16, :lo12:{table} + 8 * {index}]",
                    "br x16",
                    index = const Index::$name as u32,
                    table = sym TABLE,
                );
            }
        )*
    };
}

driver_functions! {
    cuCtxDestroy_v2
    cuCtxGetCurrent
    cuCtxSetCurrent
    cuDeviceGet
    cuDeviceGetAttribute
    cuDevicePrimaryCtxRelease_v2
    cuDevicePrimaryCtxRetain
    cuEventCreate
    cuEventDestroy_v2
    cuEventRecord
    cuGetErrorString
    cuInit
    cuLaunchKernel
    cuMemAllocAsync
    cuMemAlloc_v2
    cuMemFreeAsync
    cuMemFree_v2
    cuMemcpyDtoDAsync_v2
    cuMemcpyDtoHAsync_v2
    cuMemcpyHtoDAsync_v2
    cuMemcpyPeerAsync
    cuMemsetD8Async
    cuModuleGetFunction
    cuModuleLoad
    cuModuleLoadData
    cuModuleUnload
    cuStreamDestroy_v2
    cuStreamIsCapturing
    cuStreamSynchronize
    cuStreamWaitEvent
}
