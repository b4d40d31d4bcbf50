// D3llmBidirectionalAttention for TensorRT 8.5: the core of the IPluginV3 behind the old interface.
#pragma once

#include <string>

#include "interfaces.h"
#include "tensorrt/tensors.h"

namespace tensorrt85 {

// One layer. While a plan is built its work is left out, as it is in the IPluginV3.
class AttentionPlugin final : public Plugin {
 public:
  AttentionPlugin(std::string layer, const d3llm::tensorrt::Heads& heads, bool building);

  int32_t version() const noexcept override { return kDynamicPlugin | kVersion; }
  const char* type_name() const noexcept override;
  const char* type_version() const noexcept override;
  int32_t num_outputs() const noexcept override { return d3llm::tensorrt::kNumOutputs; }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  size_t serialized_size() const noexcept override { return sizeof(heads_); }
  void serialize(void* buffer) const noexcept override;
  void destroy() noexcept override { delete this; }
  Plugin* clone() const noexcept override;
  void set_namespace(const char*) noexcept override {}
  const char* get_namespace() const noexcept override;

  DataType output_type(int32_t output, const DataType* inputs, int32_t num_inputs) const noexcept override;
  bool output_is_broadcast(int32_t, const bool*, int32_t) const noexcept override { return false; }
  bool input_may_be_broadcast(int32_t) const noexcept override { return false; }
  void attach_to_context(void*, void*, void*) noexcept override {}
  void detach_from_context() noexcept override {}

  Expressions output_shape(int32_t output, const Expressions* inputs, int32_t num_inputs,
                           ExpressionBuilder& builder) noexcept override;
  bool supports(int32_t tensor, const Tensor* tensors, int32_t num_inputs, int32_t num_outputs) noexcept override;
  void configure(const DynamicTensor* inputs, int32_t num_inputs, const DynamicTensor* outputs,
                 int32_t num_outputs) noexcept override;
  size_t workspace(const Tensor*, int32_t, const Tensor*, int32_t) const noexcept override { return 0; }
  int32_t enqueue(const Tensor* input_tensors, const Tensor* output_tensors, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

  // Those of plugins without dynamic shapes are not called.
  Dims fixed_output_dims(int32_t, const Dims*, int32_t) noexcept override { return {-1, {}}; }
  bool fixed_format(DataType, TensorFormat) const noexcept override { return false; }
  void fixed_configure(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat, int32_t) noexcept override {}
  size_t fixed_workspace(int32_t) const noexcept override { return 0; }
  int32_t fixed_enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept override { return 1; }
  void fixed_configure_typed(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*, const bool*,
                             const bool*, TensorFormat, int32_t) noexcept override {}

 private:
  const std::string layer_;
  const d3llm::tensorrt::Heads heads_;
  const bool building_;
  bool configured_ = false;  // for tensors that fit
};

}  // namespace tensorrt85
