// Everything but dense convolutions.

#pragma once

#include "maps.h"

// ---------------------------------------------------------------- depthwise convolutions

constexpr int NEIGHBOURS = 8;  // pixels that a depthwise convolution computes together

template <typename vec> static vec limited(vec v, int act) {
    if (act == RELU || act == RELU6) v = v > 0.f ? v : vec{};
    return act == RELU6 ? (v < 6.f ? v : vec{} + 6.f) : v;
}

// One vector of channels of P neighbours in a row, none of which reaches beyond the left or right edge.
template <int W, int P>
static void depthwise_tile(const Op &o, const float *x, int64_t row, int64_t stride, int rows, const float *w,
                           const float *bias, float *out) {
    typedef typename Vector<W>::type vec;
    vec sum[P];
    for (int p = 0; p < P; p++) sum[p] = *(const vec *)bias;
    for (int u = 0; u < rows; u++)
        for (int v = 0; v < o.kernel_w; v++) {
            vec weight = *(const vec *)(w + (int64_t)(u * o.kernel_w + v) * stride);
            const float *from = x + u * o.dilation_h * row + (int64_t)v * o.dilation_w * stride;
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) sum[p] += *(const vec *)(from + (int64_t)p * o.stride_w * stride) * weight;
        }
    for (int p = 0; p < P; p++) *(vec *)(out + (int64_t)p * stride) = limited(sum[p], o.act);
}

// A row of outputs, one vector of channels after the other. Where windows reach over the edge, what is outside is left
// out: of the rows by starting later or ending earlier, of the columns one output at a time.
template <int W>
static void depthwise_row(const Op &o, const Params &p, const Map &x, const Geometry &g, int i, int first_c, float *out) {
    typedef typename Vector<W>::type vec;
    int64_t stride = x.stride, row = (int64_t)x.w * stride;
    int top = i * o.stride_h - g.top, skip = 0, rows = o.kernel_h;
    while (top + skip * o.dilation_h < 0) skip++;
    while (rows > skip && top + (rows - 1) * o.dilation_h >= x.h) rows--;
    const float *from = x.data + (top + skip * o.dilation_h) * row + first_c;
    const float *w = p.weight + (int64_t)skip * o.kernel_w * stride + first_c, *bias = p.bias + first_c;
    int reach = (o.kernel_w - 1) * o.dilation_w;
    for (int j = 0; j < g.w;) {
        int left = j * o.stride_w - g.left;
        float *to = out + (int64_t)j * stride + first_c;
        if (left >= 0 && left + (NEIGHBOURS - 1) * o.stride_w + reach < x.w && j + NEIGHBOURS <= g.w) {
            depthwise_tile<W, NEIGHBOURS>(o, from + left * stride, row, stride, rows - skip, w, bias, to);
            j += NEIGHBOURS;
            continue;
        }
        if (left >= 0 && left + reach < x.w) {
            depthwise_tile<W, 1>(o, from + left * stride, row, stride, rows - skip, w, bias, to);
        } else {
            vec sum = *(const vec *)bias;
            for (int u = 0; u < rows - skip; u++)
                for (int v = 0; v < o.kernel_w; v++) {
                    int z = left + v * o.dilation_w;
                    if (z >= 0 && z < x.w)
                        sum += *(const vec *)(from + u * o.dilation_h * row + z * stride) *
                               *(const vec *)(w + (int64_t)(u * o.kernel_w + v) * stride);
                }
            *(vec *)to = limited(sum, o.act);
        }
        j++;
    }
}

static void depthwise(const Op &o, const Params &p, const Map &x, const Map &out, Span rows) {
    Geometry g = geometry(o, x.h, x.w);
    for (int i = rows.first; i < rows.last; i++) {
        float *to = out.data + (int64_t)i * g.w * out.stride;
        int c = 0;
        for (; c + WIDE <= x.stride; c += WIDE) depthwise_row<WIDE>(o, p, x, g, i, c, to);
        for (; c < x.stride; c += NARROW) depthwise_row<NARROW>(o, p, x, g, i, c, to);
    }
}

// ---------------------------------------------------------------- pools

// Positions of a window that are inside the map or its padding, as PyTorch counts them.
static int padded_count(const Op &o, const Geometry &g, const Map &x, int i, int j) {
    int y = i * o.stride_h - g.top, z = j * o.stride_w - g.left;
    int bottom = std::min(y + o.kernel_h, x.h + g.top), right = std::min(z + o.kernel_w, x.w + g.left);
    return (bottom - y) * (right - z);
}

// Positions of a kernel, `dilation` apart from `start` on, that are inside 0 to `size`.
static Span inside(int start, int kernel, int dilation, int size) {
    int first = start < 0 ? (-start + dilation - 1) / dilation : 0;
    return {first, std::max(first, std::min(kernel, (size - start + dilation - 1) / dilation))};
}

// Pools over windows: one vector of channels at a time, positions outside left out.
static void windows(const Op &o, const Map &x, const Map &out, Span rows) {
    typedef Vector<NARROW>::type vec;
    Geometry g = geometry(o, x.h, x.w);
    for (int i = rows.first; i < rows.last; i++)
        for (int j = 0; j < g.w; j++) {
            int y = i * o.stride_h - g.top, z = j * o.stride_w - g.left;
            Span down = inside(y, o.kernel_h, o.dilation_h, x.h), across = inside(z, o.kernel_w, o.dilation_w, x.w);
            int count = (down.last - down.first) * (across.last - across.first);
            for (int c = 0; c < x.stride; c += NARROW) {
                vec sum = o.kind == MAXPOOL ? vec{} - INFINITY : vec{};
                for (int u = down.first; u < down.last; u++) {
                    const float *from = x.data + ((int64_t)(y + u * o.dilation_h) * x.w + z) * x.stride + c;
                    for (int v = across.first; v < across.last; v++) {
                        vec value = *(const vec *)(from + (int64_t)v * o.dilation_w * x.stride);
                        sum = o.kind == AVGPOOL ? sum + value : sum > value ? sum : value;
                    }
                }
                if (o.kind == AVGPOOL) sum /= (float)(o.count_pad ? padded_count(o, g, x, i, j) : count);
                *(vec *)(out.data + ((int64_t)i * g.w + j) * out.stride + c) = sum;
            }
        }
}

// Adds the pixels of a map, or of a tap, to one sum per channel.
template <typename T> static void add_up(const T *data, int64_t pixels, int stride, int chs, float *to) {
    for (int64_t i = 0; i < pixels; i++, data += stride)
        for (int c = 0; c < chs; c++)
            if constexpr (sizeof(T) == 2) to[c] += from_bf16(data[c]);
            else to[c] += data[c];
}

static void mean(const Map &x, const Map &out) {
    std::fill(out.data, out.data + x.stride, 0.f);
    add_up(x.data, (int64_t)x.h * x.w, x.stride, x.stride, out.data);
    for (int c = 0; c < x.stride; c++) out.data[c] /= x.h * x.w;
}

// ---------------------------------------------------------------- channels moved

// CAT: the channels of two maps, one after the other. SLICE: some channels of one. `pixels` of the output.
static void move_channels(const Op &o, const Map &x, const Map *y, const Map &out, Span pixels) {
    int own = y ? o.in_chs : o.out_chs, skipped = y ? 0 : o.in_chs;
    for (int64_t i = pixels.first; i < pixels.last; i++) {
        float *to = out.data + i * out.stride;
        std::memcpy(to, x.data + i * x.stride + skipped, sizeof(float) * own);
        if (y) std::memcpy(to + own, y->data + i * y->stride, sizeof(float) * (o.out_chs - own));
    }
}

// ---------------------------------------------------------------- one value at a time

// e to the power of v, to 1e-7 of itself: a polynomial, for compilers to make vectors of. Beyond what a float can hold
// it stays at the ends of it.
static inline float exponential(float v) {
    v = v < -87.f ? -87.f : v > 88.f ? 88.f : v;
    float whole = std::floor(v * 1.44269504f + 0.5f);
    float rest = v - whole * 0.693359375f + whole * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.f;
    int32_t bits = ((int32_t)whole + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return power * scale;
}

static inline float logistic(float v) { return 1 / (1 + exponential(-v)); }

// The error function to 2e-7: Abramowitz and Stegun, 7.1.26.
static inline float error_function(float v) {
    float size = std::fabs(v), t = 1 / (1 + 0.3275911f * size);
    float power = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    return std::copysign(1 - power * exponential(-size * size), v);
}

struct Relu { static float of(float v) { return v > 0 ? v : 0; } };
struct Relu6 { static float of(float v) { return v < 0 ? 0 : v > 6 ? 6 : v; } };
struct Silu { static float of(float v) { return v * logistic(v); } };
struct Hardswish { static float of(float v) { return v * Relu6::of(v + 3) / 6; } };
struct Hardsigmoid { static float of(float v) { return Relu6::of(v + 3) / 6; } };
struct Gelu { static float of(float v) { return 0.5f * v * (1 + error_function(v * 0.70710678f)); } };
struct GeluTanh {  // (1 + tanh u) / 2 is the logistic function of 2u
    static float of(float v) { return v * logistic(1.59576912f * (v + 0.044715f * v * v * v)); }
};
struct Logistic { static float of(float v) { return logistic(v); } };

template <typename F> static void map_values(float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) values[i] = F::of(values[i]);
}

static void activate(float *values, int64_t count, int act) {
    switch (act) {
        case RELU: return map_values<Relu>(values, count);
        case RELU6: return map_values<Relu6>(values, count);
        case SILU: return map_values<Silu>(values, count);
        case SIGMOID: return map_values<Logistic>(values, count);
        case HARDSWISH: return map_values<Hardswish>(values, count);
        case HARDSIGMOID: return map_values<Hardsigmoid>(values, count);
        case GELU: return map_values<Gelu>(values, count);
        case GELU_TANH: return map_values<GeluTanh>(values, count);
    }
}

static void elementwise(const Op &o, const Map &x, const Map *y, const Map &out, Span rows) {
    int64_t first = (int64_t)rows.first * x.w * x.stride, count = (int64_t)(rows.last - rows.first) * x.w * x.stride;
    const float *from = x.data + first;
    float *to = out.data + first;
    if (!y) {
        std::copy(from, from + count, to);
    } else if (y->h * y->w == 1) {  // one value for all positions
        for (int64_t i = 0; i < count; i += x.stride)
            for (int c = 0; c < x.stride; c++)
                to[i + c] = o.kind == ADD ? from[i + c] + y->data[c] : from[i + c] * y->data[c];
    } else {
        const float *other = y->data + first;
        if (o.kind == ADD) for (int64_t i = 0; i < count; i++) to[i] = from[i] + other[i];
        else for (int64_t i = 0; i < count; i++) to[i] = from[i] * other[i];
    }
    activate(to, count, o.act);
}

// Every pixel's channels, to mean 0 and variance 1, then scaled and shifted.
static void norm(const Op &o, const Params &p, const Map &x, const Map &out, Span rows) {
    for (int64_t i = (int64_t)rows.first * x.w; i < (int64_t)rows.last * x.w; i++) {
        const float *from = x.data + i * x.stride;
        float *to = out.data + i * x.stride, sum = 0, squares = 0;
        for (int c = 0; c < o.out_chs; c++) sum += from[c];
        float centre = sum / o.out_chs;
        for (int c = 0; c < o.out_chs; c++) squares += (from[c] - centre) * (from[c] - centre);
        float scale = 1 / std::sqrt(squares / o.out_chs + o.epsilon);
        for (int c = 0; c < x.stride; c++) to[c] = (from[c] - centre) * scale * p.weight[c] + p.bias[c];
    }
}
