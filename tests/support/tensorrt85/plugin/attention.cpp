// From the calls of TensorRT 8.5 to the core of attention, whose int64 tensors are int32 pairs here.
#include "attention.h"

#include <cstring>
#include <exception>
#include <utility>

#include "tensorrt/launch.h"
#include "tensorrt/logger.h"
#include "tensorrt/names.h"

namespace tensorrt85 {
namespace {

using d3llm::tensorrt::kAttended;
using d3llm::tensorrt::kCache;
using d3llm::tensorrt::kLengths;
using d3llm::tensorrt::kNumInputs;
using d3llm::tensorrt::kNumTensors;
using d3llm::tensorrt::kPositions;
using d3llm::tensorrt::kQkv;
using d3llm::tensorrt::kSlots;
using d3llm::tensorrt::kWindow;
using d3llm::tensorrt::log_error;

// Whether the core takes int64, of which each number has two int32: in the memory of the same array.
bool holds_pairs(int tensor) {
  return tensor == kPositions || tensor == kWindow || tensor == kLengths || tensor == kSlots;
}

DataType core_type(int tensor, DataType type) {
  return holds_pairs(tensor) && type == DataType::kINT32 ? DataType::kINT64 : type;
}

nvinfer1::Dims core_dims(int tensor, const Dims& dims) {
  nvinfer1::Dims shape{};
  shape.nbDims = dims.rank;
  for (int axis = 0; axis < dims.rank; ++axis) shape.d[axis] = dims.extents[axis];
  if (holds_pairs(tensor) && dims.rank > 0 && dims.extents[dims.rank - 1] == kPairs) --shape.nbDims;
  return shape;
}

}  // namespace

AttentionPlugin::AttentionPlugin(std::string layer, const d3llm::tensorrt::Heads& heads, bool building)
    : layer_(std::move(layer)), heads_(heads), building_(building) {}

const char* AttentionPlugin::type_name() const noexcept { return d3llm::tensorrt::kPluginName; }

void AttentionPlugin::serialize(void* buffer) const noexcept { std::memcpy(buffer, &heads_, sizeof(heads_)); }

Plugin* AttentionPlugin::clone() const noexcept {
  try {
    return new AttentionPlugin(*this);
  } catch (const std::exception& error) {
    log_error(layer_.c_str(), "cannot be cloned: %s", error.what());
    return nullptr;
  }
}

DataType AttentionPlugin::output_type(int32_t, const DataType* inputs, int32_t) const noexcept { return inputs[kQkv]; }

Expressions AttentionPlugin::output_shape(int32_t output, const Expressions* inputs, int32_t,
                                          ExpressionBuilder& builder) noexcept {
  if (output != kAttended) return inputs[kCache];
  return {2, {inputs[kQkv].extents[0], builder.maker->constant(heads_.num_heads * heads_.head_dim)}};
}

bool AttentionPlugin::supports(int32_t tensor, const Tensor* tensors, int32_t num_inputs,
                               int32_t num_outputs) noexcept {
  if (!d3llm::tensorrt::counts_fit(layer_.c_str(), num_inputs, num_outputs)) return false;
  const Tensor& asked = tensors[tensor];
  return asked.format == TensorFormat::kLINEAR &&
         d3llm::tensorrt::type_fits(tensor, core_type(tensor, asked.type), tensors[kQkv].type);
}

void AttentionPlugin::configure(const DynamicTensor* inputs, int32_t num_inputs, const DynamicTensor* outputs,
                                int32_t num_outputs) noexcept {
  configured_ = false;
  if (!d3llm::tensorrt::counts_fit(layer_.c_str(), num_inputs, num_outputs)) return;
  DataType types[kNumTensors];
  nvinfer1::Dims shapes[kNumTensors];
  for (int tensor = 0; tensor < kNumTensors; ++tensor) {
    const Tensor& given = (tensor < kNumInputs ? inputs[tensor] : outputs[tensor - kNumInputs]).tensor;
    types[tensor] = core_type(tensor, given.type);
    shapes[tensor] = core_dims(tensor, given.dims);
  }
  configured_ = d3llm::tensorrt::types_fit(layer_.c_str(), types, kNumTensors) &&
                d3llm::tensorrt::shapes_fit(layer_.c_str(), heads_, shapes, kNumTensors);
}

int32_t AttentionPlugin::enqueue(const Tensor* input_tensors, const Tensor*, const void* const* inputs,
                                 void* const* outputs, void*, cudaStream_t stream) noexcept {
  if (building_) return 0;
  if (!configured_) return 1;  // why was logged
  const Tensor* of = input_tensors;
  const d3llm::tensorrt::Sizes sizes{of[kQkv].dims.extents[0], of[kSlots].dims.extents[0], of[kCache].dims.extents[0],
                                     of[kCache].dims.extents[3]};
  return d3llm::tensorrt::launch(layer_.c_str(), heads_, sizes, of[kQkv].type, inputs, outputs, stream) ? 0 : 1;
}

}  // namespace tensorrt85
