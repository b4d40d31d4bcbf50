// What a team is: code that is written once, for a thread block and for host threads.
//
// All members of a team call the same functions with the same arguments. A Team has
//
//   rank(), size()     this member, and how many there are
//   sync()             waits until all members are here; what they wrote before is seen after it
//   reduce(value)      merges everybody's value (value.merge(other), in any order) and returns the result to all; waits
//                      like sync()
//   before(value)      merges the values of the members before this one, onto a T{}; waits like sync()
//   add(cell, value)   adds to a number that several members add to; returns what it was
//
// block_team.cuh and host_team.h are the two.
#pragma once

#include "device.h"

namespace d3llm {

// The places of a team's shared array that a member goes through, where neighbours belong together.
struct Share {
  int begin, end;

  template <class Team>
  D3LLM_DEVICE static Share of(const Team& team, int count) {
    const int each = (count + team.size() - 1) / team.size();
    return {smaller(team.rank() * each, count), smaller((team.rank() + 1) * each, count)};
  }
};

}  // namespace d3llm
