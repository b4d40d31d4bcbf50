// From TensorRT's calls to the core: tensors.h, fields.h, launch.h.
#include "tensorrt/plugin.h"

#include <exception>
#include <utility>

#include "tensorrt/launch.h"
#include "tensorrt/logger.h"

namespace d3llm {
namespace tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int32_t kOk = 0, kFailed = 1;

PluginField int_field(int number, const int32_t& value) {
  return {kFieldNames[number], &value, PluginFieldType::kINT32, 1};
}

// Extents as far as they are constants; the others are -1.
Dims known_extents(const DimsExprs& shape) {
  Dims known{};
  known.nbDims = shape.nbDims;
  for (int axis = 0; axis < shape.nbDims; ++axis) {
    known.d[axis] = shape.d[axis]->isConstant() ? shape.d[axis]->getConstantValue() : -1;
  }
  return known;
}

}  // namespace

AttentionPlugin::AttentionPlugin(std::string layer, const Heads& heads, nvinfer1::TensorRTPhase phase)
    : layer_(std::move(layer)),
      heads_(heads),
      phase_(phase),
      fields_{int_field(0, heads_.num_heads), int_field(1, heads_.num_kv_heads), int_field(2, heads_.head_dim)},
      collection_{kNumFields, fields_} {}

nvinfer1::IPluginCapability* AttentionPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  log_error(layer_.c_str(), "has no capability %d", static_cast<int>(type));
  return nullptr;
}

nvinfer1::IPluginV3* AttentionPlugin::clone() noexcept {
  try {
    return new AttentionPlugin(layer_, heads_, phase_);
  } catch (const std::exception& error) {
    log_error(layer_.c_str(), "cannot be cloned: %s", error.what());
    return nullptr;
  }
}

int32_t AttentionPlugin::getOutputDataTypes(DataType* output_types, int32_t outputs, const DataType* input_types,
                                            int32_t inputs) const noexcept {
  if (!counts_fit(layer_.c_str(), inputs, outputs) || !types_fit(layer_.c_str(), input_types, inputs)) return kFailed;
  output_types[kAttended] = output_types[kUpdatedCache] = input_types[kQkv];
  return kOk;
}

int32_t AttentionPlugin::getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs*, int32_t,
                                         DimsExprs* outputs, int32_t num_outputs,
                                         nvinfer1::IExprBuilder& builder) noexcept {
  if (!counts_fit(layer_.c_str(), num_inputs, num_outputs)) return kFailed;
  Dims known[kNumInputs];
  for (int tensor = 0; tensor < kNumInputs; ++tensor) known[tensor] = known_extents(inputs[tensor]);
  if (!shapes_fit(layer_.c_str(), heads_, known, kNumInputs)) return kFailed;
  DimsExprs& attended = outputs[kAttended];
  attended.nbDims = 2;
  attended.d[0] = inputs[kQkv].d[0];
  attended.d[1] = builder.constant(int64_t{heads_.num_heads} * heads_.head_dim);
  outputs[kUpdatedCache] = inputs[kCache];
  return kOk;
}

bool AttentionPlugin::supportsFormatCombination(int32_t tensor, const DynamicPluginTensorDesc* descriptions,
                                                int32_t inputs, int32_t outputs) noexcept {
  if (!counts_fit(layer_.c_str(), inputs, outputs) || tensor < 0 || tensor >= kNumTensors) return false;
  const PluginTensorDesc& asked = descriptions[tensor].desc;
  return asked.format == TensorFormat::kLINEAR && type_fits(tensor, asked.type, descriptions[kQkv].desc.type);
}

int32_t AttentionPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                         const DynamicPluginTensorDesc* outputs, int32_t num_outputs) noexcept {
  if (!counts_fit(layer_.c_str(), num_inputs, num_outputs)) return kFailed;
  const PluginTensorDesc* descriptions[kNumTensors];
  for (int i = 0; i < kNumInputs; ++i) descriptions[i] = &inputs[i].desc;
  for (int i = 0; i < kNumOutputs; ++i) descriptions[kNumInputs + i] = &outputs[i].desc;
  return fits(descriptions) ? kOk : kFailed;
}

int32_t AttentionPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t num_inputs,
                                       const PluginTensorDesc* outputs, int32_t num_outputs) noexcept {
  if (!counts_fit(layer_.c_str(), num_inputs, num_outputs)) return kFailed;
  const PluginTensorDesc* descriptions[kNumTensors];
  for (int i = 0; i < kNumInputs; ++i) descriptions[i] = &inputs[i];
  for (int i = 0; i < kNumOutputs; ++i) descriptions[kNumInputs + i] = &outputs[i];
  return fits(descriptions) ? kOk : kFailed;
}

bool AttentionPlugin::fits(const PluginTensorDesc* const* descriptions) const {
  DataType types[kNumTensors];
  Dims shapes[kNumTensors];
  for (int tensor = 0; tensor < kNumTensors; ++tensor) {
    types[tensor] = descriptions[tensor]->type;
    shapes[tensor] = descriptions[tensor]->dims;
  }
  return types_fit(layer_.c_str(), types, kNumTensors) && shapes_fit(layer_.c_str(), heads_, shapes, kNumTensors);
}

int32_t AttentionPlugin::enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc*,
                                 const void* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
  // Builders time layers on memory of any content, where positions and slots would lead anywhere. There is one tactic,
  // so nothing is lost by not running it.
  if (phase_ == nvinfer1::TensorRTPhase::kBUILD) return kOk;
  const PluginTensorDesc* of = input_descriptions;
  const Sizes sizes{of[kQkv].dims.d[0], of[kSlots].dims.d[0], of[kCache].dims.d[0], of[kCache].dims.d[3]};
  return launch(layer_.c_str(), heads_, sizes, of[kQkv].type, inputs, outputs, stream) ? kOk : kFailed;
}

nvinfer1::IPluginV3* AttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

}  // namespace tensorrt
}  // namespace d3llm
