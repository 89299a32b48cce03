//! Paged attention against the plain definition, over scattered blocks.

use candlepower::kernels::{
    Activations, AttentionBatch, AttentionPlan, AttentionShape, CODE_GROUP, Compute, HeadTransform,
    Isa, KvShape, KvStorage, KvType, KvWrites, Needs, PairBits, attend,
};

use crate::{VALUES, assert_close, compute, isas, noise};

const BLOCK_SIZE: usize = 32;

/// Sequences with a history in the storage and some query tokens each.
struct Case {
    shape: AttentionShape,
    kv_type: KvType,
    /// Tokens of each sequence, and how many of the last are queries.
    sequences: Vec<(usize, usize)>,
    /// Q, K and V of every token of every sequence. (all tokens, width)
    rows: Vec<Vec<f32>>,
    /// First blocks of each sequence that are those of the first sequence.
    shared_blocks: Vec<usize>,
}

impl Case {
    fn new(shape: AttentionShape, kv_type: KvType, sequences: &[(usize, usize)]) -> Self {
        let width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
        let rows = sequences.iter().enumerate();
        Self {
            shape,
            kv_type,
            rows: rows
                .map(|(i, (len, _))| noise(len * width, i as u64 + 1))
                .collect(),
            sequences: sequences.to_vec(),
            shared_blocks: vec![0; sequences.len()],
        }
    }

    /// Lets sequences begin as the first one does.
    fn share(&mut self, blocks: &[usize]) {
        let width = self.width();
        let (first, others) = self.rows.split_first_mut().expect("a sequence");
        for (rows, blocks) in others.iter_mut().zip(&blocks[1..]) {
            let shared = ..rows.len().min(blocks * BLOCK_SIZE * width);
            rows[shared].copy_from_slice(&first[shared]);
        }
        self.shared_blocks = blocks.to_vec();
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
        self.run_to(compute, VALUES).values().to_vec()
    }

    /// Results in the forms of `needs`.
    fn run_to(&self, compute: &Compute, needs: Needs) -> Activations {
        self.run_with(compute, needs, false)
    }

    /// With K and V of the query tokens written by attention, if that can be.
    fn run_with(&self, compute: &Compute, needs: Needs, attention_writes: bool) -> Activations {
        let (shape, width) = (&self.shape, self.width());
        let most = (0..self.sequences.len())
            .map(|s| self.blocks_of(s))
            .max()
            .unwrap_or(0);
        let mut kv = KvStorage::new(
            compute.isa(),
            KvShape {
                kv_type: self.kv_type,
                num_kv_heads: shape.num_kv_heads,
                head_dim: shape.head_dim,
                num_slots: most * self.sequences.len() * BLOCK_SIZE,
            },
        );
        let (mut q, mut positions, mut q_start) = (Vec::new(), Vec::new(), vec![0]);
        let (mut tables, mut table_start) = (Vec::new(), vec![0]);
        let mut query_slots = Vec::new();
        for (sequence, &(len, queries)) in self.sequences.iter().enumerate() {
            let table: Vec<u32> = (0..self.blocks_of(sequence))
                .map(|i| match i < self.shared_blocks[sequence] {
                    true => self.block(0, i),
                    false => self.block(sequence, i),
                })
                .collect();
            let slot =
                |p: usize| table[p / BLOCK_SIZE] * BLOCK_SIZE as u32 + (p % BLOCK_SIZE) as u32;
            // What is shared is the first sequence's to write.
            let own = len.min(self.shared_blocks[sequence] * BLOCK_SIZE);
            let own = if sequence == 0 { 0 } else { own };
            let first_query = len - queries;
            let own_end = if attention_writes { first_query } else { len };
            let slots: Vec<u32> = (own..own_end).map(slot).collect();
            let rows = &self.rows[sequence][own * width..own_end * width];
            write(compute, shape, &mut kv, &slots, rows);
            query_slots.extend((first_query..len).map(slot));
            q.extend_from_slice(&self.rows[sequence][first_query * width..]);
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
        plan.set(compute, shape, &batch);
        if attention_writes {
            plan.include_writes(shape, &batch, &query_slots);
            assert!(plan.writes());
        }
        let mut out = Activations::default();
        out.resize(positions.len(), shape.num_heads * shape.head_dim);
        out.values_mut().fill(f32::NAN);
        let kv = (&mut kv, &as_they_are(shape));
        attend(
            compute,
            shape,
            (&plan, &batch),
            kv,
            &mut q,
            (&mut out, needs),
        );
        out
    }

    /// By the definition, in f64, from Q, K and V as the functions make them of a head's numbers.
    fn expected(&self, [as_query, as_key, as_value]: [Stored<'_>; 3]) -> Vec<(f64, f64)> {
        let shape = &self.shape;
        let (dim, width) = (shape.head_dim, self.width());
        let mut expected = Vec::new();
        for (rows, &(len, queries)) in self.rows.iter().zip(&self.sequences) {
            let head = |token: usize, head: usize| &rows[token * width + head * dim..][..dim];
            let of_all_tokens = |stored: Stored<'_>, head_index: usize| -> Vec<Vec<f64>> {
                (0..len)
                    .map(|token| stored(head(token, head_index)))
                    .collect()
            };
            let kv_heads = 0..shape.num_kv_heads;
            let keys = kv_heads
                .clone()
                .map(|it| of_all_tokens(as_key, shape.num_heads + it));
            let keys: Vec<_> = keys.collect();
            let first_value = shape.num_heads + shape.num_kv_heads;
            let values: Vec<_> = kv_heads
                .map(|it| of_all_tokens(as_value, first_value + it))
                .collect();
            for query in len - queries..len {
                let first = (query + 1).saturating_sub(shape.sliding_window.unwrap_or(usize::MAX));
                for h in 0..shape.num_heads {
                    let kv_head = h / (shape.num_heads / shape.num_kv_heads);
                    let q = as_query(head(query, h));
                    let score = |position: usize| {
                        let pairs = q.iter().zip(&keys[kv_head][position]);
                        let product: f64 = pairs.map(|(q, k)| q * k).sum();
                        (product / (dim as f64).sqrt()).exp()
                    };
                    let weights: Vec<f64> = (first..=query).map(score).collect();
                    let total: f64 = weights.iter().sum();
                    let value = |d: usize| -> f64 {
                        let terms = weights.iter().zip(&values[kv_head][first..]);
                        terms.map(|(weight, v)| weight / total * v[d]).sum()
                    };
                    let of_size = |value: f64| (value, value.abs() + 0.1);
                    expected.extend((0..dim).map(value).map(of_size));
                }
            }
        }
        expected
    }
}

/// What becomes of a head's numbers.
type Stored<'a> = &'a dyn Fn(&[f32]) -> Vec<f64>;

/// Whether V is in bf16, and is multiplied with weights in bf16.
fn has_bf16(isa: Isa, kv_type: KvType) -> bool {
    isa == Isa::Avx512Bf16 && kv_type == KvType::F16
}

/// What a head's numbers are when they are multiplied.
type Multiplied = fn(&[f32]) -> Vec<f64>;

/// Those of Q, of K and of V, but for V in bf16.
fn multiplied(kv_type: KvType) -> [Multiplied; 3] {
    match kv_type {
        KvType::F32 => [exact; 3],
        KvType::F16 => [
            |head| whole_numbers(head, largest(head)),
            |head| {
                let in_bf16 = half::bf16::from_f32(largest(head));
                let is_below = in_bf16.to_f32() < largest(head);
                let bits = in_bf16.to_bits() + u16::from(is_below);
                whole_numbers(head, half::bf16::from_bits(bits).to_f32())
            },
            |head| head.iter().map(|x| f64::from(in_half(*x))).collect(),
        ],
        KvType::Q8_0 => [exact, codes, codes],
    }
}

fn exact(head: &[f32]) -> Vec<f64> {
    head.iter().map(|x| f64::from(*x)).collect()
}

fn in_half(x: f32) -> f32 {
    half::f16::from_f32(x).to_f32()
}

fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0f32, |max, x| max.max(x.abs()))
}

/// Multiples of the `most`th part of a scale; so many sums of `most * most` as the head has fit 31 bits.
fn whole_numbers(head: &[f32], scale: f32) -> Vec<f64> {
    let most = (i32::MAX / head.len() as i32).isqrt() as f32;
    let code = |x: &f32| f64::from((x * (most / scale)).round_ties_even());
    let step = f64::from(scale) / f64::from(most);
    head.iter().map(|x| code(x) * step).collect()
}

/// A scale in f16 for 32 of them.
fn codes(head: &[f32]) -> Vec<f64> {
    let codes = |group: &[f32]| {
        let scale = in_half(largest(group) / 127.0);
        let code = |x: &f32| f64::from((x * (1.0 / scale)).round_ties_even() * scale);
        group.iter().map(code).collect::<Vec<_>>()
    };
    head.chunks(32).flat_map(codes).collect()
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
fn attention_is_right_for_all_shapes_and_types() {
    for (heads, kv_heads, dim) in [(1, 1, 8), (9, 3, 64), (14, 2, 64), (4, 4, 20), (8, 1, 128)] {
        for window in [None, Some(1), Some(7), Some(16), Some(50)] {
            for kv_type in KvType::ALL {
                let sequences = [(1, 1), (33, 1), (100, 100), (75, 5), (64, 33)];
                let case = Case::new(shape(heads, kv_heads, dim, window), kv_type, &sequences);
                let [query, key, value] = multiplied(kv_type);
                let expected = case.expected([&query, &key, &value]);
                let bf16 = |x: &f32| half::bf16::from_f32(*x).to_f64();
                let value = |head: &[f32]| head.iter().map(bf16).collect();
                let expected_of_bf16 = case.expected([&query, &key, &value]);
                for isa in isas() {
                    let what = format!(
                        "{isa}, {kv_type}, {heads} heads over {kv_heads} of {dim}, window {window:?}"
                    );
                    let (expected, tolerance) = match has_bf16(isa, kv_type) {
                        true => (&expected_of_bf16, 2e-2),
                        false => (&expected, 2e-6),
                    };
                    assert_close(&what, &case.run(&compute(isa, 2)), expected, tolerance);
                }
            }
        }
    }
}

#[test]
fn what_a_type_costs_against_exact_keys_and_values_is_bounded() {
    // Measured 6.2e-7, 1.8e-3 and 3.2e-2, with V in bf16 2.2e-2: of a sum of V, which is up to 1, where
    // it nearly cancels.
    for (kv_type, bound) in [
        (KvType::F32, 2e-6),
        (KvType::F16, 4e-3),
        (KvType::Q8_0, 6e-2),
    ] {
        let case = Case::new(shape(6, 2, 64, None), kv_type, &[(300, 40), (50, 50)]);
        let exact = case.expected([&exact; 3]);
        for isa in isas() {
            let out = case.run(&compute(isa, 2));
            let error =
                |(x, (exact, size)): (&f32, &(f64, f64))| (f64::from(*x) - exact).abs() / size;
            let worst = out.iter().zip(&exact).map(error).fold(0.0, f64::max);
            println!("{isa}, {kv_type}: {worst:e}");
            let bound = if has_bf16(isa, kv_type) { 4e-2 } else { bound };
            assert_close(&format!("{isa}, {kv_type}"), &out, &exact, bound);
        }
    }
}

#[test]
fn a_query_has_the_same_bits_in_any_chunk_batch_and_on_any_threads() {
    for (isa, kv_type) in isas().flat_map(|isa| KvType::ALL.map(|kv_type| (isa, kv_type))) {
        for window in [None, Some(21)] {
            let shape = shape(6, 2, 32, window);
            let len = 90;
            let whole = Case::new(shape, kv_type, &[(len, len)]).run(&compute(isa, 1));
            let row = 6 * 32;
            for (queries, threads) in [(1, 1), (2, 3), (5, 2), (17, 1), (64, 4)] {
                let what = format!("{isa}, {kv_type}, {queries} queries");
                let mut case = Case::new(shape, kv_type, &[(len, queries), (40, 1), (70, 30)]);
                let out = case.run(&compute(isa, threads));
                let last = &whole[(len - queries) * row..];
                assert_eq!(&out[..queries * row], last, "{what}");
                // The same positions, in other blocks.
                case.sequences.truncate(1);
                case.rows.truncate(1);
                assert_eq!(case.run(&compute(isa, threads)), last, "{what} alone");
            }
        }
    }
}

#[test]
fn sequences_that_share_blocks_have_the_bits_of_those_that_do_not() {
    const SEQUENCES: [(usize, usize); 10] = [
        (300, 1),
        (310, 2),
        (289, 1),
        (330, 1),
        (300, 3),
        (290, 1),
        (300, 40),
        (288, 1),
        (279, 1),
        (20, 1),
    ];
    const SHARED: [usize; 10] = [9, 9, 9, 8, 5, 4, 8, 9, 9, 0];
    for (isa, kv_type) in isas().flat_map(|isa| KvType::ALL.map(|kv_type| (isa, kv_type))) {
        for (heads, window) in [(2, None), (6, None), (14, None), (6, Some(100))] {
            let mut case = Case::new(shape(heads, 2, 32, window), kv_type, &SEQUENCES);
            case.share(&SHARED);
            let shared = case.run(&compute(isa, 2));
            case.shared_blocks.fill(0);
            let apart = case.run(&compute(isa, 2));
            assert!(
                shared == apart,
                "{isa}, {kv_type}, {heads} heads, window {window:?}"
            );
        }
    }
}

#[test]
fn codes_that_are_made_at_once_are_those_of_the_values() {
    let needs = Needs {
        codes: Some(PairBits::Four),
        ..Needs::default()
    };
    // Two heads of 16 and one of 64 are whole groups of codes; one of 16 and heads of 24 are not.
    for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 3, 64), (2, 2, 16), (8, 2, 24)] {
        let shape = shape(heads, kv_heads, head_dim, None);
        let mut case = Case::new(shape, KvType::F16, &[(300, 1), (290, 1), (280, 1), (9, 9)]);
        case.shared_blocks = vec![0, 8, 8, 0];
        for isa in isas() {
            let mut values = case.run_to(&compute(isa, 1), VALUES);
            let codes = case.run_to(&compute(isa, 3), needs);
            values.quantize(&compute(isa, 1), needs);
            for group in 0..heads * head_dim / CODE_GROUP {
                assert_eq!(codes.group(group), values.group(group), "{isa}, {shape:?}");
            }
        }
    }
}

/// Every type, sequences that share blocks too: results do not tell who wrote K and V.
#[test]
fn attention_that_writes_gives_the_bits_of_one_that_finds_k_and_v() {
    for (isa, kv_type) in isas().flat_map(|isa| KvType::ALL.map(|kv_type| (isa, kv_type))) {
        let shape = shape(6, 2, 40, None);
        let sequences = [(1, 1), (400, 1), (33, 2), (352, 1), (30, 3), (400, 1)];
        let case = Case::new(shape, kv_type, &sequences);
        let of = |case: &Case, attention_writes| {
            let compute = compute(isa, 3);
            let out = case.run_with(&compute, VALUES, attention_writes);
            out.values().to_vec()
        };
        assert_eq!(of(&case, true), of(&case, false), "{isa}, {kv_type}");
        let mut case = Case::new(shape, kv_type, &[(400, 1), (380, 1), (352, 1), (7, 1)]);
        case.share(&[0, 11, 10, 0]);
        assert_eq!(of(&case, true), of(&case, false), "{isa}, {kv_type}");
    }
}

/// Writes K and V of rows as they are.
fn write(
    compute: &Compute,
    shape: &AttentionShape,
    kv: &mut KvStorage,
    slots: &[u32],
    rows: &[f32],
) {
    let mut writes = KvWrites::default();
    writes.set(slots);
    kv.write(compute, &writes, &as_they_are(shape), &mut rows.to_vec());
}

fn as_they_are(shape: &AttentionShape) -> HeadTransform<'static> {
    HeadTransform {
        num_heads: shape.num_heads,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        norms: None,
        rotation: None,
    }
}

#[test]
fn extreme_scores_do_not_overflow() {
    for (isa, kv_type) in isas().flat_map(|isa| KvType::ALL.map(|kv_type| (isa, kv_type))) {
        let mut case = Case::new(shape(2, 1, 16, None), kv_type, &[(40, 40)]);
        case.rows[0].iter_mut().for_each(|x| *x *= 200.0);
        let out = case.run(&compute(isa, 1));
        let is_possible = |x: &f32| x.is_finite() && x.abs() <= 200.1;
        assert!(out.iter().all(is_possible), "{isa}, {kv_type}");
    }
}

#[test]
fn a_copied_run_of_slots_reads_like_the_first_and_leaves_the_rest() {
    let compute = compute(Isa::detect(), 1);
    let shape = shape(1, 1, 24, None);
    let width = 3 * 24;
    let rows = noise(64 * width, 3);
    let slots: Vec<u32> = (0..64).collect();
    let copies = [1, 15, 16, 17, 31, 32];
    for (kv_type, copied) in KvType::ALL
        .into_iter()
        .flat_map(|it| copies.map(|copied| (it, copied)))
    {
        let storage = || {
            let mut kv = KvStorage::new(
                compute.isa(),
                KvShape {
                    kv_type,
                    num_kv_heads: 1,
                    head_dim: 24,
                    num_slots: 128,
                },
            );
            write(&compute, &shape, &mut kv, &slots, &rows);
            kv
        };
        let mut kv = storage();
        // Slots 32.. of block 1 to block 2, whose rest then gets what block 1 has there.
        kv.copy(32, 64, copied);
        let rest: Vec<u32> = (64 + copied as u32..96).collect();
        let (first, end) = (32 + copied, 64);
        write(
            &compute,
            &shape,
            &mut kv,
            &rest,
            &rows[first * width..end * width],
        );
        let attend_block = |kv: &mut KvStorage, block: u32| {
            let batch = AttentionBatch {
                positions: &[63],
                q_start: &[0, 1],
                block_tables: &[0, block],
                block_table_start: &[0, 2],
            };
            let mut plan = AttentionPlan::default();
            plan.set(&compute, &shape, &batch);
            let mut out = Activations::default();
            out.resize(1, 24);
            attend(
                &compute,
                &shape,
                (&plan, &batch),
                (kv, &as_they_are(&shape)),
                &mut rows[..width].to_vec(),
                (&mut out, VALUES),
            );
            out.values().to_vec()
        };
        assert_eq!(
            attend_block(&mut kv, 2),
            attend_block(&mut storage(), 1),
            "{kv_type}, {copied} copied"
        );
        assert_eq!(
            attend_block(&mut kv, 1),
            attend_block(&mut storage(), 1),
            "{kv_type}, {copied} copied"
        );
    }
}
