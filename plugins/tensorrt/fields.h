// The plugin's fields: read and checked one by one.
#pragma once

#include <NvInferRuntime.h>

#include "tensorrt/tensors.h"

namespace d3llm {
namespace tensorrt {

// The names and types of all fields, without values.
const nvinfer1::PluginFieldCollection* field_names();

// Whether the fields make sound heads, which are then in `heads`; logs what is wrong with them. `layer` names them.
bool read_heads(const char* layer, const nvinfer1::PluginFieldCollection* fields, Heads* heads);

}  // namespace tensorrt
}  // namespace d3llm
