// Labels, probabilities and entropies at full resolution from a coarse score map, without the scores of the pixels.
//
// Pixels between the same two rows and the same two columns of cells are one block, and see four corners a b / c d:
//
//     score = wy0 * (wx0 * a + wx1 * b) + wy1 * (wx0 * c + wx1 * d)        each product and sum rounded to float32
//
// in this order and without fused operations, so that every instruction set gives the same bits. Rounding keeps order,
// so within a block no class passes its largest corner or falls below its smallest. Hence only classes whose largest
// corner reaches the best smallest corner of any class can win anywhere in the block ("candidates"), commonly one or
// two. The lanes of a vector are pixels, so that classes are met in order and the first of equals wins.
//
// block.h does a row of blocks, loss.h the cross-entropy of some rows of pixels; they are compiled here once for each
// instruction set, and the best is chosen at run time.
// Only plain C crosses the border of the library: it serves any Python and any torch.
//
// Letters: B pictures, K classes, h w cells, H W pixels.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define HAS_X86 1
#endif

namespace {

constexpr int WIDEST = 16;        // floats in a vector of the widest instruction set
constexpr int64_t TALLEST = 64;   // rows of a block, so that few cells are work for many threads too

enum Mode { ARGMAX = 0, PROBABILITY = 1, ENTROPY = 2 };

// Along one axis: pixel p is lower[p] of cell index[p] and upper[p] of the next. A cell that is not there is zero; one
// of weight zero has no say unless it is NaN, as with F.interpolate. Weights are 0 or more and sum to 1 but for rounding.
struct Axis {
    const int32_t *index;
    const float *lower, *upper;
    int64_t cells, pixels;
};

struct Job {
    const float *scores;
    int64_t pictures, classes;
    int64_t picture_stride, class_stride, row_stride, column_stride;  // in floats
    Axis rows, columns;
    int mode;
    void *labels;  // (B, H, W) uint8_t, or int32_t where wide; unused for entropy
    bool wide;
    float *values;  // (B, H, W); unused for argmax
};

// Neighbouring pixels of one axis that lie between the same two cells, which may be one and the same.
struct Run {
    int64_t start, stop;
    int64_t first, second;  // cells; -1: none, zeros
};

// Columns of one run that fit one vector, which holds as many rows of them as it can.
struct Chunk {
    int64_t start;
    int count, shift;  // 1 << shift lanes to a row, at least count
    float lower[WIDEST], upper[WIDEST];
};

struct ColumnRun {
    Run run;
    int64_t first_chunk, last_chunk;
};

// Plain pointers, since block.h may use no templates of the standard library; the vectors own what they point to.
struct Plan {
    int lanes;
    int64_t padded;  // classes, up to whole vectors; those beyond K are -inf
    std::vector<Run> rows;
    std::vector<ColumnRun> all_columns;
    std::vector<Chunk> all_chunks;
    const ColumnRun *columns;
    const Chunk *chunks;
    int64_t column_runs, tallest = 0;
    unsigned shifts = 0;  // bit s: some chunk has shift s
};

constexpr int SHIFTS = 5;  // 1, 2, 4, 8, 16 lanes

struct Workspace {
    std::vector<float> floats;
    std::vector<int32_t> ints;
    float *row[2];  // (w, padded): two rows of cells, classes side by side
    int64_t held[2] = {-1, -1};
    float *zeros;    // a cell that is not there
    float *largest;  // of the four corners, by class
    float *scores;   // of one pixel
    float *lower[SHIFTS], *upper[SHIFTS];  // by shift: weights of the rows of a run, as lanes
    int32_t *candidates, *summed;

    Workspace(const Job &job, const Plan &plan) {
        const int64_t row_size = job.columns.cells * plan.padded;
        int64_t lanes[SHIFTS] = {}, size = 2 * row_size + 2 * plan.padded + job.classes;
        for (int shift = 0; shift < SHIFTS; ++shift) {
            const int64_t rows = std::max(1, plan.lanes >> shift);
            if (plan.shifts >> shift & 1) lanes[shift] = (plan.tallest + rows - 1) / rows * plan.lanes;
            size += 2 * lanes[shift];
        }
        floats.assign(size, -INFINITY);
        ints.resize(2 * plan.padded);
        float *free = floats.data();
        auto give = [&](int64_t count) { return (free += count) - count; };
        for (float *&one : row) one = give(row_size);
        zeros = give(plan.padded);
        std::fill(zeros, zeros + job.classes, 0.0f);
        largest = give(plan.padded);
        for (int shift = 0; shift < SHIFTS; ++shift) {
            lower[shift] = give(lanes[shift]);
            upper[shift] = give(lanes[shift]);
        }
        scores = give(job.classes);
        candidates = ints.data();
        summed = candidates + plan.padded;
    }
    Workspace(Workspace &&) = default;
};

std::vector<Run> runs(const Axis &axis, int64_t longest) {
    std::vector<Run> found;
    for (int64_t start = 0, stop; start < axis.pixels; start = stop) {
        bool first = false, second = false;  // whether some pixel takes of it
        for (stop = start; stop < axis.pixels && axis.index[stop] == axis.index[start] && stop - start < longest; ++stop) {
            first |= axis.lower[stop] != 0;
            second |= axis.upper[stop] != 0;
        }
        auto there = [&](int64_t cell) { return cell >= 0 && cell < axis.cells ? cell : -1; };
        const int64_t one = there(axis.index[start]), next = there(axis.index[start] + 1);
        // Zeros of which nobody takes would only widen the range of the corners.
        Run run{start, stop, one < 0 && !first ? next : one, next < 0 && !second ? one : next};
        found.push_back(run);
    }
    return found;
}

Plan make_plan(const Job &job, int lanes) {
    Plan plan;
    plan.lanes = lanes;
    plan.padded = (job.classes + lanes - 1) / lanes * lanes;
    plan.rows = runs(job.rows, TALLEST);
    for (const Run &run : plan.rows) plan.tallest = std::max(plan.tallest, run.stop - run.start);
    for (const Run &run : runs(job.columns, job.columns.pixels)) {
        ColumnRun column{run, int64_t(plan.all_chunks.size()), 0};
        for (int64_t start = run.start; start < run.stop; start += lanes) {
            Chunk chunk{};
            chunk.start = start;
            chunk.count = int(std::min<int64_t>(lanes, run.stop - start));
            while (1 << chunk.shift < chunk.count) ++chunk.shift;
            for (int lane = 0; lane < lanes; ++lane) {
                int64_t pixel = start + std::min(lane & ((1 << chunk.shift) - 1), chunk.count - 1);
                chunk.lower[lane] = job.columns.lower[pixel];
                chunk.upper[lane] = job.columns.upper[pixel];
            }
            plan.shifts |= 1u << chunk.shift;
            plan.all_chunks.push_back(chunk);
        }
        column.last_chunk = int64_t(plan.all_chunks.size());
        plan.all_columns.push_back(column);
    }
    plan.columns = plan.all_columns.data();
    plan.chunks = plan.all_chunks.data();
    plan.column_runs = int64_t(plan.all_columns.size());
    return plan;
}

// A row of cells with the classes of each side by side; the two last are kept, as the next block row needs one again.
const float *cells(const Job &job, const Plan &plan, int64_t picture, int64_t row, int64_t keep, Workspace &work) {
    if (row < 0) return nullptr;
    int64_t key = picture * job.rows.cells + row;
    for (int slot = 0; slot < 2; ++slot)
        if (work.held[slot] == key) return work.row[slot];
    int slot = keep >= 0 && work.held[0] == picture * job.rows.cells + keep;
    work.held[slot] = key;
    float *to = work.row[slot];
    const float *from = job.scores + picture * job.picture_stride + row * job.row_stride;
    int64_t w = job.columns.cells, K = job.classes;
    if (job.class_stride == 1) {
        for (int64_t x = 0; x < w; ++x) memcpy(to + x * plan.padded, from + x * job.column_stride, K * sizeof(float));
    } else {
        for (int64_t k = 0; k < K; ++k)
            for (int64_t x = 0; x < w; ++x) to[x * plan.padded + k] = from[k * job.class_stride + x * job.column_stride];
    }
    return to;
}

// NaN and infinity: one score at a time. What has no weight is left out, as 0 * inf would be NaN, but for NaN itself.
float score(float wy0, float wy1, float wx0, float wx1, float a, float b, float c, float d) {
    auto share = [](float weight, float of) { return weight == 0 && of == of ? 0.0f : weight * of; };
    return share(wy0, share(wx0, a) + share(wx1, b)) + share(wy1, share(wx0, c) + share(wx1, d));
}

void slow_block(const Job &job, int64_t picture, const Run &rows, const Run &columns, const float *const corner[4],
                float *scores) {
    for (int64_t y = rows.start; y < rows.stop; ++y) {
        for (int64_t x = columns.start; x < columns.stop; ++x) {
            int64_t best = 0;
            for (int64_t k = 0; k < job.classes; ++k) {
                scores[k] = score(job.rows.lower[y], job.rows.upper[y], job.columns.lower[x], job.columns.upper[x],
                                  corner[0][k], corner[1][k], corner[2][k], corner[3][k]);
                if (scores[k] > scores[best] || (scores[k] != scores[k] && scores[best] == scores[best])) best = k;
            }
            int64_t pixel = (picture * job.rows.pixels + y) * job.columns.pixels + x;
            if (job.mode != ENTROPY) {
                if (job.wide) static_cast<int32_t *>(job.labels)[pixel] = int32_t(best);
                else static_cast<uint8_t *>(job.labels)[pixel] = uint8_t(best);
            }
            if (job.mode == ARGMAX) continue;
            double sum = 0, slope = 0;
            for (int64_t k = 0; k < job.classes; ++k) {
                double below = double(scores[k]) - double(scores[best]), power = std::exp(below);
                sum += power;
                slope += power == 0 ? 0 : below * power;
            }
            job.values[pixel] = float(job.mode == PROBABILITY ? 1 / sum : std::log(sum) - slope / sum);
        }
    }
}

// What cross-entropy takes and gives beyond the scores.
struct Loss {
    const int64_t *labels;  // (B, H, W)
    int64_t void_label;
    const float *weights;  // (K), or null: 1
    float *slope;          // (B, h, w, padded), is added to; null: none is wanted
    int64_t padded;        // classes, up to whole vectors of the widest
};

struct Sums {
    double loss = 0, count = 0;
};

constexpr int GROUP = 8;  // pixels whose slopes are added up before they are stored

struct LossWork {
    Workspace cells;
    std::vector<float> floats;
    float *between, *slope;  // (1 + w, padded): cells at the height of a row of pixels, the first is not there
    float *powers;           // (GROUP, padded): of some pixels
    float *sums, *shares;    // of a row of pixels, up to whole vectors

    LossWork(const Job &job, const Plan &plan) : cells(job, plan) {
        const int64_t row_size = (1 + job.columns.cells) * plan.padded, width = job.columns.pixels + WIDEST;
        floats.assign(2 * row_size + GROUP * plan.padded + 2 * width, 0.0f);
        between = floats.data();
        slope = between + row_size;
        powers = slope + row_size;
        sums = powers + GROUP * plan.padded;
        shares = sums + width;
    }
    LossWork(LossWork &&) = default;
};

}  // namespace

// --- one row of blocks, for each instruction set ---------------------------------------------------------------------

#if HAS_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
namespace avx512 {
#define LANES 16
#define AVX512 1
#include "block.h"
#include "loss.h"
#undef INLINE
#undef AVX512
#undef LANES
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define LANES 8
#define AVX2 1
#include "block.h"
#include "loss.h"
#undef INLINE
#undef AVX2
#undef LANES
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // HAS_X86

namespace generic {  // SSE2 on x86-64, NEON on ARM
#define LANES 4
#include "block.h"
#include "loss.h"
#undef INLINE
#undef LANES
}  // namespace generic

// --- the library -----------------------------------------------------------------------------------------------------

namespace {

struct Target {
    const char *name;
    int lanes;
    void (*block_row)(const Job &, const Plan &, int64_t picture, const Run &rows, Workspace &);
    bool (*loss_of_rows)(const Job &, const Plan &, const Loss &, int64_t picture, const Run &rows, LossWork &, Sums &);
    bool (*runs_here)();
};

const Target TARGETS[] = {
#if HAS_X86
    {"AVX-512", 16, avx512::block_row, avx512::loss_of_rows, [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
    {"AVX2", 8, avx2::block_row, avx2::loss_of_rows, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
    {"SSE2", 4, generic::block_row, generic::loss_of_rows, [] { return true; }},
#elif defined(__ARM_NEON)
    {"NEON", 4, generic::block_row, generic::loss_of_rows, [] { return true; }},
#else
    {"generic", 4, generic::block_row, generic::loss_of_rows, [] { return true; }},
#endif
};

// What is to be read, and for labels and numbers what is to be filled.
Job job_of(const float *scores, const int64_t *shape, const int64_t *strides, Axis rows, Axis columns, Mode mode = ARGMAX,
           void *labels = nullptr, bool wide = false, float *values = nullptr) {
    return {scores, shape[0], shape[1], strides[0], strides[1], strides[2], strides[3], rows,
            columns, mode,    labels,   wide,       values};
}

// The instruction set number `target` of those that this machine has; null where there are not so many.
const Target *target_of(int target) {
    for (const Target &one : TARGETS)
        if (one.runs_here() && target-- == 0) return &one;
    return nullptr;
}

// What lets a function run in the threads of an OpenMP runtime: its GOMP_parallel.
using Team = void (*)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

// `work(thread, n)` for n from 0 to `total`, shared out `share` at a time; in threads of its own where there is no team.
template <class Work>
void in_threads(int64_t total, int64_t share, int threads, Team team, Work work) {
    std::atomic<int64_t> next{0};
    std::atomic<int> joined{0};
    auto take = [&] {
        const int thread = joined++;
        for (int64_t start; (start = next.fetch_add(share)) < total;)
            for (int64_t n = start; n < std::min(start + share, total); ++n) work(thread, n);
    };
    if (team && threads > 1) {
        team([](void *data) { (*static_cast<decltype(take) *>(data))(); }, &take, unsigned(threads), 0);
        return;
    }
    std::vector<std::thread> others;
    try {
        for (int thread = 1; thread < threads; ++thread) others.emplace_back(take);
    } catch (const std::exception &) {
        // No more threads to be had: those that are there do the work.
    }
    take();
    for (std::thread &other : others) other.join();
}

// Takes as many threads as there is work for.
int busy(int64_t total, int64_t share, int threads) { return int(std::min<int64_t>(threads, (total + share - 1) / share)); }

}  // namespace

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Raised with every change of what follows, so that a library built from older source is not called.
EXPORT int fullyconv_version() { return 3; }

// Name of instruction set `target`, best first; null where it is not there or there are no more.
EXPORT const char *fullyconv_target(int target) {
    int found = 0;
    for (const Target &one : TARGETS)
        if (one.runs_here() && found++ == target) return one.name;
    return nullptr;
}

// shape: B, K, h, w, H, W. strides: of B, K, h, w, in floats. team: may be null. 0: done; 1: out of memory.
EXPORT int fullyconv_reduce(const float *scores, const int64_t *shape, const int64_t *strides, const int32_t *row_index,
                            const float *row_lower, const float *row_upper, const int32_t *column_index,
                            const float *column_lower, const float *column_upper, int mode, void *labels, int wide,
                            float *values, int threads, Team team, int target) {
    try {
        const Job job = job_of(scores, shape, strides, {row_index, row_lower, row_upper, shape[2], shape[4]},
                               {column_index, column_lower, column_upper, shape[3], shape[5]}, Mode(mode), labels,
                               wide != 0, values);
        const Target *chosen = target_of(target);
        if (!chosen) return 2;
        const Plan plan = make_plan(job, chosen->lanes);
        // Neighbouring rows of blocks share a row of cells, so a thread takes several at a time.
        const int64_t rows = int64_t(plan.rows.size()), total = job.pictures * rows;
        const int64_t share = std::max<int64_t>(1, total / (threads * 8));
        threads = busy(total, share, threads);
        std::vector<Workspace> work;
        for (int thread = 0; thread < threads; ++thread) work.emplace_back(job, plan);
        in_threads(total, share, threads, team, [&](int thread, int64_t n) {
            chosen->block_row(job, plan, n / rows, plan.rows[n % rows], work[thread]);
        });
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

// Cross-entropy of the pixels that are not void, each with the weight of its class. shape, strides, axes: as above.
// slope: (B, h, w, padded) zeros, or null. sums: loss and weight. 0: done; 1: out of memory; 3: some label is none.
EXPORT int fullyconv_cross_entropy(const float *scores, const int64_t *shape, const int64_t *strides,
                                   const int32_t *row_index, const float *row_lower, const float *row_upper,
                                   const int32_t *column_index, const float *column_lower, const float *column_upper,
                                   const int64_t *labels, int64_t void_label, const float *weights, float *slope,
                                   int64_t padded, double *sums, int threads, Team team, int target) {
    try {
        const Job job = job_of(scores, shape, strides, {row_index, row_lower, row_upper, shape[2], shape[4]},
                               {column_index, column_lower, column_upper, shape[3], shape[5]});
        const Target *chosen = target_of(target);
        if (!chosen) return 2;
        const Plan plan = make_plan(job, chosen->lanes);
        const Loss loss{labels, void_label, weights, slope, padded};
        // Every other run of rows shares no cell, so slopes are added up in two passes: the same bits by any threads.
        const std::vector<Run> rows = runs(job.rows, job.rows.pixels);
        const int64_t count = int64_t(rows.size()), half = (count + 1) / 2;
        std::vector<Sums> found(job.pictures * count);
        threads = std::max(1, busy(job.pictures * half, 1, threads));
        std::vector<LossWork> work;
        for (int thread = 0; thread < threads; ++thread) work.emplace_back(job, plan);
        std::atomic<bool> sound{true};
        for (int pass = 0; pass < 2; ++pass)
            in_threads(job.pictures * half, 1, threads, team, [&](int thread, int64_t n) {
                const int64_t picture = n / half, row = 2 * (n % half) + pass;
                if (row >= count) return;
                // Its own, since sums side by side would have threads wait for each other's cache line at every pixel.
                Sums own;
                if (!chosen->loss_of_rows(job, plan, loss, picture, rows[row], work[thread], own)) sound = false;
                found[picture * count + row] = own;
            });
        sums[0] = sums[1] = 0;
        for (const Sums &one : found) {
            sums[0] += one.loss;
            sums[1] += one.count;
        }
        return sound ? 0 : 3;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
