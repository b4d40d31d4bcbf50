// What follows a commit: answers end at their EOS, blocks open, and window and candidates of the next pass are chosen.
#pragma once

#include "commit_request.h"

namespace d3llm {
namespace commit {

struct First {
  int position = kNowhere;

  D3LLM_DEVICE void merge(const First& other) { position = smaller(position, other.position); }
};

struct Sum {
  int value = 0;

  D3LLM_DEVICE void merge(const Sum& other) { value += other.value; }
};

// One block of a request, with its masks and those of the one before; the prompt stands before itself.
struct Block {
  int number;
  int masks;
  int masks_before;

  D3LLM_DEVICE double share(const Request& request) const { return request.share_of(number, masks); }

  D3LLM_DEVICE double share_before(const Request& request) const {
    return request.share_of(larger(number - 1, 0), masks_before);
  }
};

// Masks of as many neighbouring blocks as the team has members, and of the one before them, in memory that the team
// shares. A block may be one position long, so there may be more blocks than fit: they are counted anew when needed.
template <class Team>
class MaskCounts {
 public:
  D3LLM_DEVICE MaskCounts(Team& team, const Request& request, int* counters)
      : team_(team), request_(request), counters_(counters) {}

  // Calls visit(block) for all blocks, the prompt too. The same member gets the same block every time.
  template <class Visit>
  D3LLM_DEVICE void for_each(Visit visit) {
    for (int first = 0; first <= request_.num_blocks; first += team_.size()) {
      count(first);
      const int number = first + team_.rank();
      if (number > request_.num_blocks) continue;
      const int* masks = counters_ + team_.rank() + 1;
      visit(Block{number, masks[0], number == 0 ? masks[0] : masks[-1]});
    }
  }

 private:
  D3LLM_DEVICE void count(int first) {
    if (counted_ == first) return;
    if (counted_ != kNowhere) team_.sync();
    counted_ = first;
    for (int i = team_.rank(); i <= team_.size(); i += team_.size()) counters_[i] = 0;
    team_.sync();
    const int last =
        static_cast<int>(smaller<int64_t>(static_cast<int64_t>(first) + team_.size() - 1, request_.num_blocks));
    const int end = request_.end_of(last);
    for (int at = request_.start_of(larger(first - 1, 0)) + team_.rank(); at < end; at += team_.size())
      if (request_.masked(at)) team_.add(counters_ + request_.block_at(at) - first + 1, 1);
    team_.sync();
  }

  Team& team_;
  const Request& request_;
  int* counters_;
  int counted_ = kNowhere;
};

// Position of the first generated token that ends the answer; of any of its end ids, which here count as EOS.
template <class Team>
D3LLM_DEVICE int first_eos(Team& team, const Request& request) {
  First mine;
  for (int at = request.prompt + team.rank(); at < request.length; at += team.size()) {
    if (!request.ends_with(request.canvas[at])) continue;
    mine.position = at;
    break;
  }
  return team.reduce(mine).position;
}

// Fills everything behind the EOS with EOS, masks and tokens alike.
template <class Team>
D3LLM_DEVICE void end_at_eos(Team& team, const Request& request, int eos) {
  if (eos >= request.length) return;
  for (int at = eos + 1 + team.rank(); at < request.length; at += team.size()) {
    request.canvas[at] = request.eos_id;
    if (request.commit_steps[at] == kMasked) request.commit_steps[at] = request.passes;
  }
  team.sync();
}

// What the algorithms ask of all blocks before one opens.
struct Openings {
  int masked = 0;          // any block has masks
  int visible = 0;         // any block up to the newest has masks
  int newest_ready = 0;    // the newest is decoded far enough for the next
  int waiting = kNowhere;  // the first generated block with masks
  int last = 0;            // the last block that stands behind one decoded far enough

  D3LLM_DEVICE void merge(const Openings& other) {
    masked |= other.masked;
    visible |= other.visible;
    newest_ready |= other.newest_ready;
    waiting = smaller(waiting, other.waiting);
    last = larger(last, other.last);
  }

  D3LLM_DEVICE void add(const Request& request, const Block& block) {
    const double enough = request.block_add_threshold;
    masked |= block.masks > 0;
    visible |= block.masks > 0 && block.number <= request.opened;
    newest_ready |= block.number == request.opened && (block.masks == 0 || block.share(request) >= enough);
    if (block.masks > 0 && block.number > 0) waiting = smaller(waiting, block.number);
    if (block.number >= 2 && (block.masks_before == 0 || block.share_before(request) >= enough))
      last = larger(last, block.number);
  }
};

D3LLM_DEVICE int opened_by_algorithm(const Request& request, const Openings& found, bool has_eos) {
  switch (request.algorithm) {
    case kEntropyThreshold: return smaller(request.opened + (found.visible ? 0 : 1), request.num_blocks);
    case kMultiBlock:
      // Behind an EOS there is nothing left to decode, so every block exists from then on.
      return has_eos ? request.num_blocks : smaller(request.opened + found.newest_ready, request.num_blocks);
    case kLowConfidence: return found.waiting == kNowhere ? request.opened : found.waiting;
    default: return larger(request.opened, found.last);
  }
}

// How far the opened blocks reach, and how far the finished ones.
struct Reach {
  int limit = 0;              // end of the last opened block that is active or has masks
  int unfinished = kNowhere;  // the first block that is neither finished nor in the cache

  D3LLM_DEVICE void merge(const Reach& other) {
    limit = larger(limit, other.limit);
    unfinished = smaller(unfinished, other.unfinished);
  }
};

// Activates opened blocks behind one that is decoded far enough.
D3LLM_DEVICE bool activate(const Request& request, const Block& block) {
  uint8_t& active = request.active[block.number];
  if (!active && block.number >= 2 && block.number <= request.opened &&
      block.share_before(request) >= request.decoded_token_threshold)
    active = 1;
  return active != 0;
}

// Blocks behind an EOS count as cached: LLaDA's only if they were not open yet, Dream's all.
D3LLM_DEVICE void retire_behind_eos(const Request& request, const Block& block, int opened_before, int eos) {
  if (block.number == 0 || block.number > request.opened || request.end_of(block.number - 1) <= eos) return;
  if (request.family == kLlada && block.number <= opened_before) return;
  request.block_cached[block.number] = 1;
  int64_t& pass = request.done_pass[block.number];
  if (pass == kNoPass) pass = request.passes + 1;
}

// Opens blocks; returns where the candidates end and the first block that is not finished.
template <class Team>
D3LLM_DEVICE Reach open_blocks(Team& team, Request& request, MaskCounts<Team>& counts, int eos) {
  Openings asked;
  counts.for_each([&](const Block& block) { asked.add(request, block); });
  asked = team.reduce(asked);
  const int before = request.opened;
  request.opened = opened_by_algorithm(request, asked, eos < request.length);
  if (request.opened != before) request.opened_pass = request.passes;
  request.done = request.failed || !asked.masked;
  request.live_length = request.algorithm == kEntropyThreshold ? request.end_of(request.opened) : request.length;
  request.window_end = request.live_length;
  if (request.algorithm == kEntropyThreshold || request.algorithm == kLowConfidence)
    return {request.end_of(request.opened), 0};
  Reach mine;
  counts.for_each([&](const Block& block) {
    const bool reachable = activate(request, block) || block.masks > 0;
    const int end = request.end_of(block.number);
    if (block.number > 0 && block.number <= request.opened && reachable) mine.limit = larger(mine.limit, end);
    if (request.algorithm != kMultiBlock) return;
    retire_behind_eos(request, block, before, eos);
    const bool finished = block.masks == 0 && block.number <= request.opened;
    if (!finished && end > request.cache_length) mine.unfinished = smaller(mine.unfinished, block.number);
  });
  return team.reduce(mine);
}

// A finished block that the cache does not hold yet, and the passes since it was found finished.
struct Finished {
  bool seen;
  int64_t known;
  bool old;
};

D3LLM_DEVICE Finished finished(const Request& request, int block, int unfinished) {
  const int64_t number = request.passes + 1, pass = request.done_pass[block];
  const int64_t known = pass == kNoPass ? number : pass;
  const bool seen = block < unfinished && request.end_of(block) > request.cache_length;
  return {seen, known, number - known >= request.cache_delay};
}

// LLaDA looks no further than the first block that is too young.
template <class Team>
D3LLM_DEVICE int first_young(Team& team, const Request& request, int unfinished) {
  if (request.family != kLlada) return kNowhere;
  First mine;
  for (int block = team.rank(); block <= request.num_blocks; block += team.size()) {
    const Finished state = finished(request, block, unfinished);
    if (state.seen && !state.old) mine.position = smaller(mine.position, block);
  }
  return team.reduce(mine).position;
}

struct Growth {
  int end = 0;       // of the last block that is old enough to be cached now
  int settling = 0;  // whether a finished block waits for that

  D3LLM_DEVICE void merge(const Growth& other) {
    end = larger(end, other.end);
    settling |= other.settling;
  }

  D3LLM_DEVICE void add(const Request& request, const Block& block, int unfinished, int young) {
    const int number = block.number;
    const Finished state = finished(request, number, unfinished);
    const bool seen = state.seen && number <= young;
    if (seen) request.done_pass[number] = state.known;
    if (seen && state.old && !request.block_cached[number]) {
      request.block_cached[number] = 1;
      end = larger(end, request.end_of(number));
    }
    settling |= number <= request.opened && block.masks == 0 && request.done_pass[number] != kNoPass &&
                !request.block_cached[number];
  }
};

// Chooses the window of the next pass. Every pass writes the K/V of its window: to cache a block is to start behind it,
// and far masks are left out by an earlier end. Dream's row before the first one scores that one (spec B.8a).
template <class Team>
D3LLM_DEVICE void plan_window(Team& team, Request& request, MaskCounts<Team>& counts, int unfinished) {
  const int young = first_young(team, request, unfinished);
  Growth growth;
  counts.for_each([&](const Block& block) { growth.add(request, block, unfinished, young); });
  growth = team.reduce(growth);
  const bool grows = request.cached && growth.end > request.cache_length;
  const uint32_t interval = request.refresh_interval, number = static_cast<uint32_t>(request.passes + 1);
  const bool refresh = interval > 0 && number % interval == 0;
  const bool settles = request.cached && request.full_settling && growth.settling;
  const bool full = number == 1 || (!grows && (refresh || settles));
  const bool earlier = request.family == kDream && !request.published_shift && request.cache_length > 0;
  request.window_start = full ? 0 : request.cache_length - earlier;
  if (!full && request.window_ahead >= 0) {
    const int64_t ahead = smaller<int64_t>(request.window_ahead, request.length) * request.block_size;
    request.window_end = static_cast<int>(smaller<int64_t>(request.end_of(request.opened) + ahead, request.length));
  }
  if (grows) request.cache_length = growth.end;
}

// Marks what the next pass may commit, in all `width` positions of the step; returns how many.
template <class Team>
D3LLM_DEVICE int mark_candidates(Team& team, const Request& request, int width, int limit) {
  const int end = smaller(limit, request.length);
  Sum mine;
  for (int at = team.rank(); at < width; at += team.size()) {
    const bool candidate = at >= request.window_start && at < end && request.masked(at);
    request.candidates[at] = candidate;
    mine.value += candidate;
  }
  return team.reduce(mine).value;
}

// Returns the number of candidates of the next pass.
template <class Team>
D3LLM_DEVICE int plan(Team& team, Request& request, int width, int* counters) {
  const int eos = first_eos(team, request);
  end_at_eos(team, request, eos);
  MaskCounts<Team> counts(team, request, counters);
  const Reach reach = open_blocks(team, request, counts, eos);
  if (request.algorithm == kMultiBlock) plan_window(team, request, counts, reach.unfinished);
  return mark_candidates(team, request, width, reach.limit);
}

}  // namespace commit
}  // namespace d3llm
