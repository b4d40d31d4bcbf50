// A thread block as a team (see team.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace d3llm {

constexpr int kMaxWords = 8;  // of a value that is exchanged

template <int kMostThreads>
struct Exchange {
  uint32_t partial[2][kMostThreads / 32][kMaxWords];
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
  __device__ __forceinline__ void store(uint32_t* to) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = word[i];
  }
  __device__ __forceinline__ T value() const {
    T result;
    memcpy(&result, word, sizeof(T));
    return result;
  }
};

// A block of whole warps; with `kAlways` of just so many threads, which is known when it is compiled.
template <int kMostThreads, bool kAlways = true>
class BlockTeam {
 public:
  static constexpr int kLanes = 32;
  static constexpr int kMostWarps = kMostThreads / kLanes;

  __device__ explicit BlockTeam(Exchange<kMostThreads>& exchange) : exchange_(exchange) {}

  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  __device__ __forceinline__ int size() const { return kAlways ? kMostThreads : blockDim.x; }
  __device__ __forceinline__ void sync() { __syncthreads(); }
  template <class Count>
  __device__ __forceinline__ Count add(Count* cell, Count value) {
    return atomicAdd(cell, value);
  }

  // Two exchange buffers in turn: whoever writes the next one has passed the barrier behind the reads of the last.
  template <class T>
  __device__ T reduce(T value) {
    merge_lanes<kLanes>(value);
    uint32_t (*partial)[kMaxWords] = next_buffer();
    if (threadIdx.x % kLanes == 0) Words<T>(value).store(partial[threadIdx.x / kLanes]);
    __syncthreads();
    const int warp = threadIdx.x % kMostWarps;
    value = kAlways || warp < size() / kLanes ? Words<T>(partial[warp]).value() : T{};
    merge_lanes<kMostWarps>(value);
    return value;
  }

  template <class T>
  __device__ T before(T value) {
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2) {
      const T lower = from_below(value, apart);
      if (lane >= apart) value.merge(lower);
    }
    uint32_t (*partial)[kMaxWords] = next_buffer();
    if (lane == kLanes - 1) Words<T>(value).store(partial[warp]);
    const T lower = from_below(value, 1);
    __syncthreads();
    T result = lane == 0 ? T{} : lower;
    for (int other = 0; other < warp; ++other) result.merge(Words<T>(partial[other]).value());
    return result;
  }

 private:
  __device__ __forceinline__ auto next_buffer() {
    turn_ ^= 1;
    return exchange_.partial[turn_];
  }

  template <class T>
  __device__ __forceinline__ static T from_below(const T& value, int apart) {
    Words<T> words(value);
#pragma unroll
    for (int i = 0; i < Words<T>::kCount; ++i) words.word[i] = __shfl_up_sync(~0u, words.word[i], apart);
    return words.value();
  }

  // Merges the values of every `count` neighbouring lanes into all of them.
  template <int count, class T>
  __device__ __forceinline__ static void merge_lanes(T& value) {
#pragma unroll
    for (int apart = count / 2; apart > 0; apart /= 2) {
      Words<T> words(value);
#pragma unroll
      for (int i = 0; i < Words<T>::kCount; ++i) words.word[i] = __shfl_xor_sync(~0u, words.word[i], apart);
      value.merge(words.value());
    }
  }

  Exchange<kMostThreads>& exchange_;
  int turn_ = 0;
};

}  // namespace d3llm
