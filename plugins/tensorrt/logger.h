// Messages of the plugin, to the logger that TensorRT names.
#pragma once

namespace d3llm {
namespace tensorrt {

// Logs "D3llmBidirectionalAttention WHERE: " and the printf-style message as an error; to stderr without a logger.
void log_error(const char* where, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace tensorrt
}  // namespace d3llm
