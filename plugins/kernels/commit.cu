// The commit kernel: a thread block as the team of commit_logic.h.
#include "commit.h"
#include "commit_logic.h"
#include "launch.cuh"

namespace d3llm {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;
constexpr int kMaxWords = 8;  // of a value that is reduced
constexpr unsigned kAllLanes = 0xffffffffu;

struct Shared {
  int counts[kThreads + 1];
  uint32_t partial[2][kWarps][kMaxWords];
};

// A value as the 32-bit words that shuffles and shared memory take.
template <class T>
struct Words {
  static constexpr int kCount = sizeof(T) / sizeof(uint32_t);
  static_assert(sizeof(T) % sizeof(uint32_t) == 0 && kCount <= kMaxWords, "does not fit the exchange");
  uint32_t word[kCount];

  __device__ __forceinline__ explicit Words(const T& value) { memcpy(word, &value, sizeof(T)); }
  __device__ __forceinline__ explicit Words(const uint32_t* from) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) word[i] = from[i];
  }
  __device__ __forceinline__ T value() const {
    T result;
    memcpy(&result, word, sizeof(T));
    return result;
  }
};

class BlockTeam {
 public:
  __device__ explicit BlockTeam(Shared& shared) : shared_(shared) {}

  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  __device__ __forceinline__ int size() const { return kThreads; }
  __device__ __forceinline__ void sync() { __syncthreads(); }
  __device__ __forceinline__ void add_one(int* cell) { atomicAdd(cell, 1); }
  __device__ __forceinline__ int* counts() { return shared_.counts; }

  // Two exchange buffers in turn: whoever writes the next one has passed the barrier behind the reads of the last.
  template <class T>
  __device__ T reduce(T value) {
    merge_lanes<kLanes>(value);
    uint32_t (*partial)[kMaxWords] = shared_.partial[turn_];
    turn_ ^= 1;
    if (threadIdx.x % kLanes == 0) {
      const Words<T> words(value);
#pragma unroll
      for (int i = 0; i < Words<T>::kCount; ++i) partial[threadIdx.x / kLanes][i] = words.word[i];
    }
    __syncthreads();
    value = Words<T>(partial[threadIdx.x % kWarps]).value();
    merge_lanes<kWarps>(value);
    return value;
  }

 private:
  // Merges the values of every `count` neighbouring lanes into all of them.
  template <int count, class T>
  __device__ __forceinline__ static void merge_lanes(T& value) {
#pragma unroll
    for (int apart = count / 2; apart > 0; apart /= 2) {
      Words<T> words(value);
#pragma unroll
      for (int i = 0; i < Words<T>::kCount; ++i) words.word[i] = __shfl_xor_sync(kAllLanes, words.word[i], apart);
      value.merge(words.value());
    }
  }

  Shared& shared_;
  int turn_ = 0;
};

// One block is enough for a multiprocessor: without that bound registers are spilled for an occupancy of no use here.
__global__ void __launch_bounds__(kThreads, 1) commit_kernel(const __grid_constant__ d3llm_commit_params params) {
  wait_for_previous_kernel();
  __shared__ Shared shared;
  BlockTeam team(shared);
  commit::step(team, params, blockIdx.x);
}

}  // namespace

cudaError_t launch_commit(const d3llm_commit_params& params, cudaStream_t stream) {
  return launch_kernel<commit_kernel>(static_cast<unsigned>(params.batch), kThreads, 0, true, stream, params);
}

}  // namespace d3llm
