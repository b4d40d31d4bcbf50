// enqueue on a GPU: ragged batches over a cache whose other rows are NaN, against the reference; eager and captured.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "checks.h"
#include "device.h"
#include "reference.h"

namespace host {
namespace {

using Bits = uint16_t;

// A 16-bit type: its conversions, and how far a result may be off.
struct Format {
  const char* name;
  nvinfer1::DataType type;
  Bits (*pack)(double);
  double (*unpack)(Bits);
  double epsilon;  // distance of 1 to the next larger number
};

Bits pack_bf16(double value) {
  const __nv_bfloat16_raw raw = __double2bfloat16(value);
  return raw.x;
}

Bits pack_fp16(double value) {
  const __half_raw raw = __double2half(value);
  return raw.x;
}

double unpack_bf16(Bits bits) {
  __nv_bfloat16_raw raw;
  raw.x = bits;
  return __bfloat162float(raw);
}

double unpack_fp16(Bits bits) {
  __half_raw raw;
  raw.x = bits;
  return __half2float(raw);
}

double round_bf16(double value) { return unpack_bf16(pack_bf16(value)); }
double round_fp16(double value) { return unpack_fp16(pack_fp16(value)); }

const Format kFormats[] = {{"bf16", nvinfer1::DataType::kBF16, pack_bf16, unpack_bf16, 0x1p-7},
                           {"fp16", nvinfer1::DataType::kHALF, pack_fp16, unpack_fp16, 0x1p-10}};

constexpr Bits kPoison = 0xFFFF;  // NaN in both

std::vector<Problem> problems() {
  // clang-format off
  return {
      {"one window of a whole canvas, no GQA", 8, 8, 128, 1, 384, 0, {{0, 0, 376}}},
      {"one row alone", 2, 1, 64, 2, 64, 0, {{1, 0, 1}}},
      {"a cached window", 32, 32, 128, 2, 640, 0, {{1, 512, 128}}},
      {"ragged, GQA 7, cached, slots out of order", 28, 4, 128, 5, 512, 0,
       {{3, 0, 129}, {0, 96, 64}, {4, 333, 1}, {1, 0, 63}}},
      {"ragged, GQA 8, empty windows, padding", 8, 1, 64, 6, 300, 9,
       {{5, 7, 0}, {0, 0, 65}, {2, 255, 45}, {1, 0, 0}, {3, 31, 33}}},
      {"head_dim 32, GQA 2, up to the last row", 4, 2, 32, 3, 257, 3, {{2, 0, 257}, {1, 256, 1}, {0, 100, 157}}},
      {"sixteen windows", 4, 4, 64, 16, 80, 0,
       {{0, 0, 5}, {1, 1, 6}, {2, 2, 7}, {3, 3, 8}, {4, 4, 9}, {5, 5, 10}, {6, 6, 11}, {7, 7, 12},
        {8, 8, 13}, {9, 9, 14}, {10, 10, 15}, {11, 11, 16}, {12, 12, 17}, {13, 13, 18}, {14, 14, 19}, {15, 15, 20}}},
  };
  // clang-format on
}

// Random numbers of the format everywhere but in cache rows that no window may read: those are NaN.
Values random_values(const Problem& problem, const Format& format, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  const auto draw = [&] { return format.unpack(format.pack(normal(random))); };
  Values values;
  values.qkv.resize(problem.tokens() * problem.qkv_width());
  std::generate(values.qkv.begin(), values.qkv.end(), draw);
  values.cache.assign(problem.cache_size(), format.unpack(kPoison));
  for (const Window& window : problem.windows) {
    for (int row = 0; row < 2 * problem.kv_heads; ++row) {
      const int kind = row / problem.kv_heads, head = row % problem.kv_heads;
      const auto begin = values.cache.begin() + problem.cache_row(window.slot, kind, head, 0);
      std::generate(begin, begin + window.start * problem.head_dim, draw);
    }
  }
  for (int64_t position = 0; position < problem.max_seq_len; ++position) {
    for (int i = 0; i < problem.head_dim / 2; ++i) {
      const double angle = position * std::pow(10000.0, -2.0 * i / problem.head_dim);
      values.cos.push_back(static_cast<float>(std::cos(angle)));
      values.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return values;
}

std::vector<Bits> packed(const std::vector<double>& values, const Format& format) {
  std::vector<Bits> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(),
                 [&](double value) { return std::isnan(value) ? kPoison : format.pack(value); });
  return bits;
}

struct Indices {
  std::vector<int64_t> positions, edges{0}, lengths, slots;
};

Indices indices_of(const Problem& problem) {
  Indices indices;
  for (const Window& window : problem.windows) {
    for (int64_t i = 0; i < window.length; ++i) indices.positions.push_back(window.start + i);
    indices.edges.push_back(indices.edges.back() + window.length);
    indices.lengths.push_back(window.start + window.length);
    indices.slots.push_back(window.slot);
  }
  indices.positions.resize(problem.tokens(), 0);
  return indices;
}

Layer layer_of(const Problem& problem, const Format& format) {
  Layer layer;
  layer.num_heads = problem.heads, layer.num_kv_heads = problem.kv_heads, layer.head_dim = problem.head_dim;
  layer.tokens = problem.tokens(), layer.batch = static_cast<int64_t>(problem.windows.size());
  layer.slots = problem.slots, layer.max_seq_len = problem.max_seq_len;
  layer.type = format.type;
  return layer;
}

// All memory of one execution.
struct Memory {
  Memory(const Problem& problem, const Values& values, const Format& format, const Indices& indices)
      : qkv(packed(values.qkv, format)),
        cache(packed(values.cache, format)),
        out(std::vector<Bits>(problem.tokens() * problem.out_width(), kPoison)),
        positions(indices.positions),
        edges(indices.edges),
        lengths(indices.lengths),
        slots(indices.slots),
        cos(values.cos),
        sin(values.sin) {}

  int32_t enqueue(nvinfer1::IPluginV3& plugin, const Descriptions& descriptions, cudaStream_t stream) {
    const void* inputs[] = {qkv.data(),     cache.data(), positions.data(), edges.data(),
                            lengths.data(), slots.data(), cos.data(),       sin.data()};
    void* outputs[] = {out.data(), cache.data()};
    return Capabilities(plugin).runtime->enqueue(descriptions.data(), descriptions.data() + kInputs, inputs, outputs,
                                                 nullptr, stream);
  }

  DeviceArray<Bits> qkv, cache, out;
  DeviceArray<int64_t> positions, edges, lengths, slots;
  DeviceArray<float> cos, sin;
};

struct Error {
  double relative = 0;  // norm of the difference over the norm of the reference
  double largest = 0;   // difference over the largest magnitude of the reference
};

Error error_of(const std::vector<Bits>& bits, const std::vector<double>& wanted, const Format& format) {
  double difference = 0, norm = 0, largest = 0, magnitude = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double off = std::abs(format.unpack(bits[i]) - wanted[i]);
    if (std::isnan(off)) return {INFINITY, INFINITY};
    difference += off * off, norm += wanted[i] * wanted[i];
    largest = std::max(largest, off), magnitude = std::max(magnitude, std::abs(wanted[i]));
  }
  return {std::sqrt(difference / norm), largest / magnitude};
}

// Cache rows: NaN stays NaN bit by bit, everything else is the reference's within one step of the format.
bool cache_fits(const std::vector<Bits>& bits, const std::vector<double>& wanted, const Format& format) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::isnan(wanted[i])) {
      if (bits[i] != kPoison) return false;
      continue;
    }
    const double allowed = format.epsilon * std::max(std::abs(wanted[i]), 0x1p-10);
    if (!(std::abs(format.unpack(bits[i]) - wanted[i]) <= allowed)) return false;
  }
  return true;
}

bool padding_is_zero(const std::vector<Bits>& out, const Problem& problem) {
  const auto begin = out.end() - problem.padding * problem.out_width();
  return std::all_of(begin, out.end(), [](Bits bits) { return (bits & 0x7FFF) == 0; });
}

void compare(const Memory& memory, const Problem& problem, const Values& after, const std::vector<double>& wanted,
             const Format& format, const std::string& name, Report& report) {
  const std::vector<Bits> out = memory.out.download();
  const Error error = error_of(out, wanted, format);
  char text[128];
  std::snprintf(text, sizeof(text), ": relative error %.2e, largest %.2e", error.relative, error.largest);
  report.check(error.relative < 0.64 * format.epsilon && error.largest < 1.5 * format.epsilon, name + text);
  report.check(cache_fits(memory.cache.download(), after.cache, format), name + ": the cache, poisoned rows untouched");
  report.check(padding_is_zero(out, problem), name + ": rows behind the windows are zero");
}

// The same plugin call recorded in a CUDA graph and launched.
void run_captured(Memory& memory, nvinfer1::IPluginV3& plugin, const Descriptions& descriptions, cudaStream_t stream,
                  const std::string& name, Report& report) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin of capture");
  const int32_t status = memory.enqueue(plugin, descriptions, stream);
  must(cudaStreamEndCapture(stream, &graph), "end of capture");
  report.check(status == 0, name + ": enqueue in a captured stream");
  must(cudaGraphInstantiate(&executable, graph, 0), "graph");
  must(cudaGraphLaunch(executable, stream), "launch of the graph");
  must(cudaStreamSynchronize(stream), "captured attention");
  must(cudaGraphExecDestroy(executable), "end of the graph");
  must(cudaGraphDestroy(graph), "end of the graph");
}

void check_problem(nvinfer1::IPluginCreatorV3One& creator, const Problem& problem, const Format& format,
                   std::mt19937_64& random, Logger& logger, Report& report) {
  const Layer layer = layer_of(problem, format);
  const Descriptions descriptions = describe(layer);
  const std::string name = std::string(format.name) + ", " + problem.name;
  const Values before = random_values(problem, format, random);
  Values after = before;
  const std::vector<double> wanted =
      reference(problem, after, format.type == nvinfer1::DataType::kBF16 ? round_bf16 : round_fp16);
  Memory memory(problem, before, format, indices_of(problem));
  Context context;
  Plugin loaded = create(creator, layer, nvinfer1::TensorRTPhase::kRUNTIME);
  Plugin plugin(Capabilities(*loaded).runtime->attachToContext(&context));
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream), "cudaStreamCreate");
  const bool ready = Capabilities(*plugin).runtime->onShapeChange(descriptions.data(), kInputs,
                                                                  descriptions.data() + kInputs, kOutputs) == 0;
  report.check(ready && memory.enqueue(*plugin, descriptions, stream) == 0, name + ": enqueue " + logger.take());
  must(cudaStreamSynchronize(stream), "attention");
  compare(memory, problem, after, wanted, format, name, report);
  memory.cache.upload(packed(before.cache, format));
  memory.out.upload(std::vector<Bits>(wanted.size(), kPoison));
  run_captured(memory, *plugin, descriptions, stream, name, report);
  compare(memory, problem, after, wanted, format, name + ", captured", report);
  must(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

}  // namespace

void check_enqueue(Library& library, Logger& logger, Report& report) {
  std::mt19937_64 random(20260317);
  for (const Format& format : kFormats) {
    for (const Problem& problem : problems()) {
      check_problem(*library.creators().front(), problem, format, random, logger, report);
    }
  }
}

}  // namespace host
