//! QUANTIZE on a whole model of random weights, and what the server says of it.

use std::fs;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use serde_json::{Value, json};

use crate::server::RealServer;
use crate::synthetic::{Architecture, Synthetic};

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    Synthetic::new(Architecture::Qwen2, &[GgmlDType::F32]).write_folder(folder.path());
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-qwen2");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny.join(file), folder.path().join(file)).expect("a committed file");
    }
    folder
}

#[test]
fn a_quantised_model_answers_and_its_server_tells_what_was_saved() {
    let folder = folder();
    let model = folder.path().to_str().expect("UTF-8");
    for (quantize, name, share) in [("", "F32", 1.0), ("q8_0", "Q8_0", 8.5 / 32.0)] {
        let mut settings = vec![("MODEL", model)];
        if !quantize.is_empty() {
            settings.push(("QUANTIZE", quantize));
        }
        let server = RealServer::start(&settings);
        let ask = json!({"prompt": "A candle", "max_tokens": 8, "ignore_eos": true});
        let (status, answer) = server.call("/generate", &ask);
        assert_eq!(
            (status, &answer["usage"]["completion_tokens"]),
            (200, &json!(8)),
            "{answer}"
        );
        let (_, stats) = server.call("/stats", &Value::Null);
        let model = &stats["model"];
        assert_eq!(model["quantization"], name);
        let bytes = |name: &str| model[name].as_f64().expect("a number");
        let ratio = bytes("loaded_weight_bytes") / bytes("weight_bytes");
        assert!((ratio - share).abs() < 0.02, "{quantize}: {ratio}");
        let setting = &stats["settings"]["quantize"];
        assert_eq!(setting.as_str().unwrap_or_default(), quantize);
    }
}
