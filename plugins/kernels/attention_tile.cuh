// A tile of keys or values in shared memory: its layout, and asynchronous copies into it.
#pragma once

#include <cstdint>

namespace d3llm {

constexpr int kTileRows = 64;  // query rows of a thread block, and keys of one tile
constexpr int kThreads = 128;

// Rows lie in panels of at most 64 columns, 16-byte chunks of a row permuted by its number. It is the layout that both
// ldmatrix reads without bank conflicts and wgmma calls the 128-byte swizzle (64-byte for a head of 32).
template <int kHeadDim>
struct TileLayout {
  static constexpr int kRowBytes = kHeadDim < 64 ? kHeadDim * 2 : 128;
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kPanelBytes = kTileRows * kRowBytes;
  static constexpr int kBytes = kTileRows * kHeadDim * 2;

  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    const int turn = kRowBytes == 128 ? row & 7 : (row >> 1) & 3;
    return chunk / kChunks * kPanelBytes + row * kRowBytes + ((chunk % kChunks) ^ turn) * 16;
  }
};

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, or zeros where `present` is false.
__device__ __forceinline__ void copy_async(uint32_t target, const void* source, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(present ? 16 : 0));
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies, makes them visible to the tensor cores, and meets the other threads.
__device__ __forceinline__ void finish_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  __syncthreads();
}

// Rows [first, first + 64) of `rows[length, head_dim]`; what lies behind its end becomes zero.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_tile(uint32_t tile, const T* rows, int first, int length) {
  constexpr int kChunks = kHeadDim / 8;
#pragma unroll
  for (int step = 0; step < kTileRows * kChunks / kThreads; ++step) {
    const int index = threadIdx.x + step * kThreads, row = index / kChunks, chunk = index % kChunks;
    const bool present = first + row < length;
    const T* source = rows + (present ? static_cast<int64_t>(first + row) * kHeadDim + chunk * 8 : 0);
    copy_async(tile + TileLayout<kHeadDim>::offset(row, chunk), source, present);
  }
}

}  // namespace d3llm
