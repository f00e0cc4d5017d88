// Deltas of one shape on one image, layer by layer, all tasks at each layer.
//
// A delta is many narrow layers, so what costs time in a general runtime is everything around its arithmetic:
// gathering channels, changing layouts, starting thousands of small steps. Here the taps are read where the source
// left them, channels last, one float of the tap at a time as the factor of a vector of output channels: a gather
// costs nothing then. And every tap is read by all tasks while it is in the cache.
//
// Maps are (height, width, stride) with the channels of a pixel together; `stride` is the number of channels rounded
// up to whole vectors, and what is beyond the channels is never read as an input.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
constexpr int WIDE = 16;
#else
constexpr int WIDE = 8;
#endif
constexpr int NARROW = 8;  // floats that the stride of every map is a multiple of
constexpr int PIXELS = 8;  // of a row that are computed together: enough sums to hide the latency of an addition

enum Kind : int32_t { CONV, DEPTHWISE, ACT, ADD, MUL, MAXPOOL, AVGPOOL, MEAN };
enum Act : int32_t { NONE, RELU, RELU6, SILU, SIGMOID, HARDSWISH, HARDSIGMOID, GELU };

struct Op {  // mirrored in lower.py
    int32_t kind, act, x, y, out, tap;            // slots of inputs and output (-1: none; -2: the image), and a tap
    int32_t in_chs, out_chs, num_pooled;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int32_t same, count_pad, ceil, depth;         // TF's padding; pools: padding counts, sizes round up; weights' depth
};
struct Params { const float *weight, *bias; const int32_t *index; };
struct Tap { const float *data; int32_t h, w, chs, offset; };  // offset: where its averages stand among the values
struct HeadParams { const float *own, *columns, *bias; const int32_t *index; int32_t own_chs, num_read, num_classes; };
struct Map { float *data; int h, w, stride; };

static int stride_of(int chs) { return (chs + NARROW - 1) / NARROW * NARROW; }

template <int W> struct Vector { typedef float type __attribute__((vector_size(W * 4), aligned(4), may_alias)); };

static float activate(float v, int act) {
    switch (act) {
        case RELU: return v > 0 ? v : 0;
        case RELU6: return v < 0 ? 0 : v > 6 ? 6 : v;
        case SILU: return v / (1 + std::exp(-v));
        case SIGMOID: return 1 / (1 + std::exp(-v));
        case HARDSWISH: return v * std::fmin(std::fmax(v + 3, 0.f), 6.f) / 6;
        case HARDSIGMOID: return std::fmin(std::fmax(v + 3, 0.f), 6.f) / 6;
        case GELU: return 0.5f * v * (1 + std::erf(v * 0.70710678f));
        default: return v;
    }
}

// What a convolution reads for one pixel: `segments` runs of `length` floats, and `pooled` single floats of a tap.
struct Reach {
    int segments, length, pooled;
    const int64_t *starts;
    const int32_t *index;
    int64_t step, tap_step;  // from one pixel to the next
};

template <int W, int V, int P>
static void tile(const float *a, const float *t, const Reach &r, const float *w, const float *bias, const float *add,
                 float *out, int stride, int act) {
    typedef typename Vector<W>::type vec;
    vec sum[P][V];
    for (int p = 0; p < P; p++)
        for (int v = 0; v < V; v++) sum[p][v] = *(const vec *)(bias + v * W);
    for (int s = 0; s < r.segments; s++) {
        const float *from = a + r.starts[s];
        for (int k = 0; k < r.length; k++, w += V * W) {
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sum[p][v] += from[p * r.step + k] * *(const vec *)(w + v * W);
        }
    }
    for (int k = 0; k < r.pooled; k++, w += V * W) {
        const float *from = t + r.index[k];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[p][v] += from[p * r.tap_step] * *(const vec *)(w + v * W);
    }
    for (int p = 0; p < P; p++)
        for (int v = 0; v < V; v++) {
            vec value = sum[p][v];
            if (add) value += *(const vec *)(add + p * stride + v * W);
            if (act == RELU || act == RELU6) value = value > 0.f ? value : vec{};
            if (act == RELU6) value = value < 6.f ? value : vec{} + 6.f;
            *(vec *)(out + p * stride + v * W) = value;
        }
}

template <int W, int V>
static void row(int pixels, const float *a, const float *t, const Reach &r, const float *w, const float *bias,
                const float *add, float *out, int stride, int act) {
    int p = 0;
#define TILE(P)                                                                                                  \
    tile<W, V, P>(a + p * r.step, t + p * r.tap_step, r, w, bias, add ? add + (int64_t)p * stride : add,          \
                  out + (int64_t)p * stride, stride, act)
    for (; p + PIXELS <= pixels; p += PIXELS) TILE(8);
    switch (pixels - p) {
        case 7: TILE(7); break;
        case 6: TILE(6); break;
        case 5: TILE(5); break;
        case 4: TILE(4); break;
        case 3: TILE(3); break;
        case 2: TILE(2); break;
        case 1: TILE(1); break;
    }
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
                          const float *add, float *out, int stride, int act) {
    blocks(stride, [&](int first, int size) {
        const float *w = p.weight + (int64_t)first * depth, *b = p.bias + first, *plus = add ? add + first : add;
        if (size == 2 * WIDE) row<WIDE, 2>(pixels, a, t, r, w, b, plus, out + first, stride, act);
        else if (size == WIDE) row<WIDE, 1>(pixels, a, t, r, w, b, plus, out + first, stride, act);
        else row<NARROW, 1>(pixels, a, t, r, w, b, plus, out + first, stride, act);
    });
}

struct Geometry { int top, left, h, w; };

static Geometry geometry(const Op &o, int h, int w) {
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

static void pointwise(const Op &o, const Params &p, const Map &x, const Tap *tap, const float *add, const Map &out) {
    int64_t start = 0;
    Reach r{1, o.in_chs, o.num_pooled, &start, p.index, (int64_t)x.stride * o.stride_w,
            tap ? (int64_t)tap->chs * o.stride_w : 0};
    bool whole = o.stride_h == 1 && o.stride_w == 1;  // then all pixels are one row
    int rows = whole ? 1 : out.h, pixels = whole ? out.h * out.w : out.w;
    for (int i = 0; i < rows; i++)
        row_of_blocks(pixels, x.data + (int64_t)i * o.stride_h * x.w * x.stride,
                      tap ? tap->data + (int64_t)i * o.stride_h * tap->w * tap->chs : nullptr, r, p, o.depth,
                      add ? add + (int64_t)i * out.w * out.stride : nullptr,
                      out.data + (int64_t)i * out.w * out.stride, out.stride, o.act);
}

// Own and pooled channels side by side in a frame of zeros, so that no position needs a check. `framed`: the frame is
// there already, because another task has read the same image.
static void convolution(const Op &o, const Params &p, const Map &x, const Tap *tap, const float *add, const Map &out,
                        std::vector<float> &frame, bool framed) {
    Geometry g = geometry(o, x.h, x.w);
    int chs = o.in_chs + o.num_pooled;
    int h = (g.h - 1) * o.stride_h + (o.kernel_h - 1) * o.dilation_h + 1;
    int w = (g.w - 1) * o.stride_w + (o.kernel_w - 1) * o.dilation_w + 1;
    if (!framed) frame.assign((size_t)h * w * chs, 0.f);
    for (int i = 0; !framed && i < x.h && i + g.top < h; i++)
        for (int j = 0; j < x.w && j + g.left < w; j++) {
            float *to = &frame[((size_t)(i + g.top) * w + j + g.left) * chs];
            std::memcpy(to, x.data + ((int64_t)i * x.w + j) * x.stride, sizeof(float) * o.in_chs);
            if (tap) {
                const float *from = tap->data + ((int64_t)i * tap->w + j) * tap->chs;
                for (int k = 0; k < o.num_pooled; k++) to[o.in_chs + k] = from[p.index[k]];
            }
        }
    std::vector<int64_t> starts;
    bool joined = o.dilation_w == 1;
    for (int i = 0; i < o.kernel_h; i++)
        for (int j = 0; j < (joined ? 1 : o.kernel_w); j++)
            starts.push_back(((int64_t)i * o.dilation_h * w + j * o.dilation_w) * chs);
    Reach r{(int)starts.size(), joined ? o.kernel_w * chs : chs, 0, starts.data(), nullptr, (int64_t)o.stride_w * chs, 0};
    for (int i = 0; i < g.h; i++)
        row_of_blocks(g.w, &frame[(size_t)i * o.stride_h * w * chs], nullptr, r, p, o.depth,
                      add ? add + (int64_t)i * g.w * out.stride : nullptr, out.data + (int64_t)i * g.w * out.stride,
                      out.stride, o.act);
}

// Positions of a window that are inside the map or its padding, as PyTorch counts them.
static int padded_count(const Op &o, const Geometry &g, const Map &x, int i, int j) {
    int y = i * o.stride_h - g.top, z = j * o.stride_w - g.left;
    int bottom = std::min(y + o.kernel_h, x.h + g.top), right = std::min(z + o.kernel_w, x.w + g.left);
    return (bottom - y) * (right - z);
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
    for (int p = 0; p < P; p++) {
        if (o.act == RELU || o.act == RELU6) sum[p] = sum[p] > 0.f ? sum[p] : vec{};
        if (o.act == RELU6) sum[p] = sum[p] < 6.f ? sum[p] : vec{} + 6.f;
        *(vec *)(out + (int64_t)p * stride) = sum[p];
    }
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
        if (left >= 0 && left + (PIXELS - 1) * o.stride_w + reach < x.w && j + PIXELS <= g.w) {
            depthwise_tile<W, PIXELS>(o, from + left * stride, row, stride, rows - skip, w, bias, to);
            j += PIXELS;
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
            if (o.act == RELU || o.act == RELU6) sum = sum > 0.f ? sum : vec{};
            if (o.act == RELU6) sum = sum < 6.f ? sum : vec{} + 6.f;
            *(vec *)to = sum;
        }
        j++;
    }
}

static void depthwise(const Op &o, const Params &p, const Map &x, const Map &out) {
    Geometry g = geometry(o, x.h, x.w);
    for (int i = 0; i < g.h; i++) {
        float *to = out.data + (int64_t)i * g.w * out.stride;
        int c = 0;
        for (; c + WIDE <= x.stride; c += WIDE) depthwise_row<WIDE>(o, p, x, g, i, c, to);
        for (; c < x.stride; c += NARROW) depthwise_row<NARROW>(o, p, x, g, i, c, to);
    }
}

// Pools over windows: one vector of channels at a time, positions outside left out.
static void windows(const Op &o, const Map &x, const Map &out) {
    typedef Vector<NARROW>::type vec;
    Geometry g = geometry(o, x.h, x.w);
    for (int i = 0; i < g.h; i++)
        for (int j = 0; j < g.w; j++)
            for (int c = 0; c < x.stride; c += NARROW) {
                vec sum = o.kind == MAXPOOL ? vec{} - INFINITY : vec{};
                int count = 0;
                for (int u = 0; u < o.kernel_h; u++) {
                    int y = i * o.stride_h - g.top + u * o.dilation_h;
                    for (int v = 0; v < o.kernel_w; v++) {
                        int z = j * o.stride_w - g.left + v * o.dilation_w;
                        if (y < 0 || y >= x.h || z < 0 || z >= x.w) continue;
                        vec value = *(const vec *)(x.data + ((int64_t)y * x.w + z) * x.stride + c);
                        sum = o.kind == AVGPOOL ? sum + value : sum > value ? sum : value;
                        count++;
                    }
                }
                if (o.kind == AVGPOOL) sum /= (float)(o.count_pad ? padded_count(o, g, x, i, j) : count);
                *(vec *)(out.data + ((int64_t)i * g.w + j) * out.stride + c) = sum;
            }
}

static void average(const float *data, int64_t pixels, int chs, float *to) {
    for (int c = 0; c < chs; c++) to[c] = 0;
    for (int64_t i = 0; i < pixels; i++)
        for (int c = 0; c < chs; c++) to[c] += data[i * chs + c];
    for (int c = 0; c < chs; c++) to[c] /= pixels;
}

static void elementwise(const Op &o, const Map &x, const Map *y, const Map &out) {
    int64_t count = (int64_t)x.h * x.w * x.stride;
    bool spread = y && y->h * y->w == 1;  // one value for all positions
    for (int64_t i = 0; i < count; i++) {
        float v = x.data[i], other = y ? y->data[spread ? i % x.stride : i] : 0;
        out.data[i] = activate(o.kind == ADD ? v + other : o.kind == MUL ? v * other : v, o.act);
    }
}

static Map shape_of(const Op &o, const Map &x) {
    switch (o.kind) {
        case MEAN: return {nullptr, 1, 1, x.stride};
        case ACT: case ADD: case MUL: return {nullptr, x.h, x.w, x.stride};
        default: {
            Geometry g = geometry(o, x.h, x.w);
            return {nullptr, g.h, g.w, o.kind == CONV ? stride_of(o.out_chs) : x.stride};
        }
    }
}

static void run_op(const Op &o, const Params &p, const Map &x, const Map *y, const Tap *tap, const Map &out,
                   std::vector<float> &frame, bool framed) {
    switch (o.kind) {
        case CONV:
            if (o.kernel_h * o.kernel_w == 1 && o.pad_h + o.pad_w == 0)
                pointwise(o, p, x, tap, y ? y->data : nullptr, out);
            else
                convolution(o, p, x, tap, y ? y->data : nullptr, out, frame, framed);
            break;
        case DEPTHWISE: depthwise(o, p, x, out); break;
        case MAXPOOL: case AVGPOOL: windows(o, x, out); break;
        case MEAN: average(x.data, (int64_t)x.h * x.w, x.stride, out.data); break;
        default: elementwise(o, x, y, out);
    }
}

static void run_head(const HeadParams &h, const float *own, const float *values, float *logits) {
    typedef Vector<NARROW>::type vec;
    for (int c = 0; c < h.num_classes; c++) logits[c] = h.bias[c];
    for (int c = 0; c < h.num_classes; c++)
        for (int k = 0; k < h.own_chs; k++) logits[c] += h.own[c * h.own_chs + k] * own[k];
    int stride = stride_of(h.num_classes);  // columns are (num_read, stride)
    for (int c = 0; c < h.num_classes; c += NARROW) {
        vec sum[4] = {};  // several sums: an addition takes four steps
        for (int k = 0; k < h.num_read; k++)
            sum[k & 3] += values[h.index[k]] * *(const vec *)(h.columns + (int64_t)k * stride + c);
        vec total = sum[0] + sum[1] + sum[2] + sum[3];
        for (int v = 0; v < NARROW && c + v < h.num_classes; v++) logits[c + v] += total[v];
    }
}

extern "C" {

int32_t block_stride(int32_t chs) { return stride_of(chs); }

// (depth, chs) -> the order in which `row_of_blocks` reads; `to` has depth * stride floats.
void pack(const float *from, int32_t depth, int32_t chs, float *to) {
    blocks(stride_of(chs), [&](int first, int size) {
        for (int k = 0; k < depth; k++)
            for (int c = 0; c < size; c++)
                to[(int64_t)first * depth + (int64_t)k * size + c] =
                    first + c < chs ? from[(int64_t)k * chs + first + c] : 0.f;
    });
}

// `params` is (num_tasks) pointers to (num_ops); `values` has room for all averages, the last features at its end.
void run_image(const Op *ops, int32_t num_ops, int32_t num_slots, int32_t result, const Params *const *params,
               const HeadParams *heads, int32_t num_tasks, const float *image, int32_t h, int32_t w, const Tap *taps,
               int32_t num_taps, const uint8_t *averaged, float *values, float *const *logits) {
    static thread_local std::vector<float> memory, frame;
    std::vector<Map> maps(num_slots);
    std::vector<size_t> sizes(num_slots, 0);
    Map picture{const_cast<float *>(image), h, w, 3};
    for (int i = 0; i < num_ops; i++) {  // shapes first: a slot is as large as the largest map that it holds
        Map out = shape_of(ops[i], ops[i].x == -2 ? picture : maps[ops[i].x]);
        maps[ops[i].out] = out;
        size_t size = (size_t)out.h * out.w * out.stride;
        if (size > sizes[ops[i].out]) sizes[ops[i].out] = size;
    }
    std::vector<size_t> starts(num_slots, 0);
    size_t total = 0;
    for (int s = 0; s < num_slots; s++) starts[s] = total, total += (sizes[s] + 15) / 16 * 16;
    if (memory.size() < total * num_tasks) memory.resize(total * num_tasks);
    std::vector<uint8_t> done(num_taps, 0);
    auto see = [&](int t) {
        if (averaged[t] && !done[t])
            average(taps[t].data, (int64_t)taps[t].h * taps[t].w, taps[t].chs, values + taps[t].offset);
        done[t] = 1;
    };
    for (int i = 0; i < num_ops; i++) {
        const Op &o = ops[i];
        if (o.tap >= 0) see(o.tap);
        Map shape = shape_of(o, o.x == -2 ? picture : maps[o.x]);
        for (int t = 0; t < num_tasks; t++) {
            auto placed = [&](int slot) {
                Map map = maps[slot];
                map.data = &memory[t * total + starts[slot]];
                return map;
            };
            Map x = o.x == -2 ? picture : placed(o.x), y, out = shape;
            if (o.y >= 0) y = placed(o.y);
            out.data = &memory[t * total + starts[o.out]];
            run_op(o, params[t][i], x, o.y >= 0 ? &y : nullptr, o.tap >= 0 ? &taps[o.tap] : nullptr, out, frame,
                   t > 0 && o.x == -2);
        }
        maps[o.out] = shape;
    }
    for (int t = 0; t < num_taps; t++) see(t);
    for (int t = 0; t < num_tasks; t++) run_head(heads[t], &memory[t * total + starts[result]], values, logits[t]);
}
}
