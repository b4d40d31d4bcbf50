// The launcher's parameters, and the check that the cache is updated in place.
#include "tensorrt/launch.h"

#include "d3llm_kernels.h"
#include "tensorrt/logger.h"

namespace d3llm {
namespace tensorrt {
namespace {

d3llm_attention_params kernel_params(const Heads& heads, const Sizes& sizes, nvinfer1::DataType type,
                                     const void* const* inputs, void* const* outputs) {
  d3llm_attention_params p{};
  p.struct_size = sizeof(p);
  p.qkv = inputs[kQkv];
  p.kv_cache = outputs[kUpdatedCache];
  p.out = outputs[kAttended];
  p.positions = static_cast<const int64_t*>(inputs[kPositions]);
  p.cu_window = static_cast<const int64_t*>(inputs[kWindow]);
  p.kv_lengths = static_cast<const int64_t*>(inputs[kLengths]);
  p.slots = static_cast<const int64_t*>(inputs[kSlots]);
  p.cos = static_cast<const float*>(inputs[kCos]);
  p.sin = static_cast<const float*>(inputs[kSin]);
  p.tokens = sizes.tokens;
  p.batch = sizes.batch;
  p.num_slots = sizes.slots;
  p.max_seq_len = sizes.max_seq_len;
  p.num_heads = heads.num_heads;
  p.num_kv_heads = heads.num_kv_heads;
  p.head_dim = heads.head_dim;
  p.dtype = type == nvinfer1::DataType::kBF16 ? D3LLM_BFLOAT16 : D3LLM_FLOAT16;
  return p;
}

}  // namespace

bool launch(const char* layer, const Heads& heads, const Sizes& sizes, nvinfer1::DataType type,
            const void* const* inputs, void* const* outputs, cudaStream_t stream) {
  if (inputs[kCache] != outputs[kUpdatedCache]) {
    log_error(layer,
              "the cache goes in and out in different memory; build with the preview feature "
              "kALIASED_PLUGIN_IO_10_03, and bind both to one address");
    return false;
  }
  const d3llm_attention_params params = kernel_params(heads, sizes, type, inputs, outputs);
  if (d3llm_window_attention(&params, stream) == D3LLM_SUCCESS) return true;
  log_error(layer, "%s", d3llm_last_error());
  return false;
}

}  // namespace tensorrt
}  // namespace d3llm
