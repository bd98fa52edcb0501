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

// The pixels of one run of rows. False: some label is none.
static bool loss_of_rows(const Job &job, const Plan &plan, const Loss &loss, int64_t picture, const Run &rows,
                         LossWork &work, Sums &sums) {
    const float *above = cells(job, plan, picture, rows.first, rows.second, work.cells);
    const float *below = cells(job, plan, picture, rows.second, rows.first, work.cells);
    const int64_t padded = plan.padded, last = padded - LANES, w = job.columns.cells, width = job.columns.pixels;
    Ints lane, there;
    for (int n = 0; n < LANES; ++n) {
        lane[n] = n;
        there[n] = last + n < job.classes ? -1 : 0;  // in the last vector
    }
    for (int64_t y = rows.start; y < rows.stop; ++y) {
        const float wy0 = job.rows.lower[y], wy1 = job.rows.upper[y];
        for (int64_t k = 0; k < w * padded; k += LANES) {
            Floats between = {};
            if (above) between += wy0 * load(above + k);
            if (below) between += wy1 * load(below + k);
            __builtin_memcpy(work.between + padded + k, &between, sizeof between);
        }
        if (loss.slope) __builtin_memset(work.slope, 0, (w + 1) * padded * sizeof(float));
        const int64_t *labels = loss.labels + (picture * job.rows.pixels + y) * width;
        double easy = 0;
        int64_t counted = 0;
        for (int64_t x = 0; x < width;) {
            // Some pixels between the same cells, whose slopes are added up before they are stored. Cell 0 of
            // `between` is one that is not there.
            const int64_t index = job.columns.index[x];
            const int64_t l = index >= 0 && index < w ? (index + 1) * padded : 0;
            const int64_t r = index >= -1 && index < w - 1 ? (index + 2) * padded : 0;
            int32_t truths[GROUP];
            float to_left[GROUP], to_right[GROUP], sum[GROUP];
            int group = 0;
            for (; x < width && job.columns.index[x] == index && group < GROUP; ++x) {
                const int64_t truth = labels[x];
                if (truth == loss.void_label) continue;
                if (truth < 0 || truth >= job.classes) return false;
                const float share = loss.weights ? loss.weights[truth] : 1.0f;
                const float wx0 = job.columns.lower[x], wx1 = job.columns.upper[x];
                float *powers = work.powers + group * padded;
                Floats best = Floats{} - INFINITY;
                for (int64_t k = 0; k < padded; k += LANES) {
                    Floats score = wx0 * load(work.between + l + k) + wx1 * load(work.between + r + k);
                    if (k == last) score = there ? score : Floats{} - INFINITY;
                    best = larger(best, score);
                    __builtin_memcpy(powers + k, &score, sizeof score);
                }
                const float most = largest_of(best);
                const float of_truth = wx0 * work.between[l + truth] + wx1 * work.between[r + truth];
                Floats parts = {};
                for (int64_t k = 0; k < padded; k += LANES) {
                    // Below exp(-80) of the largest is nothing; products of less would be denormal, and slow.
                    Floats behind = load(powers + k) - most, power = behind < -80.0f ? Floats{} : exponential(behind);
                    parts += power;
                    __builtin_memcpy(powers + k, &power, sizeof power);
                }
                // The logarithm of the sum is taken later, of a vector of pixels at a time.
                easy += double(share) * (most - of_truth);
                sums.count += share;
                work.shares[counted] = share;
                work.sums[counted++] = sum[group] = sum_of(parts);
                truths[group] = int32_t(truth);
                to_left[group] = wx0 * share / sum[group];
                to_right[group] = wx1 * share / sum[group];
                ++group;
            }
            if (!loss.slope) continue;
            for (int64_t k = 0; group && k < padded; k += LANES) {
                Floats left = {}, right = {};
                for (int n = 0; n < group; ++n) {
                    Floats power = load(work.powers + n * padded + k);
                    power -= lane + int32_t(k) == truths[n] ? Floats{} + sum[n] : Floats{};
                    left += to_left[n] * power;
                    right += to_right[n] * power;
                }
                add(work.slope + l + k, left);
                add(work.slope + r + k, right);
            }
        }
        Floats hard = {};
        for (int n = 0; n < LANES; ++n) {  // up to a whole vector
            work.sums[counted + n] = 1.0f;
            work.shares[counted + n] = 0.0f;
        }
        for (int64_t n = 0; n < counted; n += LANES) hard += load(work.shares + n) * logarithm(load(work.sums + n));
        sums.loss += easy + double(sum_of(hard));
        if (!loss.slope) continue;
        const int64_t first[2] = {rows.first, rows.second};
        const float weight[2] = {wy0, wy1};
        for (int which = 0; which < 2; ++which) {
            if (first[which] < 0 || weight[which] == 0) continue;
            float *row = loss.slope + (picture * job.rows.cells + first[which]) * w * loss.padded;
            for (int64_t cell = 0; cell < w; ++cell)
                for (int64_t k = 0; k < padded; k += LANES)
                    add(row + cell * loss.padded + k, weight[which] * load(work.slope + (cell + 1) * padded + k));
        }
    }
    return true;
}
