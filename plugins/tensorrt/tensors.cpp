// The one table of shapes and types, and the comparison with it.
#include "tensorrt/tensors.h"

#include <cinttypes>

#include "tensorrt/logger.h"

namespace d3llm {
namespace tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

const char* const kNames[kNumTensors] = {"qkv",   "kv_cache", "positions", "cu_window", "kv_lengths",
                                         "slots", "cos",      "sin",       "output 0",  "output 1 (kv_cache)"};

// An extent is a number, or one of these plus `more`.
enum Symbol { kNumber, kTokens, kBatch, kCacheSlots, kMaxSeqLen, kNumSymbols };
const char* const kSymbolNames[kNumSymbols] = {"", "tokens", "batch", "slots", "max_seq_len"};

struct Extent {
  Symbol symbol;
  int64_t more;
};

struct Shape {
  int rank;
  Extent extents[5];
};

Shape expected_shape(int tensor, const Heads& heads) {
  const int64_t d = heads.head_dim, kv_heads = heads.num_kv_heads, rows = int64_t{heads.num_heads} * d;
  switch (tensor) {
    case kQkv: return {2, {{kTokens, 0}, {kNumber, rows + 2 * kv_heads * d}}};
    case kPositions: return {1, {{kTokens, 0}}};
    case kWindow: return {1, {{kBatch, 1}}};
    case kLengths:
    case kSlots: return {1, {{kBatch, 0}}};
    case kCos:
    case kSin: return {2, {{kMaxSeqLen, 0}, {kNumber, d / 2}}};
    case kNumInputs + kAttended: return {2, {{kTokens, 0}, {kNumber, rows}}};
    default: return {5, {{kCacheSlots, 0}, {kNumber, 2}, {kNumber, kv_heads}, {kMaxSeqLen, 0}, {kNumber, d}}};
  }
}

const char* type_name(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "FLOAT";
    case DataType::kHALF: return "HALF";
    case DataType::kBF16: return "BF16";
    case DataType::kINT32: return "INT32";
    case DataType::kINT64: return "INT64";
    case DataType::kINT8: return "INT8";
    case DataType::kBOOL: return "BOOL";
    case DataType::kFP8: return "FP8";
    default: return "another type";
  }
}

const char* allowed_types(int tensor, DataType qkv) {
  switch (tensor) {
    case kQkv: return "HALF, BF16";
    case kPositions:
    case kWindow:
    case kLengths:
    case kSlots: return "INT64";
    case kCos:
    case kSin: return "FLOAT";
    default: return type_name(qkv);
  }
}

// Compares one extent with what it must be; the first tensor that knows a symbol fixes its value.
bool extent_fits(const char* where, int tensor, int axis, int64_t actual, const Extent& expected, int64_t* known) {
  if (actual < 0) return true;
  int64_t& value = known[expected.symbol];
  if (value < 0) value = actual - expected.more;
  if (actual == value + expected.more) return true;
  log_error(where, "%s has extent %" PRId64 " on axis %d; expected %" PRId64 "%s%s%s", kNames[tensor], actual, axis,
            value + expected.more, expected.symbol == kNumber ? "" : ": ", kSymbolNames[expected.symbol],
            expected.symbol != kNumber && expected.more == 1 ? " + 1" : "");
  return false;
}

}  // namespace

bool type_fits(int tensor, DataType type, DataType qkv) {
  switch (tensor) {
    case kQkv: return type == DataType::kHALF || type == DataType::kBF16;
    case kPositions:
    case kWindow:
    case kLengths:
    case kSlots: return type == DataType::kINT64;
    case kCos:
    case kSin: return type == DataType::kFLOAT;
    default: return type == qkv;
  }
}

bool counts_fit(const char* where, int32_t inputs, int32_t outputs) {
  if (inputs == kNumInputs && outputs == kNumOutputs) return true;
  log_error(where, "has %d inputs and %d outputs; expected %d and %d", inputs, outputs, kNumInputs, kNumOutputs);
  return false;
}

bool types_fit(const char* where, const DataType* types, int count) {
  for (int tensor = 0; tensor < count; ++tensor) {
    if (type_fits(tensor, types[tensor], types[kQkv])) continue;
    log_error(where, "%s is %s; allowed: %s", kNames[tensor], type_name(types[tensor]),
              allowed_types(tensor, types[kQkv]));
    return false;
  }
  return true;
}

bool shapes_fit(const char* where, const Heads& heads, const Dims* shapes, int count) {
  int64_t known[kNumSymbols] = {0, -1, -1, -1, -1};
  for (int tensor = 0; tensor < count; ++tensor) {
    const Shape expected = expected_shape(tensor, heads);
    if (shapes[tensor].nbDims != expected.rank) {
      log_error(where, "%s has rank %d; expected %d", kNames[tensor], shapes[tensor].nbDims, expected.rank);
      return false;
    }
    for (int axis = 0; axis < expected.rank; ++axis) {
      if (!extent_fits(where, tensor, axis, shapes[tensor].d[axis], expected.extents[axis], known)) return false;
    }
  }
  return true;
}

}  // namespace tensorrt
}  // namespace d3llm
