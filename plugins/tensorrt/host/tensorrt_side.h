// The side of TensorRT: a loaded plugin library, a logger that keeps messages, dimension expressions, a context.
#pragma once

#include <NvInferRuntime.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace host {

class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity severity, const char* message) noexcept override;
  nvinfer1::ILogger* findLogger() override { return this; }

  // The messages since the last call, joined.
  std::string take();

 private:
  std::string messages_;
};

class Context final : public nvinfer1::IPluginResourceContext {
 public:
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

// A constant, or a dimension known only at run time.
class Expression final : public nvinfer1::IDimensionExpr, private nvinfer1::apiv::VDimensionExpr {
 public:
  Expression(bool constant, int64_t value);

 private:
  bool isConstant() const override { return constant_; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

  bool constant_;
  int64_t value_;
};

class Expressions final : public nvinfer1::IExprBuilder, private nvinfer1::apiv::VExprBuilder {
 public:
  Expressions() { mImpl = this; }

  const Expression* number(int64_t value) { return &made_.emplace_back(true, value); }
  const Expression* unknown() { return &made_.emplace_back(false, 0); }

  // Extents of -1 are unknown, each another expression.
  nvinfer1::DimsExprs shape(const nvinfer1::Dims& extents);

 private:
  const nvinfer1::IDimensionExpr* constant(int64_t value) override { return number(value); }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation, const nvinfer1::IDimensionExpr&,
                                            const nvinfer1::IDimensionExpr&) override {
    return unknown();
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }

  std::deque<Expression> made_;
};

using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

// A plugin's capabilities by their types.
struct Capabilities {
  explicit Capabilities(nvinfer1::IPluginV3& plugin);

  nvinfer1::IPluginV3OneCore* core;
  nvinfer1::IPluginV3OneBuildV2* build;
  nvinfer1::IPluginV3OneRuntime* runtime;
};

// The plugin library, loaded as IPluginRegistry::loadLibrary does.
class Library {
 public:
  // Exits with the loader's words where there is no such library.
  Library(const char* path, Logger& logger);

  const std::vector<nvinfer1::IPluginCreatorV3One*>& creators() const { return creators_; }
  std::string version() const;

 private:
  void* symbol(const char* name) const;

  void* handle_;
  std::vector<nvinfer1::IPluginCreatorV3One*> creators_;
};

}  // namespace host
