// Cross-entropy of some rows of pixels, and its slope. Included by kernel.cpp after block.h, once for each instruction
// set, with the same care: no template of the standard library.
//
// The lanes of a vector are classes. A row of pixels lies between two rows of cells, which are first brought to its
// height, so that a pixel takes of two cells only; the slope goes the same way back.

#if AVX512
INLINE float sum_of(Floats a) { return _mm512_reduce_add_ps((__m512)a); }
#else
INLINE float sum_of(Floats a) {
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += a[lane];
    return sum;
}
#endif

INLINE void add(float *to, Floats more) {
    more += load(to);
    __builtin_memcpy(to, &more, sizeof more);
}

// Cells at the height of a row of pixels.
INLINE void bring(const float *above, const float *below, float wy0, float wy1, int64_t count, float *between) {
    for (int64_t k = 0; k < count; k += LANES) {
        Floats sum = {};
        if (above) sum += wy0 * load(above + k);
        if (below) sum += wy1 * load(below + k);
        __builtin_memcpy(between + k, &sum, sizeof sum);
    }
}

// Of a row of cells, `weight` times the slope at the height of a row of pixels.
INLINE void give_back(const float *slope, float weight, int64_t cells, int64_t padded, int64_t stored, float *row) {
    for (int64_t cell = 0; cell < cells; ++cell)
        for (int64_t k = 0; k < padded; k += LANES) add(row + cell * stored + k, weight * load(slope + cell * padded + k));
}

struct Pixel {
    int32_t truth;
    float sum, to_left, to_right;  // of powers; of its slope, what the cells get for each power
};

// Scores of a pixel, as powers of e beside the largest; and that largest.
INLINE float raise(const float *left, const float *right, float wx0, float wx1, int64_t classes, int64_t padded,
                   float *powers, float *sum) {
    const int64_t last = padded - LANES;
    Ints there;
    for (int lane = 0; lane < LANES; ++lane) there[lane] = last + lane < classes ? -1 : 0;
    Floats best = Floats{} - INFINITY, parts = {};
    for (int64_t k = 0; k < padded; k += LANES) {
        Floats score = wx0 * load(left + k) + wx1 * load(right + k);
        if (k == last) score = there ? score : Floats{} - INFINITY;
        best = larger(best, score);
        __builtin_memcpy(powers + k, &score, sizeof score);
    }
    const float most = largest_of(best);
    for (int64_t k = 0; k < padded; k += LANES) {
        // Below exp(-80) of the largest is nothing; products of less would be denormal, and slow.
        Floats behind = load(powers + k) - most, power = behind < -80.0f ? Floats{} : exponential(behind);
        parts += power;
        __builtin_memcpy(powers + k, &power, sizeof power);
    }
    *sum = sum_of(parts);
    return most;
}

// share * (probability - 1 where true) of some pixels between the same cells, added up before it is stored.
INLINE void spread(const Pixel *pixels, int count, const float *powers, int64_t padded, float *left, float *right) {
    Ints lane;
    for (int n = 0; n < LANES; ++n) lane[n] = n;
    for (int64_t k = 0; k < padded; k += LANES) {
        Floats to_left = {}, to_right = {};
        for (int n = 0; n < count; ++n) {
            Floats power = load(powers + n * padded + k);
            power -= lane + int32_t(k) == pixels[n].truth ? Floats{} + pixels[n].sum : Floats{};
            to_left += pixels[n].to_left * power;
            to_right += pixels[n].to_right * power;
        }
        add(left + k, to_left);
        add(right + k, to_right);
    }
}

// The pixels of one run of rows. False: some label is none.
static bool loss_of_rows(const Job &job, const Plan &plan, const Loss &loss, int64_t picture, const Run &rows,
                         LossWork &work, Sums &sums) {
    const float *above = cells(job, plan, picture, rows.first, rows.second, work.cells);
    const float *below = cells(job, plan, picture, rows.second, rows.first, work.cells);
    const Axis &columns = job.columns;
    const int64_t padded = plan.padded, w = columns.cells, width = columns.pixels;
    for (int64_t y = rows.start; y < rows.stop; ++y) {
        const float wy[2] = {job.rows.lower[y], job.rows.upper[y]};
        bring(above, below, wy[0], wy[1], w * padded, work.between + padded);
        if (loss.slope) __builtin_memset(work.slope, 0, (w + 1) * padded * sizeof(float));
        const int64_t *labels = loss.labels + (picture * job.rows.pixels + y) * width;
        int64_t counted = 0;
        for (int64_t x = 0; x < width;) {
            // Cell 0 of `between` is one that is not there.
            const int64_t index = columns.index[x];
            const int64_t l = index >= 0 && index < w ? (index + 1) * padded : 0;
            const int64_t r = index >= -1 && index < w - 1 ? (index + 2) * padded : 0;
            const float *left = work.between + l, *right = work.between + r;
            Pixel pixels[GROUP];
            int group = 0;
            for (; x < width && columns.index[x] == index && group < GROUP; ++x) {
                const int64_t truth = labels[x];
                if (truth == loss.void_label) continue;
                if (truth < 0 || truth >= job.classes) return false;
                const float share = loss.weights ? loss.weights[truth] : 1.0f;
                const float wx0 = columns.lower[x], wx1 = columns.upper[x];
                float sum;
                const float most =
                    raise(left, right, wx0, wx1, job.classes, padded, work.powers + group * padded, &sum);
                sums.count += share;
                sums.loss += double(share) * (most - (wx0 * left[truth] + wx1 * right[truth]));
                // The logarithm of the sum is taken later, of a vector of pixels at a time.
                work.shares[counted] = share;
                work.sums[counted++] = sum;
                pixels[group++] = {int32_t(truth), sum, wx0 * share / sum, wx1 * share / sum};
            }
            if (loss.slope && group) spread(pixels, group, work.powers, padded, work.slope + l, work.slope + r);
        }
        for (int n = 0; n < LANES; ++n) {  // up to a whole vector
            work.sums[counted + n] = 1.0f;
            work.shares[counted + n] = 0.0f;
        }
        Floats logarithms = {};
        for (int64_t n = 0; n < counted; n += LANES)
            logarithms += load(work.shares + n) * logarithm(load(work.sums + n));
        sums.loss += sum_of(logarithms);
        const int64_t cells_of[2] = {rows.first, rows.second};
        for (int which = 0; which < 2; ++which)
            if (loss.slope && cells_of[which] >= 0 && wy[which] != 0)
                give_back(work.slope + padded, wy[which], w, padded, loss.padded,
                          loss.slope + (picture * job.rows.cells + cells_of[which]) * w * loss.padded);
    }
    return true;
}
