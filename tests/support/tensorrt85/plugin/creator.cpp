// The creator of the plugin for TensorRT 8.5, and its entry into that library's registry.
#include <cstring>
#include <exception>

#include "plugin.h"
#include "tensorrt/fields.h"
#include "tensorrt/logger.h"
#include "tensorrt/names.h"

namespace tensorrt85 {
namespace {

using d3llm::tensorrt::Heads;

Plugin* make(const char* layer, const Heads& heads, bool building) {
  try {
    return new AttentionPlugin(layer, heads, building);
  } catch (const std::exception& error) {
    d3llm::tensorrt::log_error(layer, "cannot be created: %s", error.what());
    return nullptr;
  }
}

class AttentionCreator final : public Creator {
 public:
  int32_t version() const noexcept override { return kVersion; }
  const char* type_name() const noexcept override { return d3llm::tensorrt::kPluginName; }
  const char* type_version() const noexcept override { return d3llm::tensorrt::kPluginVersion; }
  const PluginFieldCollection* fields() noexcept override { return d3llm::tensorrt::field_names(); }

  Plugin* create(const char* layer, const PluginFieldCollection* fields) noexcept override {
    Heads heads{};
    return d3llm::tensorrt::read_heads(layer, fields, &heads) ? make(layer, heads, true) : nullptr;
  }

  Plugin* restore(const char* layer, const void* data, size_t size) noexcept override {
    Heads heads{};
    if (size != sizeof(heads)) {
      d3llm::tensorrt::log_error(layer, "has %zu bytes in the plan; expected %zu", size, sizeof(heads));
      return nullptr;
    }
    std::memcpy(&heads, data, size);
    return make(layer, heads, false);
  }

  void set_namespace(const char*) noexcept override {}
  const char* get_namespace() const noexcept override { return d3llm::tensorrt::kPluginNamespace; }
};

}  // namespace
}  // namespace tensorrt85

// Called with what getPluginRegistry() of TensorRT 8.5 returns.
extern "C" __attribute__((visibility("default"))) bool d3llm_register_creator(tensorrt85::Registry* registry) {
  static tensorrt85::AttentionCreator creator;
  return registry->add(creator, d3llm::tensorrt::kPluginNamespace);
}
