// The commit logic on the CPU: a team of host threads, so that races and missing barriers show without a GPU.
#include "commit_host.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "commit_logic.h"

namespace d3llm {
namespace {

constexpr int kMaxBytes = 32;  // of a value that is reduced

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int round = round_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++round_;
      all_here_.notify_all();
      return;
    }
    all_here_.wait(lock, [&] { return round_ != round; });
  }

 private:
  const int count_;
  int arrived_ = 0;
  int round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_here_;
};

struct Shared {
  explicit Shared(int size) : barrier(size), counts(size + 1), partial{Slots(size), Slots(size)} {}

  struct Slot {
    alignas(8) unsigned char bytes[kMaxBytes];
  };
  using Slots = std::vector<Slot>;

  Barrier barrier;
  std::vector<int> counts;
  Slots partial[2];
};

class HostTeam {
 public:
  HostTeam(Shared& shared, int rank) : shared_(shared), rank_(rank) {}

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(shared_.partial[0].size()); }
  void add_one(int* cell) { __atomic_fetch_add(cell, 1, __ATOMIC_RELAXED); }
  int* counts() { return shared_.counts.data(); }

  void sync() {
    if (size() > 1) shared_.barrier.wait();
  }

  template <class T>
  T reduce(T value) {
    static_assert(sizeof(T) <= kMaxBytes, "does not fit the exchange");
    Shared::Slots& partial = shared_.partial[turn_];
    turn_ ^= 1;
    *reinterpret_cast<T*>(partial[rank_].bytes) = value;
    sync();
    for (int other = 0; other < size(); ++other)
      if (other != rank_) value.merge(*reinterpret_cast<const T*>(partial[other].bytes));
    return value;
  }

 private:
  Shared& shared_;
  const int rank_;
  int turn_ = 0;
};

void run_member(const d3llm_commit_params& params, Shared& shared, int rank) {
  HostTeam team(shared, rank);
  for (int entry = 0; entry < params.batch; ++entry) commit::step(team, params, entry);
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_commit_host(const d3llm_commit_params* params, int32_t threads) {
  if (params->struct_size != sizeof(d3llm_commit_params) || threads < 1) return D3LLM_INVALID_ARGUMENT;
  d3llm::Shared shared(threads);
  std::vector<std::thread> others;
  for (int rank = 1; rank < threads; ++rank)
    others.emplace_back(d3llm::run_member, std::cref(*params), std::ref(shared), rank);
  d3llm::run_member(*params, shared, 0);
  for (std::thread& other : others) other.join();
  return D3LLM_SUCCESS;
}
