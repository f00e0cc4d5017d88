// Dense convolutions over own channels and pooled channels of a tap.
//
// A tap is read where the source left it, one of its floats at a time as the factor of a vector of output channels: a
// gather costs nothing then.

#pragma once

#include "maps.h"

constexpr int PIXELS = 14;  // of a row that are computed together: with two vectors each, they fill the registers

// What an activation that a convolution does itself leaves of its values; none leaves all of them.
struct Bounds { float low, high; };

static Bounds bounds_of(int act) { return {act == NONE ? -INFINITY : 0.f, act == RELU6 ? 6.f : INFINITY}; }

// What a convolution reads for one pixel: `segments` runs of `length` floats, and `pooled` single floats of a tap.
struct Reach {
    int segments, length, pooled;
    const int64_t *starts;
    const int32_t *index;
    int64_t step, tap_step;  // from one pixel to the next
    int64_t leap = 0;        // and more after half of a tile, where its other half is in the next row
};

// V vectors of W output channels of P neighbouring pixels. All loops over them are unrolled, or the sums would go to
// memory between one part and the next.
template <int W, int V, int P>
static void tile(const float *a, const float *t, const Reach &r, const float *w, const float *bias, const float *add,
                 float *out, int stride, Bounds bounds) {
    typedef typename Vector<W>::type vec;
    vec sum[P][V];
#define EACH                             \
    _Pragma("GCC unroll 14")             \
    for (int p = 0; p < P; p++)          \
        _Pragma("GCC unroll 2")          \
        for (int v = 0; v < V; v++)
    EACH sum[p][v] = *(const vec *)(bias + v * W);
    for (int s = 0; s < r.segments; s++) {
        const float *from = a + r.starts[s];
        for (int k = 0; k < r.length; k++, w += V * W)
            EACH sum[p][v] += from[p * r.step + (2 * p >= P ? r.leap : 0) + k] * *(const vec *)(w + v * W);
    }
    for (int k = 0; k < r.pooled; k++, w += V * W) {
        const float *from = t + r.index[k];
        EACH sum[p][v] += from[p * r.tap_step] * *(const vec *)(w + v * W);
    }
    if (add) EACH sum[p][v] += *(const vec *)(add + p * stride + v * W);
    EACH {
        vec low = vec{} + bounds.low, high = vec{} + bounds.high, value = sum[p][v];
        value = low > value ? low : value;
        *(vec *)(out + p * stride + v * W) = high < value ? high : value;
    }
#undef EACH
}

template <int W, int V>
static void row(int pixels, const float *a, const float *t, const Reach &r, const float *w, const float *bias,
                const float *add, float *out, int stride, Bounds bounds) {
    int p = 0;
#define TILE(P)                                                                                                  \
    tile<W, V, P>(a + p * r.step, t + p * r.tap_step, r, w, bias, add ? add + (int64_t)p * stride : add,          \
                  out + (int64_t)p * stride, stride, bounds)
    for (; p + PIXELS <= pixels; p += PIXELS) TILE(PIXELS);
    if (pixels - p >= 7) TILE(7), p += 7;
    if (pixels - p >= 4) TILE(4), p += 4;
    if (pixels - p >= 2) TILE(2), p += 2;
    if (pixels - p >= 1) TILE(1);
#undef TILE
}

// Output channels are worked on in blocks; weights lie block by block, (depth, block) each, as `pack` puts them.
template <typename F> static void blocks(int stride, F &&visit) {
    int done = 0;
    while (stride - done >= 2 * WIDE) visit(done, 2 * WIDE), done += 2 * WIDE;
    while (stride - done >= WIDE) visit(done, WIDE), done += WIDE;
    while (done < stride) visit(done, NARROW), done += NARROW;
}

static void row_of_blocks(int pixels, const float *a, const float *t, const Reach &r, const Params &p, int depth,
                          const float *add, float *out, int stride, Bounds bounds) {
    blocks(stride, [&](int first, int size) {
        const float *w = p.weight + (int64_t)first * depth, *b = p.bias + first, *plus = add ? add + first : add;
        if (size == 2 * WIDE) row<WIDE, 2>(pixels, a, t, r, w, b, plus, out + first, stride, bounds);
        else if (size == WIDE) row<WIDE, 1>(pixels, a, t, r, w, b, plus, out + first, stride, bounds);
        else row<NARROW, 1>(pixels, a, t, r, w, b, plus, out + first, stride, bounds);
    });
}

// ---------------------------------------------------------------- 1x1

static bool is_pointwise(const Op &o) { return o.kernel_h * o.kernel_w == 1 && o.pad_h + o.pad_w == 0; }

// Pixels without a stride between them are one row.
static bool is_one_row(const Op &o) { return o.stride_h == 1 && o.stride_w == 1; }

// What the pixels of a span read of a tap, in rows of `w` pixels that are `stride` floats apart.
struct Chunk { const float *data; int w; int64_t stride; };

// `span` are pixels of the output where all are one row, else rows.
static void pointwise(const Op &o, const Params &p, const Map &x, const Chunk &t, const float *add, const Map &out,
                      Span span) {
    int64_t start = 0;
    Reach r{1, o.in_chs, o.num_pooled, &start, p.index, (int64_t)x.stride * o.stride_w, t.stride * o.stride_w};
    auto run = [&](int pixels, int64_t in, int64_t to, const float *t) {
        row_of_blocks(pixels, x.data + in * x.stride, t, r, p, o.depth, add ? add + to * out.stride : add,
                      out.data + to * out.stride, out.stride, bounds_of(o.act));
    };
    if (is_one_row(o)) return run(span.last - span.first, span.first, span.first, t.data);
    for (int i = span.first; i < span.last; i++)
        run(out.w, (int64_t)i * o.stride_h * x.w, (int64_t)i * out.w,
            t.data + (i - span.first) * o.stride_h * t.w * t.stride);
}

// ---------------------------------------------------------------- larger kernels

// Own and pooled channels side by side, with zeros around, so that no position of a kernel needs a check.
struct Frame {
    int h, w, chs, first;  // `first`: the row of the whole frame that this part of it begins with
    std::vector<float> data;
};

template <typename T> static void take(const T *from, const int32_t *index, int count, float *to) {
    for (int k = 0; k < count; k++)
        if constexpr (sizeof(T) == 2) to[k] = from_bf16(from[index[k]]);
        else to[k] = from[index[k]];
}

static Frame empty_frame(const Op &o, const Geometry &g, Span rows) {
    Frame f;
    f.chs = o.in_chs + o.num_pooled;
    f.first = rows.first * o.stride_h;
    f.h = (rows.last - 1 - rows.first) * o.stride_h + (o.kernel_h - 1) * o.dilation_h + 1;
    f.w = (g.w - 1) * o.stride_w + (o.kernel_w - 1) * o.dilation_w + 1;
    f.data.assign((size_t)f.h * f.w * f.chs, 0.f);
    return f;
}

static void copy(const float *from, int chs, float *to) {
    typedef Vector<NARROW>::type vec;
    if (chs % NARROW) std::memcpy(to, from, sizeof(float) * chs);
    else for (int c = 0; c < chs; c += NARROW) *(vec *)(to + c) = *(const vec *)(from + c);
}

// What is around the image stays zero from one task to the next.
static void fill(Frame &f, const Op &o, const Params &p, const Geometry &g, const Map &x, const Tap *tap, int image) {
    int columns = std::min(x.w, f.w - g.left);
    for (int i = 0; i < f.h; i++) {
        int y = f.first + i - g.top;
        if (y < 0 || y >= x.h) continue;
        float *to = &f.data[((size_t)i * f.w + g.left) * f.chs];
        const float *own = x.data + (int64_t)y * x.w * x.stride;
        if (!tap && f.chs == x.stride) {
            std::memcpy(to, own, sizeof(float) * columns * f.chs);
            continue;
        }
        for (int j = 0; j < columns; j++, to += f.chs, own += x.stride) {
            copy(own, o.in_chs, to);
            if (!tap) continue;
            int64_t from = (image * tap->pixels() + (int64_t)y * tap->w + j) * tap->chs;
            if (tap->bf16) take((const uint16_t *)tap->data + from, p.index, o.num_pooled, to + o.in_chs);
            else take((const float *)tap->data + from, p.index, o.num_pooled, to + o.in_chs);
        }
    }
}

// A convolution to 8 channels leaves half of a wide register empty. Two neighbouring pixels of it are one pixel of a
// convolution to 16, whose kernel is wider by the stride: the second pixel's weights stand that much to the right.
static const float *paired(const Op &o, const float *weight, int chs, std::vector<float> &to) {
    int wide = o.kernel_w + o.stride_w;
    to.assign((size_t)o.kernel_h * wide * chs * 2 * NARROW, 0.f);
    for (int i = 0; i < o.kernel_h; i++)
        for (int second = 0; second < 2; second++)
            for (int k = 0; k < o.kernel_w * chs; k++)
                std::memcpy(&to[((size_t)(i * wide + second * o.stride_w) * chs + k) * 2 * NARROW + second * NARROW],
                            weight + ((size_t)i * o.kernel_w * chs + k) * NARROW, sizeof(float) * NARROW);
    return to.data();
}

static void convolution(const Op &o, const Params &p, const Frame &f, const float *add, const Map &out, Span rows) {
    static thread_local std::vector<float> pairs;
    bool joined = o.dilation_w == 1;
    bool in_pairs = WIDE == 2 * NARROW && joined && out.stride == NARROW && out.w % 2 == 0;
    std::vector<int64_t> starts;
    for (int i = 0; i < o.kernel_h; i++)
        for (int j = 0; j < (joined ? 1 : o.kernel_w); j++)
            starts.push_back(((int64_t)i * o.dilation_h * f.w + j * o.dilation_w) * f.chs);
    int pixels = in_pairs ? 2 : 1, columns = o.kernel_w + (pixels - 1) * o.stride_w;
    Reach r{(int)starts.size(), joined ? columns * f.chs : f.chs, 0, starts.data(), nullptr,
            (int64_t)pixels * o.stride_w * f.chs, 0};
    float bias[2 * NARROW];
    Params own = p;
    if (in_pairs) {
        for (int c = 0; c < 2 * NARROW; c++) bias[c] = p.bias[c % NARROW];
        own = {paired(o, p.weight, f.chs, pairs), bias, nullptr};
    }
    int together = out.w == PIXELS / 2 ? 2 : 1;  // rows that are half a tile: their weights are read half as often
    for (int i = rows.first, count; i < rows.last; i += count) {
        count = std::min(together, rows.last - i);
        r.leap = count == 2 ? (int64_t)(o.stride_h * f.w - out.w * o.stride_w) * f.chs : 0;
        int64_t to = (int64_t)i * out.w * out.stride;
        row_of_blocks(count * out.w / pixels, &f.data[(size_t)(i * o.stride_h - f.first) * f.w * f.chs], nullptr, r, own,
                      r.segments * r.length, add ? add + to : add, out.data + to, out.stride * pixels,
                      bounds_of(o.act));
    }
}
