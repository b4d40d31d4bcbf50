// What all plugins with dynamic shapes have in common: no resources, and slots of the table that are not called.
#pragma once

#include "interfaces.h"

namespace tensorrt85 {

class DynamicPlugin : public Plugin {
 public:
  int32_t version() const noexcept final { return kDynamicPlugin | kVersion; }
  const char* type_version() const noexcept final { return "1"; }
  int32_t initialize() noexcept final { return 0; }
  void terminate() noexcept final {}
  void destroy() noexcept final { delete this; }
  void set_namespace(const char*) noexcept final {}
  const char* get_namespace() const noexcept final { return ""; }
  bool output_is_broadcast(int32_t, const bool*, int32_t) const noexcept final { return false; }
  bool input_may_be_broadcast(int32_t) const noexcept final { return false; }
  void attach_to_context(void*, void*, void*) noexcept final {}
  void detach_from_context() noexcept final {}
  size_t workspace(const Tensor*, int32_t, const Tensor*, int32_t) const noexcept final { return 0; }

  // Those of plugins without dynamic shapes.
  Dims fixed_output_dims(int32_t, const Dims*, int32_t) noexcept final { return {-1, {}}; }
  bool fixed_format(DataType, TensorFormat) const noexcept final { return false; }
  void fixed_configure(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat, int32_t) noexcept final {}
  size_t fixed_workspace(int32_t) const noexcept final { return 0; }
  int32_t fixed_enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept final { return 1; }
  void fixed_configure_typed(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*, const bool*,
                             const bool*, TensorFormat, int32_t) noexcept final {}
};

// A creator that is not told its namespace.
class PlainCreator : public Creator {
 public:
  int32_t version() const noexcept final { return kVersion; }
  const char* type_version() const noexcept final { return "1"; }
  void set_namespace(const char*) noexcept final {}
  const char* get_namespace() const noexcept final { return ""; }
};

}  // namespace tensorrt85
