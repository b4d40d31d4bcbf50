// Keeps the logger finder that TensorRT hands over, and formats messages for its logger.
#include "tensorrt/logger.h"

#include <NvInferRuntime.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "tensorrt/names.h"

namespace d3llm {
namespace tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// NULL without a finder, and where its own code throws: nothing may be thrown through TensorRT.
nvinfer1::ILogger* find_logger() noexcept {
  nvinfer1::ILoggerFinder* finder = logger_finder.load();
  try {
    return finder == nullptr ? nullptr : finder->findLogger();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

void log_error(const char* where, const char* format, ...) {
  char text[1024];
  int length = std::snprintf(text, sizeof(text), "%s %s: ", kPluginName, where);
  if (length < 0 || length >= static_cast<int>(sizeof(text))) length = 0;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + length, sizeof(text) - length, format, arguments);
  va_end(arguments);
  if (nvinfer1::ILogger* logger = find_logger()) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, text);
  } else {
    std::fprintf(stderr, "%s\n", text);
  }
}

}  // namespace tensorrt
}  // namespace d3llm

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  d3llm::tensorrt::logger_finder.store(finder);
}
