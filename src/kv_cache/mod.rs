//! The paged KV cache's bookkeeping: blocks, block tables, prefix reuse, eviction, counts.
//! Integers only; no tensor is ever seen here.
