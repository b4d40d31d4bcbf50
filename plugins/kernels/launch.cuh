// Launches that may begin before the one before them has ended (programmatic dependent launch, from SM90 on).
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>

namespace d3llm {

// Before it, a kernel that was launched so touches nothing that the launch before it writes or reads: parameters of the
// network at most.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// After the wait: the next kernel then runs only once all launches before this one have ended, and may read what those
// wrote without a wait of its own. Attention relies on that.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Code for GPUs before SM90 does not wait for the launch before it, and newer GPUs may run such code, from its PTX.
template <auto kKernel>
bool can_overlap() {
  enum Answer : char { kUnknown, kNo, kYes };
  static std::array<std::atomic<char>, 64> known = {};
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= static_cast<int>(known.size())) return false;
  if (const char answer = known[device]) return answer == kYes;
  cudaFuncAttributes attributes;
  const bool found = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     major >= 9 && cudaFuncGetAttributes(&attributes, kKernel) == cudaSuccess &&
                     attributes.ptxVersion >= 90;
  known[device] = found ? kYes : kNo;
  return found;
}

// `overlapped`: the kernel waits for the one before it by itself, so it may start earlier.
template <auto kKernel, typename... Arguments>
cudaError_t launch_kernel(dim3 blocks, int threads, int shared_bytes, bool overlapped, cudaStream_t stream,
                          const Arguments&... arguments) {
  constexpr int kSharedOfEveryKernel = 48 << 10;
  if (shared_bytes > kSharedOfEveryKernel) {
    const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (auto error = cudaFuncSetAttribute(kKernel, most, shared_bytes)) return error;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlapped && can_overlap<kKernel>() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kKernel, arguments...);
}

}  // namespace d3llm
