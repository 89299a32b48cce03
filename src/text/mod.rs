//! Strings to token ids and back: tokenizer, incremental detokenizer, stop strings, chat template.
//! Imports nothing of ours.
