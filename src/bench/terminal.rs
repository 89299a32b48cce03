//! Results on standard output.

use std::io::Write as _;

/// Writes a result. Whoever was to read it may have left, which must not cost what is still to be
/// done, such as BENCHMARKS.md.
pub fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        tracing::warn!(%error, "standard output is lost");
    }
}
