// Lines of the report: "ok   WHAT", "FAIL WHAT".
#include "report.h"

#include <cstdio>

namespace host {

void Report::check(bool held, const std::string& what) {
  ++checks_;
  failures_ += held ? 0 : 1;
  std::printf("%s %s\n", held ? "ok  " : "FAIL", what.c_str());
}

void Report::refused(bool failed, Logger& logger, const std::string& wanted, const std::string& what) {
  const std::string message = logger.take();
  check(failed && message.find(wanted) != std::string::npos, what + " is refused: " + message);
}

}  // namespace host
