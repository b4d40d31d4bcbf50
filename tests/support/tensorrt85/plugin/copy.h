// D3llmCopy: a tensor copied. What TensorRT 8.5 fuses ends there, and so do its mistakes in fusing.
#pragma once

#include "dynamic_plugin.h"

namespace tensorrt85 {

class CopyPlugin final : public DynamicPlugin {
 public:
  static constexpr const char* kName = "D3llmCopy";

  const char* type_name() const noexcept override { return kName; }
  int32_t num_outputs() const noexcept override { return 1; }
  size_t serialized_size() const noexcept override { return 0; }
  void serialize(void*) const noexcept override {}
  Plugin* clone() const noexcept override;

  DataType output_type(int32_t output, const DataType* inputs, int32_t num_inputs) const noexcept override;
  Expressions output_shape(int32_t output, const Expressions* inputs, int32_t num_inputs,
                           ExpressionBuilder& builder) noexcept override;
  bool supports(int32_t tensor, const Tensor* tensors, int32_t num_inputs, int32_t num_outputs) noexcept override;
  void configure(const DynamicTensor*, int32_t, const DynamicTensor*, int32_t) noexcept override {}
  int32_t enqueue(const Tensor* input_tensors, const Tensor* output_tensors, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
};

}  // namespace tensorrt85
