//! Paged attention against the plain definition, over scattered blocks.

use candlepower::kernels::{
    AttentionBatch, AttentionPlan, AttentionShape, Compute, Isa, KvShape, KvStorage, attend,
};

use crate::{assert_close, compute, isas, noise};

const BLOCK_SIZE: usize = 32;

/// Sequences with a history in the storage and some query tokens each.
struct Case {
    shape: AttentionShape,
    /// Tokens of each sequence, and how many of the last are queries.
    sequences: Vec<(usize, usize)>,
    /// Q, K and V of every token of every sequence. (all tokens, width)
    rows: Vec<Vec<f32>>,
}

impl Case {
    fn new(shape: AttentionShape, sequences: &[(usize, usize)]) -> Self {
        let width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
        let rows = sequences.iter().enumerate();
        Self {
            shape,
            rows: rows
                .map(|(i, (len, _))| noise(len * width, i as u64 + 1))
                .collect(),
            sequences: sequences.to_vec(),
        }
    }

    fn width(&self) -> usize {
        (self.shape.num_heads + 2 * self.shape.num_kv_heads) * self.shape.head_dim
    }

    fn blocks_of(&self, sequence: usize) -> usize {
        self.sequences[sequence].0.div_ceil(BLOCK_SIZE)
    }

    /// Block `index` of a sequence: those of all sequences interleaved, last first.
    fn block(&self, sequence: usize, index: usize) -> u32 {
        let most = (0..self.sequences.len())
            .map(|s| self.blocks_of(s))
            .max()
            .unwrap_or(0);
        ((most - index) * self.sequences.len() - 1 - sequence) as u32
    }

    fn run(&self, compute: &Compute) -> Vec<f32> {
        let (shape, width) = (&self.shape, self.width());
        let most = (0..self.sequences.len())
            .map(|s| self.blocks_of(s))
            .max()
            .unwrap_or(0);
        let mut kv = KvStorage::new(KvShape {
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            num_slots: most * self.sequences.len() * BLOCK_SIZE,
        });
        let (mut q, mut positions, mut q_start) = (Vec::new(), Vec::new(), vec![0]);
        let (mut tables, mut table_start) = (Vec::new(), vec![0]);
        for (sequence, &(len, queries)) in self.sequences.iter().enumerate() {
            let table: Vec<u32> = (0..self.blocks_of(sequence))
                .map(|i| self.block(sequence, i))
                .collect();
            let slot =
                |p: usize| table[p / BLOCK_SIZE] * BLOCK_SIZE as u32 + (p % BLOCK_SIZE) as u32;
            let slots: Vec<u32> = (0..len).map(slot).collect();
            let column = shape.num_heads * shape.head_dim;
            kv.write(compute, &slots, &self.rows[sequence], (width, column));
            q.extend_from_slice(&self.rows[sequence][(len - queries) * width..]);
            positions.extend((len - queries..len).map(|position| position as u32));
            q_start.push(positions.len() as u32);
            tables.extend(table);
            table_start.push(tables.len() as u32);
        }
        let batch = AttentionBatch {
            positions: &positions,
            q_start: &q_start,
            block_tables: &tables,
            block_table_start: &table_start,
        };
        let mut plan = AttentionPlan::default();
        plan.set(shape, &batch);
        let mut out = vec![f32::NAN; positions.len() * shape.num_heads * shape.head_dim];
        attend(compute, shape, (&plan, &batch), &kv, (&q, width), &mut out);
        out
    }

    /// By the definition, in f64, from K and V rounded to f16.
    fn expected(&self) -> Vec<(f64, f64)> {
        let shape = &self.shape;
        let (dim, width) = (shape.head_dim, self.width());
        let mut expected = Vec::new();
        for (rows, &(len, queries)) in self.rows.iter().zip(&self.sequences) {
            let head = |token: usize, head: usize| &rows[token * width + head * dim..][..dim];
            let half = |x: f32| f64::from(half::f16::from_f32(x).to_f32());
            for query in len - queries..len {
                let first = (query + 1).saturating_sub(shape.sliding_window.unwrap_or(usize::MAX));
                for h in 0..shape.num_heads {
                    let kv_head = h / (shape.num_heads / shape.num_kv_heads);
                    let score = |position: usize| {
                        let k = head(position, shape.num_heads + kv_head);
                        let products = head(query, h)
                            .iter()
                            .zip(k)
                            .map(|(q, k)| f64::from(*q) * half(*k));
                        (products.sum::<f64>() / (dim as f64).sqrt()).exp()
                    };
                    let weights: Vec<f64> = (first..=query).map(score).collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..dim {
                        let v_head = shape.num_heads + shape.num_kv_heads + kv_head;
                        let terms = weights
                            .iter()
                            .enumerate()
                            .map(|(i, weight)| weight / total * half(head(first + i, v_head)[d]));
                        let value: f64 = terms.sum();
                        expected.push((value, value.abs() + 0.1));
                    }
                }
            }
        }
        expected
    }
}

fn shape(heads: usize, kv_heads: usize, dim: usize, window: Option<usize>) -> AttentionShape {
    AttentionShape {
        num_heads: heads,
        num_kv_heads: kv_heads,
        head_dim: dim,
        sliding_window: window,
        block_size: BLOCK_SIZE,
    }
}

#[test]
fn attention_is_right_for_all_shapes() {
    for isa in isas() {
        let compute = compute(isa, 2);
        for (heads, kv_heads, dim) in [(1, 1, 8), (9, 3, 64), (14, 2, 64), (4, 4, 20), (8, 1, 128)]
        {
            for window in [None, Some(1), Some(7), Some(16), Some(50)] {
                let sequences = [(1, 1), (33, 1), (100, 100), (75, 5), (64, 33)];
                let case = Case::new(shape(heads, kv_heads, dim, window), &sequences);
                let what =
                    format!("{isa}, {heads} heads over {kv_heads} of {dim}, window {window:?}");
                assert_close(&what, &case.run(&compute), &case.expected(), 2e-6);
            }
        }
    }
}

#[test]
fn a_query_has_the_same_bits_in_any_chunk_batch_and_on_any_threads() {
    for isa in isas() {
        for window in [None, Some(21)] {
            let shape = shape(6, 2, 32, window);
            let len = 90;
            let whole = Case::new(shape, &[(len, len)]).run(&compute(isa, 1));
            let row = 6 * 32;
            for (queries, threads) in [(1, 1), (2, 3), (5, 2), (17, 1), (64, 4)] {
                let mut case = Case::new(shape, &[(len, queries), (40, 1), (70, 30)]);
                let out = case.run(&compute(isa, threads));
                let last = &whole[(len - queries) * row..];
                assert_eq!(&out[..queries * row], last, "{isa}, {queries} queries");
                // The same positions, in other blocks.
                case.sequences.truncate(1);
                case.rows.truncate(1);
                assert_eq!(
                    case.run(&compute(isa, threads)),
                    last,
                    "{isa}, {queries} alone"
                );
            }
        }
    }
}

#[test]
fn extreme_scores_do_not_overflow() {
    for isa in isas() {
        let mut case = Case::new(shape(2, 1, 16, None), &[(40, 40)]);
        case.rows[0].iter_mut().for_each(|x| *x *= 200.0);
        let out = case.run(&compute(isa, 1));
        assert!(
            out.iter().all(|x| x.is_finite() && x.abs() <= 200.0),
            "{isa}"
        );
    }
}

#[test]
fn a_copied_run_of_slots_reads_like_the_first_and_leaves_the_rest() {
    let compute = compute(Isa::detect(), 1);
    let shape = shape(1, 1, 24, None);
    let width = 3 * 24;
    let rows = noise(64 * width, 3);
    let slots: Vec<u32> = (0..64).collect();
    for copied in [1, 15, 16, 17, 31, 32] {
        let storage = || {
            let mut kv = KvStorage::new(KvShape {
                num_kv_heads: 1,
                head_dim: 24,
                num_slots: 128,
            });
            kv.write(&compute, &slots, &rows, (width, 24));
            kv
        };
        let mut kv = storage();
        // Slots 32.. of block 1 to block 2, whose rest then gets what block 1 has there.
        kv.copy(32, 64, copied);
        let rest: Vec<u32> = (64 + copied as u32..96).collect();
        kv.write(&compute, &rest, &rows[(32 + copied) * width..], (width, 24));
        let attend_block = |kv: &KvStorage, block: u32| {
            let batch = AttentionBatch {
                positions: &[63],
                q_start: &[0, 1],
                block_tables: &[0, block],
                block_table_start: &[0, 2],
            };
            let mut plan = AttentionPlan::default();
            plan.set(&shape, &batch);
            let mut out = vec![0.0; 24];
            attend(
                &compute,
                &shape,
                (&plan, &batch),
                kv,
                (&rows[..width], width),
                &mut out,
            );
            out
        };
        assert_eq!(
            attend_block(&kv, 2),
            attend_block(&storage(), 1),
            "{copied} copied"
        );
        assert_eq!(
            attend_block(&kv, 1),
            attend_block(&storage(), 1),
            "{copied} copied"
        );
    }
}
