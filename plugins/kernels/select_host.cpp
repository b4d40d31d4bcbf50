// The choice of tokens on the CPU: of every row as if it were limited.
#include "select_host.h"

#include "barred.h"
#include "host_team.h"
#include "limited_choice.h"

namespace d3llm {
namespace {

struct HostRow {
  const float* logits;
  int vocab;
  Barred barred;

  float at(int id) const { return logits[id]; }

  template <class Team, class Visit>
  void for_each(const Team& team, Visit visit) const {
    for (int id = team.rank(); id < vocab; id += team.size())
      if (!barred.has(id)) visit(id, at(id));
  }
};

void select_row(HostTeam& team, NucleusMemory& memory, const d3llm_select_params& p, int64_t row) {
  const HostRow logits{static_cast<const float*>(p.logits) + row * p.row_stride, static_cast<int>(p.vocab_size),
                       Barred(p, row)};
  const Sampler sampler = p.temperature[row] > 0
                              ? Sampler(p.temperature[row], sampling_key(p.seed[row], p.position[row], p.number[row]))
                              : Sampler();
  const int greedy = likeliest(team, logits, p.mask_id == 0);
  const Choice choice = choose(team, memory, logits, sampler, Limits{p.top_k[row], p.top_p[row]}, greedy);
  if (team.rank() != 0) return;
  p.greedy[row] = choice.greedy;
  p.sampled[row] = choice.sampled;
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_select_host(const d3llm_select_params* params, int32_t threads) {
  if (params->struct_size != sizeof(d3llm_select_params) || threads < 1) return D3LLM_INVALID_ARGUMENT;
  d3llm::NucleusMemory memory;
  d3llm::run_team(threads, [&](d3llm::HostTeam& team) {
    for (int64_t row = 0; row < params->rows; ++row) d3llm::select_row(team, memory, *params, row);
  });
  return D3LLM_SUCCESS;
}

extern "C" void d3llm_gumbel_host(const int64_t* words, int64_t count, float* noise) {
  for (int64_t i = 0; i < count; ++i) noise[i] = d3llm::gumbel(words[i]);
}
