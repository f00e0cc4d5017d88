// Deltas of one shape on the images of a part, layer by layer, all tasks at each layer.
//
// A delta is many narrow layers, so what costs time in a general runtime is everything around its arithmetic:
// gathering channels, changing layouts, starting thousands of small steps. Here the taps are read where the source
// left them, soon after it has made them, and every tap is read by all tasks while it is in the cache.

#include <atomic>
#include <memory>
#include <thread>

#include "dense.h"
#include "others.h"

constexpr int64_t CHUNK_BYTES = 32768;  // of a tap that all tasks read before the next: it fits the innermost cache

// What is passed to this file is mirrored in mirrors.py.

// One task on one image: where its numbers are, room for its maps, and where its logits go.
struct Piece { const Params *params; const HeadParams *head; float *memory, *logits; int32_t image; };

// Pieces of one shape, those of an image side by side. `averaged` says which taps' averages are wanted and not there yet,
// and `values` is (num_images, num_values): room for the averages of all taps, the source's last features at the end.
struct Job {
    const Op *ops;
    const Piece *pieces;
    const float *images;
    const Tap *taps;
    uint8_t *averaged;
    float *values;
    int32_t num_ops, num_slots, result, num_taps, num_pieces, num_images, h, w, num_values;
};

static Map shape_of(const Op &o, const Map &x) {
    switch (o.kind) {
        case MEAN: return {nullptr, 1, 1, x.stride};
        case ACT: case ADD: case MUL: case NORM: return {nullptr, x.h, x.w, x.stride};
        case CAT: case SLICE: return {nullptr, x.h, x.w, stride_of(o.out_chs)};
        default: {
            Geometry g = geometry(o, x.h, x.w);
            return {nullptr, g.h, g.w, o.kind == CONV ? stride_of(o.out_chs) : x.stride};
        }
    }
}

// What an operation reads of its own: a map in a slot, the image, or, where a body begins at a tap, nothing of its size.
static Map read_by(const Op &o, const std::vector<Map> &maps, const Tap *taps, int h, int w) {
    if (o.x >= 0) return maps[o.x];
    return o.x == IMAGE ? Map{nullptr, h, w, 3} : Map{nullptr, taps[o.tap].h, taps[o.tap].w, 0};
}

// The shapes of all outputs, and where a piece's memory holds what. A slot is as large as the largest map in it.
struct Layout {
    std::vector<Map> inputs, outputs;  // of every operation
    std::vector<int64_t> starts;       // of every slot
    int64_t size = 0;

    Layout(const Op *ops, int num_ops, int num_slots, const Tap *taps, int h, int w) : starts(num_slots, 0) {
        std::vector<Map> maps(num_slots);
        std::vector<int64_t> sizes(num_slots, 0);
        for (int i = 0; i < num_ops; i++) {
            inputs.push_back(read_by(ops[i], maps, taps, h, w));
            Map out = shape_of(ops[i], inputs.back());
            outputs.push_back(maps[ops[i].out] = out);
            sizes[ops[i].out] = std::max(sizes[ops[i].out], (int64_t)out.h * out.w * out.stride);
        }
        for (int s = 0; s < num_slots; s++) starts[s] = size, size += (sizes[s] + 15) / 16 * 16;
    }
};

static Layout layout_of(const Job &j) { return Layout(j.ops, j.num_ops, j.num_slots, j.taps, j.h, j.w); }

// Threads that share every operation wait here for each other before the next.
class Barrier {
    const int num_threads;
    std::atomic<int> arrived{0}, turn{0};

public:
    explicit Barrier(int num_threads) : num_threads(num_threads) {}

    void wait() {
        if (num_threads == 1) return;
        int now = turn.load();
        if (arrived.fetch_add(1) == num_threads - 1) {
            arrived.store(0);
            turn.fetch_add(1);
        } else {
            while (turn.load() == now) std::this_thread::yield();
        }
    }
};

static void average(const Job &j, const Tap &t, int image, int64_t first, int64_t last, Span chs) {
    float *to = j.values + (int64_t)image * j.num_values + t.offset + chs.first;
    int64_t start = (image * t.pixels() + first) * t.chs + chs.first;
    int count = chs.last - chs.first;
    if (t.bf16) add_up((const uint16_t *)t.data + start, last - first, t.chs, count, to);
    else add_up((const float *)t.data + start, last - first, t.chs, count, to);
    if (last == t.pixels())
        for (int c = 0; c < count; c++) to[c] /= last;
}

// One thread's share of a job: `thread` of `num_threads`.
struct Worker {
    const Job &j;
    const Layout &layout;
    Barrier &barrier;
    int thread, num_threads;
    Frame frame{};
    std::vector<float> copied{};

    Map placed(const Piece &p, int slot, Map map) const {
        map.data = p.memory + layout.starts[slot];
        return map;
    }

    Map input(const Piece &p, int i) const {
        const Op &o = j.ops[i];
        if (o.x >= 0) return placed(p, o.x, layout.inputs[i]);
        Map map = layout.inputs[i];
        map.data = o.x == IMAGE ? const_cast<float *>(j.images) + (int64_t)p.image * j.h * j.w * 3 : p.memory;
        return map;
    }

    const float *added(const Piece &p, int slot) const { return slot < 0 ? nullptr : p.memory + layout.starts[slot]; }

    template <typename F> void each_of(int image, F &&visit) {
        for (int k = 0; k < j.num_pieces; k++)
            if (j.pieces[k].image == image) visit(j.pieces[k]);
    }

    // Averages of a whole tap, where they are wanted; every thread takes some of the channels.
    void see(int tap) {
        if (!j.averaged[tap] || !j.taps[tap].data) return;
        Span chs = share({0, j.taps[tap].chs}, thread, num_threads, WIDE);
        for (int image = 0; image < j.num_images; image++)
            average(j, j.taps[tap], image, 0, j.taps[tap].pixels(), chs);
    }

    // Pixels of a tap in float32.
    Chunk chunk_of(const Tap &t, int64_t first, int64_t last) {
        if (!t.bf16) return {(const float *)t.data + first * t.chs, t.w, t.chs};
        const uint16_t *from = (const uint16_t *)t.data + first * t.chs;
        copied.resize((last - first) * t.chs);
        for (size_t i = 0; i < copied.size(); i++) copied[i] = from_bf16(from[i]);
        return {copied.data(), t.w, t.chs};
    }

    // A 1x1 convolution: all tasks read a piece of the tap, and its averages are taken, before the next piece comes.
    // The pieces are larger where a task's weights are, which would have to come from farther away for each.
    void pooled_pointwise(int i) {
        const Op &o = j.ops[i];
        const Tap &t = j.taps[o.tap];
        const Map &shape = layout.outputs[i];
        bool one_row = is_one_row(o), averages = num_threads == 1 && j.averaged[o.tap];
        int64_t unit = one_row ? 1 : (int64_t)t.w * o.stride_h;  // pixels of the tap
        int64_t bytes = std::max<int64_t>(CHUNK_BYTES, (int64_t)o.depth * shape.stride * 16);
        int multiple = one_row ? PIXELS : 1;
        int step = std::max<int64_t>(1, bytes / (4 * unit * t.chs * multiple)) * multiple;
        Span mine = share({0, one_row ? shape.h * shape.w : shape.h}, thread, num_threads, multiple);
        for (int image = 0; image < j.num_images; image++)
            for (int first = mine.first; first < mine.last; first += step) {
                Span span{first, std::min(mine.last, first + step)};
                int64_t from = first * unit, to = span.last == mine.last ? t.pixels() : span.last * unit;
                if (averages) average(j, t, image, from, to, {0, t.chs});
                int64_t start = image * t.pixels();
                Chunk chunk = chunk_of(t, start + from, start + std::min(t.pixels(), span.last * unit));
                each_of(image, [&](const Piece &p) {
                    pointwise(o, p.params[i], input(p, i), chunk, added(p, o.y), placed(p, o.out, shape), span);
                });
            }
        if (averages) j.averaged[o.tap] = 0;
    }

    // `frame` is the first's: the others' has the same shape, and for the image the same content.
    void framed_convolution(int i, const Piece &p, bool first, bool filled) {
        const Op &o = j.ops[i];
        const Tap *tap = o.tap >= 0 ? &j.taps[o.tap] : nullptr;
        Map x = input(p, i), out = placed(p, o.out, layout.outputs[i]);
        Span rows = share({0, out.h}, thread, num_threads);
        if (rows.first == rows.last) return;
        Geometry g = geometry(o, x.h, x.w);
        if (first) frame = empty_frame(o, g, rows);
        if (!filled) fill(frame, o, p.params[i], g, x, tap, p.image);
        convolution(o, p.params[i], frame, added(p, o.y), out, rows);
    }

    void other(int i, const Piece &p) {
        const Op &o = j.ops[i];
        Map x = input(p, i), out = placed(p, o.out, layout.outputs[i]), y;
        Span rows = share({0, out.h}, thread, num_threads);
        if (o.y >= 0) y = placed(p, o.y, shape_at(o.y, i));
        switch (o.kind) {
            case CONV:
                if (is_one_row(o)) rows = share({0, out.h * out.w}, thread, num_threads, PIXELS);
                return pointwise(o, p.params[i], x, {}, added(p, o.y), out, rows);
            case DEPTHWISE: return depthwise(o, p.params[i], x, out, rows);
            case MAXPOOL: case AVGPOOL: return windows(o, x, out, rows);
            case NORM: return norm(o, p.params[i], x, out, rows);
            case CAT: case SLICE:
                return move_channels(o, x, o.y >= 0 ? &y : nullptr, out, {rows.first * out.w, rows.last * out.w});
            case MEAN: return thread == 0 ? mean(x, out) : void();
            default: elementwise(o, x, o.y >= 0 ? &y : nullptr, out, rows);
        }
    }

    // The shape of what a slot holds before operation `i`.
    Map shape_at(int slot, int i) const {
        for (int k = i - 1; k >= 0; k--)
            if (j.ops[k].out == slot) return layout.outputs[k];
        return layout.outputs[i];
    }

    void run(int i) {
        const Op &o = j.ops[i];
        bool dense = o.kind == CONV, framed = dense && !is_pointwise(o);
        if (o.tap >= 0 && (framed || num_threads > 1)) {
            see(o.tap);
            barrier.wait();
            if (thread == 0) j.averaged[o.tap] = 0;
        }
        if (o.x == IMAGE && framed) {  // all tasks read the same frame
            for (int image = 0; image < j.num_images; image++) {
                bool filled = false;
                each_of(image, [&](const Piece &p) {
                    framed_convolution(i, p, &p == j.pieces, filled), filled = true;
                });
            }
        } else if (framed) {
            for (int k = 0; k < j.num_pieces; k++) framed_convolution(i, j.pieces[k], k == 0, false);
        } else if (dense && o.tap >= 0) {
            pooled_pointwise(i);
        } else {
            for (int k = 0; k < j.num_pieces; k++) other(i, j.pieces[k]);
        }
        barrier.wait();
    }
};

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

// Floats that one piece needs for its maps. A body that begins at a tap must have that.
int64_t memory_size(const Job *job) { return layout_of(*job).size; }

// Runs operations `first` up to `last`, then takes the averages that are wanted of all taps that are there. With several
// threads, each makes a part of every map.
void advance(const Job *job, int32_t first, int32_t last, int32_t num_threads) {
    Layout layout = layout_of(*job);
    Barrier barrier(num_threads);
    auto work = [&](int thread) {
        Worker worker{*job, layout, barrier, thread, num_threads};
        for (int i = first; i < last; i++) worker.run(i);
        for (int t = 0; t < job->num_taps; t++) worker.see(t);
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < num_threads; thread++) others.emplace_back(work, thread);
    work(0);
    for (auto &other : others) other.join();
    for (int t = 0; t < job->num_taps; t++)
        if (job->taps[t].data) job->averaged[t] = 0;
}

// The logits of all pieces, after all operations.
void finish(const Job *job) {
    Layout layout = layout_of(*job);
    for (int k = 0; k < job->num_pieces; k++) {
        const Piece &p = job->pieces[k];
        run_head(*p.head, p.memory + layout.starts[job->result], job->values + (int64_t)p.image * job->num_values,
                 p.logits);
    }
}
}
