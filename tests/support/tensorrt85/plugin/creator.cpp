// The creators of both plugins, and their entry into the registry of TensorRT 8.5.
#include <cstring>
#include <exception>
#include <new>

#include "attention.h"
#include "copy.h"
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

class AttentionCreator final : public PlainCreator {
 public:
  const char* type_name() const noexcept override { return d3llm::tensorrt::kPluginName; }
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
};

class CopyCreator final : public PlainCreator {
 public:
  const char* type_name() const noexcept override { return CopyPlugin::kName; }
  const PluginFieldCollection* fields() noexcept override { return &none_; }
  Plugin* create(const char*, const PluginFieldCollection*) noexcept override { return new (std::nothrow) CopyPlugin; }
  Plugin* restore(const char*, const void*, size_t) noexcept override { return new (std::nothrow) CopyPlugin; }

 private:
  const PluginFieldCollection none_{0, nullptr};
};

}  // namespace
}  // namespace tensorrt85

// Called with what getPluginRegistry() of TensorRT 8.5 returns.
extern "C" __attribute__((visibility("default"))) bool d3llm_register_creators(tensorrt85::Registry* registry) {
  static tensorrt85::AttentionCreator attention;
  static tensorrt85::CopyCreator copy;
  return registry->add(attention, "") && registry->add(copy, "");
}
