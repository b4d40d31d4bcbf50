// The build capability: types, shape expressions, formats, configuration; each also with what must be refused.
#include <functional>

#include "checks.h"

namespace host {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::TensorFormat;

const DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kBOOL,
                           DataType::kUINT8, DataType::kBF16, DataType::kFP8,  DataType::kINT64};
const TensorFormat kFormats[] = {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8, TensorFormat::kCHW32};

void check_types(nvinfer1::IPluginV3OneBuildV2& build, Logger& logger, Report& report) {
  for (DataType type : {DataType::kHALF, DataType::kBF16}) {
    Layer layer;
    layer.type = type;
    DataType inputs[kInputs], outputs[kOutputs] = {};
    for (int i = 0; i < kInputs; ++i) inputs[i] = layer.type_of(i);
    const bool done = build.getOutputDataTypes(outputs, kOutputs, inputs, kInputs) == 0;
    report.check(done && outputs[0] == type && outputs[1] == type, "outputs have the type of qkv");
  }
  struct Bad {
    int tensor;
    DataType type;
    const char* message;
  };
  for (const Bad& bad : {Bad{0, DataType::kFLOAT, "qkv is FLOAT; allowed: HALF, BF16"},
                         Bad{1, DataType::kHALF, "kv_cache is HALF; allowed: BF16"},
                         Bad{2, DataType::kINT32, "positions is INT32; allowed: INT64"},
                         Bad{3, DataType::kINT32, "cu_window is INT32; allowed: INT64"},
                         Bad{4, DataType::kINT32, "kv_lengths is INT32; allowed: INT64"},
                         Bad{5, DataType::kINT32, "slots is INT32; allowed: INT64"},
                         Bad{6, DataType::kBF16, "cos is BF16; allowed: FLOAT"},
                         Bad{7, DataType::kHALF, "sin is HALF; allowed: FLOAT"}}) {
    DataType inputs[kInputs], outputs[kOutputs] = {};
    for (int i = 0; i < kInputs; ++i) inputs[i] = i == bad.tensor ? bad.type : Layer().type_of(i);
    report.refused(build.getOutputDataTypes(outputs, kOutputs, inputs, kInputs) != 0, logger, bad.message, "a type");
  }
  DataType inputs[kInputs] = {}, outputs[kOutputs] = {};
  report.refused(build.getOutputDataTypes(outputs, kOutputs, inputs, kInputs - 1) != 0, logger,
                 "has 7 inputs and 2 outputs; expected 8 and 2", "a missing input");
}

// Output shapes of a network whose inputs `change` may have changed. Returns the plugin's status.
int32_t output_shapes(nvinfer1::IPluginV3OneBuildV2& build, const std::function<void(Dims*)>& change,
                      Expressions& expressions, DimsExprs* inputs, DimsExprs* outputs) {
  Dims extents[kInputs];
  const Layer layer = Layer().unknown_sizes();
  for (int i = 0; i < kInputs; ++i) extents[i] = layer.shape(i);
  change(extents);
  for (int i = 0; i < kInputs; ++i) inputs[i] = expressions.shape(extents[i]);
  return build.getOutputShapes(inputs, kInputs, nullptr, 0, outputs, kOutputs, expressions);
}

void check_shapes(nvinfer1::IPluginV3OneBuildV2& build, Report& report) {
  Expressions expressions;
  DimsExprs inputs[kInputs], outputs[kOutputs] = {};
  const bool done = output_shapes(build, [](Dims*) {}, expressions, inputs, outputs) == 0;
  const DimsExprs& attended = outputs[0];
  report.check(done && attended.nbDims == 2 && attended.d[0] == inputs[0].d[0] && attended.d[1]->isConstant() &&
                   attended.d[1]->getConstantValue() == 256,
               "output 0 is [tokens, heads * head_dim]");
  bool same = done && outputs[1].nbDims == 5;
  for (int axis = 0; same && axis < 5; ++axis) same = outputs[1].d[axis] == inputs[1].d[axis];
  report.check(same, "output 1 has the cache's shape");
  report.check(build.getNbOutputs() == 2, "there are two outputs");
  const bool aliased = build.getAliasedInput(1) == 1 && build.getAliasedInput(0) == -1;
  report.check(aliased, "output 1 alone is aliased, to input 1");
}

struct BadShape {
  const char* what;
  std::function<void(Dims*)> change;
  const char* message;
};

std::vector<BadShape> bad_shapes() {
  return {
      {"padded qkv", [](Dims* d) { d[0] = {3, {2, 7, 512}}; }, "qkv has rank 3; expected 2"},
      {"a cache of rank 4", [](Dims* d) { d[1] = {4, {5, 2, 96, 64}}; }, "kv_cache has rank 4; expected 5"},
      {"positions of rank 2", [](Dims* d) { d[2].nbDims = 2; }, "positions has rank 2; expected 1"},
      {"cu_window of rank 0", [](Dims* d) { d[3].nbDims = 0; }, "cu_window has rank 0; expected 1"},
      {"kv_lengths of rank 2", [](Dims* d) { d[4].nbDims = 2; }, "kv_lengths has rank 2; expected 1"},
      {"slots of rank 2", [](Dims* d) { d[5].nbDims = 2; }, "slots has rank 2; expected 1"},
      {"cos of rank 3", [](Dims* d) { d[6].nbDims = 3; }, "cos has rank 3; expected 2"},
      {"sin of rank 1", [](Dims* d) { d[7].nbDims = 1; }, "sin has rank 1; expected 2"},
      {"qkv of other heads", [](Dims* d) { d[0].d[1] = 768; }, "qkv has extent 768 on axis 1; expected 512"},
      {"a cache without V", [](Dims* d) { d[1].d[1] = 1; }, "kv_cache has extent 1 on axis 1; expected 2"},
      {"a cache of other heads", [](Dims* d) { d[1].d[2] = 4; }, "kv_cache has extent 4 on axis 2; expected 2"},
      {"a cache of other size", [](Dims* d) { d[1].d[4] = 32; }, "kv_cache has extent 32 on axis 4; expected 64"},
      {"short tables", [](Dims* d) { d[6].d[0] = 95; }, "cos has extent 95 on axis 0; expected 96: max_seq_len"},
      {"wide tables", [](Dims* d) { d[7].d[1] = 64; }, "sin has extent 64 on axis 1; expected 32"},
  };
}

void check_bad_shapes(nvinfer1::IPluginV3OneBuildV2& build, Logger& logger, Report& report) {
  for (const BadShape& bad : bad_shapes()) {
    Expressions expressions;
    DimsExprs inputs[kInputs], outputs[kOutputs] = {};
    const bool failed = output_shapes(build, bad.change, expressions, inputs, outputs) != 0;
    report.refused(failed, logger, bad.message, bad.what);
  }
}

void check_formats(nvinfer1::IPluginV3OneBuildV2& build, Logger& logger, Report& report) {
  for (DataType qkv : {DataType::kHALF, DataType::kBF16}) {
    Layer layer;
    layer.type = qkv;
    for (int tensor = 0; tensor < kTensors; ++tensor) {
      bool right = true;
      for (DataType type : kTypes) {
        for (TensorFormat format : kFormats) {
          DynamicDescriptions asked = dynamic(describe(layer));
          asked[tensor].desc.type = type, asked[tensor].desc.format = format;
          const bool other = tensor == 0 && (type == DataType::kHALF || type == DataType::kBF16);
          const bool wanted = format == TensorFormat::kLINEAR && (type == layer.type_of(tensor) || other);
          right = right && build.supportsFormatCombination(tensor, asked.data(), kInputs, kOutputs) == wanted;
        }
      }
      report.check(right, "tensor " + std::to_string(tensor) + " takes its type alone, in the linear format");
    }
  }
  DynamicDescriptions asked = dynamic(describe(Layer()));
  const bool outside = build.supportsFormatCombination(kTensors, asked.data(), kInputs, kOutputs) ||
                       build.supportsFormatCombination(-1, asked.data(), kInputs, kOutputs);
  report.check(!outside, "there is no format of an eleventh tensor");
  report.check(logger.take().empty(), "questions about formats log nothing");
}

int32_t configure(nvinfer1::IPluginV3OneBuildV2& build, const Descriptions& descriptions) {
  const DynamicDescriptions all = dynamic(descriptions);
  return build.configurePlugin(all.data(), kInputs, all.data() + kInputs, kOutputs);
}

void check_configuration(nvinfer1::IPluginV3OneBuildV2& build, Logger& logger, Report& report) {
  report.check(configure(build, describe(Layer())) == 0, "it is configured for known sizes");
  report.check(configure(build, describe(Layer().unknown_sizes())) == 0, "it is configured for unknown sizes");
  report.check(logger.take().empty(), "good configurations log nothing");
  Descriptions bad = describe(Layer().unknown_sizes());
  bad[8].dims.d[1] = 128;
  report.refused(configure(build, bad) != 0, logger, "output 0 has extent 128 on axis 1; expected 256", "an output");
  bad = describe(Layer());
  bad[9].type = DataType::kHALF;
  report.refused(configure(build, bad) != 0, logger, "output 1 (kv_cache) is HALF; allowed: BF16", "an output");
  const DynamicDescriptions all = dynamic(describe(Layer()));
  report.refused(build.configurePlugin(all.data(), kInputs, all.data() + kInputs, 1) != 0, logger,
                 "has 8 inputs and 1 outputs; expected 8 and 2", "a missing output");
  const size_t workspace = build.getWorkspaceSize(all.data(), kInputs, all.data() + kInputs, kOutputs);
  report.check(workspace == 0, "it needs no workspace");
}

}  // namespace

void check_building(Library& library, Logger& logger, Report& report) {
  Plugin plugin = create(*library.creators().front(), Layer(), nvinfer1::TensorRTPhase::kBUILD);
  const Capabilities capabilities(*plugin);
  report.check(std::string(capabilities.build->getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD" &&
                   capabilities.build->getInterfaceInfo().major == 2,
               "it has the build capability of version 2");
  check_types(*capabilities.build, logger, report);
  check_shapes(*capabilities.build, report);
  check_bad_shapes(*capabilities.build, logger, report);
  check_formats(*capabilities.build, logger, report);
  check_configuration(*capabilities.build, logger, report);
}

}  // namespace host
