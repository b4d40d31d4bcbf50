// The plugin's creator, and the library's entry point for TensorRT.
#include <NvInferRuntime.h>

#include <exception>

#include "tensorrt/fields.h"
#include "tensorrt/logger.h"
#include "tensorrt/plugin.h"

namespace d3llm {
namespace tensorrt {
namespace {

using nvinfer1::PluginFieldCollection;

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    const char* layer = name == nullptr || *name == '\0' ? "(unnamed)" : name;
    Heads heads{};
    if (!read_heads(layer, fields, &heads)) return nullptr;
    try {
      return new AttentionPlugin(layer, heads, phase);
    } catch (const std::exception& error) {
      log_error(layer, "cannot be created: %s", error.what());
      return nullptr;
    }
  }

  const PluginFieldCollection* getFieldNames() noexcept override { return field_names(); }
  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
};

}  // namespace
}  // namespace tensorrt
}  // namespace d3llm

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
  static d3llm::tensorrt::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
