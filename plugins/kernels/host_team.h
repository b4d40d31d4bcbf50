// Host threads as a team (see team.h), so that races and missing barriers show without a GPU. For tests only.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace d3llm {

constexpr int kMaxBytes = 32;  // of a value that is exchanged

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

// What the members of a team share.
struct HostExchange {
  explicit HostExchange(int size) : barrier(size), partial{Slots(size), Slots(size)} {}

  struct Slot {
    alignas(8) unsigned char bytes[kMaxBytes];
  };
  using Slots = std::vector<Slot>;

  Barrier barrier;
  Slots partial[2];
};

class HostTeam {
 public:
  HostTeam(HostExchange& exchange, int rank) : exchange_(exchange), rank_(rank) {}

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(exchange_.partial[0].size()); }

  template <class Count>
  Count add(Count* cell, Count value) {
    return __atomic_fetch_add(cell, value, __ATOMIC_RELAXED);
  }

  void sync() {
    if (size() > 1) exchange_.barrier.wait();
  }

  template <class T>
  T reduce(const T& value) {
    const HostExchange::Slots& all = shown_to_all(value);
    T result = value;
    for (int other = 0; other < size(); ++other)
      if (other != rank_) result.merge(of<T>(all[other]));
    return result;
  }

  template <class T>
  T before(const T& value) {
    const HostExchange::Slots& all = shown_to_all(value);
    T result;
    for (int other = 0; other < rank_; ++other) result.merge(of<T>(all[other]));
    return result;
  }

 private:
  // Two buffers in turn: whoever writes the next one has passed the barrier behind the reads of the last.
  template <class T>
  const HostExchange::Slots& shown_to_all(const T& value) {
    static_assert(sizeof(T) <= kMaxBytes, "does not fit the exchange");
    HostExchange::Slots& partial = exchange_.partial[turn_];
    turn_ ^= 1;
    *reinterpret_cast<T*>(partial[rank_].bytes) = value;
    sync();
    return partial;
  }

  template <class T>
  static const T& of(const HostExchange::Slot& slot) {
    return *reinterpret_cast<const T*>(slot.bytes);
  }

  HostExchange& exchange_;
  const int rank_;
  int turn_ = 0;
};

// Calls member(team) once for each of `threads` threads, this one among them, and waits for all.
inline void run_team(int threads, const std::function<void(HostTeam&)>& member) {
  HostExchange exchange(threads);
  std::vector<std::thread> others;
  const auto run = [&](int rank) {
    HostTeam team(exchange, rank);
    member(team);
  };
  for (int rank = 1; rank < threads; ++rank) others.emplace_back(run, rank);
  run(0);
  for (std::thread& other : others) other.join();
}

}  // namespace d3llm
