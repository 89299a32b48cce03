//! Steps that are queued again as a whole: CUDA graphs.

use std::fmt;

use anyhow::{Context, Result};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::gpu::Gpu;

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
