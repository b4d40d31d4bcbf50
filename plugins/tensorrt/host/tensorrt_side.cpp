// dlopen and the three symbols; the rest keeps values.
#include "tensorrt_side.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace host {

using nvinfer1::PluginCapabilityType;

void Logger::log(Severity, const char* message) noexcept {
  messages_ += messages_.empty() ? "" : " | ";
  messages_ += message;
}

std::string Logger::take() {
  std::string taken;
  taken.swap(messages_);
  return taken;
}

Expression::Expression(bool constant, int64_t value) : constant_(constant), value_(value) { mImpl = this; }

nvinfer1::DimsExprs Expressions::shape(const nvinfer1::Dims& extents) {
  nvinfer1::DimsExprs shape{};
  shape.nbDims = extents.nbDims;
  for (int axis = 0; axis < extents.nbDims; ++axis) {
    shape.d[axis] = extents.d[axis] < 0 ? unknown() : number(extents.d[axis]);
  }
  return shape;
}

Capabilities::Capabilities(nvinfer1::IPluginV3& plugin)
    : core(static_cast<nvinfer1::IPluginV3OneCore*>(plugin.getCapabilityInterface(PluginCapabilityType::kCORE))),
      build(static_cast<nvinfer1::IPluginV3OneBuildV2*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD))),
      runtime(
          static_cast<nvinfer1::IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME))) {}

Library::Library(const char* path, Logger& logger) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ == nullptr) {
    std::fprintf(stderr, "cannot load the plugin library: %s\n", dlerror());
    std::exit(2);
  }
  reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(symbol("setLoggerFinder"))(&logger);
  using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
  int32_t count = 0;
  auto* const* creators = reinterpret_cast<GetCreators>(symbol("getCreators"))(count);
  for (int32_t i = 0; i < count; ++i) creators_.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]));
}

std::string Library::version() const { return reinterpret_cast<const char* (*)()>(symbol("d3llm_version"))(); }

void* Library::symbol(const char* name) const {
  void* found = dlsym(handle_, name);
  if (found == nullptr) {
    std::fprintf(stderr, "the plugin library lacks %s\n", name);
    std::exit(2);
  }
  return found;
}

}  // namespace host
