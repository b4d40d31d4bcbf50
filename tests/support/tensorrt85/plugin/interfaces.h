// The interfaces of TensorRT 8.5 that a plugin with dynamic shapes meets, declared here as tables of functions.
//
// TensorRT calls by place in a table, so the order is what matters; names are free. Extents have 32 bits there. Types,
// formats and fields are the same numbers and structs as in the newer headers, so those are used.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>

namespace tensorrt85 {

using nvinfer1::DataType;
using nvinfer1::PluginFieldCollection;
using nvinfer1::TensorFormat;

constexpr int kMaxRank = 8;
constexpr int32_t kVersion = 8503;           // of the library: major, minor, patch
constexpr int32_t kDynamicPlugin = 3 << 24;  // the kind of plugin, in the upper byte of its version
constexpr int32_t kPairs = 2;                // int32 of an int64, which this TensorRT does not have

struct Dims {
  int32_t rank;
  int32_t extents[kMaxRank];
};

struct Tensor {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;
};

struct DynamicTensor {
  Tensor tensor;
  Dims least;
  Dims most;
};

class Expression;  // an extent, perhaps known only at run time

struct Expressions {
  int32_t rank;
  const Expression* extents[kMaxRank];
};

class ExpressionMaker {
 public:
  virtual ~ExpressionMaker() = default;
  virtual const Expression* constant(int32_t value) noexcept = 0;
  virtual const Expression* operation(int32_t kind, const Expression& first, const Expression& second) noexcept = 0;
};

// TensorRT's object, of which only the second word is used.
struct ExpressionBuilder {
  const void* table;
  ExpressionMaker* maker;
};

class Plugin {
 public:
  virtual int32_t version() const noexcept = 0;
  virtual const char* type_name() const noexcept = 0;
  virtual const char* type_version() const noexcept = 0;
  virtual int32_t num_outputs() const noexcept = 0;
  virtual Dims fixed_output_dims(int32_t, const Dims*, int32_t) noexcept = 0;
  virtual bool fixed_format(DataType, TensorFormat) const noexcept = 0;
  virtual void fixed_configure(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat,
                               int32_t) noexcept = 0;
  virtual int32_t initialize() noexcept = 0;
  virtual void terminate() noexcept = 0;
  virtual size_t fixed_workspace(int32_t) const noexcept = 0;
  virtual int32_t fixed_enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept = 0;
  virtual size_t serialized_size() const noexcept = 0;
  virtual void serialize(void* buffer) const noexcept = 0;
  virtual void destroy() noexcept = 0;
  virtual Plugin* clone() const noexcept = 0;
  virtual void set_namespace(const char* name) noexcept = 0;
  virtual const char* get_namespace() const noexcept = 0;
  virtual ~Plugin() = default;

  virtual DataType output_type(int32_t output, const DataType* inputs, int32_t num_inputs) const noexcept = 0;
  virtual bool output_is_broadcast(int32_t, const bool*, int32_t) const noexcept = 0;
  virtual bool input_may_be_broadcast(int32_t) const noexcept = 0;
  virtual void fixed_configure_typed(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*,
                                     const bool*, const bool*, TensorFormat, int32_t) noexcept = 0;
  virtual void attach_to_context(void* cudnn, void* cublas, void* allocator) noexcept = 0;
  virtual void detach_from_context() noexcept = 0;

  virtual Expressions output_shape(int32_t output, const Expressions* inputs, int32_t num_inputs,
                                   ExpressionBuilder& builder) noexcept = 0;
  virtual bool supports(int32_t tensor, const Tensor* tensors, int32_t num_inputs, int32_t num_outputs) noexcept = 0;
  virtual void configure(const DynamicTensor* inputs, int32_t num_inputs, const DynamicTensor* outputs,
                         int32_t num_outputs) noexcept = 0;
  virtual size_t workspace(const Tensor*, int32_t, const Tensor*, int32_t) const noexcept = 0;
  virtual int32_t enqueue(const Tensor* input_tensors, const Tensor* output_tensors, const void* const* inputs,
                          void* const* outputs, void* workspace, cudaStream_t stream) noexcept = 0;
};

class Creator {
 public:
  virtual int32_t version() const noexcept = 0;
  virtual const char* type_name() const noexcept = 0;
  virtual const char* type_version() const noexcept = 0;
  virtual const PluginFieldCollection* fields() noexcept = 0;
  virtual Plugin* create(const char* layer, const PluginFieldCollection* fields) noexcept = 0;
  virtual Plugin* restore(const char* layer, const void* data, size_t size) noexcept = 0;
  virtual void set_namespace(const char* name) noexcept = 0;
  virtual const char* get_namespace() const noexcept = 0;
  virtual ~Creator() = default;
};

class Registry {
 public:
  virtual bool add(Creator& creator, const char* name_space) noexcept = 0;  // more follows, which is not called

 protected:
  ~Registry() = default;
};

}  // namespace tensorrt85
