// Which candidates of a pass a request's algorithm accepts, and their tokens on the canvas.
#pragma once

#include "commit_request.h"

namespace d3llm {
namespace commit {

// Rows [begin, end) of the step's candidates are those of one request, whose positions start at `base`.
struct Candidates {
  const int64_t* chosen;
  const int64_t* greedy;
  const int64_t* sampled;
  const float* entropy;
  const float* confidence;
  const float* logprob;
  const float* greedy_logprob;
  int64_t base;
  int begin;
  int end;

  D3LLM_DEVICE int position(int row) const { return static_cast<int>(chosen[row] - base); }
};

// How an algorithm accepts: everything below the threshold (or at it), and what it picks besides.
struct Rule {
  bool at_threshold;
  bool lowest;
  bool forced;
  bool forced_greedy;
  bool quota;

  D3LLM_DEVICE bool certain(float entropy, float threshold) const {
    return at_threshold ? entropy <= threshold : entropy < threshold;
  }
};

D3LLM_DEVICE Rule rule_of(const Request& request) {
  const bool llada = request.family == kLlada;
  switch (request.algorithm) {
    case kEntropyThreshold: return {false, true, false, false, false};
    case kMultiBlock: return {llada, llada, true, llada, false};
    case kLowConfidence: return {llada, true, false, false, request.by_quota};
    default: return {false, false, true, false, false};
  }
}

// The lowest entropy, the first of equals. NaN is below everything.
struct Lowest {
  float entropy = INFINITY;
  int position = kNowhere;

  D3LLM_DEVICE bool before(const Lowest& other) const {
    const bool nan = entropy != entropy, other_nan = other.entropy != other.entropy;
    if (nan || other_nan) return nan && (!other_nan || position < other.position);
    return entropy < other.entropy || (entropy == other.entropy && position < other.position);
  }

  D3LLM_DEVICE void merge(const Lowest& other) {
    if (other.before(*this)) *this = other;
  }

  // Positions that are no candidates count as infinite: among those, the first of the whole canvas is the lowest.
  D3LLM_DEVICE int pick() const { return entropy == INFINITY && position != 0 ? kNowhere : position; }
};

// What has to be known of all candidates and of the canvas before any of them is accepted.
struct Survey {
  Lowest lowest;
  int waiting = kNowhere;  // the first active generated block with masks
  int broken = 0;          // whether any entropy is not finite

  D3LLM_DEVICE void merge(const Survey& other) {
    lowest.merge(other.lowest);
    waiting = smaller(waiting, other.waiting);
    broken |= other.broken;
  }
};

// The candidates of the block that a forced pick would be for.
struct Inside {
  Lowest lowest;
  int certain = 0;

  D3LLM_DEVICE void merge(const Inside& other) {
    lowest.merge(other.lowest);
    certain |= other.certain;
  }
};

struct Bounds {
  int begin = 0;
  int end = 0;

  D3LLM_DEVICE void merge(const Bounds& other) {
    begin += other.begin;
    end += other.end;
  }
};

// Where in an ascending array the first value that is not below `target` may still be.
struct Search {
  const int64_t* sorted;
  int64_t target;
  int first;
  int count;

  // How many of this member's evenly spaced probes are below the target.
  template <class Team>
  D3LLM_DEVICE int probe(const Team& team, int probes) const {
    const int64_t step = spacing(probes);
    int below = 0;
    for (int64_t at = team.rank() * step; at < count; at += team.size() * step) below += sorted[first + at] < target;
    return below;
  }

  D3LLM_DEVICE void narrow(int probes, int below) {
    if (below == 0) {
      count = 0;
      return;
    }
    const int step = spacing(probes), passed = (below - 1) * step + 1;
    first += passed;
    count = smaller(step - 1, count - passed);
  }

  D3LLM_DEVICE int spacing(int probes) const { return (count + probes - 1) / probes; }
};

// Rows of `chosen` with values in [from, to): every round probes as many places as the team has members.
template <class Team>
D3LLM_DEVICE Bounds rows_between(Team& team, const int64_t* chosen, int rows, int64_t from, int64_t to) {
  const int probes = larger(team.size(), 2);
  Search begin{chosen, from, 0, rows}, end{chosen, to, 0, rows};
  while (begin.count > 0 || end.count > 0) {
    const Bounds below = team.reduce(Bounds{begin.probe(team, probes), end.probe(team, probes)});
    begin.narrow(probes, below.begin);
    end.narrow(probes, below.end);
  }
  return {begin.first, end.first};
}

template <class Team>
D3LLM_DEVICE int first_waiting(const Team& team, const Request& request) {
  for (int at = request.prompt + team.rank(); at < request.length; at += team.size()) {
    const int block = request.block_at(at);
    if (request.masked(at) && request.active[block]) return block;
  }
  return kNowhere;
}

template <class Team>
D3LLM_DEVICE Survey survey(Team& team, const Request& request, const Candidates& candidates) {
  Survey mine;
  for (int row = candidates.begin + team.rank(); row < candidates.end; row += team.size()) {
    const float entropy = candidates.entropy[row];
    mine.lowest.merge({entropy, candidates.position(row)});
    mine.broken |= !(entropy - entropy == 0.0f);
  }
  mine.waiting = first_waiting(team, request);
  return team.reduce(mine);
}

// The lowest of the first active block with masks, or of the prompt once no generated block waits, if nothing there is
// certain: so every pass commits. If the lowest of all is accepted too and stands there, this is the same position.
template <class Team>
D3LLM_DEVICE int forced_pick(Team& team, const Request& request, const Candidates& candidates, const Rule& rule,
                             int waiting) {
  const int block = waiting == kNowhere ? 0 : waiting;
  Inside mine;
  for (int row = candidates.begin + team.rank(); row < candidates.end; row += team.size()) {
    const int position = candidates.position(row);
    if (request.block_at(position) != block) continue;
    const float entropy = candidates.entropy[row];
    mine.lowest.merge({entropy, position});
    mine.certain |= rule.certain(entropy, request.threshold);
  }
  const Inside inside = team.reduce(mine);
  return inside.certain ? kNowhere : inside.lowest.pick();
}

// Tokens of this pass: block size over steps, the remainder one each in the first passes; at least 1.
D3LLM_DEVICE int quota_of(const Request& request) {
  const int steps = request.steps_per_block;
  if (steps <= 0) return 1;
  const int size = request.end_of(request.opened) - request.start_of(request.opened);
  const int64_t passes = request.passes - request.opened_pass;
  return larger(size / steps + (passes < size % steps), 1);
}

// NaN is the most confident, as in torch's sort.
D3LLM_DEVICE bool more_confident(float a, float b) {
  const bool nan = a != a, other_nan = b != b;
  return nan || other_nan ? nan && !other_nan : a > b;
}

// Whether fewer than `quota` positions come before a candidate's in the stable descending order of confidence.
D3LLM_DEVICE bool within_quota(const Candidates& candidates, int row, int quota) {
  const float mine = candidates.confidence[row];
  // Positions that are no candidates have -inf there, so earlier ones come before a candidate with -inf.
  int before = mine == -INFINITY ? candidates.position(row) - (row - candidates.begin) : 0;
  for (int other = candidates.begin; other < candidates.end && before < quota; ++other) {
    const float confidence = candidates.confidence[other];
    before += more_confident(confidence, mine) || (other < row && !more_confident(mine, confidence));
  }
  return before < quota;
}

// Writes the accepted tokens; the team waits, so that everybody sees them.
template <class Team>
D3LLM_DEVICE void accept(Team& team, Request& request, const Candidates& candidates) {
  const Survey found = survey(team, request, candidates);
  const Rule rule = rule_of(request);
  const int lowest = rule.lowest ? found.lowest.pick() : kNowhere;
  const int forced = rule.forced ? forced_pick(team, request, candidates, rule, found.waiting) : kNowhere;
  const int quota = rule.quota ? quota_of(request) : 0;
  request.passes += 1;
  request.failed |= found.broken != 0;
  for (int row = candidates.begin + team.rank(); row < candidates.end; row += team.size()) {
    const int position = candidates.position(row);
    const bool sampled = rule.quota ? within_quota(candidates, row, quota)
                                    : rule.certain(candidates.entropy[row], request.threshold) || position == lowest;
    if (!sampled && position != forced) continue;
    const bool greedy = !sampled && rule.forced_greedy;
    request.canvas[position] = greedy ? candidates.greedy[row] : candidates.sampled[row];
    request.logprobs[position] = greedy ? candidates.greedy_logprob[row] : candidates.logprob[row];
    request.commit_steps[position] = request.passes;
  }
  team.sync();
}

}  // namespace commit
}  // namespace d3llm
