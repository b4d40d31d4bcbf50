// top_k and top_p: the best token of those that they leave, exactly and for any row, by a team.
//
// Tokens stand in the order of their distance below the likeliest one, equals by id; a token's place is a number: the
// bits of that distance, then the id. One pass counts tokens and adds up their masses in cells of a sixteenth of an
// octave of probability. The limit falls into one cell. Its tokens, or all up to it where they are few, are sorted in
// a second pass, which also races all those before them. A cell with more tokens than can be sorted, as of a flat row,
// takes a pass more for each time it is divided. Masses are integers, so that no order of summation shows.
#pragma once

#include "race.h"
#include "team.h"

namespace d3llm {

constexpr int kCells = 1024;      // of a pass, and tokens that are sorted
constexpr float kOctaves = 64.f;  // below the likeliest token: noise brings no token from further down to the top
constexpr int kMassBits = 40;     // of the likeliest token's mass

// Each 0 or 1, respectively, for no limit.
struct Limits {
  int64_t top_k = 0;
  double top_p = 1;

  D3LLM_DEVICE bool by_rank() const { return top_k > 0; }
  D3LLM_DEVICE bool by_mass() const { return top_p < 1; }
  D3LLM_DEVICE bool any() const { return by_rank() || by_mass(); }
};

// Of tokens that follow each other.
struct Tally {
  uint64_t mass = 0;
  uint64_t count = 0;

  D3LLM_DEVICE void merge(const Tally& other) {
    mass += other.mass;
    count += other.count;
  }
};

// Where a prefix of the order ends: with the token that reaches either number.
struct Stop {
  uint64_t count = UINT64_MAX;
  double mass = INFINITY;

  D3LLM_DEVICE bool is_behind(const Tally& prefix) const {
    return prefix.count < count && static_cast<double>(prefix.mass) < mass;
  }
};

// The mass of a token that lies up to 64 octaves below the likeliest one.
D3LLM_DEVICE uint64_t mass_of(float octaves) {
  // 2^-x between 0 and 1.
  constexpr float kTerms[] = {1.0f,
                              -0.6931437253952026f,
                              0.2401801496744156f,
                              -0.0552973598241806f,
                              0.00920579768717289f,
                              -0.0009449035860598087f};
  const auto whole = static_cast<int>(octaves);
  const float part = polynomial(kTerms, plus(octaves, -static_cast<float>(whole)));
  return static_cast<uint64_t>(static_cast<uint32_t>(times(part, 16777216.0f))) << (kMassBits - 24) >> whole;
}

// What a team shares for one row. Masses are in two halves, as adding to 64 bits at once is slow in shared memory.
struct NucleusMemory {
  uint64_t places[kCells];
  uint32_t counts[kCells], low[kCells], high[kCells];
  uint32_t listed;
};

// The places [begin, end) of the order: what stands before them, and how many tokens they hold.
struct Span {
  uint64_t begin, end;
  Tally before;
  uint64_t count;
};

// A cell that a limit falls into.
struct Hit {
  Tally before;
  uint64_t count = 0;
  int cell = INT_MAX;
  int unused = 0;

  D3LLM_DEVICE void merge(const Hit& other) {
    if (other.cell < cell) *this = other;
  }
};

// Row: for_each(team, visit) calls visit(id, logit) for all tokens that may be chosen, each by one member; at(id) is a
// token's logit; vocab is how many there are.
template <class Team, class Row>
class Nucleus {
 public:
  D3LLM_DEVICE Nucleus(Team& team, NucleusMemory& memory, const Row& row, const Sampler& sampler, const Limits& limits,
                       float peak)
      : team_(team), memory_(memory), row_(row), sampler_(sampler), limits_(limits), peak_(peak) {
    while ((row.vocab - 1) >> id_bits_ > 0) ++id_bits_;
    // With no limit by rank, tokens from here on hold too little mass together to reach into the nucleus.
    const float tail = larger(static_cast<float>(1 - limits.top_p), 1e-30f);
    if (!limits.by_rank()) reach_ = smaller(reach_, 1.f + log2f(static_cast<float>(row.vocab) / tail));
  }

  D3LLM_DEVICE Best<double> best() {
    const Tally all = tally(everything());
    Stop stop;
    if (limits_.by_rank()) stop.count = limits_.top_k;
    if (limits_.by_mass()) stop.mass = limits_.top_p * static_cast<double>(all.mass);
    if (limits_.by_rank() && limits_.by_mass() && !Stop{stop.count, INFINITY}.is_behind(all)) {
      const Span span = narrowed({stop.count, INFINITY});
      list(span, false);
      stop.mass = limits_.top_p * static_cast<double>(walk(span, {stop.count, INFINITY}, [](int) {}).mass);
      if (span.begin == 0) return best_listed(span, stop);
    }
    if (stop.is_behind(all)) return best_of({UINT64_MAX, UINT64_MAX, all, 0}, stop);
    return best_of(narrowed(stop), stop);
  }

 private:
  D3LLM_DEVICE static Span everything() { return {0, UINT64_MAX, Tally{}, 0}; }

  D3LLM_DEVICE float octaves_to(float x) const { return distance_in_octaves(plus(peak_, -x)); }
  D3LLM_DEVICE float distance_in_octaves(float distance) const { return times(distance, sampler_.octaves_per_nat); }
  D3LLM_DEVICE static float cell_of(float octaves) { return times(octaves, kCells / kOctaves); }

  D3LLM_DEVICE uint64_t place_of(float x, int id) const {
    return static_cast<uint64_t>(bits_of(plus(peak_, -x))) << id_bits_ | static_cast<uint64_t>(id);
  }

  D3LLM_DEVICE int id_at(uint64_t place) const { return static_cast<int>(place & ((uint64_t{1} << id_bits_) - 1)); }

  D3LLM_DEVICE Tally token_at(uint64_t place) const {
    return {mass_of(distance_in_octaves(float_of(static_cast<uint32_t>(place >> id_bits_)))), 1};
  }

  // The first place of a cell of everything: where the bits of a distance are enough.
  D3LLM_DEVICE_CALLED uint64_t first_place(int cell) const {
    uint32_t least = 0, most = 0x7F800000;
    while (least < most) {
      const uint32_t middle = least + (most - least) / 2;
      if (cell_of(distance_in_octaves(float_of(middle))) >= static_cast<float>(cell)) {
        most = middle;
      } else {
        least = middle + 1;
      }
    }
    return static_cast<uint64_t>(least) << id_bits_;
  }

  D3LLM_DEVICE static int cell_bits(const Span& span) {
    int bits = 0;
    while ((span.end - span.begin - 1) >> bits >= kCells) ++bits;
    return bits;
  }

  // A pass that counts the tokens of a span by cells; returns what they are together.
  D3LLM_DEVICE_CALLED Tally tally(const Span& span) {
    for (int i = team_.rank(); i < kCells; i += team_.size()) memory_.counts[i] = memory_.low[i] = memory_.high[i] = 0;
    team_.sync();
    const bool whole = span.end == UINT64_MAX;
    const int bits = whole ? 0 : cell_bits(span);
    Tally mine;
    row_.for_each(team_, [&](int id, float x) {
      const float octaves = octaves_to(x);
      if (!(octaves < kOctaves)) return;
      const uint64_t place = place_of(x, id);
      if (place < span.begin || place >= span.end) return;
      const uint64_t mass = limits_.by_mass() ? mass_of(octaves) : 0;
      mine.merge({mass, 1});
      if (octaves >= reach_) return;
      add(whole ? static_cast<int>(cell_of(octaves)) : static_cast<int>((place - span.begin) >> bits), mass);
    });
    cells_hold_everything_ = whole;
    return team_.reduce(mine);
  }

  D3LLM_DEVICE void add(int cell, uint64_t mass) {
    team_.add(&memory_.counts[cell], 1u);
    if (mass == 0) return;
    const auto low = static_cast<uint32_t>(mass);
    const uint32_t was = team_.add(&memory_.low[cell], low);
    const auto high = static_cast<uint32_t>(mass >> 32) + (was + low < was);
    if (high != 0) team_.add(&memory_.high[cell], high);
  }

  D3LLM_DEVICE Tally in_cell(int cell) const {
    return {static_cast<uint64_t>(memory_.high[cell]) << 32 | memory_.low[cell], memory_.counts[cell]};
  }

  // The cell of a tallied span in which `stop` lies.
  D3LLM_DEVICE_CALLED Span located(const Span& span, const Stop& stop) {
    const Share share = Share::of(team_, kCells);
    Tally mine;
    for (int i = share.begin; i < share.end; ++i) mine.merge(in_cell(i));
    Tally prefix = team_.before(mine);
    prefix.merge(span.before);
    Hit hit;
    for (int i = share.begin; i < share.end && stop.is_behind(prefix); ++i) {
      const Tally before = prefix;
      prefix.merge(in_cell(i));
      if (!stop.is_behind(prefix)) hit = {before, memory_.counts[i], i};
    }
    hit = team_.reduce(hit);
    if (cells_hold_everything_) return {first_place(hit.cell), first_place(hit.cell + 1), hit.before, hit.count};
    const int bits = cell_bits(span);
    const uint64_t begin = span.begin + (static_cast<uint64_t>(hit.cell) << bits);
    return {begin, smaller(begin + (uint64_t{1} << bits), span.end), hit.before, hit.count};
  }

  // A span in which `stop` lies and whose tokens can be sorted; it begins with the likeliest one where that fits.
  D3LLM_DEVICE_CALLED Span narrowed(const Stop& stop) {
    if (!cells_hold_everything_) tally(everything());
    Span span = located(everything(), stop);
    while (span.count > kCells) {
      tally(span);
      span = located(span, stop);
    }
    if (span.before.count + span.count > kCells) return span;
    return {0, span.end, Tally{}, span.before.count + span.count};
  }

  // A pass that sorts the places of a span's tokens and, with `racing`, races the tokens before it.
  D3LLM_DEVICE_CALLED Race list(const Span& span, bool racing) {
    Race race;
    if (team_.rank() == 0) memory_.listed = 0;
    team_.sync();
    row_.for_each(team_, [&](int id, float x) {
      if (!(octaves_to(x) < kOctaves)) return;
      const uint64_t place = place_of(x, id);
      if (place < span.begin) {
        if (racing) race.enter_unless_lost(sampler_, x, id);
      } else if (place < span.end) {
        const uint32_t at = team_.add(&memory_.listed, 1u);
        if (at < kCells) memory_.places[at] = place;
      }
    });
    team_.sync();
    sort(static_cast<int>(span.count));
    return race;
  }

  // Bitonic, with places behind the last token up to a power of two.
  D3LLM_DEVICE void sort(int count) {
    int padded = 1;
    while (padded < count) padded *= 2;
    for (int i = count + team_.rank(); i < padded; i += team_.size()) memory_.places[i] = UINT64_MAX;
    team_.sync();
    for (int size = 2; size <= padded; size *= 2)
      for (int apart = size / 2; apart > 0; apart /= 2) {
        for (int i = team_.rank(); i < padded / 2; i += team_.size()) {
          const int low = 2 * i - (i & (apart - 1));
          uint64_t &first = memory_.places[low], &second = memory_.places[low + apart];
          const uint64_t lower = smaller(first, second), upper = larger(first, second);
          const bool rising = (low & size) == 0;
          first = rising ? lower : upper;
          second = rising ? upper : lower;
        }
        team_.sync();
      }
  }

  // Visits the listed tokens up to `stop`; returns the tally of all tokens up to it.
  template <class Visit>
  D3LLM_DEVICE_CALLED Tally walk(const Span& span, const Stop& stop, Visit visit) {
    const Share share = Share::of(team_, static_cast<int>(span.count));
    Tally mine;
    for (int i = share.begin; i < share.end; ++i) mine.merge(token_at(memory_.places[i]));
    Tally prefix = team_.before(mine), kept;
    prefix.merge(span.before);
    for (int i = share.begin; i < share.end && stop.is_behind(prefix); ++i) {
      const Tally token = token_at(memory_.places[i]);
      visit(id_at(memory_.places[i]));
      prefix.merge(token);
      kept.merge(token);
    }
    kept = team_.reduce(kept);
    kept.merge(span.before);
    return kept;
  }

  D3LLM_DEVICE Best<double> best_listed(const Span& span, const Stop& stop, Race race = {}) {
    walk(span, stop, [&](int id) { race.enter_unless_lost(sampler_, row_.at(id), id); });
    return team_.reduce(race.best);
  }

  D3LLM_DEVICE Best<double> best_of(const Span& span, const Stop& stop) {
    const Race race = list(span, true);
    return best_listed(span, stop, race);
  }

  Team& team_;
  NucleusMemory& memory_;
  const Row& row_;
  const Sampler& sampler_;
  const Limits& limits_;
  const float peak_;
  float reach_ = kOctaves;
  int id_bits_ = 1;
  bool cells_hold_everything_ = false;
};

}  // namespace d3llm
