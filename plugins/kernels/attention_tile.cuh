// A tile of rows in shared memory: its layout, and access to it.
#pragma once

#include <cstdint>

namespace d3llm {

constexpr int kQueryRows = 128;     // of a thread block
constexpr int kQueryThreads = 256;  // that compute: two warpgroups of four warps, 16 query rows a warp

// Rows lie in panels of at most 64 columns, 16-byte chunks of a row permuted by its number. It is the layout that both
// ldmatrix reads without bank conflicts and wgmma calls the 128-byte swizzle (64-byte for a head of 32).
template <int kHeadDim, int kKeys>
struct TileLayout {
  static constexpr int kRowBytes = kHeadDim < 64 ? kHeadDim * 2 : 128;
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kPanelBytes = kKeys * kRowBytes;
  static constexpr int kBytes = kKeys * kHeadDim * 2;

  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    const int turn = kRowBytes == 128 ? row & 7 : (row >> 1) & 3;
    return chunk / kChunks * kPanelBytes + row * kRowBytes + ((chunk % kChunks) ^ turn) * 16;
  }
};

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void store_shared(uint32_t target, const uint4& value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}

__device__ __forceinline__ uint4 load_shared(uint32_t source) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(source)
               : "memory");
  return value;
}

// Four 8x8 matrices whose rows the lanes point to, 8 lanes each.
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

}  // namespace d3llm
