// What the host checks: everything up to enqueue without a GPU, and enqueue on one.
#pragma once

#include "layer.h"
#include "report.h"
#include "tensorrt_side.h"

namespace host {

void check_creator(Library& library, Logger& logger, Report& report);
void check_fields(Library& library, Logger& logger, Report& report);
void check_building(Library& library, Logger& logger, Report& report);
void check_running(Library& library, Logger& logger, Report& report);

// enqueue without a GPU: errors, never a crash.
void check_enqueue_errors(Library& library, Logger& logger, Report& report);

// enqueue on a GPU against a reference in double precision.
void check_enqueue(Library& library, Logger& logger, Report& report);

}  // namespace host
