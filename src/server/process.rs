//! What this process takes of the machine.

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// A look at the process; `None` where the system does not tell.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Memory that lies in RAM.
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    /// Of all threads, since start.
    pub cpu_seconds: f64,
    /// Seconds since 1970.
    pub started_unix_s: u64,
}

impl Process {
    pub fn look() -> Option<Self> {
        let pid = Pid::from_u32(std::process::id());
        let mut system = System::new().ok()?;
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[pid]),
            false,
            ProcessRefreshKind::nothing().with_memory().with_cpu(),
        );
        let process = system.process(pid)?;
        Some(Self {
            resident_bytes: process.memory(),
            virtual_bytes: process.virtual_memory(),
            cpu_seconds: process.accumulated_cpu_time() as f64 / 1e3,
            started_unix_s: process.start_time(),
        })
    }
}
