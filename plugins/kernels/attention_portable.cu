// Attention on any GPU from SM80: mma on tiles that the same threads copy asynchronously, one step ahead.
#include <type_traits>

#include "attention.h"
#include "attention_common.cuh"

namespace d3llm {
namespace {

// Waits for this thread's copies, and meets the other threads.
__device__ __forceinline__ void finish_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
}

// This thread's part of copying tiles of rows `[kKeys, head_dim]`: the same chunk of every few rows.
template <typename T, int kHeadDim, int kKeys>
struct TileCopy {
  using Layout = TileLayout<kHeadDim, kKeys>;
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kRowsPerStep = kQueryThreads / kChunks;
  static constexpr int kSteps = kKeys * kChunks / kQueryThreads;
  static constexpr int kTargetStep = kRowsPerStep * Layout::kRowBytes, kSourceStep = kRowsPerStep * kHeadDim;
  static_assert(kRowsPerStep % 8 == 0, "the permutation of a thread's chunk stays the same");

  int row, column;
  uint32_t target;

  __device__ __forceinline__ TileCopy()
      : row(threadIdx.x / kChunks),
        column(threadIdx.x % kChunks * 8),
        target(Layout::offset(row, threadIdx.x % kChunks)) {}

  // `source` is this thread's place in the first row of a tile; all of its rows are there.
  __device__ __forceinline__ void start(uint32_t tile, const T* source) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) copy(tile + target + step * kTargetStep, source + step * kSourceStep);
  }

  // Rows at and behind `present` become zero.
  __device__ __forceinline__ void start_partial(uint32_t tile, const T* source, int present) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const bool inside = row + step * kRowsPerStep < present;
      copy_or_clear(tile + target + step * kTargetStep, inside ? source + step * kSourceStep : source, inside);
    }
  }

 private:
  static __device__ __forceinline__ void copy(uint32_t to, const T* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }

  static __device__ __forceinline__ void copy_or_clear(uint32_t to, const T* from, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(present ? 16 : 0)
                 : "memory");
  }
};

// Both matrix products for a warp's 16 query rows and a tile of keys, accumulated in float32.
template <typename T, int kHeadDim, int kKeys>
struct PortableMma {
  using Layout = TileLayout<kHeadDim, kKeys>;
  static constexpr int kDepth = kHeadDim / 16;

  // scores = queries * keys^T
  static __device__ __forceinline__ void scores(float (&s)[kKeys / 2], const uint32_t (&queries)[kDepth][4],
                                                uint32_t keys) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (float& score : s) score = 0.0f;
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
#pragma unroll
      for (int block = 0; block < kKeys / 16; ++block) {
        uint32_t b[4];
        load_matrices(b, keys + Layout::offset(block * 16 + lane / 16 * 8 + lane % 8, depth * 2 + lane / 8 % 2));
        multiply(&s[block * 8], queries[depth], b[0], b[1]);
        multiply(&s[block * 8 + 4], queries[depth], b[2], b[3]);
      }
    }
  }

  // outputs += probabilities * values
  static __device__ __forceinline__ void add_outputs(float (&outputs)[kHeadDim / 2],
                                                     const uint32_t (&probabilities)[kKeys / 16][4], uint32_t values) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int depth = 0; depth < kKeys / 16; ++depth) {
#pragma unroll
      for (int block = 0; block < kHeadDim / 16; ++block) {
        uint32_t b[4];
        load_transposed(b, values + Layout::offset(depth * 16 + lane % 16, block * 2 + lane / 16));
        multiply(&outputs[block * 8], probabilities[depth], b[0], b[1]);
        multiply(&outputs[block * 8 + 4], probabilities[depth], b[2], b[3]);
      }
    }
  }

 private:
  static __device__ __forceinline__ void load_transposed(uint32_t (&b)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
  }

  static __device__ __forceinline__ void multiply(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (std::is_same_v<T, __half>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
          "%2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
          "%2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
  }
};

// This warp's 16 query rows as A fragments.
template <int kHeadDim>
__device__ __forceinline__ void load_queries(uint32_t (&queries)[kHeadDim / 16][4], uint32_t staging) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
#pragma unroll
  for (int depth = 0; depth < kHeadDim / 16; ++depth) {
    load_matrices(queries[depth], staging + TileLayout<kHeadDim, kQueryRows>::offset(row, depth * 2 + lane / 16));
  }
}

// Two buffers of keys and two of values in shared memory, filled one step ahead. Step 0 takes the last tile, the only
// one that may be partial, so that the loop over the others has no special case.
template <typename T, int kHeadDim, int kKeys>
struct Tiles {
  using Copy = TileCopy<T, kHeadDim, kKeys>;
  static constexpr int kTileBytes = TileLayout<kHeadDim, kKeys>::kBytes;
  static constexpr int kTileValues = kKeys * kHeadDim;

  Copy copy;
  const T *keys, *values;  // this thread's place in tile 0
  uint32_t buffers;
  int steps, last_present;

  __device__ __forceinline__ Tiles(const T* keys, const T* values, uint32_t buffers, int length)
      : keys(keys + copy.row * kHeadDim + copy.column),
        values(values + copy.row * kHeadDim + copy.column),
        buffers(buffers),
        steps((length + kKeys - 1) / kKeys),
        last_present(length - (steps - 1) * kKeys) {}

  __device__ __forceinline__ uint32_t keys_at(int step) const { return buffers + step % 2 * kTileBytes; }
  __device__ __forceinline__ uint32_t values_at(int step) const { return buffers + (2 + step % 2) * kTileBytes; }

  __device__ __forceinline__ void load_last_keys() const {
    copy.start_partial(keys_at(0), keys + static_cast<int64_t>(steps - 1) * kTileValues, last_present);
  }
  __device__ __forceinline__ void load_last_values() const {
    copy.start_partial(values_at(0), values + static_cast<int64_t>(steps - 1) * kTileValues, last_present);
  }
  __device__ __forceinline__ void load_keys(int step) const {
    if (step < steps) copy.start(keys_at(step), keys + static_cast<int64_t>(step - 1) * kTileValues);
  }
  __device__ __forceinline__ void load_values(int step) const {
    copy.start(values_at(step), values + static_cast<int64_t>(step - 1) * kTileValues);
  }
};

// Queries wait in the buffers of the values.
template <typename T, int kHeadDim, int kKeys>
__device__ __forceinline__ void attend_to(const Tiles<T, kHeadDim, kKeys>& tiles, float (&outputs)[kHeadDim / 2],
                                          Softmax& softmax) {
  using Product = PortableMma<T, kHeadDim, kKeys>;
  uint32_t queries[kHeadDim / 16][4], probabilities[kKeys / 16][4];
  float scores[kKeys / 2];

  tiles.load_last_keys();
  finish_copies();
  load_queries<kHeadDim>(queries, tiles.values_at(0));
  __syncthreads();
  tiles.load_last_values();
  for (int step = 0; step < tiles.steps; ++step) {
    if (step > 0) tiles.load_values(step);
    tiles.load_keys(step + 1);
    Product::scores(scores, queries, tiles.keys_at(step));
    if (step == 0 && tiles.last_present < kKeys) hide_keys(scores, tiles.last_present);
    scale_rows(outputs, update_softmax(softmax, scores, kSoftmaxScale<kHeadDim>));
    pack_probabilities<T>(probabilities, scores);
    finish_copies();
    Product::add_outputs(outputs, probabilities, tiles.values_at(step));
  }
}

template <typename T, int kHeadDim, int kKeys, bool kFp8>
__global__ void __launch_bounds__(kQueryThreads, 1) attend_kernel(const d3llm_attention_params params) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t buffers = shared_address(shared);
  const int head = blockIdx.y;
  const QueryTile tile = find_tile(params, load_windows(params, 0), blockIdx.x);
  if (tile.first_row >= tile.end_row) return;

  float outputs[kHeadDim / 2] = {};
  Softmax softmax;
  if (tile.kv_length > 0) {
    const int kv_heads = params.num_kv_heads, kv_head = head / (params.num_heads / kv_heads);
    const int64_t plane = params.max_seq_len * kHeadDim;
    const T* keys = static_cast<const T*>(params.kv_cache) + (tile.slot * 2 * kv_heads + kv_head) * plane;
    const Tiles<T, kHeadDim, kKeys> tiles(keys, keys + kv_heads * plane, buffers, tile.kv_length);
    QueryRows<kHeadDim> rows = read_queries<T, kHeadDim>(params, tile, head);
    stage_queries<T>(tiles.values_at(0), rows);
    wait_for_previous_kernel();
    attend_to<T, kHeadDim, kKeys>(tiles, outputs, softmax);
  } else {
    wait_for_previous_kernel();  // else the launch after this one might start before that has ended
  }
  scale_rows(outputs, {inverse_of_total(softmax.sum[0]), inverse_of_total(softmax.sum[1])});
  // Nobody reads the buffers of the keys any more.
  store_outputs<T, kHeadDim, kFp8>(buffers, params, tile, head, outputs);
}

template <typename T, int kHeadDim>
cudaError_t launch_as(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  constexpr int kKeys = 64, kShared = 4 * TileLayout<kHeadDim, kKeys>::kBytes;
  const dim3 blocks(static_cast<unsigned>(most_tiles(params)), params.num_heads);
  const auto launch = params.out_scale == nullptr
                          ? launch_kernel<attend_kernel<T, kHeadDim, kKeys, false>, d3llm_attention_params>
                          : launch_kernel<attend_kernel<T, kHeadDim, kKeys, true>, d3llm_attention_params>;
  return launch(blocks, kQueryThreads, kShared, overlapped, stream, params);
}

template <typename T>
cudaError_t launch_for(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  switch (params.head_dim) {
    case 32: return launch_as<T, 32>(params, overlapped, stream);
    case 64: return launch_as<T, 64>(params, overlapped, stream);
    default: return launch_as<T, 128>(params, overlapped, stream);
  }
}

}  // namespace

cudaError_t launch_attend_portable(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  if (params.dtype == D3LLM_FLOAT16) return launch_for<__half>(params, overlapped, stream);
  return launch_for<__nv_bfloat16>(params, overlapped, stream);
}

}  // namespace d3llm
