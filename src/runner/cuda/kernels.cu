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

// Attention over paged K and V with an online softmax (Milakov and Gimelshein 2018; FlashAttention-2,
// Dao 2023, for the form of it). A unit is 16 query rows of one sequence and KV head: its queries, each
// with all heads that share the KV head. The grid is (units, num_kv_heads). The WARPS of a block take
// the context's runs of 32 positions in turn, and add up what they have in the end.
//
// Nothing passes through shared memory before that. A sum over a head's elements may run in any
// order, so lane t of four takes elements 8t to 8t + 7 of every 32, as K and Q lie in memory, for the
// columns of two products; and column g of the i-th product with V is element 8g + i of 64.
extern "C" __global__ void __launch_bounds__(WARPS *WARP) attend(const Element *q, const Element *k_pool, const Element *v_pool, Step step, Element *out, Heads heads, float scale) {
    constexpr u32 CHUNKS = 2 * GROUPS; // of 32 elements
    constexpr u32 TILES = 4;           // of 8 positions
    constexpr u32 RUN = 8 * TILES;
    constexpr u32 SUMS = 8 * GROUPS;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 sequence = step.units[2 * blockIdx.x], first_query_row = step.units[2 * blockIdx.x + 1];
    const u32 kv_head = blockIdx.y, sharing = heads.num_heads / heads.num_kv_heads;
    const u32 first_row = step.q_start[sequence];
    const u32 num_query_rows = (step.q_start[sequence + 1] - first_row) * sharing;
    const u32 last_query_row = min(first_query_row + 15, num_query_rows - 1);
    const u32 *table = step.block_tables + step.block_table_start[sequence];

    // Of query rows g and g + 8; those past the end repeat the last one and are not stored.
    u32 position[2];
    size_t head_of_row[2];
    u32 a[CHUNKS][2][4];
    for (u32 part = 0; part < 2; part++) {
        const u32 query_row = min(first_query_row + g + 8 * part, last_query_row);
        const u32 row = first_row + query_row / sharing;
        position[part] = step.positions[row];
        head_of_row[part] = (size_t)row * heads.num_heads + kv_head * sharing + query_row % sharing;
#pragma unroll
        for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
            const Words words = load_8(q + head_of_row[part] * heads.stride, 32 * chunk + 8 * t, heads.stride);
            a[chunk][0][part] = words.word[0];
            a[chunk][0][part + 2] = words.word[1];
            a[chunk][1][part] = words.word[2];
            a[chunk][1][part + 2] = words.word[3];
        }
    }
    const u32 first_position = step.positions[first_row + first_query_row / sharing];
    const u32 start = first_position + 1 > step.window ? (first_position + 1 - step.window) / RUN * RUN : 0;
    const u32 end = step.positions[first_row + last_query_row / sharing] + 1;

    float sums[SUMS][4] = {};
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY};
    float total[2] = {0.0f, 0.0f};
    for (u32 run = start + warp * RUN; run < end; run += WARPS * RUN) {
        // Where each 16 positions lie; those past the end are not looked up, and read from the first.
        size_t slots[TILES / 2];
#pragma unroll
        for (u32 half = 0; half < TILES / 2; half++) {
            const u32 first = run + 16 * half < end ? run + 16 * half : run;
            slots[half] = (size_t)kv_head * heads.num_slots +
                          (size_t)table[first / step.block_size] * step.block_size + first % step.block_size;
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
        for (u32 part = 0; part < 2; part++) {
            float new_largest = largest[part];
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    const u32 at = run + 8 * tile + 2 * t + i;
                    float &score = scores[tile][2 * part + i];
                    const bool is_seen = at <= position[part] && position[part] - at < step.window;
                    score = is_seen ? score * scale : MINUS_INFINITY;
                    new_largest = fmaxf(new_largest, score);
                }
            }
            new_largest = fmaxf(new_largest, __shfl_xor_sync(ALL_LANES, new_largest, 1));
            new_largest = fmaxf(new_largest, __shfl_xor_sync(ALL_LANES, new_largest, 2));
            const float base = new_largest == MINUS_INFINITY ? 0.0f : new_largest;
            const float correction = exp2f(largest[part] - base);
            largest[part] = new_largest;
            total[part] *= correction;
#pragma unroll
            for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    float &score = scores[tile][2 * part + i];
                    score = exp2f(score - base);
                    total[part] += score;
                }
            }
#pragma unroll
            for (u32 sum = 0; sum < SUMS; sum++) {
                sums[sum][2 * part] *= correction;
                sums[sum][2 * part + 1] *= correction;
            }
        }
#pragma unroll
        for (u32 half = 0; half < TILES / 2; half++) {
            const float *low = scores[2 * half], *high = scores[2 * half + 1];
            const u32 weights[4] = {pack(low[0], low[1]), pack(low[2], low[3]),
                                    pack(high[0], high[1]), pack(high[2], high[3])};
#pragma unroll
            for (u32 group = 0; group < GROUPS; group++) {
                Words v[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    // Past the end lies what others left, maybe not even finite: it must not be
                    // multiplied, not by 0 either.
                    const u32 at = 2 * t + i % 2 + i / 2 * 8;
                    const bool is_seen = run + 16 * half + at < end;
                    v[i] = load_8(v_pool + (slots[half] + at) * heads.stride, 64 * group + 8 * g,
                                  is_seen ? heads.stride : 0);
                }
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    const u32 select = i % 2 ? 0x7632 : 0x5410;
                    multiply(sums[8 * group + i], weights, __byte_perm(v[0].word[i / 2], v[1].word[i / 2], select),
                             __byte_perm(v[2].word[i / 2], v[3].word[i / 2], select));
                }
            }
        }
    }
    for (u32 part = 0; part < 2; part++) {
        total[part] += __shfl_xor_sync(ALL_LANES, total[part], 1);
        total[part] += __shfl_xor_sync(ALL_LANES, total[part], 2);
    }

    // Half of the warps hand what they have to the others, until one has it all.
    __shared__ float handed[WARPS / 2][4 * SUMS + 4][WARP];
    for (u32 left = WARPS / 2; left > 0; left /= 2) {
        __syncthreads();
        if (warp >= left && warp < 2 * left) {
            float(*mine)[WARP] = handed[warp - left];
#pragma unroll
            for (u32 i = 0; i < 4 * SUMS; i++) {
                mine[i][lane] = sums[i / 4][i % 4];
            }
            for (u32 part = 0; part < 2; part++) {
                mine[4 * SUMS + part][lane] = largest[part];
                mine[4 * SUMS + 2 + part][lane] = total[part];
            }
        }
        __syncthreads();
        if (warp < left) {
            const float(*other)[WARP] = handed[warp];
#pragma unroll
            for (u32 part = 0; part < 2; part++) {
                const float other_largest = other[4 * SUMS + part][lane];
                const float new_largest = fmaxf(largest[part], other_largest);
                const float base = new_largest == MINUS_INFINITY ? 0.0f : new_largest;
                const float correction = exp2f(largest[part] - base), other_correction = exp2f(other_largest - base);
                largest[part] = new_largest;
                total[part] = total[part] * correction + other[4 * SUMS + 2 + part][lane] * other_correction;
#pragma unroll
                for (u32 sum = 0; sum < SUMS; sum++) {
#pragma unroll
                    for (u32 i = 2 * part; i < 2 * part + 2; i++) {
                        sums[sum][i] = sums[sum][i] * correction + other[4 * sum + i][lane] * other_correction;
                    }
                }
            }
        }
    }
    if (warp > 0) {
        return;
    }
#pragma unroll
    for (u32 part = 0; part < 2; part++) {
        if (first_query_row + g + 8 * part > last_query_row) {
            continue;
        }
        Element *row = out + head_of_row[part] * heads.head_dim;
#pragma unroll
        for (u32 sum = 0; sum < SUMS; sum++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const u32 element = sum / 8 * 64 + 8 * (2 * t + i) + sum % 8;
                if (element < heads.head_dim) {
                    row[element] = to_element(sums[sum][2 * part + i] / total[part]);
                }
            }
        }
    }
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
