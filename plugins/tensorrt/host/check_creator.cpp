// The creator: names, and fields good and bad.
#include <cstring>

#include "checks.h"

namespace host {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

using Fields = std::vector<PluginField>;

const int32_t kFour = 4, kTwo = 2, kSixtyFour = 64, kThree = 3, kZero = 0, kFortyEight = 48, kMany = 65536;
const int64_t kLong = 4;

PluginField integer(const char* name, const int32_t& value) { return {name, &value, PluginFieldType::kINT32, 1}; }

// Good fields with one of them replaced.
Fields with(int place, const PluginField& field) {
  Fields fields = {integer("num_heads", kFour), integer("num_kv_heads", kTwo), integer("head_dim", kSixtyFour)};
  fields[place] = field;
  return fields;
}

Fields without_last() { return {integer("num_heads", kFour), integer("num_kv_heads", kTwo)}; }

Fields with_fourth(const PluginField& field) {
  Fields fields = with(0, integer("num_heads", kFour));
  fields.push_back(field);
  return fields;
}

struct BadFields {
  const char* what;
  Fields fields;
  const char* message;
};

std::vector<BadFields> bad_fields() {
  return {
      {"no field", {}, "layers.0.attention: field num_heads is missing"},
      {"a missing field", without_last(), "field head_dim is missing"},
      {"an unknown field", with_fourth(integer("causal", kTwo)), "field causal is unknown; allowed: num_heads,"},
      {"a field without a name", with_fourth(integer(nullptr, kTwo)), "field NULL is unknown"},
      {"a field given twice", with_fourth(integer("head_dim", kSixtyFour)), "field head_dim is given twice"},
      {"a field of int64", with(0, {"num_heads", &kLong, PluginFieldType::kINT64, 1}),
       "field num_heads has type 10, length 1 and some data; expected type 5 (INT32), length 1"},
      {"a field of two values", with(1, {"num_kv_heads", &kTwo, PluginFieldType::kINT32, 2}), "length 2"},
      {"a field without data", with(2, {"head_dim", nullptr, PluginFieldType::kINT32, 1}), "and no data"},
      {"num_heads 0", with(0, integer("num_heads", kZero)), "num_heads is 0; allowed: 1 to 65535"},
      {"too many heads", with(0, integer("num_heads", kMany)), "num_heads is 65536; allowed: 1 to 65535"},
      {"num_kv_heads 0", with(1, integer("num_kv_heads", kZero)), "num_kv_heads is 0; allowed: divisors of num_heads"},
      {"num_kv_heads 3 of 4", with(1, integer("num_kv_heads", kThree)),
       "num_kv_heads is 3; allowed: divisors of num_heads, which is 4"},
      {"head_dim 48", with(2, integer("head_dim", kFortyEight)), "head_dim is 48; allowed: 32, 64, 128"},
  };
}

}  // namespace

void check_creator(Library& library, Logger& logger, Report& report) {
  report.check(library.creators().size() == 1, "the library has one creator");
  nvinfer1::IPluginCreatorV3One& creator = *library.creators().front();
  report.check(std::string(creator.getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE", "it creates IPluginV3");
  report.check(std::string(creator.getPluginName()) == "D3llmBidirectionalAttention", "its plugin's name");
  report.check(std::string(creator.getPluginVersion()) == "1", "its plugin's version");
  report.check(std::string(creator.getPluginNamespace()).empty(), "its plugin's namespace is empty");
  const nvinfer1::PluginFieldCollection* fields = creator.getFieldNames();
  const char* const names[] = {"num_heads", "num_kv_heads", "head_dim"};
  report.check(fields != nullptr && fields->nbFields == 3, "it has three fields");
  for (int i = 0; i < 3; ++i) {
    const PluginField& field = fields->fields[i];
    const bool named = std::strcmp(field.name, names[i]) == 0;
    report.check(named && field.type == PluginFieldType::kINT32 && field.length == 1,
                 std::string("the field ") + names[i] + " is one int32");
  }
  report.check(logger.take().empty(), "nothing was logged so far");
}

void check_fields(Library& library, Logger& logger, Report& report) {
  nvinfer1::IPluginCreatorV3One& creator = *library.creators().front();
  for (const BadFields& bad : bad_fields()) {
    const bool failed = create(creator, bad.fields, TensorRTPhase::kBUILD) == nullptr;
    report.refused(failed, logger, bad.message, bad.what);
  }
  const bool failed = creator.createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD) == nullptr;
  report.refused(failed, logger, "(unnamed): field num_heads is missing", "no collection of fields");
  for (int32_t head_dim : {32, 64, 128}) {
    for (int32_t kv_heads : {1, 4, 28}) {
      Layer layer;
      layer.num_heads = 28, layer.num_kv_heads = kv_heads, layer.head_dim = head_dim;
      const bool made = create(creator, layer, TensorRTPhase::kBUILD) != nullptr && logger.take().empty();
      report.check(made, "28 heads, " + std::to_string(kv_heads) + " of K and V, head_dim " + std::to_string(head_dim));
    }
  }
}

}  // namespace host
