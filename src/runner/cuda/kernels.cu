// What a step computes between the matrix products. Activations are f16 or bf16, as the weights are;
// the residual stream, norms' and biases' values are f32, and so is all arithmetic but attention's
// products, which multiply 16 bits and sum f32.
//
// A row is one token of the step. All matrices are row-major.

// Compiled while the program runs, for the GPU that it found, with these set: ELEMENT_IS_BF16, and of
// attention GROUPS, so that a head has at most 64 GROUPS elements, and WARPS, of a block, a power of 2.

typedef unsigned int u32;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffff;
#define MINUS_INFINITY __int_as_float(0xff800000)

// Bits of an f16 or bf16. NVRTC has no header with types for them.
typedef unsigned short Element;

__device__ float to_float(Element x) {
    float y;
#if ELEMENT_IS_BF16
    y = __uint_as_float((u32)x << 16);
#else
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
#endif
    return y;
}

__device__ Element to_element(float x) {
    Element y;
#if ELEMENT_IS_BF16
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
#else
    // What is too large stays finite.
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
#endif
    return y;
}

__device__ u32 pack(float low, float high) {
    u32 pair;
#if ELEMENT_IS_BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

// d += a b: 16 x 16 by 16 x 8, the tensor cores' m16n8k16. With g = lane / 4 and t = lane % 4, a lane
// has of a: rows g and g + 8 at columns 2t, 2t + 1 (a0, a1), and at 2t + 8, 2t + 9 (a2, a3); of b:
// column g at rows 2t, 2t + 1 (b0), and 2t + 8, 2t + 9 (b1); of d: row g at columns 2t, 2t + 1, then
// row g + 8.
__device__ void multiply(float d[4], const u32 a[4], u32 b0, u32 b1) {
#if ELEMENT_IS_BF16
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Embedding --------------------------------------------------------------------------------

// x[row] = tokens[ids[row]] + positions_table[positions[row]]; a grid of rows.
extern "C" __global__ void embed(const Element *tokens, const Element *positions_table, const u32 *ids, const u32 *positions, float *x,
                      u32 width) {
    const u32 row = blockIdx.x;
    const Element *token = tokens + (size_t)ids[row] * width;
    const Element *position = positions_table ? positions_table + (size_t)positions[row] * width : nullptr;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        x[(size_t)row * width + i] = to_float(token[i]) + (position ? to_float(position[i]) : 0.0f);
    }
}

// ---- Norms ------------------------------------------------------------------------------------

__device__ float warp_sum(float x) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, step);
    }
    return x;
}

// The sum over a block of at most 32 warps; every thread gets it.
__device__ float block_sum(float x) {
    __shared__ float sums[WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) {
        sums[warp] = x;
    }
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? sums[lane] : 0.0f);
}

// out[i] = the norm of x[rows[i]], or of row i; a grid of outputs. `pending` is a bias that the product
// before has left out of x.
extern "C" __global__ void normalise(float *x, const float *pending, const u32 *rows, const float *weight, const float *bias, Element *out,
                     u32 width, float eps, u32 is_layer_norm) {
    float *values = x + (size_t)(rows ? rows[blockIdx.x] : blockIdx.x) * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        if (pending) {
            values[i] += pending[i];
        }
        sum += is_layer_norm ? values[i] : values[i] * values[i];
    }
    sum = block_sum(sum);
    float mean = 0.0f;
    if (is_layer_norm) {
        mean = sum / width;
        sum = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            sum += (values[i] - mean) * (values[i] - mean);
        }
        sum = block_sum(sum);
    }
    const float scale = rsqrtf(sum / width + eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float y = (values[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f);
        out[(size_t)blockIdx.x * width + i] = to_element(y);
    }
}

// ---- Q, K and V -------------------------------------------------------------------------------

struct Heads {
    u32 num_heads;
    u32 num_kv_heads;
    u32 head_dim;
    // Elements from one head of q, or slot of the pools, to the next: head_dim, filled up with zeros
    // to whole 16 bytes.
    u32 stride;
    u32 num_slots;
};

// Splits the rows of qkv into heads, adds the bias, normalises, rotates (pairs i and i + head_dim / 2),
// and writes Q to q (rows, num_heads, stride), K and V to their pools (num_kv_heads, num_slots,
// stride). A warp takes a head of a row; the grid is (rows, heads / warps of a block).
extern "C" __global__ void write_qkv(const Element *qkv, const float *bias, const float *q_norm, const float *k_norm, float eps,
                          const u32 *positions, const u32 *slots, const float *inverse_frequencies, Element *q, Element *k_pool,
                          Element *v_pool, Heads heads) {
    const u32 row = blockIdx.x, lane = threadIdx.x % WARP;
    const u32 head = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
    const u32 first_v = heads.num_heads + heads.num_kv_heads, num_heads = first_v + heads.num_kv_heads;
    if (head >= num_heads) {
        return;
    }
    const u32 dim = heads.head_dim;
    const Element *values = qkv + ((size_t)row * num_heads + head) * dim;
    const float *biases = bias ? bias + (size_t)head * dim : nullptr;
    const bool is_q = head < heads.num_heads, is_v = head >= first_v;
    const float *weights = is_v ? nullptr : is_q ? q_norm : k_norm;
    auto value = [&](u32 i) { return to_float(values[i]) + (biases ? biases[i] : 0.0f); };

    float scale = 1.0f;
    if (weights) {
        float sum = 0.0f;
        for (u32 i = lane; i < dim; i += WARP) {
            sum += value(i) * value(i);
        }
        scale = rsqrtf(warp_sum(sum) / dim + eps);
    }
    auto normed = [&](u32 i) { return weights ? value(i) * scale * weights[i] : value(i); };

    const size_t slot = slots[row];
    Element *out;
    if (is_q) {
        out = q + ((size_t)row * heads.num_heads + head) * heads.stride;
    } else if (is_v) {
        out = v_pool + ((size_t)(head - first_v) * heads.num_slots + slot) * heads.stride;
    } else {
        out = k_pool + ((size_t)(head - heads.num_heads) * heads.num_slots + slot) * heads.stride;
    }
    const u32 half = dim / 2;
    for (u32 i = lane; i < heads.stride; i += WARP) {
        float y = i < dim ? normed(i) : 0.0f;
        if (inverse_frequencies && !is_v && i < dim) {
            const u32 pair = i < half ? i : i - half;
            float sin, cos;
            sincosf(positions[row] * inverse_frequencies[pair], &sin, &cos);
            y = i < half ? y * cos - normed(i + half) * sin : y * cos + normed(pair) * sin;
        }
        out[i] = to_element(y);
    }
}

// ---- Attention --------------------------------------------------------------------------------

struct Step {
    // First row of each sequence, then the number of rows.
    const u32 *q_start;
    const u32 *positions;
    // Blocks of all sequences, one table after the other, and where each begins.
    const u32 *block_tables;
    const u32 *block_table_start;
    // (sequence, first query row) of each unit.
    const u32 *units;
    // In tokens; a multiple of 16.
    u32 block_size;
    // A token sees itself and the window - 1 before it.
    u32 window;
};

union Words {
    uint4 all;
    u32 word[4];
};

// 8 elements from `first` on, of a row that is `stride` long; zeros behind it.
__device__ Words load_8(const Element *row, u32 first, u32 stride) {
    Words words;
    words.all = first < stride ? *reinterpret_cast<const uint4 *>(row + first) : make_uint4(0, 0, 0, 0);
    return words;
}

constexpr u32 SUMS = 8 * GROUPS; // products of 16 x 8 that a head's elements take

// What a warp has of a unit: of query rows g and g + 8 the largest score, the sum of the weights, and
// the weighted sums of V.
struct Attended {
    float sums[SUMS][4];
    float largest[2];
    float total[2];
};
// The same in memory, lane by lane.
constexpr u32 PART_WORDS = 4 * SUMS + 4;
typedef float Part[PART_WORDS][WARP];

__device__ void put(const Attended &attended, Part &part, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < 4 * SUMS; i++) {
        part[i][lane] = attended.sums[i / 4][i % 4];
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        part[4 * SUMS + half][lane] = attended.largest[half];
        part[4 * SUMS + 2 + half][lane] = attended.total[half];
    }
}

// Adds what another warp has, of other positions.
__device__ void merge(Attended &attended, const Part &part, u32 lane) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const float other_largest = part[4 * SUMS + half][lane];
        const float largest = fmaxf(attended.largest[half], other_largest);
        const float base = largest == MINUS_INFINITY ? 0.0f : largest;
        const float scale = exp2f(attended.largest[half] - base), other_scale = exp2f(other_largest - base);
        attended.largest[half] = largest;
        attended.total[half] = attended.total[half] * scale + part[4 * SUMS + 2 + half][lane] * other_scale;
#pragma unroll
        for (u32 sum = 0; sum < SUMS; sum++) {
#pragma unroll
            for (u32 i = 2 * half; i < 2 * half + 2; i++) {
                attended.sums[sum][i] = attended.sums[sum][i] * scale + part[4 * sum + i][lane] * other_scale;
            }
        }
    }
}

// A unit is 16 query rows of one sequence and KV head: its queries, each with all heads that share the
// KV head.
struct Unit {
    u32 first_row;
    u32 first_query_row;
    u32 last_query_row;
    u32 sharing;
    u32 kv_head;
    const u32 *table;
};

__device__ Unit unit_of_block(const Step &step, const Heads &heads) {
    const u32 sequence = step.units[2 * blockIdx.x];
    Unit unit;
    unit.sharing = heads.num_heads / heads.num_kv_heads;
    unit.kv_head = blockIdx.y;
    unit.first_row = step.q_start[sequence];
    unit.first_query_row = step.units[2 * blockIdx.x + 1];
    const u32 num_query_rows = (step.q_start[sequence + 1] - unit.first_row) * unit.sharing;
    unit.last_query_row = min(unit.first_query_row + 15, num_query_rows - 1);
    unit.table = step.block_tables + step.block_table_start[sequence];
    return unit;
}

// The head of all rows' heads that a query row is.
__device__ size_t head_of_query_row(const Unit &unit, const Heads &heads, u32 query_row) {
    const size_t row = unit.first_row + query_row / unit.sharing;
    return row * heads.num_heads + unit.kv_head * unit.sharing + query_row % unit.sharing;
}

__device__ void store(const Attended &attended, const Unit &unit, const Heads &heads, Element *out, u32 lane) {
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 query_row = unit.first_query_row + g + 8 * half;
        if (query_row > unit.last_query_row) {
            continue;
        }
        Element *row = out + head_of_query_row(unit, heads, query_row) * heads.head_dim;
#pragma unroll
        for (u32 sum = 0; sum < SUMS; sum++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const u32 element = sum / 8 * 64 + 8 * (2 * t + i) + sum % 8;
                if (element < heads.head_dim) {
                    row[element] = to_element(attended.sums[sum][2 * half + i] / attended.total[half]);
                }
            }
        }
    }
}

// Attention over paged K and V with an online softmax (Milakov and Gimelshein 2018; FlashAttention-2,
// Dao 2023, for the form of it). The grid is (units, num_kv_heads, parts); the WARPS of all parts take
// the context's runs of 32 positions in turn. Where there are several parts, each leaves what it has in
// `parts` (units, num_kv_heads, parts), and merge_parts is to follow.
//
// Nothing passes through shared memory until the warps of a block add up what they have. A sum over a
// head's elements may run in any order, so lane t of four takes elements 8t to 8t + 7 of every 32, as K
// and Q lie in memory, for the columns of two products; and column g of the i-th product with V is
// element 8g + i of 64.
extern "C" __global__ void __launch_bounds__(WARPS *WARP)
    attend(const Element *q, const Element *k_pool, const Element *v_pool, Step step, Element *out, Part *parts,
           Heads heads, float scale) {
    constexpr u32 CHUNKS = 2 * GROUPS; // of 32 elements
    constexpr u32 TILES = 4;           // of 8 positions
    constexpr u32 RUN = 8 * TILES;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const Unit unit = unit_of_block(step, heads);

    // Of query rows g and g + 8; those past the end repeat the last one and are not stored.
    u32 position[2];
    u32 a[CHUNKS][2][4];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 query_row = min(unit.first_query_row + g + 8 * half, unit.last_query_row);
        position[half] = step.positions[unit.first_row + query_row / unit.sharing];
        const Element *row = q + head_of_query_row(unit, heads, query_row) * heads.stride;
#pragma unroll
        for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
            const Words words = load_8(row, 32 * chunk + 8 * t, heads.stride);
            a[chunk][0][half] = words.word[0];
            a[chunk][0][half + 2] = words.word[1];
            a[chunk][1][half] = words.word[2];
            a[chunk][1][half + 2] = words.word[3];
        }
    }
    const u32 first_position = step.positions[unit.first_row + unit.first_query_row / unit.sharing];
    const u32 start = first_position + 1 > step.window ? (first_position + 1 - step.window) / RUN * RUN : 0;
    const u32 end = step.positions[unit.first_row + unit.last_query_row / unit.sharing] + 1;

    Attended attended = {};
    attended.largest[0] = attended.largest[1] = MINUS_INFINITY;
    for (u32 run = start + (blockIdx.z * WARPS + warp) * RUN; run < end; run += gridDim.z * WARPS * RUN) {
        // Where each 16 positions lie; those past the end are not looked up, and read from the first.
        size_t slots[TILES / 2];
#pragma unroll
        for (u32 i = 0; i < TILES / 2; i++) {
            const u32 first = run + 16 * i < end ? run + 16 * i : run;
            slots[i] = (size_t)unit.kv_head * heads.num_slots +
                       (size_t)unit.table[first / step.block_size] * step.block_size + first % step.block_size;
        }
        float scores[TILES][4] = {};
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            const Element *k = k_pool + (slots[tile / 2] + tile % 2 * 8 + g) * heads.stride;
#pragma unroll
            for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
                const Words words = load_8(k, 32 * chunk + 8 * t, heads.stride);
                multiply(scores[tile], a[chunk][0], words.word[0], words.word[1]);
                multiply(scores[tile], a[chunk][1], words.word[2], words.word[3]);
            }
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float largest = attended.largest[half];
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    const u32 at = run + 8 * tile + 2 * t + i;
                    float &score = scores[tile][2 * half + i];
                    const bool is_seen = at <= position[half] && position[half] - at < step.window;
                    score = is_seen ? score * scale : MINUS_INFINITY;
                    largest = fmaxf(largest, score);
                }
            }
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            const float base = largest == MINUS_INFINITY ? 0.0f : largest;
            const float correction = exp2f(attended.largest[half] - base);
            attended.largest[half] = largest;
            attended.total[half] *= correction;
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    float &score = scores[tile][2 * half + i];
                    score = exp2f(score - base);
                    attended.total[half] += score;
                }
            }
#pragma unroll
            for (u32 sum = 0; sum < SUMS; sum++) {
                attended.sums[sum][2 * half] *= correction;
                attended.sums[sum][2 * half + 1] *= correction;
            }
        }
#pragma unroll
        for (u32 pair = 0; pair < TILES / 2; pair++) {
            const float *low = scores[2 * pair], *high = scores[2 * pair + 1];
            const u32 weights[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]),
                                    pack(high[2], high[3])};
#pragma unroll
            for (u32 group = 0; group < GROUPS; group++) {
                Words v[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    // Past the end lies what others left, maybe not even finite: it must not be
                    // multiplied, not by 0 either.
                    const u32 at = 2 * t + i % 2 + i / 2 * 8;
                    const bool is_there = run + 16 * pair + at < end;
                    v[i] = load_8(v_pool + (slots[pair] + at) * heads.stride, 64 * group + 8 * g,
                                  is_there ? heads.stride : 0);
                }
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    const u32 select = i % 2 ? 0x7632 : 0x5410;
                    multiply(attended.sums[8 * group + i], weights,
                             __byte_perm(v[0].word[i / 2], v[1].word[i / 2], select),
                             __byte_perm(v[2].word[i / 2], v[3].word[i / 2], select));
                }
            }
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        attended.total[half] += __shfl_xor_sync(ALL_LANES, attended.total[half], 1);
        attended.total[half] += __shfl_xor_sync(ALL_LANES, attended.total[half], 2);
    }

    // Half of the warps hand what they have to the others, until one has it all.
    __shared__ Part handed[WARPS / 2];
    for (u32 left = WARPS / 2; left > 0; left /= 2) {
        __syncthreads();
        if (warp >= left && warp < 2 * left) {
            put(attended, handed[warp - left], lane);
        }
        __syncthreads();
        if (warp < left) {
            merge(attended, handed[warp], lane);
        }
    }
    if (warp > 0) {
        return;
    }
    if (gridDim.z == 1) {
        store(attended, unit, heads, out, lane);
    } else {
        put(attended, parts[(blockIdx.x * gridDim.y + blockIdx.y) * gridDim.z + blockIdx.z], lane);
    }
}

// Adds up what the parts of `attend` left; a grid of (units, num_kv_heads), of one warp each.
extern "C" __global__ void merge_parts(const Part *parts, u32 num_parts, Step step, Element *out, Heads heads) {
    Attended attended = {};
    attended.largest[0] = attended.largest[1] = MINUS_INFINITY;
    for (u32 i = 0; i < num_parts; i++) {
        merge(attended, parts[(blockIdx.x * gridDim.y + blockIdx.y) * num_parts + i], threadIdx.x);
    }
    store(attended, unit_of_block(step, heads), heads, out, threadIdx.x);
}

// ---- MLP --------------------------------------------------------------------------------------

enum Activation : u32 { SILU, GELU, GELU_TANH };

__device__ float activate(float x, u32 activation) {
    switch (activation) {
        case SILU:
            return x / (1.0f + expf(-x));
        case GELU:
            return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        default:
            return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    }
}

// out (rows, width) = activation(up), or activation(gate) * up with up (rows, gate and up); a grid of
// (rows, width / block).
extern "C" __global__ void mlp_inner(const Element *up, const float *bias, Element *out, u32 width, u32 activation, u32 is_gated) {
    const u32 row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) {
        return;
    }
    const Element *values = up + (size_t)row * width * (is_gated ? 2 : 1);
    float y = activate(to_float(values[i]) + (bias ? bias[i] : 0.0f), activation);
    if (is_gated) {
        y *= to_float(values[width + i]) + (bias ? bias[width + i] : 0.0f);
    }
    out[(size_t)row * width + i] = to_element(y);
}

// ---- Copies -----------------------------------------------------------------------------------

// Copies `num_elements` from slot to slot in every pool of every head: a grid of them, `pool_elements`
// apart.
extern "C" __global__ void copy_slots(Element *pools, size_t pool_elements, size_t from, size_t to, u32 num_elements) {
    Element *pool = pools + blockIdx.x * pool_elements;
    for (u32 i = threadIdx.x; i < num_elements; i += blockDim.x) {
        pool[to + i] = pool[from + i];
    }
}
