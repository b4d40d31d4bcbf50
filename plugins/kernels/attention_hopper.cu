// Attention on Hopper: one warpgroup feeds tiles to the copy engine, two of 64 query rows multiply and normalize.
//
// The product with the values of one tile runs beside the softmax of the next (FlashAttention-3, arXiv 2407.08608).
// A thread block takes one tile of query rows after the other; keys and queries of the next one are read before the
// outputs of the last one are written.
#include <cuda.h>

#include <algorithm>

#include "attention.h"
#include "attention_common.cuh"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "attention_wgmma.cuh"
#include "copy_engine.cuh"
#endif

namespace d3llm {
namespace {

constexpr int kKeys = 128;
constexpr int kThreads = kQueryThreads + 128;
constexpr int kQueryWarps = kQueryThreads / 32;
constexpr int kFeederRegisters = 40, kQueryRegisters = 232;

// Shared memory: queries, two buffers of keys and two of values, and a pair of barriers for each buffer.
template <int kHeadDim>
struct Shared {
  static constexpr int kTileBytes = TileLayout<kHeadDim, kKeys>::kBytes;
  static constexpr int kQueryBytes = TileLayout<kHeadDim, kQueryRows>::kBytes;
  static constexpr int kBytes = kQueryBytes + 4 * kTileBytes + 8 * 8;
  enum Kind { kKeysOf = 0, kValuesOf = 2 };

  uint32_t start;
  __device__ __forceinline__ uint32_t queries() const { return start; }
  __device__ __forceinline__ uint32_t tile(Kind kind, int step) const {
    return start + kQueryBytes + (kind + step % 2) * kTileBytes;
  }
  __device__ __forceinline__ uint32_t filled(Kind kind, int step) const {
    return start + kQueryBytes + 4 * kTileBytes + (kind + step % 2) * 16;
  }
  __device__ __forceinline__ uint32_t emptied(Kind kind, int step) const { return filled(kind, step) + 8; }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Step 0 takes the last tile, the only one that may be partial, so that the loop over the others has no special case.
__device__ __forceinline__ int tile_of(int step, int steps) { return step == 0 ? steps - 1 : step - 1; }

// A tile of query rows for one head.
struct Item {
  QueryTile tile;
  int head;

  __device__ __forceinline__ int steps() const { return (tile.kv_length + kKeys - 1) / kKeys; }
};

// The items of a launch in order: the tiles of a head, head after head.
struct Items {
  WindowGroup first_windows;
  int tiles, count;

  __device__ __forceinline__ explicit Items(const d3llm_attention_params& params)
      : first_windows(load_windows(params, 0)),
        tiles(count_tiles(params, first_windows)),
        count(tiles * params.num_heads) {}

  __device__ __forceinline__ Item at(const d3llm_attention_params& params, int index) const {
    return {find_tile(params, first_windows, index % tiles), index / tiles};
  }
};

// The keys and values of an item; `done` is the number of steps of all items before it.
template <int kHeadDim>
__device__ __forceinline__ void feed(const Shared<kHeadDim>& shared, const CUtensorMap& cache, int first_key,
                                     int first_value, int steps, int done) {
  using Buffers = Shared<kHeadDim>;
  const auto fill = [&](typename Buffers::Kind kind, int step, int first_row) {
    const int number = done + step;
    wait_for(shared.emptied(kind, number), number / 2 + 1);
    expect_bytes(shared.filled(kind, number), Buffers::kTileBytes);
#pragma unroll
    for (int panel = 0; panel < kHeadDim / 64; ++panel) {
      const uint32_t target = shared.tile(kind, number) + panel * TileLayout<kHeadDim, kKeys>::kPanelBytes;
      copy_box(target, cache, panel * 64, first_row + tile_of(step, steps) * kKeys, shared.filled(kind, number));
    }
  };
  for (int step = 0; step <= steps; ++step) {
    if (step < steps) fill(Buffers::kKeysOf, step, first_key);
    if (step > 0) fill(Buffers::kValuesOf, step - 1, first_value);
  }
}

// The first warp of the feeding warpgroup.
template <int kHeadDim>
__device__ __forceinline__ void feed_items(const Shared<kHeadDim>& shared, const d3llm_attention_params& params,
                                           const CUtensorMap& cache, const Items& items) {
  const int kv_heads = params.num_kv_heads, rows = static_cast<int>(params.max_seq_len);
  wait_for_previous_kernel();
  int done = 0;
  for (int index = blockIdx.x; index < items.count; index += gridDim.x) {
    const Item item = items.at(params, index);
    const int plane = static_cast<int>(item.tile.slot) * 2 * kv_heads + item.head / (params.num_heads / kv_heads);
    if (threadIdx.x % 32 == 0) feed(shared, cache, plane * rows, (plane + kv_heads) * rows, item.steps(), done);
    done += item.steps();
  }
}

// The warpgroups go their own ways but for this and the barriers of the buffers.
__device__ __forceinline__ void meet_warpgroup() {
  if (threadIdx.x < 128) {
    meet(2, 128);
  } else {
    meet(3, 128);
  }
}

// What follows the last key in memory may be anything, NaN too, which no weight of zero hides.
template <int kHeadDim>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first) {
  constexpr int kChunks = kHeadDim / 8;
  for (int index = first * kChunks + threadIdx.x; index < kKeys * kChunks; index += kQueryThreads) {
    store_shared(tile + TileLayout<kHeadDim, kKeys>::offset(index / kChunks, index % kChunks), {});
  }
  publish_to_copy_engine();
  meet(1, kQueryThreads);
}

// Keeps the wait that follows behind the softmax, which so runs beside the tensor cores: the compiler moves no wait
// before a store, and cannot know that a sum of exponentials is never negative.
__device__ __forceinline__ void finish_softmax(const Softmax& softmax, uint32_t anywhere) {
  asm volatile(
      "{ .reg .pred negative; setp.lt.f32 negative, %0, 0f00000000; @negative st.volatile.shared.f32 [%1], %0; }" ::"f"(
          softmax.sum[0] + softmax.sum[1]),
      "r"(anywhere)
      : "memory");
}

// The outputs of an item, not divided by the sums yet. `rows` become those of the next item.
template <typename T, int kHeadDim>
__device__ __forceinline__ void attend_to(const Shared<kHeadDim>& shared, const d3llm_attention_params& params,
                                          const Item& item, const Item& next, int done, QueryRows<kHeadDim>& rows,
                                          float (&outputs)[kHeadDim / 2], Softmax& softmax) {
  using Product = WarpgroupMma<T, kHeadDim>;
  using Buffers = Shared<kHeadDim>;
  constexpr float kScale = kSoftmaxScale<kHeadDim>;
  const int end = done + item.steps(), last_present = item.tile.kv_length - (item.steps() - 1) * kKeys;
  const uint32_t queries = shared.queries() + threadIdx.x / 128 * 64 * TileLayout<kHeadDim, kQueryRows>::kRowBytes;
  uint32_t probabilities[kKeys / 16][4];
  float scores[kKeys / 2];

  wait_for(shared.filled(Buffers::kKeysOf, done), done / 2);
  Product::issue_scores(scores, queries, shared.tile(Buffers::kKeysOf, done));
  Product::template wait<0>();
  arrive_once(shared.emptied(Buffers::kKeysOf, done));
  if (last_present < kKeys) {
    hide_keys(scores, last_present);
    wait_for(shared.filled(Buffers::kValuesOf, done), done / 2);
    clear_rows<kHeadDim>(shared.tile(Buffers::kValuesOf, done), last_present);
  }
  update_softmax(softmax, scores, kScale);
  pack_probabilities<T>(probabilities, scores);

  for (int step = done + 1; step < end; ++step) {
    wait_for(shared.filled(Buffers::kKeysOf, step), step / 2);
    Product::issue_scores(scores, queries, shared.tile(Buffers::kKeysOf, step));
    wait_for(shared.filled(Buffers::kValuesOf, step - 1), (step - 1) / 2);
    Product::issue_outputs(outputs, probabilities, shared.tile(Buffers::kValuesOf, step - 1));
    Product::template wait<1>();
    arrive_once(shared.emptied(Buffers::kKeysOf, step));
    const float2 shrink = update_softmax(softmax, scores, kScale);
    finish_softmax(softmax, shared.queries());
    Product::template wait<0>();
    arrive_once(shared.emptied(Buffers::kValuesOf, step - 1));
    scale_rows(outputs, shrink);
    pack_probabilities<T>(probabilities, scores);
  }
  wait_for(shared.filled(Buffers::kValuesOf, end - 1), (end - 1) / 2);
  Product::issue_outputs(outputs, probabilities, shared.tile(Buffers::kValuesOf, end - 1));
  rows = read_queries<T, kHeadDim>(params, next.tile, next.head);
  Product::template wait<0>();
  arrive_once(shared.emptied(Buffers::kValuesOf, end - 1));
}

template <typename T, int kHeadDim, bool kFp8>
__device__ __forceinline__ void attend_items(const Shared<kHeadDim>& shared, const d3llm_attention_params& params,
                                             const Items& items) {
  Item item = items.at(params, blockIdx.x);
  QueryRows<kHeadDim> rows = read_queries<T, kHeadDim>(params, item.tile, item.head);
  int done = 0;
  for (int index = blockIdx.x; index < items.count; index += gridDim.x) {
    meet_warpgroup();  // its last outputs have left the memory of its queries
    stage_queries<T>(shared.queries(), rows);
    publish_to_copy_engine();
    meet_warpgroup();
    // Behind the last item it is read once more, for nothing.
    const Item next = items.at(params, min(index + static_cast<int>(gridDim.x), items.count - 1));
    float outputs[kHeadDim / 2] = {};
    Softmax softmax;
    if (item.tile.kv_length > 0) {
      attend_to<T, kHeadDim>(shared, params, item, next, done, rows, outputs, softmax);
    } else {
      rows = read_queries<T, kHeadDim>(params, next.tile, next.head);
    }
    scale_rows(outputs, {inverse_of_total(softmax.sum[0]), inverse_of_total(softmax.sum[1])});
    meet_warpgroup();
    store_outputs<T, kHeadDim, kFp8>(shared.queries(), params, item.tile, item.head, outputs);
    done += item.steps();
    item = next;
  }
}

template <int kHeadDim>
__device__ __forceinline__ void prepare_barriers(const Shared<kHeadDim>& shared) {
  using Buffers = Shared<kHeadDim>;
  for (int buffer = 0; buffer < 2; ++buffer) {
    for (const auto kind : {Buffers::kKeysOf, Buffers::kValuesOf}) {
      create_barrier(shared.filled(kind, buffer), 1);
      create_barrier(shared.emptied(kind, buffer), kQueryWarps);
    }
  }
  publish_barriers();
}

#endif

template <typename T, int kHeadDim, bool kFp8>
__global__ void __launch_bounds__(kThreads, 1)
    attend_kernel(const d3llm_attention_params params, const __grid_constant__ CUtensorMap cache) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  const Shared<kHeadDim> shared = {shared_address(memory)};
  const Items items(params);
  if (blockIdx.x >= items.count) return;
  if (threadIdx.x == 0) prepare_barriers(shared);
  __syncthreads();

  if (threadIdx.x >= kQueryThreads) {
    set_registers<kFeederRegisters, false>();
    if (threadIdx.x < kQueryThreads + 32) feed_items(shared, params, cache, items);
  } else {
    set_registers<kQueryRegisters, true>();
    attend_items<T, kHeadDim, kFp8>(shared, params, items);
  }
#endif
}

int count_multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

int64_t cache_rows(const d3llm_attention_params& params) {
  return params.num_slots * 2 * params.num_kv_heads * params.max_seq_len;
}

// The cache as rows of head_dim values, of which the copy engine takes boxes of kKeys x 64.
cudaError_t describe_cache(CUtensorMap& map, const d3llm_attention_params& params) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const auto type = params.dtype == D3LLM_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(params.head_dim), static_cast<cuuint64_t>(cache_rows(params))};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(params.head_dim) * 2};
  const cuuint32_t box[] = {64, kKeys}, steps[] = {1, 1};
  const CUresult result =
      encode(&map, type, 2, params.kv_cache, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename T, int kHeadDim>
cudaError_t launch_as(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  CUtensorMap cache;
  if (auto error = describe_cache(cache, params)) return error;
  const int64_t items = most_tiles(params) * params.num_heads;
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(items, count_multiprocessors())));
  const auto launch = params.out_scale == nullptr
                          ? launch_kernel<attend_kernel<T, kHeadDim, false>, d3llm_attention_params, CUtensorMap>
                          : launch_kernel<attend_kernel<T, kHeadDim, true>, d3llm_attention_params, CUtensorMap>;
  return launch(blocks, kThreads, Shared<kHeadDim>::kBytes, overlapped, stream, params, cache);
}

}  // namespace

bool can_attend_hopper(const d3llm_attention_params& params) {
  constexpr int64_t kMost = int64_t{1} << 31;
  return params.head_dim >= 64 && cache_rows(params) < kMost && most_tiles(params) * params.num_heads < kMost;
}

cudaError_t launch_attend_hopper(const d3llm_attention_params& params, bool overlapped, cudaStream_t stream) {
  const bool half = params.dtype == D3LLM_FLOAT16;
  if (params.head_dim == 64) {
    return half ? launch_as<__half, 64>(params, overlapped, stream)
                : launch_as<__nv_bfloat16, 64>(params, overlapped, stream);
  }
  return half ? launch_as<__half, 128>(params, overlapped, stream)
              : launch_as<__nv_bfloat16, 128>(params, overlapped, stream);
}

}  // namespace d3llm
