// From the plugin's tensors to the C launcher d3llm_window_attention.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "tensorrt/tensors.h"

namespace d3llm {
namespace tensorrt {

// Extents that are known only at run time, or that the launcher checks positions and slots against.
struct Sizes {
  int64_t tokens;
  int64_t batch;
  int64_t slots;
  int64_t max_seq_len;
};

// Enqueues the work of one layer; `type` is that of qkv. Logs why it could not and returns false.
bool launch(const char* layer, const Heads& heads, const Sizes& sizes, nvinfer1::DataType type,
            const void* const* inputs, void* const* outputs, cudaStream_t stream);

}  // namespace tensorrt
}  // namespace d3llm
