// The plugin's tensors: their order, types and shapes, and what is wrong with given ones.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

namespace d3llm {
namespace tensorrt {

enum Input { kQkv, kCache, kPositions, kWindow, kLengths, kSlots, kCos, kSin, kNumInputs };
enum Output { kAttended, kUpdatedCache, kNumOutputs };
constexpr int kNumTensors = kNumInputs + kNumOutputs;

// The plugin's fields.
struct Heads {
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
};

// Whether a tensor may have this type; tensors are numbered inputs first. `qkv` is the type of tensor 0.
bool type_fits(int tensor, nvinfer1::DataType type, nvinfer1::DataType qkv);

// These three log what is wrong and return false. `where` is the layer.
bool counts_fit(const char* where, int32_t inputs, int32_t outputs);
bool types_fit(const char* where, const nvinfer1::DataType* types, int count);

// Ranks and extents of the first `count` tensors against `heads` and each other; an extent of -1 is not known yet.
bool shapes_fit(const char* where, const Heads& heads, const nvinfer1::Dims* shapes, int count);

}  // namespace tensorrt
}  // namespace d3llm
