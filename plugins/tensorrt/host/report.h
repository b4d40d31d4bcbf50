// Counts what held and what did not, one printed line each.
#pragma once

#include <string>

#include "tensorrt_side.h"

namespace host {

class Report {
 public:
  void check(bool held, const std::string& what);

  // A call must have failed, and what the plugin logged must have `wanted` in it.
  void refused(bool failed, Logger& logger, const std::string& wanted, const std::string& what);

  int failures() const { return failures_; }
  int checks() const { return checks_; }

 private:
  int failures_ = 0;
  int checks_ = 0;
};

}  // namespace host
