// D3llmBidirectionalAttention for TensorRT 8.5: the core of the IPluginV3 behind the old interface.
#pragma once

#include <string>

#include "dynamic_plugin.h"
#include "tensorrt/tensors.h"

namespace tensorrt85 {

// One layer. While a plan is built its work is left out, as it is in the IPluginV3.
class AttentionPlugin final : public DynamicPlugin {
 public:
  AttentionPlugin(std::string layer, const d3llm::tensorrt::Heads& heads, bool building);

  const char* type_name() const noexcept override;
  int32_t num_outputs() const noexcept override { return d3llm::tensorrt::kNumOutputs; }
  size_t serialized_size() const noexcept override { return sizeof(heads_); }
  void serialize(void* buffer) const noexcept override;
  Plugin* clone() const noexcept override;

  DataType output_type(int32_t output, const DataType* inputs, int32_t num_inputs) const noexcept override;
  Expressions output_shape(int32_t output, const Expressions* inputs, int32_t num_inputs,
                           ExpressionBuilder& builder) noexcept override;
  bool supports(int32_t tensor, const Tensor* tensors, int32_t num_inputs, int32_t num_outputs) noexcept override;
  void configure(const DynamicTensor* inputs, int32_t num_inputs, const DynamicTensor* outputs,
                 int32_t num_outputs) noexcept override;
  int32_t enqueue(const Tensor* input_tensors, const Tensor* output_tensors, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

 private:
  const std::string layer_;
  const d3llm::tensorrt::Heads heads_;
  const bool building_;
  bool configured_ = false;  // for tensors that fit
};

}  // namespace tensorrt85
