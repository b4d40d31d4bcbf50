// A plugin layer as a network has it: its fields, and descriptions of its ten tensors.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <string>
#include <vector>

#include "tensorrt_side.h"

namespace host {

constexpr int kInputs = 8, kOutputs = 2, kTensors = kInputs + kOutputs;

struct Layer {
  int32_t num_heads = 4;
  int32_t num_kv_heads = 2;
  int32_t head_dim = 64;
  int64_t tokens = 7;
  int64_t batch = 3;
  int64_t slots = 5;
  int64_t max_seq_len = 96;
  nvinfer1::DataType type = nvinfer1::DataType::kBF16;

  // With -1 for what a network does not know when it is built: tokens and batch.
  Layer unknown_sizes() const;
  nvinfer1::Dims shape(int tensor) const;
  nvinfer1::DataType type_of(int tensor) const;
};

using Descriptions = std::array<nvinfer1::PluginTensorDesc, kTensors>;
using DynamicDescriptions = std::array<nvinfer1::DynamicPluginTensorDesc, kTensors>;

Descriptions describe(const Layer& layer);
DynamicDescriptions dynamic(const Descriptions& descriptions);

// The plugin of a layer; NULL where the creator refuses it.
Plugin create(nvinfer1::IPluginCreatorV3One& creator, const Layer& layer, nvinfer1::TensorRTPhase phase);
Plugin create(nvinfer1::IPluginCreatorV3One& creator, const std::vector<nvinfer1::PluginField>& fields,
              nvinfer1::TensorRTPhase phase, const char* name = "layers.0.attention");

}  // namespace host
