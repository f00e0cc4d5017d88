// What the kernel works on. Maps are (height, width, stride) with the channels of a pixel together; `stride` is the
// number of channels rounded up to whole vectors, and what is beyond the channels is never read as an input.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
constexpr int WIDE = 16;
#else
constexpr int WIDE = 8;
#endif
constexpr int NARROW = 8;  // floats that the stride of every map is a multiple of

constexpr int IMAGE = -2;  // in place of a slot

enum Kind : int32_t { CONV, DEPTHWISE, ACT, ADD, MUL, MAXPOOL, AVGPOOL, MEAN, NORM, CAT, SLICE };
enum Act : int32_t { NONE, RELU, RELU6, SILU, SIGMOID, HARDSWISH, HARDSIGMOID, GELU, GELU_TANH };

struct Op {
    int32_t kind, act, x, y, out, tap;            // slots of inputs and output (-1: none), and a tap
    int32_t in_chs, out_chs, num_pooled;          // in_chs of SLICE: channels before the slice
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int32_t same, count_pad, ceil, depth;         // TF's padding; pools: padding counts, sizes round up; weights' depth
    float epsilon;                                // of a norm
};
struct Params { const float *weight, *bias; const int32_t *index; };
struct HeadParams { const float *own, *columns, *bias; const int32_t *index; int32_t own_chs, num_read, num_classes; };

// A tap of all images of a part, one after the other; `offset` is where its averages stand among an image's values.
struct Tap {
    const void *data;
    int32_t h, w, chs, offset, bf16;

    int64_t pixels() const { return (int64_t)h * w; }
};

struct Map { float *data; int h, w, stride; };

// The rows, or pixels, of an output that one thread makes.
struct Span { int first, last; };

static inline Span share(Span all, int thread, int num_threads, int multiple = 1) {
    int64_t units = (all.last - all.first + multiple - 1) / multiple;
    auto at = [&](int i) { return std::min(all.last, all.first + (int)(units * i / num_threads) * multiple); };
    return {at(thread), at(thread + 1)};
}

template <int W> struct Vector { typedef float type __attribute__((vector_size(W * 4), aligned(4), may_alias)); };

static inline int stride_of(int chs) { return (chs + NARROW - 1) / NARROW * NARROW; }

static inline float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

struct Geometry { int top, left, h, w; };

static inline Geometry geometry(const Op &o, int h, int w) {
    int reach_h = (o.kernel_h - 1) * o.dilation_h + 1, reach_w = (o.kernel_w - 1) * o.dilation_w + 1;
    if (o.same) {
        int out_h = (h + o.stride_h - 1) / o.stride_h, out_w = (w + o.stride_w - 1) / o.stride_w;
        int pad_h = (out_h - 1) * o.stride_h + reach_h - h, pad_w = (out_w - 1) * o.stride_w + reach_w - w;
        return {pad_h > 0 ? pad_h / 2 : 0, pad_w > 0 ? pad_w / 2 : 0, out_h, out_w};
    }
    auto size = [&](int in, int pad, int reach, int stride) {
        int out = (in + 2 * pad - reach + (o.ceil ? stride - 1 : 0)) / stride + 1;
        return o.ceil && (out - 1) * stride >= in + pad ? out - 1 : out;  // a window must start inside
    };
    return {o.pad_h, o.pad_w, size(h, o.pad_h, reach_h, o.stride_h), size(w, o.pad_w, reach_w, o.stride_w)};
}
