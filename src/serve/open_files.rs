//! Every connection is an open file, and systems allow few of them unless asked.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files beside the connections: model, log, the runtime's own.
const OTHER_FILES: u64 = 64;

/// Raises the limit of open files so that there can be `max_connections`; says so where the system
/// does not let us.
pub fn allow(max_connections: usize) {
    let wanted = max_connections as u64 + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    let allowed = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let limit = Rlimit {
        current: Some(allowed),
        maximum,
    };
    let raised = setrlimit(Resource::Nofile, limit);
    if raised.is_err() || allowed < wanted {
        tracing::warn!(
            max_connections,
            max_open_files = getrlimit(Resource::Nofile).current,
            "the system allows fewer open files than MAX_CONNECTIONS needs; see `ulimit -n`"
        );
    }
}
