// From a collection of fields to heads, with a message for every field that does not fit.
#include "tensorrt/fields.h"

#include <cstring>

#include "tensorrt/logger.h"
#include "tensorrt/names.h"

namespace d3llm {
namespace tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr int kMaxHeads = 65535;  // the kernels' grid

int field_number(const char* name) {
  for (int number = 0; number < kNumFields; ++number) {
    if (name != nullptr && std::strcmp(name, kFieldNames[number]) == 0) return number;
  }
  return -1;
}

// Puts one field's value into its place in `values`, where `given` says which are there.
bool read_field(const char* layer, const PluginField& field, int32_t* values, bool* given) {
  const int number = field_number(field.name);
  if (number < 0) {
    log_error(layer, "field %s is unknown; allowed: num_heads, num_kv_heads, head_dim",
              field.name == nullptr ? "NULL" : field.name);
    return false;
  }
  if (given[number]) {
    log_error(layer, "field %s is given twice", field.name);
    return false;
  }
  if (field.type != PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr) {
    log_error(layer, "field %s has type %d, length %d and %s data; expected type %d (INT32), length 1", field.name,
              static_cast<int>(field.type), field.length, field.data == nullptr ? "no" : "some",
              static_cast<int>(PluginFieldType::kINT32));
    return false;
  }
  std::memcpy(&values[number], field.data, sizeof(int32_t));
  return given[number] = true;
}

bool read_values(const char* layer, const PluginFieldCollection* fields, Heads* heads) {
  int32_t values[kNumFields] = {};
  bool given[kNumFields] = {};
  const int count = fields == nullptr || fields->fields == nullptr ? 0 : fields->nbFields;
  for (int i = 0; i < count; ++i) {
    if (!read_field(layer, fields->fields[i], values, given)) return false;
  }
  for (int number = 0; number < kNumFields; ++number) {
    if (given[number]) continue;
    log_error(layer, "field %s is missing", kFieldNames[number]);
    return false;
  }
  *heads = {values[0], values[1], values[2]};
  return true;
}

bool heads_fit(const char* layer, const Heads& heads) {
  if (heads.num_heads < 1 || heads.num_heads > kMaxHeads) {
    log_error(layer, "num_heads is %d; allowed: 1 to %d", heads.num_heads, kMaxHeads);
    return false;
  }
  if (heads.num_kv_heads < 1 || heads.num_heads % heads.num_kv_heads != 0) {
    log_error(layer, "num_kv_heads is %d; allowed: divisors of num_heads, which is %d", heads.num_kv_heads,
              heads.num_heads);
    return false;
  }
  if (heads.head_dim != 32 && heads.head_dim != 64 && heads.head_dim != 128) {
    log_error(layer, "head_dim is %d; allowed: 32, 64, 128", heads.head_dim);
    return false;
  }
  return true;
}

}  // namespace

const PluginFieldCollection* field_names() {
  static const PluginField fields[kNumFields] = {{kFieldNames[0], nullptr, PluginFieldType::kINT32, 1},
                                                 {kFieldNames[1], nullptr, PluginFieldType::kINT32, 1},
                                                 {kFieldNames[2], nullptr, PluginFieldType::kINT32, 1}};
  static const PluginFieldCollection collection{kNumFields, fields};
  return &collection;
}

bool read_heads(const char* layer, const PluginFieldCollection* fields, Heads* heads) {
  return read_values(layer, fields, heads) && heads_fit(layer, *heads);
}

}  // namespace tensorrt
}  // namespace d3llm
