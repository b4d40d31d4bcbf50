// Shapes and types as docs/plugins.md lists them, written apart from the plugin's own table.
#include "layer.h"

namespace host {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

Layer Layer::unknown_sizes() const {
  Layer layer = *this;
  layer.tokens = layer.batch = -1;
  return layer;
}

Dims Layer::shape(int tensor) const {
  const int64_t rows = int64_t{num_heads} * head_dim, kv_rows = int64_t{num_kv_heads} * head_dim;
  switch (tensor) {
    case 0: return {2, {tokens, rows + 2 * kv_rows}};
    case 1:
    case 9: return {5, {slots, 2, num_kv_heads, max_seq_len, head_dim}};
    case 2: return {1, {tokens}};
    case 3: return {1, {batch < 0 ? -1 : batch + 1}};
    case 4:
    case 5: return {1, {batch}};
    case 6:
    case 7: return {2, {max_seq_len, head_dim / 2}};
    default: return {2, {tokens, rows}};
  }
}

DataType Layer::type_of(int tensor) const {
  if (tensor >= 2 && tensor <= 5) return DataType::kINT64;
  return tensor == 6 || tensor == 7 ? DataType::kFLOAT : type;
}

Descriptions describe(const Layer& layer) {
  Descriptions descriptions{};
  for (int tensor = 0; tensor < kTensors; ++tensor) {
    descriptions[tensor] = {layer.shape(tensor), layer.type_of(tensor), nvinfer1::TensorFormat::kLINEAR, 1.0F};
  }
  return descriptions;
}

DynamicDescriptions dynamic(const Descriptions& descriptions) {
  DynamicDescriptions all{};
  for (int tensor = 0; tensor < kTensors; ++tensor) {
    const Dims& shape = descriptions[tensor].dims;
    all[tensor] = {descriptions[tensor], shape, shape, shape};
  }
  return all;
}

Plugin create(nvinfer1::IPluginCreatorV3One& creator, const Layer& layer, nvinfer1::TensorRTPhase phase) {
  const std::vector<PluginField> fields = {{"num_heads", &layer.num_heads, PluginFieldType::kINT32, 1},
                                           {"num_kv_heads", &layer.num_kv_heads, PluginFieldType::kINT32, 1},
                                           {"head_dim", &layer.head_dim, PluginFieldType::kINT32, 1}};
  return create(creator, fields, phase);
}

Plugin create(nvinfer1::IPluginCreatorV3One& creator, const std::vector<PluginField>& fields,
              nvinfer1::TensorRTPhase phase, const char* name) {
  const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return Plugin(creator.createPlugin(name, &collection, phase));
}

}  // namespace host
