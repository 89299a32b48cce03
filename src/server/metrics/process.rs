//! What runs here, and what the process takes of the machine.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::families;
use crate::server::process::Process;
use crate::server::state::ModelInfo;

struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&Process) -> f64,
}

/// Under the names that every Prometheus client library gives them.
const FIGURES: &[Figure] = &[
    Figure {
        name: "process_resident_memory_bytes",
        help: "Memory of the process that lies in RAM.",
        kind: MetricType::GAUGE,
        value: |process| process.resident_bytes as f64,
    },
    Figure {
        name: "process_virtual_memory_bytes",
        help: "Address space of the process.",
        kind: MetricType::GAUGE,
        value: |process| process.virtual_bytes as f64,
    },
    Figure {
        name: "process_cpu_seconds_total",
        help: "CPU time of all threads.",
        kind: MetricType::COUNTER,
        value: |process| process.cpu_seconds,
    },
    Figure {
        name: "process_start_time_seconds",
        help: "When the process began, in seconds since 1970.",
        kind: MetricType::GAUGE,
        value: |process| process.started_unix_s as f64,
    },
];

const BUILD: (&str, &str) = (
    "candlepower:build_info",
    "The program, as labels; always 1.",
);
const MODEL: (&str, &str) = ("candlepower:model_info", "The model, as labels; always 1.");

/// Collects [`FIGURES`], the build and the model.
pub struct ProcessFigures {
    infos: [MetricFamily; 2],
    descriptions: Vec<Desc>,
}

impl ProcessFigures {
    /// # Errors
    /// A name is malformed: a bug.
    pub fn new(model: &ModelInfo) -> prometheus::Result<Self> {
        let label = |name, value: &str| (name, value.to_owned());
        let build = [label("version", env!("CARGO_PKG_VERSION"))];
        let model = [
            label("architecture", &model.architecture),
            label("quantization", &model.quantization),
            label("device", &model.device),
            label("sha256", model.sha256.as_deref().unwrap_or_default()),
        ];
        let names = FIGURES.iter().map(|figure| (figure.name, figure.help));
        Ok(Self {
            infos: [
                families::info(BUILD.0, BUILD.1, &build),
                families::info(MODEL.0, MODEL.1, &model),
            ],
            descriptions: families::describe(names.chain([BUILD, MODEL]))?,
        })
    }
}

impl Collector for ProcessFigures {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.infos.to_vec();
        if let Some(process) = Process::look() {
            families.extend(FIGURES.iter().map(|figure| {
                let value = (figure.value)(&process);
                families::number(figure.name, figure.help, figure.kind, value)
            }));
        }
        families
    }
}
