// One row of blocks. Included by kernel.cpp once for each instruction set, in a namespace of its own, with LANES set.
//
// No template of the standard library may be used here: the linker keeps one instance for the whole library, perhaps
// the one with instructions that this machine has not.

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const float *from) {
    Floats to;
    __builtin_memcpy(&to, from, sizeof to);
    return to;
}

#if AVX512
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE unsigned bits(Ints mask) { return _mm512_movepi32_mask((__m512i)mask); }
INLINE float largest_of(Floats a) { return _mm512_reduce_max_ps((__m512)a); }
#elif AVX2
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE unsigned bits(Ints mask) { return unsigned(_mm256_movemask_ps((__m256)mask)); }
INLINE float largest_of(Floats a) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
INLINE unsigned bits(Ints mask) {
    Ints weight = mask & Ints{1, 2, 4, 8};
    return unsigned(weight[0] | weight[1] | weight[2] | weight[3]);
}
INLINE float largest_of(Floats a) {
    float p = a[0] > a[1] ? a[0] : a[1], q = a[2] > a[3] ? a[2] : a[3];
    return p > q ? p : q;
}
#endif

// e to the x, for x of 0 or less, to 1e-7 of itself; below -87: 1.6e-38. (Cephes, Moshier, expf.)
INLINE Floats exponential(Floats x) {
    x = larger(x, Floats{} - 87.0f);
    Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
    Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    Floats y = p * (r * r) + r + 1.0f;
    return y * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

// Natural logarithm of x of 1 or more, to 1e-7. (Cephes, logf.)
INLINE Floats logarithm(Floats x) {
    Ints exponent = ((Ints)x >> 23) - 126;
    Floats m = (Floats)(((Ints)x & 0x007fffff) | 0x3f000000);
    Ints low = m < 0.707106781f;
    exponent += low;  // -1 where low
    m = (low ? m + m : m) - 1.0f;
    Floats z = m * m, e = __builtin_convertvector(exponent, Floats);
    Floats p = 7.0376836292e-2f * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    p = p * m * z - e * 2.12194440e-4f - 0.5f * z;
    return m + p + e * 0.693359375f;
}

template <class T>
INLINE void copy(T *to, const T *from, int count) {
    switch (count * int(sizeof(T))) {
        case 4: __builtin_memcpy(to, from, 4); return;
        case 8: __builtin_memcpy(to, from, 8); return;
        case 16: __builtin_memcpy(to, from, 16); return;
        case 32: __builtin_memcpy(to, from, 32); return;
        case 64: __builtin_memcpy(to, from, 64); return;
        default:
            for (int n = 0; n < count; ++n) to[n] = from[n];
    }
}

INLINE Ints as(Ints v, int32_t) { return v; }
INLINE Bytes as(Ints v, uint8_t) { return __builtin_convertvector(v, Bytes); }
INLINE Floats as(Floats v, float) { return v; }

// Lanes to pixels: `rows` rows of `count`.
template <class T, class Vector>
INLINE void put(T *to, int64_t width, Vector vector, int shift, int rows, int count) {
    auto narrow = as(vector, T());
    T lane[64 / sizeof(T)];
    __builtin_memcpy(lane, &narrow, sizeof narrow);
    for (int row = 0; row < rows; ++row) copy(to + row * width, lane + (row << shift), count);
}

template <class T>
INLINE void fill(T *to, int64_t width, int64_t rows, int64_t columns, T value) {
    T line[64 / sizeof(T)];
    for (T &one : line) one = value;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t x = 0; x < columns; x += int(64 / sizeof(T))) {
            int64_t left = columns - x;
            copy(to + row * width + x, line, int(left < int64_t(64 / sizeof(T)) ? left : 64 / sizeof(T)));
        }
}

struct Corners {
    const float *a, *b, *c, *d;
};

// Bounds of the scores in a block: the largest corner of each class, and the best smallest. False: not all are finite.
INLINE bool bound(const Corners &corners, int64_t padded, float *largest, float *best_smallest) {
    Floats best = Floats{} - INFINITY;
    Ints odd = {};
    for (int64_t k = 0; k < padded; k += LANES) {
        Floats a = load(corners.a + k), b = load(corners.b + k), c = load(corners.c + k), d = load(corners.d + k);
        Floats low = smaller(smaller(a, b), smaller(c, d)), high = larger(larger(a, b), larger(c, d));
        Floats sum = (a + b) + (c + d);
        // A class that is -inf at all corners can be left out, and is common: padding, classes masked.
        odd |= (sum != sum) | (high > 1e38f) | ((low < -1e38f) & (high >= -1e38f));
        best = larger(best, low);
        __builtin_memcpy(largest + k, &high, sizeof high);
    }
    *best_smallest = largest_of(best);
    return !bits(odd) && *best_smallest > -1e38f;
}

// Classes whose largest corner is at least so much, in order.
INLINE int reaching(const float *largest, int64_t padded, float least, int32_t *found) {
    int count = 0;
    for (int64_t k = 0; k < padded; k += LANES)
        for (unsigned left = bits(load(largest + k) >= least); left; left &= left - 1)
            found[count++] = int32_t(k + __builtin_ctz(left));
    return count;
}

// Of class k along the upper and the lower row of cells, then between them.
#define SCORES_OF(k)                                                        \
    Floats top = left * corners.a[k] + right * corners.b[k];                \
    Floats bottom = left * corners.c[k] + right * corners.d[k];
#define SCORE(g) (load(lower + (g) * LANES) * top + load(upper + (g) * LANES) * bottom)

template <int G, int M, class Label>
INLINE void pixels(const Corners &corners, const Workspace &work, int candidates, int summed, Floats left, Floats right,
                   const float *lower, const float *upper, Label *labels, float *values, int64_t width, int shift,
                   int64_t rows, int count) {
    Floats best[G];
    Ints index[G];
    for (int g = 0; g < G; ++g) {
        best[g] = Floats{} - INFINITY;
        index[g] = Ints{} + work.candidates[0];
    }
    for (int n = 0; n < candidates; ++n) {
        const int32_t k = work.candidates[n];
        SCORES_OF(k)
        for (int g = 0; g < G; ++g) {
            Floats score = SCORE(g);
            Ints more = score > best[g];
            best[g] = more ? score : best[g];
            index[g] = more ? Ints{} + k : index[g];
        }
    }
    const int per_vector = LANES >> shift;
    Floats value[G];
    if (M != ARGMAX) {
        Floats sum[G] = {}, slope[G] = {};
        // Sums of sums: a thousand terms one after the other would lose a decimal.
        for (int start = 0; start < summed; start += 32) {
            const int stop = start + 32 < summed ? start + 32 : summed;
            Floats part[G] = {}, part_slope[G] = {};
            for (int n = start; n < stop; ++n) {
                const int32_t k = work.summed[n];
                SCORES_OF(k)
                for (int g = 0; g < G; ++g) {
                    Floats below = SCORE(g) - best[g], power = exponential(below);
                    part[g] += power;
                    // Beyond -87 the power stays where it is, and huge differences would make something of it.
                    if (M == ENTROPY) part_slope[g] += (below < -87.0f ? Floats{} - 87.0f : below) * power;
                }
            }
            for (int g = 0; g < G; ++g) {
                sum[g] += part[g];
                if (M == ENTROPY) slope[g] += part_slope[g];
            }
        }
        for (int g = 0; g < G; ++g) value[g] = M == PROBABILITY ? 1.0f / sum[g] : logarithm(sum[g]) - slope[g] / sum[g];
    }
    for (int g = 0; g < G; ++g) {
        const int64_t done = int64_t(g) * per_vector, left_over = rows - done;
        const int here = int(left_over < per_vector ? left_over : per_vector);
        if (M != ENTROPY) put(labels + done * width, width, index[g], shift, here, count);
        if (M != ARGMAX) put(values + done * width, width, value[g], shift, here, count);
    }
}

#undef SCORES_OF
#undef SCORE

template <int M, class Label>
static void block_row_of(const Job &job, const Plan &plan, int64_t picture, const Run &rows, Workspace &work) {
    const float *above = cells(job, plan, picture, rows.first, rows.second, work);
    const float *below = cells(job, plan, picture, rows.second, rows.first, work);
    const int64_t width = job.columns.pixels, tall = rows.stop - rows.start;
    for (int shift = 0; shift < SHIFTS; ++shift) {
        if (!(plan.shifts >> shift & 1)) continue;
        const int64_t vectors = (tall + (LANES >> shift) - 1) / (LANES >> shift);
        float *lower = work.lower[shift], *upper = work.upper[shift];
        for (int64_t lane = 0; lane < vectors * LANES; ++lane) {
            int64_t row = lane >> shift;
            row = rows.start + (row < tall ? row : tall - 1);
            lower[lane] = job.rows.lower[row];
            upper[lane] = job.rows.upper[row];
        }
    }
    // Left out of a sum are classes that all together are less than exp(-24) of it.
    const float negligible = 24.0f + logf(float(job.classes));
    const float *zeros = work.zeros;
    for (int64_t run = 0; run < plan.column_runs; ++run) {
        const ColumnRun &column = plan.columns[run];
        const int64_t l = column.run.first * plan.padded, r = column.run.second * plan.padded;
        const Corners corners = {above && l >= 0 ? above + l : zeros, above && r >= 0 ? above + r : zeros,
                                 below && l >= 0 ? below + l : zeros, below && r >= 0 ? below + r : zeros};
        float smallest, *largest = work.largest;
        if (!bound(corners, plan.padded, largest, &smallest)) {
            const float *corner[4] = {corners.a, corners.b, corners.c, corners.d};
            slow_block(job, picture, rows, column.run, corner, work.scores);
            continue;
        }
        // A score lies within 3e-7 of itself beyond the corners, by rounding: short of that, none can even tie.
        const float magnitude = smallest < 0 ? -smallest : smallest;
        const int candidates =
            reaching(largest, plan.padded, smallest - 1e-6f * magnitude - 1e-30f, work.candidates);
        const int summed = M == ARGMAX ? candidates
                                       : reaching(largest, plan.padded, smallest - 1e-6f * magnitude - negligible,
                                                  work.summed);
        const int64_t corner = (picture * job.rows.pixels + rows.start) * width;
        Label *labels = static_cast<Label *>(job.labels) + corner;
        float *values = job.values + corner;
        if (summed == 1) {
            const int64_t x = column.run.start, wide = column.run.stop - x;
            if (M != ENTROPY) fill(labels + x, width, tall, wide, Label(work.candidates[0]));
            if (M != ARGMAX) fill(values + x, width, tall, wide, M == PROBABILITY ? 1.0f : 0.0f);
            continue;
        }
        for (int64_t n = column.first_chunk; n < column.last_chunk; ++n) {
            const Chunk &chunk = plan.chunks[n];
            const int per_vector = LANES >> chunk.shift;
            const float *lower = work.lower[chunk.shift], *upper = work.upper[chunk.shift];
            const Floats left = load(chunk.lower), right = load(chunk.upper);
            for (int64_t done = 0; done < tall;) {
                const int64_t vectors = (tall - done + per_vector - 1) / per_vector;
                const int64_t lane = done / per_vector * LANES;
#define PIXELS(G)                                                                                                     \
    pixels<G, M>(corners, work, candidates, summed, left, right, lower + lane, upper + lane,                          \
                 labels + done * width + chunk.start, values + done * width + chunk.start, width, chunk.shift,        \
                 tall - done, chunk.count);                                                                           \
    done += G * per_vector;
                if (vectors >= 4) { PIXELS(4) }
                else if (vectors >= 2) { PIXELS(2) }
                else { PIXELS(1) }
#undef PIXELS
            }
        }
    }
}

static void block_row(const Job &job, const Plan &plan, int64_t picture, const Run &rows, Workspace &work) {
    if (job.mode == ENTROPY) block_row_of<ENTROPY, uint8_t>(job, plan, picture, rows, work);
    else if (job.mode == PROBABILITY && job.wide) block_row_of<PROBABILITY, int32_t>(job, plan, picture, rows, work);
    else if (job.mode == PROBABILITY) block_row_of<PROBABILITY, uint8_t>(job, plan, picture, rows, work);
    else if (job.wide) block_row_of<ARGMAX, int32_t>(job, plan, picture, rows, work);
    else block_row_of<ARGMAX, uint8_t>(job, plan, picture, rows, work);
}
