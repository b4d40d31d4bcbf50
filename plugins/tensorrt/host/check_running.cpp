// The core and runtime capabilities: names, clones, serialized fields, shapes at run time, contexts, enqueue's errors.
#include <cuda_runtime_api.h>

#include <cstring>

#include "checks.h"

namespace host {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

// The plugin that a serialized plan brings back.
Plugin round_trip(nvinfer1::IPluginCreatorV3One& creator, nvinfer1::IPluginV3& plugin) {
  const nvinfer1::PluginFieldCollection* saved = Capabilities(plugin).runtime->getFieldsToSerialize();
  std::vector<PluginField> fields(saved->fields, saved->fields + saved->nbFields);
  std::vector<int32_t> values;
  for (const PluginField& field : fields) values.push_back(*static_cast<const int32_t*>(field.data));
  for (size_t i = 0; i < fields.size(); ++i) fields[i].data = &values[i];
  return create(creator, fields, TensorRTPhase::kRUNTIME);
}

bool saves(nvinfer1::IPluginV3& plugin, const Layer& layer) {
  const nvinfer1::PluginFieldCollection* saved = Capabilities(plugin).runtime->getFieldsToSerialize();
  const char* const names[] = {"num_heads", "num_kv_heads", "head_dim"};
  const int32_t values[] = {layer.num_heads, layer.num_kv_heads, layer.head_dim};
  if (saved == nullptr || saved->nbFields != 3) return false;
  for (int i = 0; i < 3; ++i) {
    const PluginField& field = saved->fields[i];
    if (std::strcmp(field.name, names[i]) != 0) return false;
    if (field.type != PluginFieldType::kINT32 || field.length != 1) return false;
    if (*static_cast<const int32_t*>(field.data) != values[i]) return false;
  }
  return true;
}

int32_t shape_change(nvinfer1::IPluginV3& plugin, const Descriptions& descriptions, int outputs = kOutputs) {
  const nvinfer1::PluginTensorDesc* first = descriptions.data();
  return Capabilities(plugin).runtime->onShapeChange(first, kInputs, first + kInputs, outputs);
}

void check_shape_changes(nvinfer1::IPluginV3& plugin, Logger& logger, Report& report) {
  for (int64_t tokens : {0, 1, 4096}) {
    Layer layer;
    layer.tokens = tokens;
    report.check(shape_change(plugin, describe(layer)) == 0, std::to_string(tokens) + " tokens");
  }
  struct Bad {
    const char* what;
    int tensor;
    int64_t extent;
    const char* message;
  };
  for (const Bad& bad : {Bad{"positions of other tokens", 2, 6, "positions has extent 6 on axis 0; expected 7: tokens"},
                         Bad{"a window too many", 3, 5, "kv_lengths has extent 3 on axis 0; expected 4: batch"},
                         Bad{"a slot too few", 5, 2, "slots has extent 2 on axis 0; expected 3: batch"},
                         Bad{"an output of other tokens", 8, 8, "output 0 has extent 8 on axis 0; expected 7: tokens"},
                         Bad{"another cache", 9, 4, "output 1 (kv_cache) has extent 4 on axis 0; expected 5: slots"}}) {
    Descriptions descriptions = describe(Layer());
    descriptions[bad.tensor].dims.d[0] = bad.extent;
    report.refused(shape_change(plugin, descriptions) != 0, logger, bad.message, bad.what);
  }
  Descriptions descriptions = describe(Layer());
  descriptions[0].dims.nbDims = 3;
  report.refused(shape_change(plugin, descriptions) != 0, logger, "qkv has rank 3; expected 2", "padded qkv");
  descriptions = describe(Layer());
  descriptions[0].type = nvinfer1::DataType::kFLOAT;
  report.refused(shape_change(plugin, descriptions) != 0, logger, "qkv is FLOAT; allowed: HALF, BF16", "float32");
  report.refused(shape_change(plugin, describe(Layer()), 1) != 0, logger, "expected 8 and 2", "a missing output");
}

int32_t enqueue(nvinfer1::IPluginV3& plugin, const void* address, const void* cache, void* updated) {
  const Descriptions descriptions = describe(Layer());
  const void* inputs[kInputs];
  for (const void*& input : inputs) input = address;
  inputs[1] = cache;
  void* outputs[kOutputs] = {const_cast<void*>(address), updated};
  return Capabilities(plugin).runtime->enqueue(descriptions.data(), descriptions.data() + kInputs, inputs, outputs,
                                               nullptr, nullptr);
}

}  // namespace

void check_running(Library& library, Logger& logger, Report& report) {
  nvinfer1::IPluginCreatorV3One& creator = *library.creators().front();
  Layer layer;
  layer.num_heads = 28, layer.num_kv_heads = 4, layer.head_dim = 128;
  Plugin plugin = create(creator, layer, TensorRTPhase::kBUILD);
  const Capabilities capabilities(*plugin);
  report.check(std::string(capabilities.core->getPluginName()) == creator.getPluginName() &&
                   std::string(capabilities.core->getPluginVersion()) == creator.getPluginVersion() &&
                   std::string(capabilities.core->getPluginNamespace()) == creator.getPluginNamespace(),
               "the plugin is named as its creator says");
  const auto unknown = static_cast<nvinfer1::PluginCapabilityType>(9);
  report.refused(plugin->getCapabilityInterface(unknown) == nullptr, logger, "has no capability 9", "a capability");
  report.check(saves(*plugin, layer), "its fields are serialized");
  Plugin clone(plugin->clone());
  Context context;
  Plugin restored = round_trip(creator, *plugin);
  Plugin attached(Capabilities(*restored).runtime->attachToContext(&context));
  plugin.reset();
  report.check(saves(*clone, layer), "a clone outlives its original, fields included");
  report.check(saves(*restored, layer), "serialized fields make the same plugin");
  restored.reset();
  report.check(saves(*attached, layer), "a context gets a plugin of its own");
  report.check(shape_change(*attached, describe(layer)) == 0 && logger.take().empty(), "and takes its shapes");
  check_shape_changes(*create(creator, Layer(), TensorRTPhase::kRUNTIME), logger, report);
}

void check_enqueue_errors(Library& library, Logger& logger, Report& report) {
  nvinfer1::IPluginCreatorV3One& creator = *library.creators().front();
  alignas(256) char memory[512];
  Plugin building = create(creator, Layer(), TensorRTPhase::kBUILD);
  const bool idle = enqueue(*building, memory, memory, memory + 256) == 0 && logger.take().empty();
  report.check(idle, "a builder's timing run on memory of any content does nothing");
  Plugin plugin = create(creator, Layer(), TensorRTPhase::kRUNTIME);
  report.refused(enqueue(*plugin, memory, memory, memory + 256) != 0, logger, "kALIASED_PLUGIN_IO_10_03",
                 "a cache that is not aliased");
  report.refused(enqueue(*plugin, nullptr, memory, memory) != 0, logger, "is NULL", "a NULL address");
  report.refused(enqueue(*plugin, memory + 4, memory, memory) != 0, logger, "is not aligned", "a crooked address");
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) == cudaSuccess && gpus > 0) return;
  report.refused(enqueue(*plugin, memory, memory, memory) != 0, logger, "write_kv: ", "a machine without a GPU");
}

}  // namespace host
