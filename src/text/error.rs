//! What can go wrong between text and tokens.

use std::path::PathBuf;

/// Why a tokenizer or a chat template could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("cannot read {}: {source}", path.display())]
    ReadFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {reason}; fetch the file again or use another model", path.display())]
    BadFile { path: PathBuf, reason: String },
    /// The model's vocabulary contradicts itself.
    #[error("bad vocabulary: {0}; the model file is damaged or was converted wrongly")]
    BadVocabulary(String),
    /// A kind of tokenizer that we would run wrongly, so we do not run it.
    #[error("unsupported tokenizer: {0}")]
    Unsupported(String),
    #[error(
        "unsupported tokenizer: pre-tokenizer '{pre}' (tokenizer.ggml.pre) is not one of {known}; \
         use the model's folder with tokenizer.json instead of the GGUF file"
    )]
    UnknownPreTokenizer { pre: String, known: String },
    #[error("cannot encode the text: {0}")]
    Encode(String),
    #[error("token id {id} is outside of the vocabulary of {num_tokens} tokens")]
    UnknownToken { id: u32, num_tokens: usize },
    /// The model's chat template does not parse.
    #[error("the model's chat template does not parse: {0}")]
    TemplateSyntax(String),
    /// The template called `raise_exception`: the messages do not suit the model.
    #[error("the model's chat template refuses the messages: {0}")]
    TemplateRefused(String),
    /// The template failed on these messages, or ran into one of our limits.
    #[error("the model's chat template failed: {0}")]
    TemplateFailed(String),
}
