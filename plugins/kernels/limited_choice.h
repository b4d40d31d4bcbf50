// The tokens of a row whose choice is limited: by ids that are barred, or by top_k and top_p.
#pragma once

#include "nucleus.h"

namespace d3llm {

struct Choice {
  int greedy, sampled;
};

// The likeliest token; `otherwise` where no logit is a number.
template <class Team, class Row>
D3LLM_DEVICE int likeliest(Team& team, const Row& row, int otherwise) {
  Best<float> best;
  row.for_each(team, [&](int id, float x) { best.merge({x, id}); });
  best = team.reduce(best);
  return best.id == INT_MAX ? otherwise : best.id;
}

template <class Team, class Row>
D3LLM_DEVICE Best<double> best_of_all(Team& team, const Row& row, const Sampler& sampler) {
  Race race;
  row.for_each(team, [&](int id, float x) { race.enter_unless_lost(sampler, x, id); });
  return team.reduce(race.best);
}

// `greedy` is the likeliest token but for ids that are barred.
template <class Team, class Row>
D3LLM_DEVICE Choice choose(Team& team, NucleusMemory& memory, const Row& row, const Sampler& sampler,
                           const Limits& limits, int greedy) {
  if (row.barred.others != nullptr) greedy = likeliest(team, row, greedy);
  if (!(sampler.temperature > 0.f)) return {greedy, greedy};
  Best<double> best;
  if (limits.any()) {
    best = Nucleus<Team, Row>(team, memory, row, sampler, limits, row.at(greedy)).best();
  } else {
    best = best_of_all(team, row, sampler);
  }
  return {greedy, best.id == INT_MAX ? greedy : best.id};
}

}  // namespace d3llm
