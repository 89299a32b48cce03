//! From settings to a running server: load the model, start the engine, open the door.

mod kv_size;
mod open_files;
mod socket;

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::socket::ServerSocket;
use crate::config::{DeviceChoice, IsaChoice, ModelConfig, ServeConfig};
use crate::kernels::Isa;
use crate::kv_cache::BLOCK_SIZE;
use crate::model::{self, LoadedModel, ModelFiles, Quantization, ResolvedModel, TokenizerFiles};
use crate::runner::cpu::{self, CpuRunner};
use crate::runner::cuda::{self, CudaRunner, Gpu};
use crate::runner::{KvLayout, Runner};
use crate::server::{self, ApiKeys, ChatTemplates, Handover, ModelInfo, RenderError, Served};
use crate::text::{ChatTemplate, Tokenizer};
use crate::{engine, runner};

/// Serves until SIGTERM or Ctrl-C, then finishes what is in flight.
///
/// # Errors
/// In one line what is wrong with a setting, a file or the machine, and what to do.
pub fn run(config: &ServeConfig) -> anyhow::Result<()> {
    let settings = serde_json::to_value(config).context("cannot print the settings")?;
    tracing::info!(%settings, "starting");
    open_files::allow(config.http.max_connections);
    // The engine's threads compute; these only move bytes.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(4)))
        .enable_all()
        .build()
        .context("cannot start the server's threads")?
        .block_on(async {
            // Before the model is loaded, so that a port in use is known at once.
            let socket = ServerSocket::find(&config.server)?;
            let served = load(config, settings, socket.handover()).await?;
            // Only now: until here there is nothing to finish, and a signal just ends the process.
            let stop = stop_signals()?;
            let listener = socket.open()?;
            announce(listener.local_addr().context("the socket has no address")?);
            server::run(listener, served, stop).await
        })
}

/// Says on standard output, alone there, that requests are answered from now on. Who started the
/// server may have left; that is no reason to stop.
fn announce(address: SocketAddr) {
    let mut out = std::io::stdout();
    let written = writeln!(out, "listening on http://{address}").and_then(|()| out.flush());
    if let Err(error) = written {
        tracing::warn!(%error, %address, "listening, and standard output is lost");
    }
}

/// Resolves at the first SIGTERM or Ctrl-C; a second one ends the process at once.
fn stop_signals() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    Ok(async move {
        either(&mut terminate, &mut interrupt).await;
        tracing::info!("stopping: no new requests; once more to end at once");
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            std::process::exit(130);
        });
    })
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn load(
    config: &ServeConfig,
    settings: serde_json::Value,
    handover: Handover,
) -> anyhow::Result<Served> {
    let start = Instant::now();
    let keys = ApiKeys::load(&config.http)?;
    let device = device(config.model.device)?;
    let isa_and_threads = (isa(config.model.cpu_isa)?, num_threads(&config.model)?);
    let ResolvedModel { name, files } = model::resolve(&config.model.model)?;
    let path = match &files {
        ModelFiles::Gguf(path) | ModelFiles::Folder(path) => path.clone(),
    };
    let checksum = std::thread::spawn({
        let path = path.clone();
        move || model::sha256_of(&path)
    });

    let mut loaded = model::load(&files)?;
    if let Some(kind) = config.model.quantize {
        quantize(&mut loaded, kind, &device)?;
    }
    let tokenizer = Arc::new(tokenizer(loaded.tokenizer)?);
    let chat_template = chat_template(loaded.chat_template, &path, &tokenizer).await?;

    let kv_type = config.engine.kv_cache_type;
    let (bytes_per_token, free_bytes) = match &device {
        Device::Cpu => (
            cpu::kv_bytes_per_token(&loaded.spec, kv_type),
            runner::free_bytes(),
        ),
        Device::Cuda(gpu) => (
            cuda::kv_bytes_per_token(&loaded.spec, kv_type)?,
            gpu.free_bytes(),
        ),
    };
    let (kv, max_model_len) = kv_size::plan(
        &config.engine,
        bytes_per_token,
        loaded.spec.max_positions,
        free_bytes,
    )?;
    if max_model_len < loaded.spec.max_positions && config.engine.max_model_len.is_none() {
        tracing::warn!(
            max_model_len,
            model_window = loaded.spec.max_positions,
            "the KV cache is smaller than the model's window; raise KV_CACHE_SIZE for longer sequences"
        );
    }
    let (spec, weights) = (&loaded.spec, &loaded.weights);
    let layout = KvLayout {
        kv_type,
        num_blocks: kv.num_blocks,
        block_size: BLOCK_SIZE,
    };
    let device_name = device_name(&device);
    let (runner, weight_bytes): (Box<dyn Runner>, u64) = match device {
        Device::Cpu => {
            let runner = CpuRunner::new(spec, weights, isa_and_threads, layout)?;
            let weight_bytes = runner.weight_bytes() as u64;
            (Box::new(runner), weight_bytes)
        }
        Device::Cuda(gpu) => {
            let runner = CudaRunner::new(spec, weights, gpu, layout)?;
            let weight_bytes = runner.weight_bytes();
            (Box::new(runner), weight_bytes)
        }
    };
    if let Some(kind) = config.model.quantize {
        let stored_bytes = loaded.facts.weight_bytes;
        let saved_bytes = stored_bytes.saturating_sub(weight_bytes);
        tracing::info!(%kind, stored_bytes, weight_bytes, saved_bytes, "quantised");
    }
    let engine = engine::start(runner, kv, max_model_len, &config.engine)?;
    let sha256 = checksum
        .join()
        .map_err(|_| anyhow::anyhow!("computing the model's checksum panicked"))??;
    let load_time = start.elapsed();
    tracing::info!(
        model = name,
        sha256,
        ?load_time,
        kv_blocks = kv.num_blocks,
        kv_type = %kv_type,
        max_model_len,
        "loaded"
    );
    Ok(Served {
        engine,
        tokenizer,
        chat_template,
        eos_token_ids: loaded.eos_token_ids,
        model: ModelInfo {
            name,
            architecture: loaded.facts.architecture,
            quantization: loaded.facts.quantization,
            num_parameters: loaded.facts.num_parameters,
            weight_bytes: loaded.facts.weight_bytes,
            loaded_weight_bytes: weight_bytes,
            sha256: Some(sha256),
            load_time,
            created_unix_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            device: device_name,
        },
        http: config.http.clone(),
        keys,
        observe: config.observe.clone(),
        drain_timeout: config.server.drain_timeout,
        handover,
        settings,
    })
}

fn quantize(loaded: &mut LoadedModel, kind: Quantization, device: &Device) -> anyhow::Result<()> {
    ensure!(
        matches!(device, Device::Cpu),
        "QUANTIZE={kind}: weights on a GPU are 16 bits wide, so that nothing would be saved; leave \
         QUANTIZE out, or set DEVICE=cpu"
    );
    let kept = loaded.quantize(kind)?;
    if let Some(first) = kept.first() {
        tracing::warn!(
            num_matrices = kept.len(),
            first,
            "left as they are by QUANTIZE={kind}: their rows are not whole blocks of {} weights",
            kind.dtype().block_size()
        );
    }
    Ok(())
}

/// What computes.
enum Device {
    Cpu,
    Cuda(Gpu),
}

fn device(choice: DeviceChoice) -> anyhow::Result<Device> {
    match choice {
        DeviceChoice::Auto if Gpu::has_driver() => Ok(match Gpu::open(0) {
            Ok(gpu) => Device::Cuda(gpu),
            Err(error) => {
                tracing::warn!("DEVICE=auto takes the CPU: {error:#}");
                Device::Cpu
            }
        }),
        DeviceChoice::Cpu | DeviceChoice::Auto => Ok(Device::Cpu),
        DeviceChoice::Cuda(index) => {
            let gpu = Gpu::open(index).with_context(|| format!("DEVICE={choice}"))?;
            Ok(Device::Cuda(gpu))
        }
    }
}

fn device_name(device: &Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(gpu) => format!("cuda:{}", gpu.index()),
    }
}

fn isa(choice: IsaChoice) -> anyhow::Result<Isa> {
    match choice {
        IsaChoice::Auto => Ok(Isa::detect()),
        IsaChoice::Only(isa) if isa.is_available() => Ok(isa),
        IsaChoice::Only(isa) => bail!("CPU_ISA={isa}: this machine has no {isa}; set CPU_ISA=auto"),
    }
}

fn num_threads(config: &ModelConfig) -> anyhow::Result<usize> {
    match config.num_threads {
        Some(0) => bail!("NUM_THREADS is 0; it must be at least 1"),
        Some(num_threads) => Ok(num_threads),
        None => Ok(std::thread::available_parallelism()?.get()),
    }
}

fn tokenizer(files: TokenizerFiles) -> anyhow::Result<Tokenizer> {
    match files {
        TokenizerFiles::Json(path) => Tokenizer::from_file(&path)
            .with_context(|| format!("cannot use the tokenizer {}", path.display())),
        TokenizerFiles::Gguf(vocab) => {
            Tokenizer::from_gguf(vocab).context("cannot use the tokenizer of the model file")
        }
    }
}

/// A template that does not parse costs the chat endpoint only.
async fn chat_template(
    of_file: Option<String>,
    path: &Path,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Option<ChatTemplates>> {
    let source = match of_file {
        None if path.is_dir() => ChatTemplate::find_in_folder(path)?,
        source => source,
    };
    let Some(source) = source else {
        tracing::warn!("the model has no chat template: /v1/chat/completions is off");
        return Ok(None);
    };
    let program = this_program()?;
    match ChatTemplates::start(&program, &source, tokenizer.special_tokens()).await {
        Ok(templates) => Ok(Some(templates)),
        Err(RenderError::Template(error)) => {
            tracing::warn!(%error, "/v1/chat/completions is off");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The program that runs, also when its file has been replaced since.
fn this_program() -> anyhow::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    match link.exists() {
        true => Ok(link.to_owned()),
        false => std::env::current_exe().context("cannot find this program's file"),
    }
}
