// What the plugin and its fields are called; plugins/tensorrt_plugin.py and build/tensorrt/attention.py say the same.
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
