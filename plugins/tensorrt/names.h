// What the plugin and its fields are called; build/tensorrt/attention.py uses the same names.
#pragma once

namespace d3llm {
namespace tensorrt {

constexpr const char* kPluginName = "D3llmBidirectionalAttention";
constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "";

constexpr int kNumFields = 3;
constexpr const char* kFieldNames[kNumFields] = {"num_heads", "num_kv_heads", "head_dim"};

}  // namespace tensorrt
}  // namespace d3llm
