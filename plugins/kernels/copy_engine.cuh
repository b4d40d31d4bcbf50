// Hopper's bulk copy engine and the barriers it completes on, from PTX.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace d3llm {

__device__ __forceinline__ void create_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes new barriers known to the copy engine.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Makes what this thread wrote to shared memory visible to the copy engine and the tensor cores.
__device__ __forceinline__ void publish_to_copy_engine() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// One arrival, and as many bytes to come.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// One arrival for the warp.
__device__ __forceinline__ void arrive_once(uint32_t barrier) {
  asm volatile(
      "{ .reg .pred first; setp.eq.u32 first, %1, 0; @first mbarrier.arrive.shared::cta.b64 _, [%0]; }" ::"r"(barrier),
      "r"(threadIdx.x % 32)
      : "memory");
}

// Until the barrier has completed its phase number `phase`; a new barrier counts as having completed number -1.
__device__ __forceinline__ void wait_for(uint32_t barrier, int phase) {
  asm volatile(
      "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(
          barrier),
      "r"(phase & 1)
      : "memory");
}

// The box of rows from `row` on and columns from `column` on.
__device__ __forceinline__ void copy_box(uint32_t target, const CUtensorMap& map, int column, int row,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// Gives registers of this warpgroup to the others, or takes them.
template <int kRegisters, bool kMore>
__device__ __forceinline__ void set_registers() {
  if constexpr (kMore)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The `threads` threads that name this barrier wait for each other.
__device__ __forceinline__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace d3llm
