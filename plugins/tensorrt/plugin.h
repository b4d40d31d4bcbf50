// IPluginV3 D3llmBidirectionalAttention: RoPE, the write of K and V into an aliased cache, attention to it.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "tensorrt/names.h"
#include "tensorrt/tensors.h"

namespace d3llm {
namespace tensorrt {

class AttentionPlugin final : public nvinfer1::IPluginV3,
                              public nvinfer1::IPluginV3OneCore,
                              public nvinfer1::IPluginV3OneBuildV2,
                              public nvinfer1::IPluginV3OneRuntime {
 public:
  AttentionPlugin(std::string layer, const Heads& heads, nvinfer1::TensorRTPhase phase);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // Core
  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // Build
  int32_t getNbOutputs() const noexcept override { return kNumOutputs; }
  int32_t getAliasedInput(int32_t output) noexcept override { return output == kUpdatedCache ? int{kCache} : -1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs, const nvinfer1::DataType* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t num_shape_inputs,
                          nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t tensor, const nvinfer1::DynamicPluginTensorDesc* descriptions, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t num_outputs) noexcept override;

  // Runtime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t num_inputs,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t num_outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descriptions,
                  const nvinfer1::PluginTensorDesc* output_descriptions, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  bool fits(const nvinfer1::PluginTensorDesc* const* descriptions) const;

  const std::string layer_;
  const Heads heads_;
  const nvinfer1::TensorRTPhase phase_;
  const nvinfer1::PluginField fields_[kNumFields];
  const nvinfer1::PluginFieldCollection collection_;
};

}  // namespace tensorrt
}  // namespace d3llm
