// Loads the plugin library as TensorRT would and checks it: d3llm_plugin_host LIBRARY [--gpu].
#include <cstdio>
#include <cstring>

#include "checks.h"

namespace {

void check_plugin(host::Library& library, host::Logger& logger, host::Report& report, bool gpu) {
  host::check_building(library, logger, report);
  host::check_running(library, logger, report);
  host::check_enqueue_errors(library, logger, report);
  if (gpu) host::check_enqueue(library, logger, report);
}

}  // namespace

int main(int argc, char** argv) {
  const bool gpu = argc == 3 && std::strcmp(argv[2], "--gpu") == 0;
  if (argc != 2 && !gpu) {
    std::fprintf(stderr, "usage: %s LIBRARY [--gpu]\n", argv[0]);
    return 2;
  }
  host::Logger logger;
  host::Library library(argv[1], logger);
  host::Report report;
  std::printf("library version %s\n", library.version().c_str());
  host::check_creator(library, logger, report);
  host::check_fields(library, logger, report);
  if (report.failures() == 0) check_plugin(library, logger, report, gpu);  // without a creator there is no plugin
  std::printf("%d checks, %d failed\n", report.checks(), report.failures());
  return report.failures() == 0 ? 0 : 1;
}
